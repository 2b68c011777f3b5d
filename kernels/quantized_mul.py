"""``quantized::mul`` and ``quantized::mul_relu``: the product of two quantized tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import DType, TensorType, qint32, quint8
from refquant.kernels import checks, rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import (
    empty_strided_like,
    empty_suggested,
    flat,
    flat_pair,
    is_channels_last,
    memory_order,
)
from refquant.kernels.pointwise import body_mask, chunks, fill, same_memory, vector_width
from refquant.kernels.rounding_jit import clamp, narrow_after
from refquant.kernels.tensor_iterator import from_loop_order, loops, to_loop_order

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def multiplier(scale_a: float, scale_b: float, scale: float) -> np.float32:
    """Return ``(scale_a * scale_b) * (1 / scale)``, each step rounded to float32."""
    return np.float32(np.float32(scale_a) * np.float32(scale_b)) * rounding.reciprocal(scale)


def reference(
    qa: QTensor, qb: QTensor, scale: float, zero_point: int, target: Target = Target()
) -> QTensor:
    r"""Multiply two quantized tensors.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}((q_a - z_a)(q_b - z_b) \cdot m) + z), \quad
              m = (s_a s_b) \cdot (1 / s)

    The product of the integers is an int32 (it wraps for qint32). The three steps of *m* are
    rounded to float32 each, and so is the product with *m*; ties go to even before the zero
    point is added.

    The vector body and the scalar tail of ``quantized::add`` differ in extreme cases only:

    * the body rounds the integer product to float32 before it multiplies, which matters above
      ``2**24`` (qint32);
    * in the body a rounded value beyond the range of int32 becomes ``-2**31``, so a positive
      overflow gives the *smallest* value; and for qint32 adding the zero point wraps. Without
      vector instructions the zero point is added in float32 before the conversion.

    Parameters
    ----------
    qa, qb : QTensor, quint8, qint8 or qint32
        Quantized per tensor, of one dtype; shapes broadcast.
    scale : float, > 0
        Scale of the product.
    zero_point : int
        Zero point of the product.

    Returns
    -------
    QTensor
        In the memory format of ``qa``.

    Raises
    ------
    VerifyError
        If dtypes differ or are not accepted, shapes do not broadcast, ``scale`` is not positive
        or ``zero_point`` is out of range.

    Examples
    --------
    >>> a = QTensor(np.uint8([8, 7]), 1.0, 7)
    >>> b = QTensor(np.uint8([3, 3]), 1.0, 0)
    >>> reference(a, b, 2.0, 7).int_repr
    array([9, 7], dtype=uint8)
    """
    return _multiply(qa, qb, scale, zero_point, target, relu=False)


def reference_relu(
    qa: QTensor, qb: QTensor, scale: float, zero_point: int, target: Target = Target()
) -> QTensor:
    """Multiply two quantized tensors and clamp the product at 0.

    No integer of the result is below its zero point; everything else is as in
    ``quantized::mul``.

    Examples
    --------
    >>> a = QTensor(np.uint8([6, 8]), 1.0, 7)
    >>> b = QTensor(np.uint8([3, 3]), 1.0, 0)
    >>> reference_relu(a, b, 2.0, 7).int_repr
    array([7, 9], dtype=uint8)
    """
    return _multiply(qa, qb, scale, zero_point, target, relu=True)


def reference_out(qa: QTensor, qb: QTensor, out: QTensor, target: Target = Target()) -> QTensor:
    """Multiply two quantized tensors into the memory of a third, which gives the parameters.

    As ``quantized::mul``, with the strides of ``out``: a loop that is not contiguous in it, too,
    is all tail.

    Parameters
    ----------
    qa, qb : QTensor, quint8, qint8 or qint32
        Quantized per tensor, of one dtype; shapes broadcast.
    out : QTensor
        Only its parameters and its strides matter.

    Returns
    -------
    QTensor

    Raises
    ------
    VerifyError
        If dtypes differ, or ``out`` has not the shape of the product.

    Examples
    --------
    >>> a = QTensor(np.uint8([3, 200]), 1.0, 0)
    >>> reference_out(a, a, QTensor(np.uint8([0, 0]), 9.0, 7)).int_repr
    array([  8, 255], dtype=uint8)
    """
    return _multiply(qa, qb, *out.type.per_tensor(), target, relu=False, like=out.int_repr)


def reference_relu_out(
    qa: QTensor, qb: QTensor, out: QTensor, target: Target = Target()
) -> QTensor:
    """Do :func:`reference_out` with negative products clamped at 0."""
    return _multiply(qa, qb, *out.type.per_tensor(), target, relu=True, like=out.int_repr)


def _empty(a: Array, b: Array, like: Array | None) -> Array:
    if like is not None:
        return empty_strided_like(like)
    return empty_suggested(a, a.dtype, np.broadcast_shapes(a.shape, b.shape))


def _multiply(
    qa: QTensor,
    qb: QTensor,
    scale: float,
    zero_point: int,
    target: Target,
    *,
    relu: bool,
    like: Array | None = None,
) -> QTensor:
    m = multiplier(float(qa.scale), float(qb.scale), scale)
    floor = zero_point if relu else qa.dtype.limits[0]

    def formula(a: Array, b: Array, in_body: Array) -> Array:
        exact = (a.astype(np.int64) - qa.zero_point) * (b.astype(np.int64) - qb.zero_point)
        product = exact.astype(np.int32)
        body = _round_body(product, m, zero_point, qa.dtype, target)
        tail = _round_tail(product, m, zero_point, qa.dtype)
        return np.maximum(np.where(in_body, body, tail), floor)

    a, b = qa.int_repr, qb.int_repr
    out = _empty(a, b, like)
    fill(out, formula, a, b, body_mask(out, [a, b], target, vector_width(qa.dtype)))
    return QTensor(out, scale, zero_point, None, qa.dtype)


def _round_body(
    product: Array, m: np.float32, zero_point: int, dtype: DType, target: Target
) -> Array:
    rounded = np.rint(product.astype(np.float32) * m)
    if target.fused_multiply_add:
        shifted = _to_int32(rounded) + zero_point
    else:
        shifted = _to_int32(rounded + np.float32(zero_point))
    return shifted.astype(np.int32) if dtype == qint32 else np.clip(shifted, *dtype.limits)


def _to_int32(whole: F32) -> Array:
    """Convert as the processor does: what does not fit becomes ``-2**31``."""
    fits = (whole >= -(2.0**31)) & (whole < 2.0**31)
    return np.where(fits, whole, -(2.0**31)).astype(np.int64)


def _round_tail(product: Array, m: np.float32, zero_point: int, dtype: DType) -> Array:
    real = (product.astype(np.float64) * np.float64(m)).astype(np.float32)
    return rounding.saturate(np.rint(real).astype(np.float64) + zero_point, dtype)


def infer(qa: TensorType, qb: TensorType, scale: float, zero_point: int) -> TensorType:
    """Check dtypes, shapes and output parameters; the result has the broadcast shape."""
    checks.per_tensor("quantized::mul", qa)
    checks.per_tensor("quantized::mul", qb)
    if qa.dtype != qb.dtype:
        raise VerifyError(f"quantized::mul: dtypes differ: {qa.dtype} and {qb.dtype}")
    shape = checks.broadcast("quantized::mul", qa.shape, qb.shape)
    qparams = checks.output_qparams("quantized::mul", qa.dtype, scale, zero_point)
    return TensorType(qa.dtype, shape, qparams)


def infer_out(qa: TensorType, qb: TensorType, out: TensorType) -> TensorType:
    """Check the result's memory too."""
    checks.per_tensor("quantized::mul.out", out)
    made = infer(qa, qb, *out.per_tensor())
    if made != out:
        raise VerifyError(f"quantized::mul.out: out must be {made}, got {out}")
    return made


