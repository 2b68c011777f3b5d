"""Which rule imports which torch function or tensor method, by qualified name.

A rule gets the builder and the call's arguments under torch's own names, tensors as ``Value``;
it returns what the call returns. Nothing here imports torch.
"""

from __future__ import annotations

from refquant.importers import torch_functional as f
from refquant.importers import torch_quantized as q
from refquant.importers import torch_tensors as t
from refquant.importers.builder import Rule
from refquant.importers.rules import unary
from refquant.ir.types import float32

_UNARY = (
    *("relu", "relu6", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "neg", "abs"),
    *("exp", "log", "sqrt", "rsqrt", "reciprocal", "square", "sin", "cos", "erf", "floor"),
    *("ceil", "round", "sign", "logical_not", "clone"),
)
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")

# Shared by functions (torch.<name>, torch.nn.functional.<name>) and methods (x.<name>).
COMMON: dict[str, Rule] = {
    **{name: unary(f"aten::{name}") for name in _UNARY},
    **{name: t.binary(f"aten::{name}") for name in (*_COMPARISONS, "add", "mul")},
    "sub": t.binary("aten::sub", "aten::rsub.Scalar"),
    "subtract": t.binary("aten::sub", "aten::rsub.Scalar"),
    "multiply": t.binary("aten::mul"),
    "div": t.div,
    "divide": t.div,
    "true_divide": t.div,
    "floor_divide": t.binary("aten::floor_divide"),
    "remainder": t.binary("aten::remainder"),
    "pow": t.power,
    "clamp": t.clamp,
    "clip": t.clamp,
    "clamp_min": lambda b, input, min: t.clamp(b, input, min, None),
    "clamp_max": lambda b, input, max: t.clamp(b, input, None, max),
    "softmax": f.softmax,
    "log_softmax": f.log_softmax,
    "matmul": lambda b, input, other: b.emit("aten::matmul", input, other),
    "mm": lambda b, input, mat2: b.emit("aten::matmul", input, mat2),
    "bmm": lambda b, input, mat2: b.emit("aten::bmm", input, mat2),
    "maximum": lambda b, input, other: b.emit("aten::maximum", input, other),
    "minimum": lambda b, input, other: b.emit("aten::minimum", input, other),
    "reshape": t.reshape,
    "flatten": t.flatten,
    "unflatten": t.unflatten,
    "permute": t.permute,
    "transpose": t.transpose,
    "swapaxes": t.transpose,
    "t": t.matrix_transpose,
    "squeeze": t.squeeze,
    "unsqueeze": t.unsqueeze,
    "roll": t.roll,
    "flip": t.flip,
    "split": t.split,
    "chunk": t.chunk,
    "unbind": t.unbind,
    "mean": t.reduce("aten::mean"),
    "sum": t.reduce("aten::sum"),
    "amax": t.reduce("aten::amax"),
    "amin": t.reduce("aten::amin"),
    "argmax": t.argument("aten::argmax"),
    "argmin": t.argument("aten::argmin"),
    "max": t.extreme("aten::amax", "aten::maximum"),
    "min": t.extreme("aten::amin", "aten::minimum"),
    "var": t.variance,
    "norm": t.norm,
    "topk": t.topk,
    "cumsum": t.cumsum,
    "masked_fill": t.masked_fill,
    "where": t.where,
    "index_select": t.index_select,
    "gather": t.gather,
    "numel": t.numel,
    "detach": t.identity,
    "dequantize": q.dequantize,
    "select": lambda b, input, dim, index: b.emit("aten::select", input, dim=dim, index=index),
    "narrow": lambda b, input, dim, start, length: b.emit(
        "aten::slice", input, dim=dim, start=start, end=start + length, step=1
    ),
    "tril": lambda b, input, diagonal=0: b.emit("aten::tril", input, diagonal=diagonal),
    "triu": lambda b, input, diagonal=0: b.emit("aten::triu", input, diagonal=diagonal),
}

