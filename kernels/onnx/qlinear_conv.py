"""``onnx::QLinearConv``: a convolution of quantized maps, quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.prepared import Operand
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, float32, format_shape, int32, uint8
from refquant.kernels.onnx import integer_conv, operands, rescale
from refquant.kernels.onnx.conv_geometry import Geometry, geometry
from refquant.kernels.onnx.kept import form, pack, unsigned
from refquant.kernels.onnx.literals import i8, i32, u8
from refquant.kernels.onnx.operands import BYTES, ONNX, dtype_in, limits_of, scale_of, single
from refquant.kernels.onnx.plain_layer import PlainLayer, plain_layer

Array = npt.NDArray[Any]
Ints = tuple[int, ...]
_OP = "onnx::QLinearConv"
_REQUANTIZE = {Engine.ONNX: rescale.moved_then_rounded, Engine.ORT: rescale.clamped}


def reference(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    b: Array | None = None,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
    target: Target = ONNX,
) -> Array:
    r"""Convolve (cross-correlate), add the bias and requantise.

    .. math:: acc_o = b + \sum_{c, k} (x_{c, o \cdot stride + k \cdot dilation - pad} - z_x)
              (w_{o, c, k} - z_w), \quad m = s_x s_w / s_y

    The sum is exact in int32, which wraps; positions outside the map are real 0. Both steps of
    the multiplier are rounded to float32.

    **onnx** as ``onnx.reference``, as the specification has no formula: the product with the
    multiplier is exact (float64), the zero point is added and *then* ties go to even.

    **ort** requantises as in ``onnx::QLinearMatMul``: ``float(acc) * m`` in float32, limited to
    what the zero point leaves of the range, rounded half to even, and the zero point is added.

    Parameters
    ----------
    x : uint8 or int8 (N, C, ...)
        At least one spatial axis.
    x_scale, x_zero_point : one element
        Of the input.
    w : uint8 or int8 (OC, C / group, ...)
        Weight, of either type.
    w_scale, w_zero_point : one element or (OC,)
        Of the whole weight or of each output channel.
    y_scale, y_zero_point : one element
        Of the result, whose type is that of the zero point.
    b : int32 (OC,) or None
        Bias in units of ``x_scale * w_scale``.
    auto_pad, dilations, group, kernel_shape, pads, strides
        As for ``onnx::ConvInteger``.

    Returns
    -------
    uint8 or int8 array (N, OC, ...)

    Raises
    ------
    VerifyError
        If types, shapes or attributes do not fit.

    Examples
    --------
    >>> one, half = np.float32(1), np.float32(0.5)
    >>> x, w = np.uint8([[[2, 3, 4]]]), np.int8([[[1, 1]]])
    >>> reference(x, one, np.uint8(1), w, half, np.int8(0), one, np.uint8(9))
    array([[[10, 12]]], dtype=uint8)
    """
    how = geometry(_OP, x.shape[2:], w.shape[2:], auto_pad, dilations, pads, strides)
    total = integer_conv.sums(x, single(x_zero_point), w, w_zero_point, how, group)
    if b is not None:
        total = total + _spread(b, total)
    m = rescale.multiplier(scale_of(x_scale), w_scale, scale_of(y_scale))
    zero = np.asarray(y_zero_point)
    return _REQUANTIZE[target.engine](total, _spread(m, total), single(zero), zero.dtype)


def _spread(each: Array, total: Array) -> Array:
    """Lay one number, or one for each channel, along the channels."""
    each = np.asarray(each)
    return each.reshape(()) if each.size == 1 else each.reshape(-1, *(1,) * (total.ndim - 2))


def kernel_ort(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    b: Array | None = None,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Compute onnxruntime's :func:`reference` in the registers of the compiled tile."""
    numbers = (x_scale, x_zero_point, w_scale, w_zero_point, y_scale, y_zero_point)
    values, _ = unsigned(x, 0)
    zero = np.asarray(y_zero_point)
    key = (
        *("layer", x.shape, x.dtype, zero.dtype, auto_pad, dilations, group, pads, strides),
        *(n.tobytes() for n in numbers),
        None if b is None else b.tobytes(),
    )

    def make() -> Callable[[Array], Array] | None:
        attributes = auto_pad, dilations, group, pads, strides
        made = _layer(x.shape, x.dtype, w, b, numbers, attributes, _ORT)
        return None if made is None else made.bind((None,), None)

    run = form(w, key, make)
    if run is not None:
        return rescale.as_result(run(values), zero.dtype)
    how = geometry(_OP, x.shape[2:], w.shape[2:], auto_pad, dilations, pads, strides)
    m = rescale.multiplier(scale_of(x_scale), w_scale, scale_of(y_scale))
    return _in_two_steps(x, x_zero_point, w, w_zero_point, b, m, zero, how, group, "clamped")


