"""``quantized::add`` and ``quantized::add_relu``: the sum of two quantized tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import TensorType, qint32, quint8
from refquant.kernels import checks, fixed_point_add, rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import (
    empty_strided_like,
    empty_suggested,
    flat_pair,
    memory_order,
)
from refquant.kernels.pointwise import (
    body_mask,
    body_rule,
    chunks,
    dequantize_body,
    fill,
    quantize_body,
    same_memory,
    vector_width,
)
from refquant.kernels.rounding_jit import (
    BEFORE,
    dequantize,
    dequantize_fused,
    dequantize_plain,
    narrow_after,
    narrow_before,
    quantize,
)
from refquant.kernels.tensor_iterator import (
    empty_sorted,
    from_loop_order,
    loops,
    to_loop_order,
)

Array = npt.NDArray[Any]
# Engines that add quint8 tensors of one shape in fixed point.
IN_FIXED_POINT = (Engine.QNNPACK,)


def _empty_result(a: Array, b: Array) -> Array:
    """Allocate the sum: in the format of ``a``, or sorted like the loops if ``a`` is too small."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    if shape == a.shape:
        return empty_suggested(a, a.dtype)
    return empty_sorted(shape, [a, b], a.dtype)


def reference(
    qa: QTensor, qb: QTensor, scale: float, zero_point: int, target: Target = Target()
) -> QTensor:
    r"""Add two quantized tensors as real numbers and quantize the sum.

    .. math:: q = Q(D(q_a) + D(q_b))

    torch's vector body and scalar tail round differently, so the last ``n % 64`` elements of
    each contiguous run (``n % 16`` for qint32) differ by one now and then:

    * body: :math:`D = \mathrm{fma}(s, q, -s z)`,
      :math:`Q = \mathrm{clamp}(\mathrm{rint}(x \cdot 1/s) + z)`;
    * tail: :math:`D = (q - z) s`,
      :math:`Q = \mathrm{clamp}(\mathrm{rint}(x \cdot 1/s + z))`.

    Every product and sum is rounded to float32, ties go to even. Without vector instructions
    (``isa="default"``) the body has the tail's D and adds :math:`z` fused with the product.
    qint32 is quantized as in the tail everywhere. **qnnpack** adds quint8 tensors of one shape in
    fixed point, see ``fixed_point_add.py``. Above 32,768 elements each thread has a body
    and a tail of its own. A loop
    that is not contiguous in both operands and the result is all tail.

    Parameters
    ----------
    qa, qb : QTensor, quint8, qint8 or qint32
        Quantized per tensor, of one dtype; shapes broadcast.
    scale : float, > 0
        Scale of the sum.
    zero_point : int
        Zero point of the sum.

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
    >>> a = QTensor(np.uint8([3, 200]), 0.5, 0)
    >>> reference(a, a, 1.0, 0).int_repr
    array([  3, 200], dtype=uint8)
    """
    return _add(qa, qb, scale, zero_point, target, relu=False)


def reference_relu(
    qa: QTensor, qb: QTensor, scale: float, zero_point: int, target: Target = Target()
) -> QTensor:
    r"""Add two quantized tensors as real numbers, clamp at 0, and quantize.

    .. math:: q = Q(\max(D(q_a) + D(q_b), 0))

    Everything else is as in ``quantized::add``.

    Examples
    --------
    >>> a = QTensor(np.uint8([3, 200]), 0.5, 100)
    >>> reference_relu(a, a, 1.0, 7).int_repr
    array([  7, 107], dtype=uint8)
    """
    return _add(qa, qb, scale, zero_point, target, relu=True)


