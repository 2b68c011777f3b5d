"""``com.microsoft::QLinearMul``: the product of two quantized tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Op
from refquant.ir.types import TensorType
from refquant.kernels.jit import jit
from refquant.kernels.onnx.literals import i8, u8
from refquant.kernels.onnx.operands import Engines, limits_of, scale_of, single
from refquant.kernels.onnx.qlinear_add import aligned, case, infer_pair, saturated, to_byte

Array = npt.NDArray[Any]
_OP = "com.microsoft::QLinearMul"


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
    r"""Multiply two quantized tensors.

    .. math:: q = \mathrm{sat}(\mathrm{rint}((a - z_a)(b - z_b) \cdot r + z_c))

    with :math:`r = s_a s_b / s_c`; both steps of :math:`r`, the product with it and the sum are
    each rounded to float32. Ties are met after the zero point was added. What int32 does not
    hold, however large, gives the lowest integer.

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
    array([ 14, 255], dtype=uint8)
    """
    product = (a.astype(np.int32) - single(a_zero_point)) * (
        b.astype(np.int32) - single(b_zero_point)
    )
    with np.errstate(all="ignore"):
        steps = product.astype(np.float32) * _ratio(a_scale, b_scale, c_scale)
        return saturated(np.asarray(steps + np.float32(single(c_zero_point))), a.dtype)


def _ratio(a_scale: Array, b_scale: Array, c_scale: Array) -> np.float32:
    with np.errstate(all="ignore"):
        return np.float32(np.float32(scale_of(a_scale) * scale_of(b_scale)) / scale_of(c_scale))


@jit
def _fill(
    a: Any, za: int, b: Any, zb: int, m: np.float32, zero: np.float32, low: int, high: int, q: Any
) -> None:
    least, most = np.float32(low), np.float32(high)
    x0, y0 = np.int32(za), np.int32(zb)
    for i in range(q.size):
        product = np.int32((np.int32(a[i]) - x0) * (np.int32(b[i]) - y0))
        steps = np.float32(np.float32(product) * m)
        q[i] = to_byte(np.float32(steps + zero), least, most)


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
    x, y, into, q = aligned(a, b)
    ratio, zero = _ratio(a_scale, b_scale, c_scale), np.float32(single(c_zero_point))
    x_zero, y_zero = single(a_zero_point), single(b_zero_point)
    _fill(x, x_zero, y, y_zero, ratio, zero, *limits_of(a.dtype), into)
    return q


def infer(*operands: Any) -> TensorType:
    """Check the operands; the shapes broadcast."""
    return infer_pair(_OP, *operands)


OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        source=(
            "microsoft/onnxruntime/onnxruntime/core/mlas/lib/qlmul.cpp::MlasQLinearMulKernel",
        ),
        cases=(
            case("plain", u8([1, 9]), [2, 7], [3, 43], "both less their zero points"),
            case("ties", u8([2, 4]), [3, 3], [4, 4], "3.5 and 4.5 go to 4", 1, 1, 2),
            case("ends", i8([-128, 127]), [127, 127], [-128, 127], "saturates"),
            case("overflow", u8([255]), [9], [0], "beyond int32 is the lowest", 1e30, 1, 1),
            case("spread", u8([[1], [2]]), [[2, 3, 4]], [[3, 3, 3], [3, 4, 5]], "broadcast"),
            case("empty", np.zeros((0,), np.uint8), np.zeros(0), np.zeros(0), "no elements"),
        ),
    ),
)
