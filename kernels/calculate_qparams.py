"""The scale and zero point that torch's Python observers choose, in float32 arithmetic.

This is the third of torch's algorithms; the two of its C++ kernels are in ``choose_qparams.py``.
"""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.types import (
    DType,
    QScheme,
    bfloat16,
    float16,
    float32,
    int8,
    int16,
    int32,
    per_channel_affine_float_qparams,
    per_tensor_affine,
    qint8,
    qint32,
    quint8,
    uint8,
    uint16,
)

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
FLOAT32_EPS = float(np.finfo(np.float32).eps)

_FULL_RANGE = {
    **dict.fromkeys((qint8, int8), (-128, 127)),
    **dict.fromkeys((quint8, uint8), (0, 255)),
    **dict.fromkeys((qint32, int32), (-(2**31), 2**31 - 1)),
    uint16: (0, 2**16 - 1),
    int16: (-(2**15), 2**15 - 1),
}
_REDUCED_RANGE = {
    **dict.fromkeys((qint8, int8), (-64, 63)),
    **dict.fromkeys((quint8, uint8), (0, 127)),
}


def quant_range(
    dtype: DType,
    quant_min: int | None = None,
    quant_max: int | None = None,
    reduce_range: bool = False,
) -> tuple[int, int]:
    """Return the range of quantized values that an observer uses.

    Parameters
    ----------
    dtype : DType
        The quantized type; its own range applies where no custom one is given. Types without
        one of their own in torch's table (quint4x2, the float8 types) have 0 to 15.
    quant_min, quant_max : int, optional
        A custom range; both or it is ignored. It must include 0.
    reduce_range : bool
        Use one bit less: 8-bit types, and any custom range, which is halved rounding down.

    Raises
    ------
    VerifyError
        If the custom range is empty, does not include 0 or is wider than a signed 8-bit or a
        32-bit type. Like torch, a range wider than quint8 is accepted here.

    Examples
    --------
    >>> quant_range(quint8), quant_range(qint8, reduce_range=True), quant_range(quint8, 0, 127)
    ((0, 255), (-64, 63), (0, 127))
    """
    if quant_min is None or quant_max is None:
        table = _FULL_RANGE | _REDUCED_RANGE if reduce_range else _FULL_RANGE
        return table.get(dtype, (0, 15))
    quant_min, quant_max = index(quant_min), index(quant_max)  # NumPy's integers wrap
    if not quant_min <= 0 <= quant_max or quant_min == quant_max:
        raise VerifyError(
            "the quantization range must include 0 and have quant_min < quant_max, "
            f"got [{quant_min}, {quant_max}]"
        )
    widest = {qint8: 2**8, int8: 2**8, qint32: 2**32, int32: 2**32}.get(dtype)
    if widest is not None and quant_max - quant_min >= widest:
        raise VerifyError(
            f"{dtype} has {widest} values, got the quantization range [{quant_min}, {quant_max}]"
        )
    return (quant_min // 2, quant_max // 2) if reduce_range else (quant_min, quant_max)


def calculate_qparams(
    min_val: npt.ArrayLike,
    max_val: npt.ArrayLike,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    qscheme: QScheme = per_tensor_affine,
    eps: float = FLOAT32_EPS,
    customized: bool = False,
) -> tuple[F32, Array]:
    r"""Return the scale and zero point of each range ``[min_val, max_val]``, extended to 0.

    .. math::

        \text{affine:}\quad s &= \max((max - min) / (q_{max} - q_{min}),\ \epsilon), &
            z &= \mathrm{clamp}(q_{min} - \mathrm{rint}(min / s)) \\
        \text{symmetric:}\quad s &= \max(\max(-min, max) / ((q_{max} - q_{min}) / 2),\ \epsilon),
            & z &= 0,\ \text{or the middle of an unsigned type} \\
        \text{float qparams:}\quad s &= (max - min) / (q_{max} - q_{min}), & z &= -min / s

    Every operation is rounded to float32; rounding to integers is half to even. The zero point
    is computed in int32, which wraps, before it is clamped. With float qparams the range is not
    extended to 0, and a scale not above eps becomes 1. NaN gives a NaN scale.

    Parameters
    ----------
    min_val, max_val : float32, 0-d or shape (C,)
        Ranges.
    quant_min, quant_max : int
        Range of the quantized values.
    dtype : DType
        Decides the symmetric zero point: 128 for 8 unsigned bits, or with a customized range its
        middle rounded down; 32768 for uint16; otherwise 0.
    qscheme : QScheme
        Which of the formulas.
    eps : float
        The smallest scale.
    customized : bool
        Whether the range was given by the user rather than by ``dtype``.

    Returns
    -------
    scale : float32, shape (1,) or (C,)
    zero_point : shape of scale; int32 (affine), int64 (symmetric) or float32 (float qparams)

    Raises
    ------
    VerifyError
        If a minimum is greater than its maximum, or the affine range does not fit into int32.

    Examples
    --------
    >>> calculate_qparams(-1.0, 3.0, 0, 255, quint8)
    (array([0.01568628], dtype=float32), array([64], dtype=int32))
    """
    low, high = (np.asarray(v, np.float32) for v in (min_val, max_val))
    limits = quant_min, quant_max
    return _formulas(low, high, *limits, dtype, qscheme, eps, customized, float32)


def _formulas(
    low: F32,
    high: F32,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    qscheme: QScheme,
    eps: float,
    customized: bool,
    kind: DType,
) -> tuple[F32, Array]:
    """Compute :func:`calculate_qparams`; until eps is compared, operations round to ``kind``."""
    _check(low, high)
    zero = np.float32(0)
    low_or_0, high_or_0 = np.minimum(low, zero), np.maximum(high, zero)
    steps = float(quant_max - quant_min)
    smallest = np.float32(eps)
    zero_point: Any

    def rounded(x: Any) -> Any:
        return x.astype(kind.storage).astype(np.float32)

    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if qscheme.is_symmetric:
            scale = rounded(np.maximum(-low_or_0, high_or_0) / np.float32(steps / 2))
            scale = np.maximum(scale, smallest)
            middle = _symmetric_zero_point(dtype, quant_min, quant_max, customized)
            zero_point = np.full(scale.shape, middle, np.int64)
        elif qscheme == per_channel_affine_float_qparams:
            scale = rounded(rounded(high - low) / np.float32(steps))
            scale = np.where(scale > smallest, scale, np.float32(1))
            zero_point = rounded(-low / scale)
        else:
            if not -(2**31) <= quant_min <= quant_max < 2**31:
                raise VerifyError(
                    f"the affine range [{quant_min}, {quant_max}] does not fit into int32"
                )
            scale = rounded(rounded(high_or_0 - low_or_0) / np.float32(steps))
            scale = np.maximum(scale, smallest)
            zero_point = _clamp_wrapping(quant_min, low_or_0 / scale, quant_max)
    return np.atleast_1d(scale), np.atleast_1d(zero_point)


def _check(low: F32, high: F32) -> None:
    if np.any(low > high):
        at = int(np.argmax(np.ravel(low > high)))
        raise VerifyError(f"min {low.flat[at]} must not be greater than max {high.flat[at]}")


def _symmetric_zero_point(dtype: DType, quant_min: int, quant_max: int, customized: bool) -> int:
    if dtype in (quint8, uint8):
        return (quant_min + quant_max) // 2 if customized else 128
    return 2**15 if dtype == uint16 else 0


def _clamp_wrapping(quant_min: int, quotient: Array, quant_max: int) -> npt.NDArray[np.int32]:
    """Return ``quant_min - rint(quotient)`` in C's int32, clamped."""
    rounded = np.rint(quotient).astype(np.float64)
    fits = (rounded >= -(2.0**31)) & (rounded < 2.0**31)
    whole = np.where(fits, rounded, -(2.0**31)).astype(np.int64)  # the C cast of anything else
    wrapped = (quant_min - whole).astype(np.int32)
    return np.asarray(np.clip(wrapped, quant_min, quant_max))


def determine_qparams(
    min_val: npt.ArrayLike,
    max_val: npt.ArrayLike,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    eps: float = FLOAT32_EPS,
    has_customized_qrange: bool = False,
    qscheme: QScheme = per_tensor_affine,
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return what torch's function of this name does: the same numbers in wider types.

    :func:`calculate_qparams` as float64 and int64, but a float zero point is truncated to an
    integer, and the symmetric zero point of uint16 is 0. Nothing observed gives a float32 1
    and 0. The range of a float16 or bfloat16 array is subtracted and divided in its type; from
    the comparison with eps on, the arithmetic is float32 (float qparams: still in that type).

    Examples
    --------
    >>> determine_qparams(-1.0, 3.0, 0, 255, quint8)
    (array([0.01568628]), array([64]))
    """
    low, high = (np.asarray(v, np.float32) for v in (min_val, max_val))
    if is_unobserved(low, high):
        return np.array([1.0], np.float32), np.array([0])
    given = np.asarray(min_val).dtype
    scale, zero_point = _formulas(
        *(low, high, quant_min, quant_max),
        int16 if dtype == uint16 else dtype,
        *(qscheme, eps, has_customized_qrange),
        next((half for half in (float16, bfloat16) if half.storage == given), float32),
    )
    with np.errstate(invalid="ignore"):
        return scale.astype(np.float64), zero_point.astype(np.int64)


def is_unobserved(low: F32, high: F32) -> bool:
    """Whether a range is still what it was before any data: empty, or from +inf to -inf."""
    if low.size == 0 or high.size == 0:
        return True
    return low.ndim == 0 and bool(low == np.inf) and bool(high == -np.inf)