def reference_out(qa: QTensor, qb: QTensor, out: QTensor, target: Target = Target()) -> QTensor:
    """Add two quantized tensors into the memory of a third, which gives scale and zero point.

    As ``quantized::add``, with the strides of ``out``: a loop that is not contiguous in it, too,
    is all tail. qnnpack has no kernel of its own for this form.

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
        If dtypes differ, or ``out`` has not the shape of the sum.

    Examples
    --------
    >>> a = QTensor(np.uint8([3, 200]), 0.5, 0)
    >>> reference_out(a, a, QTensor(np.uint8([0, 0]), 1.0, 7)).int_repr
    array([ 10, 207], dtype=uint8)
    """
    return _add(qa, qb, *out.type.per_tensor(), target, relu=False, like=out.int_repr)


def reference_relu_out(
    qa: QTensor, qb: QTensor, out: QTensor, target: Target = Target()
) -> QTensor:
    """Do :func:`reference_out` with negative sums clamped at 0."""
    return _add(qa, qb, *out.type.per_tensor(), target, relu=True, like=out.int_repr)


def _add(
    qa: QTensor,
    qb: QTensor,
    scale: float,
    zero_point: int,
    target: Target,
    *,
    relu: bool,
    like: Array | None = None,
) -> QTensor:
    if like is None and _in_fixed_point(qa, qb, target):
        low = zero_point if relu else 0
        out = empty_suggested(qa.int_repr, np.uint8)
        out[...] = fixed_point_add.reference(
            qa.int_repr, qb.int_repr, _numbers(qa, qb, scale, low), zero_point, low
        )
        return QTensor(out, scale, zero_point)
    sa, za, sb, zb = float(qa.scale), int(qa.zero_point), float(qb.scale), int(qb.zero_point)
    floor = np.float32(0 if relu else -np.inf)

    def formula(a: Array, b: Array, in_body: Array) -> Any:
        body = dequantize_body(a, sa, za, target) + dequantize_body(b, sb, zb, target)
        tail = rounding.dequantize_plain(a, sa, za) + rounding.dequantize_plain(b, sb, zb)
        return np.where(
            in_body,
            quantize_body(np.maximum(body, floor), scale, zero_point, qa.dtype, target),
            rounding.quantize_before(np.maximum(tail, floor), scale, zero_point, qa.dtype),
        )

    a, b = qa.int_repr, qb.int_repr
    out = _empty_result(a, b) if like is None else empty_strided_like(like)
    fill(out, formula, a, b, body_mask(out, [a, b], target, vector_width(qa.dtype)))
    return QTensor(out, scale, zero_point, None, qa.dtype)


def _in_fixed_point(qa: QTensor, qb: QTensor, target: Target) -> bool:
    same = qa.shape == qb.shape and qa.dtype == quint8
    return target.engine in IN_FIXED_POINT and same


def _numbers(qa: QTensor, qb: QTensor, scale: float, low: int) -> fixed_point_add.FixedPoint:
    if low >= 255:
        raise UnsupportedError(
            "quantized::add_relu: qnnpack needs a zero point below 255, as nothing is above it"
        )
    scales = float(qa.scale), float(qb.scale)
    zeros = int(qa.zero_point), int(qb.zero_point)
    return fixed_point_add.fixed_point(scales[0], zeros[0], scales[1], zeros[1], scale)


def infer(qa: TensorType, qb: TensorType, scale: float, zero_point: int) -> TensorType:
    """Check dtypes, shapes and output parameters; the result has the broadcast shape."""
    checks.per_tensor("quantized::add", qa)
    checks.per_tensor("quantized::add", qb)
    if qa.dtype != qb.dtype:
        raise VerifyError(f"quantized::add: dtypes differ: {qa.dtype} and {qb.dtype}")
    shape = checks.broadcast("quantized::add", qa.shape, qb.shape)
    qparams = checks.output_qparams("quantized::add", qa.dtype, scale, zero_point)
    return TensorType(qa.dtype, shape, qparams)


