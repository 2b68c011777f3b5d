"""Which rule imports which operator of ``torch.ops`` where functions and methods do not say.

Overloads, forms that write to a given tensor, forms in place, packed parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refquant.importers import torch_functional as f
from refquant.importers import torch_memory as m
from refquant.importers import torch_quantized as q
from refquant.importers import torch_tensors as t
from refquant.importers.builder import Rule
from refquant.importers.rules import TorchBuilder, unary
from refquant.importers.torch_onednn import ONEDNN
from refquant.importers.torch_packed import PACKED, WRAPPED
from refquant.importers.torch_recurrent import QUANTIZED_RECURRENT
from refquant.ir.graph import Value

_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_DOUBLED = (
    *("add", "linear", "linear_dynamic", "conv2d", "conv2d_relu"),
    *("conv_transpose1d", "conv_transpose2d"),
)


def prelu(b: TorchBuilder, input: Value, weight: Value) -> Value:
    """``torch.ops.aten._prelu_kernel``: the weight has the rank of the tensor."""
    slopes = b.emit("aten::reshape", weight, shape=(-1,))
    if not input.type.dtype.is_quantized:
        return b.emit("aten::prelu", input, slopes)
    scale, zero_point = input.type.per_tensor()
    return b.emit(
        "quantized::prelu", input, slopes, output_scale=scale, output_zero_point=zero_point
    )


def dequantize_all(b: TorchBuilder, tensors: Sequence[Value]) -> tuple[Value, ...]:
    """``torch.dequantize`` of several tensors."""
    return tuple(b.emit("aten::dequantize", x) for x in tensors)


def reflection_pad(b: TorchBuilder, input: Value, padding: Sequence[int]) -> Value:
    """``torch.ops.aten.reflection_pad1d`` and its relatives."""
    return f.pad(b, input, padding, "reflect")


def windows_3d(b: TorchBuilder, input: Value, output_size: Any) -> Value:
    """``torch.ops.aten._adaptive_avg_pool3d``."""
    return b.emit("aten::_adaptive_avg_pool3d", input, output_size=tuple(output_size))


def windows_2d(b: TorchBuilder, input: Value, output_size: Any) -> Value:
    """``torch.ops.aten._adaptive_avg_pool2d``."""
    return b.emit("aten::adaptive_avg_pool2d", input, output_size=tuple(output_size))


def reshape_alias(b: TorchBuilder, input: Value, size: Any, stride: Any) -> Value:
    """``torch.ops.aten._reshape_alias``."""
    return m.as_strided(b, input, size, stride)


_max = t.extreme("aten::amax", "aten::maximum", "aten::max.dim")
_min = t.extreme("aten::amin", "aten::minimum", "aten::min.dim")

ATEN: dict[str, Rule] = {
    "_adaptive_avg_pool2d": windows_2d,
    "_adaptive_avg_pool3d": windows_3d,
    "adaptive_avg_pool3d.out": m.replacing(windows_3d),
    "_index_put_impl_": m.in_place(m.index_put),
    "index_put": m.index_put,
    "index_put_": m.in_place(m.index_put),
    "index.Tensor": m.index,
    "index_select.out": m.into(t.index_select, keep_qparams=True),
    "_prelu_kernel": prelu,
    "_reshape_alias": reshape_alias,
    "as_strided": m.as_strided,
    "cat.out": m.cat_out,
    "dequantize.tensors": dequantize_all,
    **{f"{name}.Tensor_out": m.comparison_out(name) for name in _COMPARISONS},
    **{f"{name}.Scalar_out": m.comparison_out(name) for name in _COMPARISONS},
    "fill_": m.fill_,
    "gelu_": m.in_place(f.gelu),
    "hardsigmoid.out": m.into(unary("aten::hardsigmoid")),
    "hardtanh.out": m.replacing(f.hardtanh),
    "hardtanh_": m.in_place(f.hardtanh),
    "leaky_relu.out": m.leaky_relu_out,
    "leaky_relu_": m.leaky_relu_,
    "masked_fill": m.masked_fill,
    "masked_fill_": m.in_place(m.masked_fill),
    "max.unary_out": m.into(_max),
    "min.unary_out": m.into(_min),
    "mean.out": m.replacing(t.reduce("aten::mean")),
    "quantized_batch_norm": q.quantized_batch_norm("batch_norm"),
    **{f"quantized_max_pool{rank}d": q.quantized_max_pool(rank) for rank in (1, 2, 3)},
    **{f"reflection_pad{rank}d": reflection_pad for rank in (1, 2, 3)},
    "reflection_pad1d.out": m.into(reflection_pad),
    "reflection_pad2d.out": m.into(reflection_pad, keep_qparams=True),
    "relu_": m.in_place(unary("aten::relu")),
    "resize_": m.resize_,
    "set_.source_Storage_storage_offset": m.set_,
    "std.correction_out": m.replacing(t.deviation),
    "equal": lambda b, input, other: b.emit("aten::equal", input, other),
    **m.QPARAMS,
    **m.MAKES_MEMORY,
}
# Methods, and the functions of the same name, that differ from the operator without underscore.
_IN_PLACE = (
    *("fill_", "gelu_", "hardtanh_", "leaky_relu_", "masked_fill_", "relu_", "resize_"),
    "index_put_",
)
METHOD_FORMS: dict[str, Rule] = {
    **{name: ATEN[name] for name in _IN_PLACE},
    "zero_": m.zero_,
    "masked_fill": m.masked_fill,
    "index_put": m.index_put,
    "as_strided": m.as_strided,
    "equal": ATEN["equal"],
    "untyped_storage": t.identity,
    **m.QPARAMS,
}
MAKES_MEMORY = frozenset(
    f"torch.{place}{name}" for place in ("", "ops.aten.") for name in m.MAKES_MEMORY
)
OPERATORS: dict[str, Rule] = {
    **{f"torch.ops.aten.{name}": rule for name, rule in ATEN.items()},
    **{f"torch.{name}": rule for name, rule in METHOD_FORMS.items()},
    **{f"torch.{name}": rule for name, rule in m.MAKES_MEMORY.items()},
    **{f"torch.nn.functional.{name}": ATEN[name] for name in _IN_PLACE},
    **{f"torch.ops.onednn.{name}": rule for name, rule in ONEDNN.items()},
    **{f"torch.ops.quantized.{name}": rule for name, rule in PACKED.items()},
    **{f"torch.ops._quantized.{name}": rule for name, rule in PACKED.items()},
    **{f"torch.ops._quantized.{name}": q.QUANTIZED[name] for name in _DOUBLED},
    **{f"torch.ops._quantized.{name}": rule for name, rule in WRAPPED.items()},
    **QUANTIZED_RECURRENT,
}
