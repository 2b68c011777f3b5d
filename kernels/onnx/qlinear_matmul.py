"""``onnx::QLinearMatMul``: the product of two quantized matrices, quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir import types
from refquant.ir.errors import UnsupportedError
from refquant.ir.op import Case, Op
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, dtype_of
from refquant.kernels.onnx import integer_product as product
from refquant.kernels.onnx import rescale
from refquant.kernels.onnx.kept import KeptArray, form, pack, unsigned
from refquant.kernels.onnx.literals import i8, u8
from refquant.kernels.onnx.operands import (
    BYTES,
    ONNX,
    dtype_in,
    limits_of,
    one_element,
    same_dtype,
    single,
)
from refquant.kernels.onnx.plain_layer import plain_layer
from refquant.kernels.onnx.quantize_linear import FLOAT8

Array = npt.NDArray[Any]
_OP = "onnx::QLinearMatMul"
_SCALES = (types.float32, types.float16, types.bfloat16)
_REQUANTIZE = {Engine.ONNX: rescale.rounded_then_moved, Engine.ORT: rescale.clamped}


def reference(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    target: Target = ONNX,
) -> Array:
    r"""Multiply matrices and requantise the sums.

    .. math:: y = \mathrm{saturate}(\mathrm{rint}(acc \cdot m) + z_y),
              \quad acc = \sum_k (a - z_a)(b - z_b), \quad m = s_a s_b / s_y

    The sum is exact in int32, which wraps; both steps of the multiplier are rounded to float32.
    Ties go to even before the zero point is added.

    **onnx**: the product with the multiplier is exact (float64), as in ``onnx.reference``; that
    adds the zero point before it rounds, where the text of the specification, followed here, adds
    it after.

    **ort**: the sum is rounded to float32, and so is the product; it is limited to what the zero
    point leaves of the range and then rounded.

    Parameters
    ----------
    a : uint8 or int8 (..., M, K)
        The first matrix; leading axes broadcast as in ``numpy.matmul``.
    a_scale, a_zero_point : one element, (M,) or (..., M, 1)
        Of the whole or of each row; onnxruntime takes one element.
    b : uint8 or int8 (..., K, N)
        The second one, of either type.
    b_scale, b_zero_point : one element, (N,) or (..., 1, N)
        Of the whole or of each column.
    y_scale, y_zero_point : one element
        Of the result, whose type is that of the zero point.

    Returns
    -------
    uint8 or int8 array (..., M, N)

    Raises
    ------
    VerifyError
        If types or shapes do not fit.
    UnsupportedError
        For float8, which the specification allows without a formula, and for scales that are
        not float32.

    Examples
    --------
    >>> one, a, b = np.float32(1), np.uint8([[3, 5]]), np.int8([[1], [2]])
    >>> reference(a, one, np.uint8(0), b, one, np.int8(0), np.float32(2), np.uint8(7))
    array([[13]], dtype=uint8)
    """
    zeros = product.row_zero(a_zero_point, a), product.column_zero(b_zero_point)
    total = product.sums(a, zeros[0], b, zeros[1])
    m = _multiplier(a, a_scale, b_scale, y_scale)
    dtype = np.asarray(y_zero_point).dtype
    return _REQUANTIZE[target.engine](total, m, single(y_zero_point), dtype)


def _multiplier(a: Array, a_scale: Array, b_scale: Array, y_scale: Array) -> Array:
    scales = [np.asarray(s) for s in (a_scale, b_scale, y_scale)]
    if any(s.dtype != np.float32 for s in scales):
        raise UnsupportedError(f"{_OP}: scales must be float32, got {dtype_of(scales[0])}")
    rows = scales[0].reshape(()) if scales[0].size == 1 else scales[0]
    rows = rows[:, None] if rows.ndim == 1 and a.ndim > 1 else rows
    columns = scales[1].reshape(()) if scales[1].size == 1 else scales[1]
    return rescale.multiplier(rows, columns, scales[2].reshape(()))


def kernel_ort(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    """Compute onnxruntime's :func:`reference` with the compiled tile."""
    numbers = (a_scale, a_zero_point, b_scale, b_zero_point, y_scale, y_zero_point)
    dtype, zero = np.asarray(y_zero_point).dtype, single(y_zero_point)
    run = bound(a, b, None, *numbers)
    if run is not None:
        return rescale.as_result(run(unsigned(a, 0)[0]), dtype)
    rows, columns = product.row_zero(a_zero_point, a), product.column_zero(b_zero_point)
    m = _multiplier(a, a_scale, b_scale, y_scale)
    total = product.fast_sums(a, rows, b, columns)
    y = np.empty(total.shape, dtype)
    if m.ndim > 1 or total.ndim < 2:
        return rescale.clamped(total, m, zero, dtype)
    each = np.array(np.broadcast_to(m, total.shape[-1:]))
    whole = total.reshape(-1, total.shape[-1])
    rescale.fill_clamped(whole, each, zero, *limits_of(dtype), y.reshape(whole.shape))
    return y


def bound(
    a: Array, b: Array, bias: Array | None, *numbers: Array
) -> Callable[[Array], Array] | None:
    """Return the layer of a constant matrix, which it keeps; None if the tiles do not do it.

    The numbers are scale and zero point of both matrices and of the result.
    """
    if not isinstance(b, KeptArray):
        return None
    arrays = [np.asarray(n) for n in numbers]
    key = (
        *("layer", a.shape, a.dtype, arrays[5].dtype, *(n.tobytes() for n in arrays)),
        None if bias is None else bias.tobytes(),
    )
    found: Callable[[Array], Array] | None = form(b, key, lambda: _layer(a, b, bias, *arrays))
    return found