def infer_out(qa: TensorType, qb: TensorType, out: TensorType) -> TensorType:
    """Check the result's memory too."""
    checks.per_tensor("quantized::add.out", out)
    made = infer(qa, qb, *out.per_tensor())
    if made != out:
        raise VerifyError(f"quantized::add.out: out must be {made}, got {out}")
    return made


@jit
def _fill(
    a: Any,
    b: Any,
    scale_a: float,
    za: int,
    scale_b: float,
    zb: int,
    inverse: float,
    zero_point: int,
    low: int,
    high: int,
    relu: bool,
    fused: bool,
    rule: int,
    body: int,
    out: Any,
) -> None:
    sa, sb, m = np.float32(scale_a), np.float32(scale_b), np.float32(inverse)
    offset_a, offset_b = np.float32(-sa * np.float32(za)), np.float32(-sb * np.float32(zb))
    for i in range(out.size):
        in_body = i < body
        x = dequantize(a[i], sa, offset_a, za, fused and in_body)
        y = dequantize(b[i], sb, offset_b, zb, fused and in_body)
        total = np.float32(x + y)
        if relu and total < 0:
            total = np.float32(0)
        out[i] = quantize(total, m, zero_point, low, high, rule if in_body else BEFORE)


@jit
def _fill_8bit(
    a: Any,
    b: Any,
    scale_a: float,
    za: int,
    scale_b: float,
    zb: int,
    inverse: float,
    zero_point: int,
    low: int,
    high: int,
    relu: bool,
    body: int,
    out: Any,
) -> None:
    """Fill an 8-bit sum of ordinary scales on a machine with FMA: loops that vectorise."""
    sa, sb, m = np.float32(scale_a), np.float32(scale_b), np.float32(inverse)
    offset_a, offset_b = np.float32(-sa * np.float32(za)), np.float32(-sb * np.float32(zb))
    least, most = np.float32(low - zero_point), np.float32(high - zero_point)
    floor = np.float32(0 if relu else -np.inf)
    for i in range(body):
        x = dequantize_fused(a[i], sa, offset_a)
        y = dequantize_fused(b[i], sb, offset_b)
        total = max(np.float32(x + y), floor)
        out[i] = narrow_after(total, m, zero_point, least, most)
    bottom, top, zero = np.float32(low), np.float32(high), np.float32(zero_point)
    a, b, rest = a[body:], b[body:], out[body:]
    for i in range(rest.size):
        x = dequantize_plain(a[i], sa, za)
        y = dequantize_plain(b[i], sb, zb)
        total = max(np.float32(x + y), floor)
        rest[i] = narrow_before(total, m, zero, bottom, top)


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
    if like is None and target.engine in IN_FIXED_POINT and _in_fixed_point(qa, qb, target):
        out = empty_suggested(a, a.dtype)
        order = np.argsort([-step for step in out.strides], kind="stable")
        low = zero_point if relu else 0
        numbers = _numbers(qa, qb, scale, low)
        into = memory_order(out)
        fixed_point_add.fill(
            np.ascontiguousarray(a.transpose(order)).reshape(-1),
            numbers.a,
            np.ascontiguousarray(b.transpose(order)).reshape(-1),
            *(numbers.b, numbers.offset, numbers.shift, zero_point),
            *(low, into),
        )
        return QTensor(out, scale, zero_point)
    constants: tuple[Any, ...] = (
        *(float(qa.scale), int(qa.zero_point), float(qb.scale), int(qb.zero_point)),
        *(float(rounding.reciprocal(scale)), zero_point, *dtype.limits, relu),
    )
    loop: Callable[..., None] = _fill_8bit
    if dtype == qint32 or not (
        target.fused_multiply_add and rounding.is_ordinary(constants[0], constants[2], scale)
    ):
        constants = (*constants, target.fused_multiply_add, body_rule(dtype, target))
        loop = _fill
    width = vector_width(dtype)
    dense = flat_pair(a, b) if like is None else None
    if dense is not None:
        x, y, into, out = dense
    else:
        out = _empty_result(a, b) if like is None else empty_strided_like(like)
        if not same_memory(out, a, b):
            _fill_strided(a, b, loop, constants, body_mask(out, [a, b], target, width), out)
            return QTensor.unchecked(out, scale, zero_point, dtype)
        x, y, into = memory_order(a), memory_order(b), memory_order(out)
    for start, middle, end in chunks(x.size, target, width):
        loop(x[start:end], y[start:end], *constants, middle - start, into[start:end])
    return QTensor.unchecked(out, scale, zero_point, dtype)