@jit
def _convert(whole: np.float32) -> Any:
    if np.float32(-2147483648.0) <= whole < np.float32(2147483648.0):
        return np.int64(whole)
    return np.int64(-(2**31))


@jit
def _fill(
    a: Any,
    za: int,
    b: Any,
    zb: int,
    m: np.float32,
    zero_point: int,
    low: int,
    high: int,
    floor: int,
    rule: int,
    out: Any,
) -> None:
    for i in range(out.size):
        product = np.int32((np.int64(a[i]) - za) * (np.int64(b[i]) - zb))
        if rule == 0:
            whole = np.rint(np.float32(np.float32(product) * m))
            q = np.int64(np.int32(_convert(whole) + zero_point))
        elif rule == 1:
            whole = np.rint(np.float32(np.float32(product) * m))
            q = _convert(np.float32(whole + np.float32(zero_point)))
        else:
            whole = np.rint(np.float32(np.float64(product) * np.float64(m)))
            limited = min(max(whole, np.float32(-(2.0**40))), np.float32(2.0**40))
            q = np.int64(limited) + zero_point
        out[i] = max(clamp(q, low, high), floor)


@jit
def _fill_8bit(
    a: Any,
    b: Any,
    za: int,
    zb: int,
    multiplier: float,
    zero_point: int,
    low: int,
    high: int,
    floor: int,
    out: Any,
) -> None:
    """Fill an 8-bit product that cannot overflow: a loop that vectorises.

    The differences and their product are exact in float32, which is quicker than integers.
    """
    m, fa, fb = np.float32(multiplier), np.float32(za), np.float32(zb)
    least = np.float32(max(low, floor) - zero_point)
    most = np.float32(high - zero_point)
    for i in range(out.size):
        x, y = np.float32(np.float32(a[i]) - fa), np.float32(np.float32(b[i]) - fb)
        out[i] = narrow_after(np.float32(x * y), m, zero_point, least, most)