def _layer(
    a: Array,
    b: Array,
    bias: Array | None,
    a_scale: Array,
    a_zero_point: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Callable[[Array], Array] | None:
    rows, columns = product.row_zero(a_zero_point, a), product.column_zero(b_zero_point)
    if not product.is_tiled(a, rows, b) or a_scale.size != 1:
        return None
    m = _multiplier(a, a_scale, b_scale, y_scale)
    if not rescale.fits_tiles(m):
        return None
    weight = product.packed_matrix(b, columns, b_scale)
    rounding = rescale.rounding(y_scale.reshape(()), single(y_zero_point), y_zero_point.dtype)
    zero = int(rows) + (128 if a.dtype == np.int8 else 0)
    source = a.shape, float(a_scale.reshape(())), zero
    out = (*a.shape[:-1], b.shape[1])
    made = plain_layer(*source, weight, bias, None, rounding, out, _ORT)
    return None if made is None else made.bind((None,), None)


_ORT = Target(Engine.ORT)


def kernel_onnx(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    """Compute the specification's :func:`reference` with the compiled tile."""
    rows, columns = product.row_zero(a_zero_point, a), product.column_zero(b_zero_point)
    total = product.fast_sums(a, rows, b, columns)
    m = _multiplier(a, a_scale, b_scale, y_scale)
    dtype, zero = np.asarray(y_zero_point).dtype, single(y_zero_point)
    if m.ndim > 1 or total.ndim < 2:
        return rescale.rounded_then_moved(total, m, zero, dtype)
    y = np.empty(total.shape, dtype)
    each = np.array(np.broadcast_to(m, total.shape[-1:]))
    whole = total.reshape(-1, total.shape[-1])
    rescale.fill_exact(whole, each, zero, False, *limits_of(dtype), y.reshape(whole.shape))
    return y


def infer(
    a: TensorType,
    a_scale: TensorType,
    a_zero_point: TensorType,
    b: TensorType,
    b_scale: TensorType,
    b_zero_point: TensorType,
    y_scale: TensorType,
    y_zero_point: TensorType,
) -> TensorType:
    """Check types and shapes."""
    if a.dtype in FLOAT8 or b.dtype in FLOAT8:
        raise UnsupportedError(f"{_OP}: float8 has no formula, got {a} and {b}")
    for operand, x, zero in (("a", a, a_zero_point), ("b", b, b_zero_point)):
        dtype_in(_OP, x, BYTES, operand)
        same_dtype(_OP, zero, x, f"{operand}_zero_point")
    for operand, scale in (("a_scale", a_scale), ("b_scale", b_scale), ("y_scale", y_scale)):
        dtype_in(_OP, scale, _SCALES, operand)
        if scale.dtype != types.float32:
            raise UnsupportedError(f"{_OP}: {operand} must be float32, got {scale.dtype}")
    for parameter, operand in ((a_scale, "a_scale"), (a_zero_point, "a_zero_point")):
        product.check_row_parameter(_OP, parameter, a.shape, operand)
    for parameter, operand in ((b_scale, "b_scale"), (b_zero_point, "b_zero_point")):
        product.check_column_parameter(_OP, parameter, b.shape, operand)
    one_element(_OP, y_scale, "y_scale")
    one_element(_OP, y_zero_point, "y_zero_point")
    dtype_in(_OP, y_zero_point, BYTES, "y_zero_point")
    return TensorType(y_zero_point.dtype, product.product_shape(_OP, a.shape, b.shape))


_F = np.float32
_A = u8([[3, 5], [1, 2]])
_B = i8([[1, 2], [-3, 4]])


def _case(
    name: str, scales: Any, zeros: Any, expected: Any, why: str, *engines: Engine, a: Any = _A
) -> Case:
    sa, sb, sy = (np.asarray(s, _F) for s in scales)
    za, zb, zy = zeros
    operands = (a, sa, np.asarray(za, a.dtype), _B, sb, np.asarray(zb, np.int8), sy, zy)
    return Case(name, operands, {}, expected, why, engines)


OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels={Engine.ONNX: kernel_onnx, Engine.ORT: kernel_ort},
        pack=pack,
        weight=3,
        source=(
            "onnx/onnx/onnx/reference/ops/op_qlinear_matmul.py::QLinearMatMul",
            "microsoft/onnxruntime/onnxruntime/core/providers/cpu/quantization/"
            "quantize_linear_matmul.cc::QLinearMatMul",
        ),
        cases=(
            _case("plain", (1, 1, 1), (1, 0, np.uint8(20)), [[10, 40], [17, 24]], "less 1"),
            _case("ties", (1, 0.5, 1), (0, 0, np.uint8(9)), [[3, 22], [7, 14]], "-2.5 to -2"),
            _case("even", (1, 0.5, 1), (0, 0, np.uint8(8)), [[2, 21], [6, 13]], "even zero point"),
            _case(
                "columns",
                (1, [1, 2], 4),
                (0, [0, 1], np.int8(0)),
                [[-3, 9], [-1, 4]],
                "a scale and a zero point of each",
            ),
            _case("ends", (9, 9, 1), (0, 0, np.int8(0)), [[-128, 127], [-128, 127]], "saturates"),
            _case(
                "large",
                (1e9, 1e9, 1),
                (0, 0, np.uint8(9)),
                [[0, 255], [0, 255]],
                "beyond int32 saturates, too",
            ),
            _case(
                "no rows",
                (1, 1, 1),
                (1, 0, np.uint8(20)),
                np.zeros((0, 2)),
                "empty",
                a=np.zeros((0, 2), np.uint8),
            ),
        ),
    ),
)