_ORT = Target(Engine.ORT)


def _layer(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    w: Array,
    b: Array | None,
    numbers: tuple[Array, ...],
    attributes: tuple[Any, ...],
    target: Target,
) -> PlainLayer | None:
    """Bind onnxruntime's layer for an input moved to uint8; None if the tiles do not do it."""
    x_scale, x_zero_point, w_scale, w_zero_point, y_scale, y_zero_point = map(np.asarray, numbers)
    auto_pad, dilations, group, pads, strides = attributes
    how = geometry(_OP, shape[2:], w.shape[2:], auto_pad, dilations, pads, strides)
    m = rescale.multiplier(scale_of(x_scale), w_scale, scale_of(y_scale))
    out = (shape[0], w.shape[0], *how.out)
    if prod(out) == 0 or w.size == 0 or not rescale.fits_tiles(m):
        return None
    weight = integer_conv.packed_weight(w, w_zero_point, w_scale, shape[1], how, group)
    x_zero = single(x_zero_point) + (128 if dtype == np.int8 else 0)
    rounding = rescale.rounding(scale_of(y_scale), single(y_zero_point), y_zero_point.dtype)
    source = shape, float(scale_of(x_scale)), x_zero
    return plain_layer(*source, weight, b, how.window, rounding, out, target)


def prepare(
    operands: tuple[Operand, ...],
    attributes: Mapping[str, Any],
    _result: TensorType,
    target: Target,
) -> PlainLayer | None:
    """Bind onnxruntime's layer from uint8 to uint8 where all but the input is constant."""
    x, *constants = operands
    w, b = operands[3], operands[8] if len(operands) > 8 else None
    if target.engine is not Engine.ORT or not isinstance(x, TensorType) or x.dtype != uint8:
        return None
    if not all(c is None or isinstance(c, np.ndarray) for c in constants):
        return None
    assert isinstance(w, np.ndarray)
    numbers = tuple(np.asarray(operands[i]) for i in (1, 2, 4, 5, 6, 7))
    if numbers[5].dtype != np.uint8:
        return None
    assert not isinstance(b, TensorType | QTensor)
    names = ("auto_pad", "dilations", "group", "pads", "strides")
    defaults = {"auto_pad": "NOTSET", "group": 1}
    how = tuple(attributes.get(name, defaults.get(name)) for name in names)
    return _layer(x.sizes, np.dtype(np.uint8), w, b, numbers, how, target)