METHODS: dict[str, Rule] = {
    **COMMON,
    "view": t.view,
    "view_as": t.view_as,
    "reshape_as": t.view_as,
    "expand": t.expand,
    "expand_as": t.expand_as,
    "repeat": t.repeat_tensor,
    "contiguous": t.contiguous,
    "size": t.size,
    "dim": lambda b, input: input.type.rank,
    "ndimension": lambda b, input: input.type.rank,
    "to": t.to,
    "float": lambda b, input: t.cast(b, input, float32),
    "type_as": lambda b, input, other: t.cast(b, input, other.type.dtype),
    "cpu": t.identity,
    "requires_grad_": t.identity,
    "is_floating_point": t.is_float,
    "__getitem__": t.getitem,
}

_FUNCTIONS: dict[str, Rule] = {
    **COMMON,
    "cat": t.cat,
    "concat": t.cat,
    "concatenate": t.cat,
    "stack": t.stack,
    "einsum": f.einsum,
    "rsub": lambda b, input, other: t.binary("aten::sub", "aten::rsub.Scalar")(b, other, input),
    "_assert": t.check,
    "pixel_shuffle": t.attribute_op("aten::pixel_shuffle", "upscale_factor"),
    "pixel_unshuffle": t.attribute_op("aten::pixel_unshuffle", "downscale_factor"),
    "channel_shuffle": t.attribute_op("aten::channel_shuffle", "groups"),
    "native_channel_shuffle": t.attribute_op("aten::channel_shuffle", "groups"),
    "quantize_per_tensor": q.quantize_per_tensor,
    "quantize_per_channel": q.quantize_per_channel,
    "quantize_per_tensor_dynamic": q.quantize_per_tensor_dynamic,
    "linear": f.linear,
    **{f"conv{rank}d": f.conv for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": f.conv_transpose for rank in (1, 2, 3)},
    **{f"max_pool{rank}d": f.max_pool(rank) for rank in (1, 2, 3)},
    **{f"avg_pool{rank}d": f.avg_pool(rank) for rank in (1, 2, 3)},
    **{f"adaptive_avg_pool{rank}d": f.adaptive_avg_pool(rank) for rank in (1, 2, 3)},
    **{f"lp_pool{rank}d": f.lp_pool(rank) for rank in (1, 2)},
    "hardtanh": f.hardtanh,
    "elu": f.elu,
    "leaky_relu": f.leaky_relu,
    "gelu": f.gelu,
    "threshold": f.threshold,
    "prelu": f.prelu,
    "dropout": f.dropout,
    **{f"dropout{rank}d": f.dropout for rank in (1, 2, 3)},
    "normalize": f.normalize,
    "scaled_dot_product_attention": f.attention,
    "embedding": f.embedding,
    "batch_norm": f.batch_norm,
    "layer_norm": f.layer_norm,
    "group_norm": f.group_norm,
    "instance_norm": f.instance_norm,
    "interpolate": f.interpolate,
    "upsample": f.upsample,
    "pad": f.pad,
}

_OPERATORS: dict[str, Rule] = {
    **{
        name: COMMON[name] for name in (*_COMPARISONS, "add", "sub", "mul", "matmul", "neg", "abs")
    },
    "truediv": t.div,
    "floordiv": t.binary("aten::floor_divide"),
    "mod": t.binary("aten::remainder"),
    "pow": t.power,
    "getitem": t.getitem,
    **{f"i{name}": COMMON[name] for name in ("add", "sub", "mul")},
    "itruediv": t.div,
}

FUNCTIONS: dict[str, Rule] = {
    **{f"torch.{name}": rule for name, rule in _FUNCTIONS.items()},
    **{f"torch.nn.functional.{name}": rule for name, rule in _FUNCTIONS.items()},
    **{f"operator.{name}": rule for name, rule in _OPERATORS.items()},
    **{f"torch.ops.quantized.{name}": rule for name, rule in q.QUANTIZED.items()},
    **{f"torch.ops.quantized_decomposed.{name}": rule for name, rule in q.DECOMPOSED.items()},
    "builtins.getattr": t.get_attribute,
    "torchvision.ops.stochastic_depth.stochastic_depth": f.stochastic_depth,
}
