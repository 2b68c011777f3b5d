"""``quantized::conv1d_dynamic`` to ``conv_transpose3d_dynamic``: float32 maps, int8 weight."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import QParams, TensorType, float32, qint8, quint8
from refquant.kernels import (
    checks,
    dequantize,
    quantize_per_tensor_dynamic,
    quantized_conv,
    quantized_conv_transpose,
)

F32 = npt.NDArray[np.float32]
# qnnpack takes the argument and does not look at it.
REDUCES_RANGE = dict.fromkeys(TORCH_ENGINES, True) | {Engine.QNNPACK: False}


def reference(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    reduce_range: bool,
    target: Target = Target(),
    **geometry: Any,
) -> F32:
    r"""Quantize the input by its own range, convolve to 8 bits of that range, dequantize.

    ``x`` becomes quint8 as by ``aten::quantize_per_tensor_dynamic``, with one scale and zero
    point for the whole tensor. The convolution is the engine's ``quantized::conv1d`` to
    ``conv3d`` (or ``conv_transpose1d`` to ``conv_transpose3d``), and its result has **the scale
    and zero point of the input**: what lies outside the input's range is clamped to its ends, and
    the rest is known to a 255th of it. The result is dequantized as by ``aten::dequantize``.

    qnnpack ignores ``reduce_range``.

    Parameters
    ----------
    x : float32 (N, C, ...)
        Real values, all finite; not empty.
    weight, bias
        As for the convolution of quint8.
    stride, padding, dilation, groups (transposed: also output_padding)
        As for the convolution of quint8.
    reduce_range : bool
        Quantize input and result to 0..127 instead of 0..255 (the result is clamped to 0..255).

    Returns
    -------
    float32 (N, OC, ...), channels-last memory whatever the input's

    Raises
    ------
    VerifyError
        If shapes, dtypes or attributes do not fit, or ``x`` is empty or holds NaN or infinity.
    UnsupportedError
        Where the convolution of quint8 is refused.

    Examples
    --------
    >>> x = np.float32([[[0, 255, 10]]])
    >>> w = QTensor(np.int8([[[1, 2]]]), 0.5, 0, None, qint8)
    >>> plain = {"stride": (1,), "padding": (0,), "dilation": (1,), "groups": 1}
    >>> reference(x, w, None, False, **plain)  # the exact results are 255 and 137.5
    array([[[255., 138.]]], dtype=float32)
    """
    q = quantize_per_tensor_dynamic.reference(x, quint8, _reduces(reduce_range, target))
    formula = _convolution(quantized_conv.reference, q, weight, bias)
    return _real(formula(**geometry, target=target), dequantize.reference)


def _convolution(
    formula: Callable[..., QTensor], q: QTensor, weight: QTensor, bias: F32 | None
) -> Callable[..., QTensor]:
    """Return the convolution whose result has the quantization parameters of ``q``."""
    scale, zero_point = float(q.scale), int(q.zero_point)
    return partial(formula, q, weight, bias, scale=scale, zero_point=zero_point)


def _real(q: QTensor, formula: Callable[[QTensor], F32]) -> F32:
    """Dequantize, keeping channels last in memory in one dimension too."""
    rows = q.with_int_repr(np.moveaxis(q.int_repr, 1, -1))
    return np.moveaxis(formula(rows), -1, 1)


def _reduces(reduce_range: bool, target: Target) -> bool:
    return reduce_range and REDUCES_RANGE[target.engine]


def reference_transposed(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    reduce_range: bool,
    target: Target = Target(),
    **geometry: Any,
) -> F32:
    """Do :func:`reference` with a transposed convolution."""
    q = quantize_per_tensor_dynamic.reference(x, quint8, _reduces(reduce_range, target))
    formula = _convolution(quantized_conv_transpose.reference, q, weight, bias)
    return _real(formula(**geometry, target=target), dequantize.reference)


def infer(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    reduce_range: bool,
    *,
    checked: Callable[..., TensorType],
    op: str,
    **geometry: Any,
) -> TensorType:
    """Check operands and attributes as for quint8."""
    checks.is_float32(op, x)
    if any(size == 0 for size in x.shape):
        raise VerifyError(f"{op}: an empty tensor has no range")
    feed = TensorType(quint8, x.shape, QParams(1.0, 0))
    return TensorType(
        float32, checked(feed, weight, bias, scale=1.0, zero_point=0, **geometry).shape
    )


def kernel(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    reduce_range: bool,
    target: Target = Target(),
    **geometry: Any,
) -> F32:
    """Compute :func:`reference` with the compiled steps."""
    q = quantize_per_tensor_dynamic.kernel(x, quint8, _reduces(reduce_range, target))
    fast = _convolution(quantized_conv.kernel, q, weight, bias)
    return _real(fast(**geometry, target=target), dequantize.kernel)


def kernel_transposed(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    reduce_range: bool,
    target: Target = Target(),
    **geometry: Any,
) -> F32:
    """Compute :func:`reference_transposed` with the compiled steps."""
    q = quantize_per_tensor_dynamic.kernel(x, quint8, _reduces(reduce_range, target))
    fast = _convolution(quantized_conv_transpose.kernel, q, weight, bias)
    return _real(fast(**geometry, target=target), dequantize.kernel)


def _cases(rank: int, transposed: bool) -> tuple[Case, ...]:
    ones, zeros = (1,) * rank, (0,) * rank
    end = (1, 1, *ones[1:], -1)
    x = np.array([0, 255, 10], np.float32).reshape(end)
    weight = QTensor(np.array([1, 2], np.int8).reshape(end), 0.5, 0, None, qint8)
    plain = {"stride": ones, "padding": zeros, "dilation": ones, "groups": 1}
    plain["reduce_range"] = False
    if transposed:
        plain["output_padding"] = zeros
    expected = [0, 128, 255, 10] if transposed else [255, 138]
    why = "the input's range is the result's; 127.5 and 137.5 go to even"
    engines = quantized_conv_transpose.engines(rank) if transposed else TORCH_ENGINES
    return (Case("clamped", (x, weight, None), plain, np.reshape(expected, end), why, engines),)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qconv_dynamic.cpp"
    "::PackedConvWeight::apply_dynamic",
)


def _op(rank: int, transposed: bool) -> Op:
    stem = "conv_transpose" if transposed else "conv"
    name = f"{stem}{rank}d_dynamic"
    module: Any = quantized_conv_transpose if transposed else quantized_conv
    return Op(
        name=f"quantized::{name}",
        reference=reference_transposed if transposed else reference,
        infer=partial(infer, checked=partial(module.infer, rank=rank), op=name),
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_transposed if transposed else kernel),
        pack=module.pack,
        source=_SOURCE,
        cases=_cases(rank, transposed),
    )


OPS = tuple(_op(rank, transposed) for transposed in (False, True) for rank in (1, 2, 3))
