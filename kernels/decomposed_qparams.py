"""``quantized_decomposed::choose_qparams``: scale and zero point from a tensor's own range."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import (
    DType,
    QScheme,
    TensorType,
    bfloat16,
    float64,
    int8,
    int64,
    per_tensor_affine,
    per_tensor_symmetric,
    uint8,
)
from refquant.kernels.calculate_qparams import determine_qparams
from refquant.kernels.decomposed import FLOATS, check_input, check_target, decomposed_op
from refquant.kernels.min_max import min_max, min_max_compiled

Pair = tuple[Array, Array]


def choose_qparams(x: Array, quant_min: int, quant_max: int, eps: float, dtype: DType) -> Pair:
    r"""Choose scale and zero point from the smallest and largest element (affine).

    .. math:: s = \max((hi - lo) / (q_{max} - q_{min}), \epsilon), \quad
        z = \mathrm{clamp}(q_{min} - \mathrm{rint}(lo / s))

    where the range is widened to hold 0. All arithmetic is float32; for float16 and bfloat16 the
    difference and its quotient are rounded to the type of ``x``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor, not empty
        Real values.
    quant_min, quant_max : int
        Range of the quantized values; it holds 0 and is not compared with ``dtype``.
    eps : float
        Smallest scale, rounded to float32.
    dtype : DType
        The quantized type: uint8, int8, uint16, int16, int32 or a float8.

    Returns
    -------
    scale (float64, one element), zero_point (int64, one element)
        NaN gives a NaN scale; only infinities of both signs, and nothing else, give what torch
        gives for nothing observed: float32 1 and 0.

    Raises
    ------
    VerifyError
        If types do not fit, or the range is empty or lacks 0.

    Examples
    --------
    >>> choose_qparams(np.float32([0, 255]), 0, 255, 1e-7, uint8)
    (array([1.]), array([0]))
    """
    return _choose(min_max(x), x, quant_min, quant_max, eps, dtype, per_tensor_affine)


def choose_qparams_symmetric(
    x: Array, quant_min: int, quant_max: int, eps: float, dtype: DType
) -> Pair:
    """Choose a symmetric scale; the zero point is 0, or 128 for uint8.

    ``scale = max(max(-lo, hi) / ((quant_max - quant_min) / 2), eps)`` in float32; for float16
    and bfloat16 the quotient is rounded to the type of ``x``.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor, not empty
        Real values.
    quant_min, quant_max : int
        Range of the quantized values; it holds 0 and is not compared with ``dtype``.
    eps : float
        Smallest scale, rounded to float32.
    dtype : DType
        The quantized type: uint8, int8, uint16, int16, int32 or a float8.

    Returns
    -------
    scale (float64, one element), zero_point (int64, one element)

    Raises
    ------
    VerifyError
        If types do not fit, or the range is empty or lacks 0.

    Examples
    --------
    >>> choose_qparams_symmetric(np.float32([-127.5, 3]), -128, 127, 1e-7, int8)
    (array([1.]), array([0]))
    """
    return _choose(min_max(x), x, quant_min, quant_max, eps, dtype, per_tensor_symmetric)


def _choose(
    ends: tuple[np.float32, np.float32],
    x: Array,
    quant_min: int,
    quant_max: int,
    eps: float,
    dtype: DType,
    qscheme: QScheme,
) -> Pair:
    low, high = (end.astype(x.dtype) for end in ends)
    return determine_qparams(low, high, quant_min, quant_max, dtype, eps, qscheme=qscheme)


def _compiled(qscheme: QScheme) -> Callable[..., Pair]:
    """Return the kernel: the range is found in one compiled pass."""

    def kernel(x: Array, quant_min: int, quant_max: int, eps: float, dtype: DType) -> Pair:
        return _choose(min_max_compiled(x), x, quant_min, quant_max, eps, dtype, qscheme)

    return kernel


def _infer(
    x: TensorType, quant_min: int, quant_max: int, eps: float, dtype: DType
) -> tuple[TensorType, TensorType]:
    op = "choose_qparams"
    check_input(op, x, FLOATS)
    check_target(op, dtype)
    if 0 in x.shape:
        raise VerifyError(f"{op}: expected a tensor with elements, got {x}")
    if quant_min >= quant_max:
        raise VerifyError(f"{op}: range [{quant_min}, {quant_max}] is empty")
    if not quant_min <= 0 <= quant_max:
        raise VerifyError(f"{op}: range [{quant_min}, {quant_max}] must include 0")
    return TensorType(float64, (1,)), TensorType(int64, (1,))


_X = np.array([[0.5, 1.5, -0.5]], np.float32)
_U8 = {"quant_min": 0, "quant_max": 255, "dtype": uint8}
_I8 = {"quant_min": -128, "quant_max": 127, "dtype": int8}

OPS = (
    decomposed_op(
        "choose_qparams.tensor",
        choose_qparams,
        _infer,
        Case("zero", (_X * 0,), _U8 | {"eps": 0.5}, ([0.5], [0]), "eps is the smallest scale"),
        Case(
            "half",
            (_X.astype(bfloat16.storage),),
            _U8 | {"eps": 0.0},
            ([0.00787353515625], [64]),
            "2 / 255 rounds to a bfloat16",
        ),
        kernel=_compiled(per_tensor_affine),
    ),
    decomposed_op(
        "choose_qparams_symmetric.tensor",
        choose_qparams_symmetric,
        _infer,
        Case("zero", (_X * 0,), _I8 | {"eps": 0.5}, ([0.5], [0]), "eps is the smallest scale"),
        Case("uint8", (_X * 85,), _U8 | {"eps": 0.0}, ([1.0], [128]), "the middle"),
        kernel=_compiled(per_tensor_symmetric),
    ),
)
