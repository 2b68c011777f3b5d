"""``aten::fake_quantize_per_channel_affine``: a scale and a zero point for each channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import type_of
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType, bool_, float16, float32, format_shape, int32
from refquant.kernels import rounding
from refquant.kernels.fake_quantize_per_tensor import (
    EXACT,
    Array,
    Pair,
    check_float,
    check_range,
    narrowed,
    widened,
)
from refquant.kernels.jit import fma, jit
from refquant.kernels.layout import empty_preserved, memory_order, memory_permutation
from refquant.kernels.pointwise import fill
from refquant.kernels.rounding_jit import AFTER, BEFORE, FUSED

F32 = npt.NDArray[np.float32]


def fake_quantize_per_channel(
    x: Array,
    scale: F32,
    zero_point: Array,
    axis: int,
    quant_min: int,
    quant_max: int,
    target: Target = Target(),
) -> Pair:
    r"""Quantize and dequantize each channel; also return which elements were in range.

    .. math:: q = \mathrm{clamp}(r, q_{min}, q_{max}), \quad y = (q - z_c) \cdot s_c

    With integer zero points :math:`r = z_c + \mathrm{rint}(x \cdot (1/s_c))`: the float32 product
    is rounded to a whole number before the zero point is added. With float zero points
    :math:`r = \mathrm{rint}(\mathrm{fma}(x, 1/s_c, z_c))`: the zero point is added before that,
    with one rounding where the target has fused multiply-add, and with two where it has not or
    where the zero points are float16; a float64 sum is rounded to float32 before the rounding to
    a whole number. Ties go to even.

    ``r`` is converted to int64 as x86 does, so NaN, +inf and everything beyond 2**63 become the
    smallest integer: all of these give ``quant_min`` (per tensor +inf gives ``quant_max``).
    Difference and product of ``y`` are float64; then it is rounded to the type of ``x``, via
    float32 where that is float16 or bfloat16.

    Parameters
    ----------
    x : float32, float64, float16 or bfloat16, any shape
        Real values. float64 is multiplied and rounded in float64, the others in float32.
    scale : float32, shape (C,)
        Real size of one step. Any value is accepted, as in ``fake_quantize_per_tensor_affine``.
    zero_point : int32, float32 or float16, shape (C,)
        The quantized value that stands for 0.0; a float one is not rounded and may lie outside
        the range.
    axis : int, >= 0
        The channel axis.
    quant_min, quant_max : int
        Range of the quantized values.
    target : Target
        ``fused_multiply_add`` decides how a float zero point is added.

    Returns
    -------
    y : dtype, shape and, where dense, strides of ``x``
        Values on the quantized grid.
    mask : bool
        Where ``quant_min <= r <= quant_max``: the elements whose gradient passes.

    Raises
    ------
    VerifyError
        If a dtype, a length or the axis does not fit, or an integer zero point is outside the
        range.

    Examples
    --------
    >>> x = np.float32([[0.25, 9.0], [0.25, 9.0]])
    >>> scale, zero_point = np.float32([0.5, 0.25]), np.int32([1, 0])
    >>> fake_quantize_per_channel(x, scale, zero_point, 0, 0, 7)[0]
    array([[0.  , 3.  ],
           [0.25, 1.75]], dtype=float32)
    """
    _check(x, scale, zero_point, axis, quant_min, quant_max)
    y, mask = empty_preserved(x, x.dtype), empty_preserved(x, np.bool_)
    shape = [1] * x.ndim
    shape[axis] = -1
    s, z = scale.reshape(shape), zero_point.reshape(shape)
    position = _POSITIONS[_rule(zero_point, target)]
    wide: type[np.floating[Any]] = np.float64 if x.dtype == np.float64 else np.float32

    def whole(x: Array, s: Array, z: Array) -> Array:
        real = position(x.astype(wide), (np.float32(1) / s).astype(wide), z.astype(wide))
        return rounding.to_int64(real)

    def inside(x: Array, s: Array, z: Array) -> Array:
        r = whole(x, s, z)
        return (quant_min <= r) & (r <= quant_max)

    def value(x: Array, s: Array, z: Array) -> Array:
        q = np.clip(whole(x, s, z), quant_min, quant_max).astype(np.float64)
        return ((q - z.astype(np.float64)) * s.astype(np.float64)).astype(wide)

    with np.errstate(all="ignore"):
        fill(mask, inside, x, s, z)
        fill(y, value, x, s, z)
    return y, mask


def _after(x: Array, inverse: Array, z: Array) -> Any:
    return z + np.rint(x * inverse)


def _before(x: Array, inverse: Array, z: Array) -> Any:
    return np.rint((x * inverse + z).astype(np.float32))


def _fused(x: Array, inverse: Array, z: Array) -> Any:
    multiply_add = rounding.fma64 if x.dtype == np.float64 else rounding.fma
    return np.rint(multiply_add(x, inverse, z).astype(np.float32))


_POSITIONS: dict[int, Callable[..., Array]] = {AFTER: _after, BEFORE: _before, FUSED: _fused}


def _rule(zero_point: Array, target: Target) -> int:
    if zero_point.dtype.kind != "f":
        return AFTER
    if zero_point.dtype == np.float16:
        return BEFORE
    return FUSED if target.fused_multiply_add else BEFORE


def _check(
    x: Array, scale: F32, zero_point: Array, axis: int, quant_min: int, quant_max: int
) -> None:
    """Check types, as ``infer`` does, and values: module classes call without a graph."""
    op = "fake_quantize_per_channel_affine"
    _infer_cachemask(type_of(x), type_of(scale), type_of(zero_point), axis, quant_min, quant_max)
    if zero_point.dtype.kind != "f":
        smallest, largest = int(zero_point.min()), int(zero_point.max())
        if smallest < quant_min or largest > quant_max:
            got = smallest if smallest < quant_min else largest
            raise VerifyError(f"{op}: zero_point must be in [{quant_min}, {quant_max}], got {got}")


class Rows(NamedTuple):
    """How the memory of a dense array is cut into rows that the compiled loops take.

    Either a row has one channel (``by_row``; row ``r`` has channel ``r % channels``), or each of
    its elements has its own parameters, the same in every row.
    """

    shape: tuple[int, int]
    by_row: bool
    repeats: int

    def parameters(self, values: Array) -> F32:
        """Return one number for each row or, where channels change faster, for each element."""
        return np.repeat(values.astype(np.float32), self.repeats)


# Shorter runs of one channel are spelled out, so that vector loops stay long.
_SHORT = 64


def rows_of(x: Array, axis: int) -> Rows:
    """Cut a dense array into rows, by the place of ``axis`` in memory.

    Examples
    --------
    >>> rows_of(np.zeros((2, 3, 100)), 1)
    Rows(shape=(6, 100), by_row=True, repeats=1)
    >>> rows_of(np.zeros((2, 3, 5)), 1)
    Rows(shape=(2, 15), by_row=False, repeats=5)
    """
    permutation = memory_permutation(x)
    place = permutation.index(axis)
    inner = int(np.prod([x.shape[d] for d in permutation[place + 1 :]], dtype=np.int64))
    channels = x.shape[axis]
    outer = x.size // max(inner * channels, 1)
    if inner >= _SHORT:
        return Rows((outer * channels, inner), True, 1)
    return Rows((outer, channels * inner), False, inner)


@jit
def _one(
    x: Any,
    inverse: np.float32,
    scale: np.float32,
    zero: np.float32,
    rule: int,
    low: np.float32,
    high: np.float32,
) -> Any:
    """Return the value on the grid and whether it was in range, for one element."""
    if rule == 0:
        real = zero + np.rint(x * inverse)
    elif rule == 1:
        real = np.rint(np.float32(x * inverse + zero))
    else:
        real = np.rint(fma(x, inverse, zero))
    real = real if real < np.float32(2.0**63) else np.float32(-np.inf)
    inside = (low <= real) & (real <= high)
    q = real if real > low else low
    q = q if q < high else high
    if rule == 0:  # an exact integer: float32 rounds the product as float64 would for float32
        return (q - zero) * scale, inside
    return (np.float64(q) - np.float64(zero)) * np.float64(scale), inside


@jit
def _fill(
    x: Any,
    inverse: F32,
    scale: F32,
    zero: F32,
    by_row: bool,
    rule: int,
    low: np.float32,
    high: np.float32,
    y: Any,
    mask: Any,
) -> None:
    rows, length = x.shape
    for r in range(rows):
        if by_row:
            c = r % scale.size
            i, s, z = inverse[c], scale[c], zero[c]
            for j in range(length):
                y[r, j], mask[r, j] = _one(x[r, j], i, s, z, rule, low, high)
        else:
            for j in range(length):
                y[r, j], mask[r, j] = _one(x[r, j], inverse[j], scale[j], zero[j], rule, low, high)


def fake_quantize_per_channel_compiled(
    x: Array,
    scale: F32,
    zero_point: Array,
    axis: int,
    quant_min: int,
    quant_max: int,
    target: Target = Target(),
) -> Pair:
    """Compute :func:`fake_quantize_per_channel` in one compiled pass.

    Wide ranges, and float64 where it is multiplied and added with one rounding, are left to NumPy.
    """
    widest = max(abs(quant_min), abs(quant_max), quant_max - quant_min)
    rule = _rule(zero_point, target)
    fused64 = x.dtype == np.float64 and rule == FUSED
    if fused64 or widest > EXACT or x.size == 0:
        return fake_quantize_per_channel(
            x, scale, zero_point, axis, quant_min, quant_max, target=target
        )
    _check(x, scale, zero_point, axis, quant_min, quant_max)
    values = widened(x)
    y, mask = empty_preserved(values, values.dtype), empty_preserved(x, np.bool_)
    rows = rows_of(y, axis)
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / scale
        _fill(
            memory_order(values).reshape(rows.shape),
            rows.parameters(inverse),
            rows.parameters(scale),
            rows.parameters(zero_point),
            rows.by_row,
            rule,
            np.float32(quant_min),
            np.float32(quant_max),
            memory_order(y).reshape(rows.shape),
            memory_order(mask).reshape(rows.shape),
        )
    return narrowed(y, x.dtype), mask


def check_channels(
    op: str, x: TensorType, scale: TensorType, zero_point: TensorType, axis: int
) -> None:
    """Check that there is one scale and one zero point for each index of ``axis``."""
    if not 0 <= axis < x.rank:
        raise VerifyError(f"{op}: axis {axis} is outside {format_shape(x.shape)}")
    channels = x.shape[axis]
    if channels == 0:
        raise VerifyError(f"{op}: axis {axis} must not be empty, got {format_shape(x.shape)}")
    for operand, given in (("scale", scale), ("zero_point", zero_point)):
        if given.shape != (channels,):
            got = format_shape(given.shape)
            raise VerifyError(f"{op}: {operand} must be [{channels}], got {got}")


def _infer_cachemask(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    axis: int,
    quant_min: int,
    quant_max: int,
) -> tuple[TensorType, TensorType]:
    op = "fake_quantize_per_channel_affine"
    check_float(op, x)
    check_channels(op, x, scale, zero_point, axis)
    if scale.dtype != float32:
        raise VerifyError(f"{op}: scale must be float32, got {scale.dtype}")
    if zero_point.dtype not in (int32, float32, float16):
        raise VerifyError(
            f"{op}: zero_point must be int32, float32 or float16, got {zero_point.dtype}"
        )
    check_range(op, quant_min, quant_max)
    return x, TensorType(bool_, x.shape)


def infer(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    axis: int,
    quant_min: int,
    quant_max: int,
) -> TensorType:
    """Check dtypes, lengths, axis and range; the result has the type of ``x``."""
    return _infer_cachemask(x, scale, zero_point, axis, quant_min, quant_max)[0]


def reference(
    x: Array,
    scale: F32,
    zero_point: Array,
    axis: int,
    quant_min: int,
    quant_max: int,
    target: Target = Target(),
) -> Array:
    """Return the first result of ``aten::fake_quantize_per_channel_affine_cachemask``.

    Rounding, dtypes and special values are described there.

    Examples
    --------
    >>> x, scale, zero_point = np.float32([0.25, 9.0]), np.float32([0.5, 0.25]), np.int32([1, 0])
    >>> reference(x, scale, zero_point, 0, 0, 7)
    array([0.  , 1.75], dtype=float32)
    """
    return fake_quantize_per_channel(x, scale, zero_point, axis, quant_min, quant_max, target)[0]


def kernel(
    x: Array,
    scale: F32,
    zero_point: Array,
    axis: int,
    quant_min: int,
    quant_max: int,
    target: Target = Target(),
) -> Array:
    """Compute :func:`reference`, compiled."""
    return fake_quantize_per_channel_compiled(
        x, scale, zero_point, axis, quant_min, quant_max, target
    )[0]


_X = np.array([[0.25, 0.75], [0.25, 0.75]], np.float32)
_SPECIAL = np.array([[np.nan, np.inf, -np.inf, 3e38]], np.float32)
_S, _Z = np.array([0.5, 0.5], np.float32), np.array([1, 0], np.int32)
_ROWS = {"axis": 0, "quant_min": 0, "quant_max": 7}
_SOURCE = (
    "pytorch/aten/src/ATen/native/quantized/FakeQuantPerChannelAffine.cpp",
    "pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::fake_quant_per_channel_cachemask_cpu",
)

OPS = (
    Op(
        name="aten::fake_quantize_per_channel_affine",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case("ties", (_X, _S, _Z), _ROWS, [[0, 1], [0, 1]], "even before adding integers"),
            Case(
                "float ties",
                (_X, _S, _Z.astype(np.float32)),
                _ROWS,
                [[0.5, 0.5], [0, 1]],
                "even after adding floats",
            ),
            Case(
                "specials",
                (_SPECIAL, _S[:1], _Z[:1]),
                _ROWS,
                [[-0.5, -0.5, -0.5, -0.5]],
                "everything beyond int64 goes to the bottom",
            ),
            Case("columns", (_X, _S, _Z), _ROWS | {"axis": 1}, [[0, 1], [0, 1]], "another axis"),
            Case("float16", (_X.astype(np.float16), _S, _Z), _ROWS, [[0, 1], [0, 1]], "float32"),
            Case("empty", (_X[:, :0], _S, _Z), _ROWS, np.zeros((2, 0)), "no elements"),
        ),
    ),
    Op(
        name="aten::fake_quantize_per_channel_affine_cachemask",
        reference=fake_quantize_per_channel,
        infer=_infer_cachemask,
        kernels=dict.fromkeys(TORCH_ENGINES, fake_quantize_per_channel_compiled),
        source=_SOURCE,
        cases=(
            Case(
                "mask",
                (_SPECIAL, _S[:1], _Z[:1]),
                _ROWS,
                ([[-0.5, -0.5, -0.5, -0.5]], [[False] * 4]),
                "out of range",
            ),
        ),
    ),
)
