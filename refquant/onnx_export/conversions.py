"""From real values to integers and back, as ONNX operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Node
from refquant.ir.op import OPS
from refquant.ir.types import DType, float32
from refquant.onnx_export.writer import Writer

# Name of the result, whether it is exact, and why.
Written = tuple[str, bool, str]
_RECIPROCAL = (
    "ONNX divides by the scale, torch multiplies by its reciprocal: ties may move by a step"
)


def _quantize(w: Writer, node: Node) -> Written:
    x = node.inputs[0]
    assert x is not None
    kind = node.outputs[0].type
    data = w.data(x)
    if isinstance(data, np.ndarray):
        made = OPS[node.op].bind(w.target, fast=True)(
            *(w.data(value) for value in node.inputs), **node.attributes
        )
        w.fold(node.outputs[0], made)
        return w.operand(node.outputs[0]), True, "a constant"
    scale = kind.qparams.scale if kind.qparams else None
    power = isinstance(scale, float) and float(np.frexp(scale)[0]) == 0.5
    why = "the scale is a power of two" if power else _RECIPROCAL
    return w.quantize(w.operand(x), kind), power, why


def _dequantize(w: Writer, node: Node) -> Written:
    x = node.inputs[0]
    assert x is not None
    if not x.type.dtype.is_quantized:
        return w.operand(x), True, "a float already"
    return w.real(x), True, "one product of two float32"


def _fake_quantize(w: Writer, node: Node) -> Written:
    """Write a fake-quantization as the two conversions that it stands for."""
    module = w.graph.modules[str(node.attributes["module"])]
    state, config = module.state, module.config
    low, high = int(config["quant_min"]), int(config["quant_max"])
    scale = np.asarray(state["scale"], np.float32)
    zero = np.asarray(state["zero_point"])
    storage = np.int8 if low < 0 else np.uint8
    whole = np.iinfo(storage)
    axis = config.get("ch_axis") if scale.size > 1 else None
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    x = w.operand(node.inputs[0])
    if (low, high) != (whole.min, whole.max):
        x = _limited(w, x, scale, zero, (low, high), axis, node.outputs[0].type.rank)
    parameters = [w.constant(scale, "scale"), w.constant(zero.astype(storage), "zero_point")]
    q = w.add("QuantizeLinear", x, *parameters, axis=axis)
    return w.add("DequantizeLinear", q, *parameters, axis=axis), False, _RECIPROCAL


def _limited(
    w: Writer,
    x: str,
    scale: npt.NDArray[Any],
    zero: npt.NDArray[Any],
    ends: tuple[int, int],
    axis: int | None,
    rank: int,
) -> str:
    """Limit real values to those of fewer than 256 steps."""
    shape = [-1 if i == axis else 1 for i in range(rank)] if axis is not None else []
    real = [((end - zero.astype(np.float32)) * scale).astype(np.float32) for end in ends]
    smallest, largest = (w.constant(limit.reshape(shape)) for limit in real)
    return w.add("Min", w.add("Max", x, smallest), largest)


def _parameters(
    w: Writer, node: Node, dtype: DType
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], int | None]:
    """Return scale, zero point and axis of a conversion on plain integers."""
    how: dict[str, Any] = dict(node.attributes)
    if "scale" in how:
        scale, zero, axis = how["scale"], how["zero_point"], None
    else:
        axis = how["axis"]
        scale, zero = (w.data(value) for value in node.inputs[1:3])
        if not isinstance(scale, np.ndarray) or (node.inputs[2] and zero is None):
            raise UnsupportedError("a scale or zero point that is computed")
        zero = np.zeros(scale.shape) if zero is None else zero
    return np.asarray(scale, np.float32), np.asarray(zero).astype(dtype.storage), axis


def _plain_quantize(w: Writer, node: Node) -> Written:
    """Write ``quantized_decomposed::quantize_per_tensor`` or ``_per_channel``."""
    x, result = node.inputs[0], node.outputs[0]
    assert x is not None
    operands = [w.data(value) for value in node.inputs]
    if all(isinstance(data, np.ndarray) for data in operands):
        w.fold(result, OPS[node.op].bind(w.target, fast=True)(*operands, **node.attributes))
        return w.operand(result), True, "a constant"
    dtype = result.type.dtype
    scale, zero, axis = _parameters(w, node, dtype)
    how: dict[str, Any] = dict(node.attributes)
    ends, whole = (how["quant_min"], how["quant_max"]), np.iinfo(dtype.storage)
    real = w.operand(x)
    if ends != (whole.min, whole.max):
        real = _limited(w, real, scale, zero, ends, axis, x.type.rank)
    parameters = [w.constant(scale, "scale"), w.constant(zero, "zero_point")]
    return w.add("QuantizeLinear", real, *parameters, axis=axis), False, _RECIPROCAL


def _plain_dequantize(w: Writer, node: Node) -> Written:
    """Write ``quantized_decomposed::dequantize_per_tensor`` or ``_per_channel``."""
    x = node.inputs[0]
    assert x is not None
    if node.outputs[0].type.dtype != float32:
        raise UnsupportedError(f"dequantizing to {node.outputs[0].type.dtype}")
    scale, zero, axis = _parameters(w, node, x.type.dtype)
    parameters = [w.constant(scale, "scale"), w.constant(zero, "zero_point")]
    why = "one product of two float32"
    return w.add("DequantizeLinear", w.operand(x), *parameters, axis=axis), True, why


CONVERSIONS: dict[str, Callable[[Writer, Node], Written]] = {
    "aten::dequantize": _dequantize,
    "aten::quantize_per_channel": _quantize,
    "aten::quantize_per_tensor": _quantize,
    "observer::fake_quantize": _fake_quantize,
    **{
        f"quantized_decomposed::quantize_per_{of}": _plain_quantize for of in ("tensor", "channel")
    },
    **{
        f"quantized_decomposed::dequantize_per_{of}": _plain_dequantize
        for of in ("tensor", "channel")
    },
}