def kernel_onnx(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    b: Array | None = None,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Compute the specification's :func:`reference` from sums of the compiled tile."""
    how = geometry(_OP, x.shape[2:], w.shape[2:], auto_pad, dilations, pads, strides)
    m = rescale.multiplier(scale_of(x_scale), w_scale, scale_of(y_scale))
    zero = np.asarray(y_zero_point)
    return _in_two_steps(x, x_zero_point, w, w_zero_point, b, m, zero, how, group, "exact")


def _in_two_steps(
    x: Array,
    x_zero_point: Array,
    w: Array,
    w_zero_point: Array,
    b: Array | None,
    m: Array,
    zero: Array,
    how: Geometry,
    group: int,
    rule: str,
) -> Array:
    """Compute all sums and then requantise them."""
    total = integer_conv.fast_sums(x, single(x_zero_point), w, w_zero_point, how, group)
    rows = np.ascontiguousarray(np.moveaxis(total, 1, -1))
    if b is not None:
        rows = rows + b
    each = np.array(np.broadcast_to(np.asarray(m).reshape(-1), (w.shape[0],)), np.float32)
    y = np.empty(rows.shape, zero.dtype)
    flat = rows.reshape(-1, w.shape[0]), y.reshape(-1, w.shape[0])
    z, limits = single(zero), limits_of(zero.dtype)
    if rule == "exact":
        rescale.fill_exact(flat[0], each, z, True, *limits, flat[1])
    else:
        rescale.fill_clamped(flat[0], each, z, *limits, flat[1])
    return np.moveaxis(y, -1, 1)


def infer(
    x: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType,
    w: TensorType,
    w_scale: TensorType,
    w_zero_point: TensorType,
    y_scale: TensorType,
    y_zero_point: TensorType,
    b: TensorType | None = None,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Check types, shapes and attributes."""
    result = integer_conv.check(
        *(_OP, x, x_zero_point, w, w_zero_point, group, kernel_shape),
        auto_pad=auto_pad,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )
    outputs = result.shape[1]
    operands.scale(_OP, x_scale, "x_scale")
    operands.scale(_OP, y_scale, "y_scale")
    dtype_in(_OP, w_scale, (float32,), "w_scale")
    operands.one_or_each(_OP, w_scale, outputs, "w_scale")
    dtype_in(_OP, y_zero_point, BYTES, "y_zero_point")
    operands.one_element(_OP, y_zero_point, "y_zero_point")
    if b is not None:
        dtype_in(_OP, b, (int32,), "b")
        if b.shape != (outputs,):
            raise VerifyError(f"{_OP}: b must be [{outputs}], got {format_shape(b.shape)}")
    return TensorType(y_zero_point.dtype, result.shape)


_F = np.float32
_X = u8([[[[2, 3], [5, 6]]]])
_W = i8([[[[1, -1], [2, 3]]]])
_TWO = np.concatenate((_W, -_W))


def _case(
    name: str, scales: Any, zero: Any, expected: Any, why: str, *engines: Engine, **more: Any
) -> Case:
    w, b, x = (more.pop(key, default) for key, default in (("w", _W), ("b", None), ("x", _X)))
    sx, sw, sy = (np.asarray(s, _F) for s in scales)
    operands = (x, sx, x.dtype.type(1), w, sw, np.zeros(sw.shape, w.dtype), sy, zero, b)
    return Case(name, operands, more, expected, why, engines)


OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels={Engine.ONNX: kernel_onnx, Engine.ORT: kernel_ort},
        pack=pack,
        weight=3,
        prepare=prepare,
        source=(
            "onnx/onnx/onnx/reference/ops/op_qlinear_conv.py::QLinearConv",
            "microsoft/onnxruntime/onnxruntime/core/providers/cpu/quantization/"
            "qlinearconv.cc::QLinearConv",
            "microsoft/onnxruntime/onnxruntime/core/mlas/lib/quantize.cpp::MlasRequantizeOutput",
        ),
        cases=(
            _case("even", (1, 0.5, 1), np.uint8(8), [[[[19]]]], "22 / 2 + 8", Engine.ORT),
            _case("tie", (1, 0.5, 2), np.uint8(7), [[[[13]]]], "5.5 to 6, plus 7", Engine.ORT),
            _case("late tie", (1, 0.5, 2), np.uint8(7), [[[[12]]]], "12.5 to 12", Engine.ONNX),
            _case("bias", (1, 0.5, 1), np.int8(-8), [[[[5]]]], "26 / 2 - 8", b=i32([4])),
            _case(
                "channels", (1, [0.5, 0.25], 1), np.int8(0), [[[[11]], [[-6]]]], "5.5 to 6", w=_TWO
            ),
            _case(
                "padded",
                (1, 0.5, 1),
                np.uint8(0),
                [[[[4, 2], [11, 6]]]],
                "real 0 outside",
                pads=(1, 0, 0, 1),
            ),
            _case("int8", (1, 0.5, 1), np.int8(0), [[[[11]]]], "signed input", x=_X.view(np.int8)),
            _case(
                "large",
                (1e9, 1e9, 1),
                np.uint8(3),
                [[[[255]], [[0]]]],
                "saturates",
                w=_TWO,
            ),
            _case(
                "no images",
                (1, 0.5, 1),
                np.uint8(8),
                np.zeros((0, 1, 1, 1)),
                "empty",
                x=np.zeros((0, 1, 2, 2), np.uint8),
            ),
        ),
    ),
)