def _fill_strided(
    a: Array,
    b: Array,
    loop: Callable[..., None],
    constants: tuple[Any, ...],
    in_body: Array,
    out: Array,
) -> None:
    """Compute both forms of every element in the order of the loops, and choose."""
    x, y = np.broadcast_to(a, out.shape), np.broadcast_to(b, out.shape)
    nest = loops([out, x, y])
    x, y = to_loop_order(x, nest), to_loop_order(y, nest)
    body, tail = np.empty_like(x), np.empty_like(x)
    loop(x, y, *constants, x.size, body)
    loop(x, y, *constants, 0, tail)
    out[...] = np.where(
        in_body,
        from_loop_order(body, nest, out.shape),
        from_loop_order(tail, nest, out.shape),
    )


def _u8(*values: int, scale: float = 1.0, zero_point: int = 0) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), scale, zero_point, None, quint8)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp::qadd_kernel",
)
_TIES = ((_u8(1, 3, 4), _u8(0, 0, 5)), {"scale": 2.0, "zero_point": 7})

OPS = (
    Op(
        name="quantized::add",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case(
                "ties",
                *_TIES,
                [8, 8, 12],
                "a short tensor is all tail: 7.5 and 8.5 go to 8",
                (Engine.FBGEMM, Engine.ONEDNN, Engine.X86),
            ),
            Case("away", *_TIES, [8, 9, 12], "0.5 and 1.5 go away from 0", IN_FIXED_POINT),
            Case(
                "body_ties",
                (_u8(*[1] * 64, 1), _u8(*[0] * 65)),
                {"scale": 2.0, "zero_point": 7},
                [7] * 64 + [8],
                "rint(0.5) + 7 in the body, rint(0.5 + 7) in the tail",
                (Engine.FBGEMM, Engine.ONEDNN, Engine.X86),
            ),
            Case(
                "saturate",
                (_u8(0, 255, zero_point=100), _u8(0, 255, zero_point=100)),
                {"scale": 1.0, "zero_point": 7},
                [0, 255],
                "both ends",
            ),
            Case("empty", (_u8(), _u8()), {"scale": 1.0, "zero_point": 7}, [], "no elements"),
        ),
    ),
    Op(
        name="quantized::add_relu",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_relu),
        source=_SOURCE,
        cases=(
            Case(
                "negative",
                (_u8(0, 101, zero_point=100), _u8(0, 255, zero_point=100)),
                {"scale": 1.0, "zero_point": 7},
                [7, 163],
                "a negative sum becomes the zero point",
            ),
        ),
    ),
    Op(
        name="quantized::add.out",
        reference=reference_out,
        infer=infer_out,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_out),
        source=_SOURCE,
        cases=(
            Case(
                "ties",
                (*_TIES[0], _u8(0, 0, 0, scale=2.0, zero_point=7)),
                {},
                [8, 8, 12],
                "as on fbgemm under every engine",
            ),
        ),
    ),
    Op(
        name="quantized::add_relu.out",
        reference=reference_relu_out,
        infer=infer_out,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_relu_out),
        source=_SOURCE,
        cases=(
            Case(
                "negative",
                (_u8(0, zero_point=100), _u8(0, zero_point=100), _u8(9, zero_point=7)),
                {},
                [7],
                "a negative sum becomes the zero point",
            ),
        ),
    ),
)
