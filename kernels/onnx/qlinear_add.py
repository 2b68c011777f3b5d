"""``com.microsoft::QLinearAdd``: the sum of two quantized tensors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.types import TensorType
from refquant.kernels import checks
from refquant.kernels.jit import fma, jit
from refquant.kernels.layout import flat_pair
from refquant.kernels.onnx.literals import i8, u8
from refquant.kernels.onnx.operands import (
    Engines,
    limits_of,
    one_element,
    quantized,
    same_dtype,
    scale,
    scale_of,
    single,
)
from refquant.kernels.rounding import fma as fma_of_arrays

Array = npt.NDArray[Any]
_OP = "com.microsoft::QLinearAdd"


class Terms(NamedTuple):
    """The sum as ``first * first_ratio + (second * second_ratio + fixed)``."""

    first: Array
    first_ratio: np.float32
    second: Array
    second_ratio: np.float32
    fixed: np.float32


def terms(
    a: Array,
    a_scale: Array,
    a_zero_point: Array | None,
    b: Array,
    b_scale: Array,
    b_zero_point: Array | None,
    c_scale: Array,
    c_zero_point: Array | None,
) -> Terms:
    """Return the constants in float32, and the operands in the order they are added."""
    first = a, scale_of(a_scale), single(a_zero_point)
    second = b, scale_of(b_scale), single(b_zero_point)
    if is_spread(a.shape, b.shape):
        first, second = second, first
    rx, ry, fixed = _constants(*first[1:], *second[1:], scale_of(c_scale), single(c_zero_point))
    return Terms(first[0], rx, second[0], ry, fixed)


@lru_cache(maxsize=1024)
def _constants(
    first_scale: np.float32,
    first_zero: int,
    second_scale: np.float32,
    second_zero: int,
    scale: np.float32,
    zero: int,
) -> tuple[np.float32, np.float32, np.float32]:
    """Return both ratios and the fixed part."""
    with np.errstate(all="ignore"):
        rx, ry = np.float32(first_scale / scale), np.float32(second_scale / scale)
        offset = fma_of_arrays(rx, np.float32(first_zero), ry * np.float32(second_zero))
        return rx, ry, np.float32(np.float32(zero) - offset)


def is_spread(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether one element of ``a`` meets several of ``b`` along the innermost axis that counts.

    Axes on which both have length 1 do not count; without any other, ``a`` is one element.

    Examples
    --------
    >>> is_spread((3, 1, 1), (2, 3, 4, 4)), is_spread((2, 4), (2, 1)), is_spread((1,), ())
    (True, False, True)
    """
    for axis in range(1, max(len(a), len(b)) + 1):
        one = a[-axis] if axis <= len(a) else 1
        other = b[-axis] if axis <= len(b) else 1
        if (one, other) != (1, 1):
            return one == 1
    return True


def reference(
    a: Array,
    a_scale: Array,
    a_zero_point: Array | None,
    b: Array,
    b_scale: Array,
    b_zero_point: Array | None,
    c_scale: Array,
    c_zero_point: Array | None = None,
) -> Array:
    r"""Add two quantized tensors in the steps of the result.

    .. math:: q = \mathrm{sat}(\mathrm{rint}(fma(a, r_a, fma(b, r_b, f))))

    with the ratios :math:`r_a = s_a / s_c` and :math:`r_b = s_b / s_c` and
    :math:`f = z_c - fma(r_a, z_a, r_b z_b)`, each rounded to float32. Ties are met after the zero
    point was added. What int32 does not hold, however large, gives the lowest integer.

    The order of the operands decides last bits: ``b`` is added first, but where one element of
    ``a`` meets a run of ``b`` (or both are one element), the two change places in all formulas.

    Engines onnx and ort are the same: the operator is onnxruntime's own.

    Parameters
    ----------
    a, b : uint8 or int8, of one type, shapes that broadcast
        Quantized values.
    a_scale, b_scale, c_scale : float32, one element
        Of the operands and of the result.
    a_zero_point, b_zero_point, c_zero_point : like ``a``, one element, or None
        None means 0.

    Returns
    -------
    Array like ``a``, the broadcast shape

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Examples
    --------
    >>> one = np.float32(1)
    >>> reference(np.uint8([3, 250]), one, None, np.uint8([4]), one, None, one, np.uint8(2))
    array([  9, 255], dtype=uint8)
    """
    operands = (a, a_scale, a_zero_point, b, b_scale, b_zero_point, c_scale, c_zero_point)
    x, rx, y, ry, fixed = terms(*operands)
    with np.errstate(all="ignore"):
        inner = fma_of_arrays(y.astype(np.float32), ry, fixed)
        return saturated(fma_of_arrays(x.astype(np.float32), rx, inner), a.dtype)