@jit
def _fill_gated(
    a: Any,
    gates: Any,
    za: int,
    zb: int,
    multiplier: float,
    zero_point: int,
    low: int,
    high: int,
    floor: int,
    channels_last: bool,
    out: Any,
) -> None:
    """Do the same for an image whose channels have one factor each."""
    pixels = out.size // gates.size
    if channels_last:
        several = min(pixels, max(1, 4096 // gates.size))  # pixels that one loop takes
        factors = np.empty(several * gates.size, gates.dtype)
        for i in range(several):
            factors[i * gates.size : (i + 1) * gates.size] = gates
        for begin in range(0, out.size, factors.size):
            row = slice(begin, min(begin + factors.size, out.size))
            _fill_8bit(a[row], factors, za, zb, multiplier, zero_point, low, high, floor, out[row])
        return
    factors = np.empty(pixels, gates.dtype)
    for c in range(gates.size):
        factors[:] = gates[c]
        row = slice(c * pixels, (c + 1) * pixels)
        _fill_8bit(a[row], factors, za, zb, multiplier, zero_point, low, high, floor, out[row])


# The rules of the loops: the vector body, that of a plain build, the scalar tail.
_BODY, _PLAIN, _TAIL = 0, 1, 2


def kernel(
    qa: QTensor, qb: QTensor, scale: float, zero_point: int, target: Target = Target()
) -> QTensor:
    """Compute :func:`reference` in one compiled pass."""
    return _run(qa, qb, scale, zero_point, target, relu=False)


def kernel_relu(
    qa: QTensor, qb: QTensor, scale: float, zero_point: int, target: Target = Target()
) -> QTensor:
    """Compute :func:`reference_relu` in one compiled pass."""
    return _run(qa, qb, scale, zero_point, target, relu=True)


def kernel_out(qa: QTensor, qb: QTensor, out: QTensor, target: Target = Target()) -> QTensor:
    """Compute :func:`reference_out` in one compiled pass."""
    return _run(qa, qb, *out.type.per_tensor(), target, relu=False, like=out.int_repr)


def kernel_relu_out(qa: QTensor, qb: QTensor, out: QTensor, target: Target = Target()) -> QTensor:
    """Compute :func:`reference_relu_out` in one compiled pass."""
    return _run(qa, qb, *out.type.per_tensor(), target, relu=True, like=out.int_repr)


def _run(
    qa: QTensor,
    qb: QTensor,
    scale: float,
    zero_point: int,
    target: Target,
    *,
    relu: bool,
    like: Array | None = None,
) -> QTensor:
    a, b, dtype = qa.int_repr, qb.int_repr, qa.dtype
    m = multiplier(float(qa.scale), float(qb.scale), scale)
    low, high = dtype.limits
    limits = (zero_point, low, high, zero_point if relu else low)
    constants = (int(qa.zero_point), int(qb.zero_point), float(m), *limits)
    plain = dtype != qint32 and constants[2] * 255**2 < 2**31  # body and tail agree
    if plain and like is None:
        dense = flat_pair(a, b)
        if dense is not None:
            x, y, into, out = dense
            _fill_8bit(x, y, *constants, into)
            return QTensor.unchecked(out, scale, zero_point, dtype)
        if _is_gate(a, b):
            x, into, out = flat(a, a.dtype)
            gates = np.ascontiguousarray(b).reshape(-1)
            _fill_gated(x, gates, *constants, is_channels_last(a), into)
            return QTensor.unchecked(out, scale, zero_point, dtype)
    out = _empty(a, b, like)

    def multiply(x: Array, y: Array, rule: int, into: Array) -> None:
        if plain:
            _fill_8bit(x, y, *constants, into)
        else:
            _fill(x, constants[0], y, constants[1], m, *limits, rule, into)

    in_body = _BODY if target.fused_multiply_add else _PLAIN
    if same_memory(out, a, b):
        x, y, into = memory_order(a), memory_order(b), memory_order(out)
        for start, middle, end in chunks(out.size, target, vector_width(dtype)):
            multiply(x[start:middle], y[start:middle], in_body, into[start:middle])
            multiply(x[middle:end], y[middle:end], _TAIL, into[middle:end])
        return QTensor.unchecked(out, scale, zero_point, dtype)
    x, y = np.broadcast_to(a, out.shape), np.broadcast_to(b, out.shape)
    nest = loops([out, x, y])
    x, y = to_loop_order(x, nest), to_loop_order(y, nest)
    body = np.empty_like(x)
    multiply(x, y, in_body, body)
    if plain:
        out[...] = from_loop_order(body, nest, out.shape)
        return QTensor.unchecked(out, scale, zero_point, dtype)
    tail = np.empty_like(x)
    multiply(x, y, _TAIL, tail)
    out[...] = np.where(
        body_mask(out, [a, b], target, vector_width(dtype)),
        from_loop_order(body, nest, out.shape),
        from_loop_order(tail, nest, out.shape),
    )
    return QTensor.unchecked(out, scale, zero_point, dtype)


def _is_gate(a: Array, b: Array) -> bool:
    """Whether ``b`` has one factor for each channel of one image."""
    image = a.ndim == b.ndim == 4 and a.shape[0] == 1
    return image and a.size > 0 and b.shape == (1, a.shape[1], 1, 1)


def _u8(*values: int, zero_point: int = 0) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), 1.0, zero_point, None, quint8)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::qmul_kernel",
)

