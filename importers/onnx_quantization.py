"""Rules of the quantization operators: each is an op of its own, with ONNX's attributes."""

from __future__ import annotations

from typing import Any

from refquant.importers.onnx_builder import Constant, Known, OnnxBuilder, Operand, Rule
from refquant.importers.onnx_file import element_type
from refquant.ir.graph import Value
from refquant.ir.types import bfloat16, float16, float32

_WINDOW = ("auto_pad", "kernel_shape", "pads", "strides")
_CONV = (*_WINDOW, "dilations", "group")
_DTYPES = ("output_dtype", "precision")
_GRANULARITY = ("axis", "block_size")
_LSTM = ("activations", "activation_alpha", "activation_beta", "clip", "direction")

# Attributes of each operator; for one that is not given our op has the default.
_OPERATORS: dict[str, tuple[str, ...]] = {
    "ConvInteger": _CONV,
    "DequantizeLinear": (*_GRANULARITY, "output_dtype"),
    "DynamicQuantizeLinear": (),
    "MatMulInteger": (),
    "QLinearConv": _CONV,
    "QLinearMatMul": (),
    "QuantizeLinear": (*_GRANULARITY, "saturate", *_DTYPES),
    "com.microsoft.DynamicQuantizeLSTM": (*_LSTM, "hidden_size", "input_forget"),
    "com.microsoft.DynamicQuantizeMatMul": (),
    "com.microsoft.MatMulIntegerToFloat": (),
    "com.microsoft.MatMulNBits": ("K", "N", "bits", "block_size", "accuracy_level"),
    "com.microsoft.QAttention": (
        *("num_heads", "unidirectional", "scale", "mask_filter_value", "do_rotary"),
        "past_present_share_buffer",
    ),
    "com.microsoft.QGemm": ("alpha", "transA", "transB"),
    "com.microsoft.QLinearAdd": (),
    "com.microsoft.QLinearAveragePool": (
        *_WINDOW,
        *("ceil_mode", "channels_last", "count_include_pad"),
    ),
    "com.microsoft.QLinearConcat": ("axis",),
    "com.microsoft.QLinearGlobalAveragePool": ("channels_last",),
    "com.microsoft.QLinearLeakyRelu": ("alpha",),
    "com.microsoft.QLinearMul": (),
    "com.microsoft.QLinearReduceMean": ("axes", "keepdims"),
    "com.microsoft.QLinearSigmoid": (),
    "com.microsoft.QLinearSoftmax": ("axis", "opset"),
    "com.microsoft.QLinearWhere": (),
}
# onnxruntime's copies of standard operators.
_COPIES = ("DequantizeLinear", "QuantizeLinear", "QLinearConv")


def _rule(name: str, attributes: tuple[str, ...]) -> Rule:
    domain, _, op = name.rpartition(".")
    target = f"{domain or 'onnx'}::{op}"

    def rule(b: OnnxBuilder, *operands: Operand) -> Any:
        given = {key: _plain(b, key) for key in attributes if b.get(key) is not None}
        wide = [float32_scale(b, x) for x in operands] if op == "QLinearMatMul" else operands
        if op == "MatMulNBits":
            weight = operands[1]
            given["constant_weight"] = int(isinstance(weight, Constant) and weight.stored)
        results = b.emit_all(target, *wide, **given)
        return list(results)

    return rule


def float32_scale(b: OnnxBuilder, x: Operand) -> Operand:
    """Return a scale of half precision as float32, in which the product is scaled."""
    if isinstance(x, Value | Constant) and x.type.dtype in (float16, bfloat16):
        wide: Known = b.cast(x, float32)
        return wide
    return x


def _plain(b: OnnxBuilder, key: str) -> Any:
    value = b.get(key)
    if key not in _DTYPES:
        return value
    return element_type(value, key) if value else None


QUANTIZATION: dict[str, Rule] = {
    name: _rule(name, attributes) for name, attributes in _OPERATORS.items()
}
QUANTIZATION |= {f"com.microsoft.{name}": QUANTIZATION[name] for name in _COPIES}