def saturated(steps: Array, dtype: np.dtype[Any]) -> Array:
    """Round half to even and limit; NaN and 2**31 or more give the lowest integer.

    Examples
    --------
    >>> saturated(np.float32([0.5, 300, 3e9, np.nan]), np.dtype(np.uint8))
    array([  0, 255,   0,   0], dtype=uint8)
    """
    low, high = limits_of(dtype)
    whole = np.rint(steps.astype(np.float64))
    fits = whole < 2.0**31
    return np.asarray(np.clip(np.where(fits, whole, low), low, high).astype(dtype))


@jit
def to_byte(v: np.float32, low: np.float32, high: np.float32) -> Any:
    """Return the integer of :func:`saturated`."""
    v = v if v < np.float32(2147483648.0) else low
    v = v if v > low else low
    v = v if v < high else high
    return np.int32(np.rint(v))


@jit
def _fill(
    x: Any, rx: np.float32, y: Any, ry: np.float32, fixed: np.float32, low: int, high: int, q: Any
) -> None:
    least, most = np.float32(low), np.float32(high)
    for i in range(q.size):
        inner = fma(np.float32(y[i]), ry, fixed)
        q[i] = to_byte(fma(np.float32(x[i]), rx, inner), least, most)


def aligned(a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Return the elements of both operands and of a result in one order, and the result."""
    found = flat_pair(a, b)
    if found is not None:
        return found
    shape = np.broadcast_shapes(a.shape, b.shape)
    q = np.empty(shape, a.dtype)
    x, y = (np.ascontiguousarray(np.broadcast_to(v, shape)).reshape(-1) for v in (a, b))
    return x, y, q.reshape(-1), q


def kernel(
    a: Array,
    a_scale: Array,
    a_zero_point: Array | None,
    b: Array,
    b_scale: Array,
    b_zero_point: Array | None,
    c_scale: Array,
    c_zero_point: Array | None = None,
) -> Array:
    """Compute :func:`reference` in one compiled pass."""
    operands = (a, a_scale, a_zero_point, b, b_scale, b_zero_point, c_scale, c_zero_point)
    first, rx, second, ry, fixed = terms(*operands)
    x, y, into, q = aligned(first, second)
    _fill(x, rx, y, ry, fixed, *limits_of(a.dtype), into)
    return q


def infer_pair(
    op: str,
    a: TensorType,
    a_scale: TensorType,
    a_zero_point: TensorType | None,
    b: TensorType,
    b_scale: TensorType,
    b_zero_point: TensorType | None,
    c_scale: TensorType,
    c_zero_point: TensorType | None = None,
) -> TensorType:
    """Check two quantized operands and the parameters of the result; return their broadcast."""
    quantized(op, a, a_scale, a_zero_point, "a")
    quantized(op, b, b_scale, b_zero_point, "b")
    same_dtype(op, b, a, "b")
    scale(op, c_scale, "c_scale")
    one_element(op, c_zero_point, "c_zero_point")
    same_dtype(op, c_zero_point, a, "c_zero_point")
    return TensorType(a.dtype, checks.broadcast(op, a.shape, b.shape))


def infer(*operands: Any) -> TensorType:
    """Check the operands; the shapes broadcast."""
    return infer_pair(_OP, *operands)


_F = np.float32


def case(name: str, a: Any, b: Any, expected: Any, why: str, *more: Any) -> Case:
    """Return a case with scales of 1, 1 and ``more`` and zero points of 1, 2 and 3."""
    scales = more or (_F(1), _F(1), _F(1))
    kind = np.asarray(a).dtype.type
    sa, sb, sc = (np.asarray(s, _F) for s in scales)
    operands = (np.asarray(a), sa, kind(1), np.asarray(b, kind), sb, kind(2), sc, kind(3))
    return Case(name, operands, {}, expected, why)


OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        source=(
            "microsoft/onnxruntime/onnxruntime/core/mlas/lib/intrinsics/avx2/"
            "qladd_avx2.cpp::MlasQLinearAddKernelAvx2Helper",
        ),
        cases=(
            case("plain", u8([1, 9]), [2, 7], [3, 16], "both less their zero points"),
            case("ties", u8([2, 4]), [2, 2], [4, 4], "3.5 and 4.5 go to 4", 1, 1, 2),
            case("ends", i8([-128, 127]), [-128, 127], [-128, 127], "saturates"),
            case("overflow", u8([255]), [2], [0], "beyond int32 is the lowest", 1e30, 1, 1),
            case("spread", u8([[1], [2]]), [[2, 3, 4]], [[3, 4, 5], [4, 5, 6]], "broadcast"),
            case("empty", np.zeros((0,), np.uint8), np.zeros(0), np.zeros(0), "no elements"),
        ),
    ),
)