OPS = (
    Op(
        name="quantized::mul",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case(
                "ties",
                (_u8(1, 3, 4), _u8(1, 1, 2)),
                {"scale": 2.0, "zero_point": 7},
                [7, 9, 11],
                "rint before the zero point is added: 0.5 goes to 0 and 1.5 to 2",
            ),
            Case(
                "saturate",
                (_u8(0, 255, zero_point=100), _u8(1, 2)),
                {"scale": 1.0, "zero_point": 7},
                [0, 255],
                "both ends",
            ),
            Case(
                "overflow",
                (_u8(*[200] * 65), _u8(*[200] * 65)),
                {"scale": 1e-6, "zero_point": 7},
                [0] * 64 + [255],
                "4e10 becomes -2**31 in the vector body, but saturates in the scalar tail",
            ),
            Case("empty", (_u8(), _u8()), {"scale": 1.0, "zero_point": 7}, [], "no elements"),
        ),
    ),
    Op(
        name="quantized::mul_relu",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_relu),
        source=_SOURCE,
        cases=(
            Case(
                "negative",
                (_u8(0, 102, zero_point=100), _u8(1, 3)),
                {"scale": 1.0, "zero_point": 7},
                [7, 13],
                "a negative product becomes the zero point",
            ),
        ),
    ),
    Op(
        name="quantized::mul.out",
        reference=reference_out,
        infer=infer_out,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_out),
        source=_SOURCE,
        cases=(
            Case(
                "overflow",
                (*(_u8(*[200] * 128),) * 2, QTensor(np.zeros(256, np.uint8)[::2], 1e-6, 7)),
                {},
                [255] * 128,
                "strides of the result: no vector body, so it saturates",
            ),
        ),
    ),
    Op(
        name="quantized::mul_relu.out",
        reference=reference_relu_out,
        infer=infer_out,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_relu_out),
        source=_SOURCE,
        cases=(
            Case(
                "negative",
                (_u8(0, zero_point=100), _u8(1), _u8(9, zero_point=7)),
                {},
                [7],
                "a negative product becomes the zero point",
            ),
        ),
    ),
)
