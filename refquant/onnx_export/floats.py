"""Float operations as ONNX operators, and those that move values of any kind."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Node
from refquant.onnx_export.reductions import CHOOSE, REDUCTIONS, Write
from refquant.onnx_export.writer import Writer


def same(op: str, **renamed: str) -> Write:
    """Return the writer of an operation that is one operator; ONNX's name for each attribute."""

    def write(w: Writer, node: Node) -> str:
        attributes: dict[str, Any] = {
            ours: node.attributes.get(theirs) for ours, theirs in renamed.items()
        }
        return w.add(op, *map(w.operand, node.inputs), **attributes)

    return write


def _scalar(op: str, *, swapped: bool = False) -> Write:
    """Return the writer of an operation with a number."""

    def write(w: Writer, node: Node) -> str:
        x = node.inputs[0]
        assert x is not None
        number = node.attributes.get("other", node.attributes.get("exponent"))
        other = w.constant(np.asarray(number, x.type.dtype.storage))
        operands = (other, w.operand(x)) if swapped else (w.operand(x), other)
        return w.add(op, *operands)

    return write


def _linear(w: Writer, node: Node) -> str:
    x, weight, bias = (*node.inputs, None)[:3]
    assert x is not None
    assert weight is not None
    if x.type.rank == 2:
        return w.add("Gemm", *map(w.operand, (x, weight, bias)), transB=1)
    turned = w.add("Transpose", w.operand(weight), perm=[1, 0])
    product = w.add("MatMul", w.operand(x), turned)
    return product if bias is None else w.add("Add", product, w.operand(bias))


def geometry(node: Node, kernel: tuple[int, ...]) -> dict[str, Any]:
    """Return the attributes of a convolution in ONNX's terms."""
    how: dict[str, Any] = dict(node.attributes)
    return {
        "kernel_shape": kernel,
        "strides": how["stride"],
        "pads": (*how["padding"], *how["padding"]),
        "dilations": how["dilation"],
        "group": how["groups"],
    }


def _conv(w: Writer, node: Node) -> str:
    weight = node.inputs[1]
    assert weight is not None
    how = geometry(node, weight.type.sizes[2:])
    return w.add("Conv", *map(w.operand, node.inputs), **how)


def _conv_transpose(w: Writer, node: Node) -> str:
    weight = node.inputs[1]
    assert weight is not None
    how = geometry(node, weight.type.sizes[2:])
    extra = node.attributes["output_padding"]
    return w.add("ConvTranspose", *map(w.operand, node.inputs), **how, output_padding=extra)


def window(node: Node, rank: int) -> dict[str, Any]:
    """Return the attributes of a pool in ONNX's terms."""
    how: dict[str, Any] = dict(node.attributes)

    def each(value: Any) -> tuple[int, ...]:
        return (value,) * rank if isinstance(value, int) else tuple(value)

    kernel = each(how["kernel_size"])
    padding = each(how.get("padding", 0))
    if how.get("divisor_override") is not None:
        raise UnsupportedError("a pool with divisor_override")
    return {
        "kernel_shape": kernel,
        "strides": each(how.get("stride") or kernel),
        "pads": (*padding, *padding),
        "ceil_mode": int(how.get("ceil_mode", False)),
    }


def _max_pool(rank: int) -> Write:
    def write(w: Writer, node: Node) -> str:
        dilation = node.attributes.get("dilation", 1)
        each = (dilation,) * rank if isinstance(dilation, int) else dilation
        return w.add("MaxPool", w.operand(node.inputs[0]), **window(node, rank), dilations=each)

    return write


def _avg_pool(rank: int) -> Write:
    def write(w: Writer, node: Node) -> str:
        counts = int(bool(node.attributes.get("count_include_pad", True)))
        x = w.operand(node.inputs[0])
        return w.add("AveragePool", x, **window(node, rank), count_include_pad=counts)

    return write


def adaptive_window(node: Node, rank: int) -> dict[str, Any] | None:
    """Return the window of an adaptive pool whose windows are all alike; None for one window.

    Raises
    ------
    UnsupportedError
        If windows differ in size.
    """
    x = node.inputs[0]
    assert x is not None
    size: Any = node.attributes["output_size"]
    sizes = (size,) * rank if isinstance(size, int) else tuple(size)
    lengths = x.type.shape[-rank:]
    if sizes == (1,) * rank:
        return None
    if any(not isinstance(n, int) or n % m for n, m in zip(lengths, sizes, strict=True)):
        raise UnsupportedError(f"an adaptive pool from {lengths} to {sizes}: windows differ")
    kernel = tuple(int(n) // m for n, m in zip(lengths, sizes, strict=True))  # type: ignore[arg-type]
    return {"kernel_shape": kernel, "strides": kernel}


def _adaptive(rank: int) -> Write:
    def write(w: Writer, node: Node) -> str:
        how = adaptive_window(node, rank)
        x = w.operand(node.inputs[0])
        return w.add("GlobalAveragePool", x) if how is None else w.add("AveragePool", x, **how)

    return write


def _batch_norm(w: Writer, node: Node) -> str:
    x, weight, bias, mean, var = node.inputs
    assert mean is not None
    count = mean.type.sizes[0]
    scale = w.operand(weight) if weight else w.constant(np.ones(count, np.float32))
    shift = w.operand(bias) if bias else w.constant(np.zeros(count, np.float32))
    operands = (w.operand(x), scale, shift, w.operand(mean), w.operand(var))
    return w.add("BatchNormalization", *operands, epsilon=node.attributes["eps"])


def _layer_norm(w: Writer, node: Node) -> str:
    x, weight, bias = (*node.inputs, None, None)[:3]
    shape: Any = node.attributes["normalized_shape"]
    scale = w.operand(weight) if weight else w.constant(np.ones(shape, np.float32))
    operands = (w.operand(x), scale, w.operand(bias))
    eps = node.attributes.get("eps", 1e-5)
    return w.add("LayerNormalization", *operands, axis=-len(shape), epsilon=eps)


def _clamp(w: Writer, node: Node) -> str:
    x = node.inputs[0]
    names = ("min", "max") if node.op == "aten::clamp" else ("min_val", "max_val")
    defaults = (None, None) if node.op == "aten::clamp" else (-1.0, 1.0)
    ends = [node.attributes.get(*pair) for pair in zip(names, defaults, strict=True)]
    if node.op == "aten::relu6":
        ends = [0.0, 6.0]
    limits = ["" if end is None else w.constant(np.array(end, np.float32)) for end in ends]
    return w.add("Clip", w.operand(x), *limits)


def _gelu(w: Writer, node: Node) -> str:
    if node.attributes.get("approximate", "none") != "none":
        raise UnsupportedError("gelu by tanh")
    x = w.operand(node.inputs[0])
    erf = w.add("Erf", w.add("Div", x, w.constant(np.float32(sqrt(2)))))
    twice = w.add("Mul", x, w.add("Add", erf, w.constant(np.float32(1))))
    return w.add("Mul", twice, w.constant(np.float32(0.5)))


def _silu(w: Writer, node: Node) -> str:
    x = w.operand(node.inputs[0])
    return w.add("Mul", x, w.add("Sigmoid", x))


def _elu(w: Writer, node: Node) -> str:
    if node.attributes.get("scale", 1.0) != 1.0 or node.attributes.get("input_scale", 1.0) != 1.0:
        raise UnsupportedError("elu with scale")
    return w.add("Elu", w.operand(node.inputs[0]), alpha=node.attributes.get("alpha", 1.0))


def _prelu(w: Writer, node: Node) -> str:
    x, slopes = node.inputs
    assert x is not None
    data = w.data(slopes)
    if not isinstance(data, np.ndarray):
        raise UnsupportedError("prelu with slopes that are computed")
    shape = (-1, *(1,) * max(0, x.type.rank - 2))
    return w.add("PRelu", w.operand(x), w.constant(data.reshape(shape)))


def _resize(mode: str, **how: str) -> Write:
    def write(w: Writer, node: Node) -> str:
        given: dict[str, Any] = dict(node.attributes)
        if any(given.get("scale_factors") or ()):
            raise UnsupportedError("upsampling by factors; give sizes")
        corners = {"coordinate_transformation_mode": "align_corners"}
        chosen: dict[str, Any] = how | (corners if given.get("align_corners") else {})
        sizes = w.shape_of_run(node.outputs[0].type.shape)
        return w.add("Resize", w.operand(node.inputs[0]), "", "", sizes, mode=mode, **chosen)

    return write


def _onnx_resize(w: Writer, node: Node) -> str:
    how: dict[str, Any] = dict(node.attributes)
    axes, sizes, scales = how.pop("axes"), how.pop("sizes"), how.pop("scales")
    roi = w.constant(np.array(how.pop("roi", ()), np.float32)) if how.get("roi") else ""
    how.pop("roi", None)
    factors = w.constant(np.array(scales, np.float32)) if scales else ""
    lengths = "" if scales else w.constant(np.array(sizes, np.int64))
    plain: dict[str, Any] = {k: int(v) if isinstance(v, bool) else v for k, v in how.items()}
    return w.add("Resize", w.operand(node.inputs[0]), roi, factors, lengths, axes=axes, **plain)


# ---- movement


def _reshaped(w: Writer, node: Node) -> str:
    return w.add("Reshape", w.operand(node.inputs[0]), w.shape(node.outputs[0].type.shape))


def _permute(w: Writer, node: Node) -> str:
    x = node.inputs[0]
    assert x is not None
    how: dict[str, Any] = dict(node.attributes)
    rank = x.type.rank
    order = list(range(rank))
    if "dims" in how:
        order = [d % rank for d in how["dims"]]
    else:
        a, b = how["dim0"] % rank, how["dim1"] % rank
        order[a], order[b] = order[b], order[a]
    return w.add("Transpose", w.operand(x), perm=order)


def _expand(w: Writer, node: Node) -> str:
    sizes = node.outputs[0].type.shape
    return w.add("Expand", w.operand(node.inputs[0]), w.shape_of_run(sizes))


def _cat(w: Writer, node: Node) -> str:
    return w.add("Concat", *map(w.operand, node.inputs), axis=node.attributes.get("dim", 0))


def _stack(w: Writer, node: Node) -> str:
    dim = node.attributes.get("dim", 0)
    axes = w.constant(np.array([dim], np.int64))
    parts = [w.add("Unsqueeze", w.operand(x), axes) for x in node.inputs]
    return w.add("Concat", *parts, axis=dim)


def _select(w: Writer, node: Node) -> str:
    index = w.constant(np.array(node.attributes["index"], np.int64))
    return w.add("Gather", w.operand(node.inputs[0]), index, axis=node.attributes["dim"])


def _slice(w: Writer, node: Node) -> str:
    how: dict[str, Any] = dict(node.attributes)
    end = how.get("end")
    bounds = (how.get("start", 0), 2**62 if end is None else end, how.get("dim", 0))
    one = [w.constant(np.array([n], np.int64)) for n in (*bounds, how.get("step", 1))]
    return w.add("Slice", w.operand(node.inputs[0]), *one)


def _split(w: Writer, node: Node) -> list[str]:
    sizes = w.constant(np.array(node.attributes["split_sizes"], np.int64))
    x = w.operand(node.inputs[0])
    axis = node.attributes.get("dim", 0)
    return w.add_all("Split", (x, sizes), len(node.outputs), axis=axis)


def _unbind(w: Writer, node: Node) -> list[str]:
    x, dim = w.operand(node.inputs[0]), node.attributes.get("dim", 0)
    return [
        w.add("Gather", x, w.constant(np.array(i, np.int64)), axis=dim)
        for i in range(len(node.outputs))
    ]


def _pad(w: Writer, node: Node) -> str:
    x = node.inputs[0]
    assert x is not None
    how: dict[str, Any] = dict(node.attributes)
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.get(
        how.get("mode", "constant")
    )
    if mode is None or (x.type.dtype.is_quantized and mode == "constant"):
        raise UnsupportedError(f"padding {how.get('mode')!r} of {x.type.dtype}")
    pairs = list(zip(how["pad"][::2], how["pad"][1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (x.type.rank - len(pairs)) + pairs
    ends = [before for before, _ in pairs] + [after for _, after in pairs]
    value = w.constant(np.array(how.get("value") or 0, x.type.dtype.storage))
    pads = w.constant(np.array(ends, np.int64))
    return w.add("Pad", w.operand(x), pads, value if mode == "constant" else "", mode=mode)


def _embedding(w: Writer, node: Node) -> str:
    weight, indices = node.inputs
    return w.add("Gather", w.operand(weight), w.operand(indices), axis=0)


def _to(w: Writer, node: Node) -> str:
    return w.cast(w.operand(node.inputs[0]), node.outputs[0].type.dtype)


def _nothing(w: Writer, node: Node) -> str:
    return w.add("Identity", w.operand(node.inputs[0]))


_RANKS = (1, 2, 3)
_UNARY = {
    **{"abs": "Abs", "ceil": "Ceil", "cos": "Cos", "erf": "Erf", "exp": "Exp", "floor": "Floor"},
    **{"log": "Log", "neg": "Neg", "reciprocal": "Reciprocal", "round": "Round", "sign": "Sign"},
    **{"sin": "Sin", "sqrt": "Sqrt", "logical_not": "Not", "softplus": "Softplus"},
    **{"hardswish": "HardSwish", "mish": "Mish", "sigmoid": "Sigmoid", "tanh": "Tanh"},
}
_BINARY = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "matmul": "MatMul", "bmm": "MatMul"},
    **{"maximum": "Max", "minimum": "Min", "eq": "Equal", "lt": "Less", "gt": "Greater"},
    **{"le": "LessOrEqual", "ge": "GreaterOrEqual", "logical_and": "And", "logical_or": "Or"},
}

# Values keep their kind: operators on integers where these are quantized.
MOVEMENT: dict[str, Write] = {
    **{f"aten::{name}": _reshaped for name in ("reshape", "view", "flatten")},
    **{f"aten::{name}": _reshaped for name in ("squeeze", "unsqueeze")},
    **{f"aten::{name}": _permute for name in ("permute", "transpose")},
    **{f"aten::{name}": _nothing for name in ("alias", "clone", "contiguous", "dropout")},
    **{f"aten::max_pool{rank}d": _max_pool(rank) for rank in _RANKS},
    "aten::cat": _cat,
    "aten::expand": _expand,
    "aten::pad": _pad,
    "aten::select": _select,
    "aten::slice": _slice,
    "aten::split_with_sizes": _split,
    "aten::stack": _stack,
    "aten::unbind": _unbind,
    "aten::upsample_nearest2d": _resize(
        "nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
    ),
    "observer::observe": _nothing,
    "quantized::dropout": _nothing,
}
FLOATS: dict[str, Write] = {
    **REDUCTIONS,
    **{f"aten::{ours}": same(theirs) for ours, theirs in (_UNARY | _BINARY).items()},
    **{f"aten::conv{rank}d": _conv for rank in _RANKS},
    **{f"aten::conv_transpose{rank}d": _conv_transpose for rank in _RANKS},
    **{f"aten::avg_pool{rank}d": _avg_pool(rank) for rank in _RANKS},
    **{f"aten::adaptive_avg_pool{rank}d": _adaptive(rank) for rank in _RANKS},
    **{f"aten::{name}": _clamp for name in ("clamp", "hardtanh", "relu6")},
    "aten::add.Scalar": _scalar("Add"),
    **{f"aten::{name}.Scalar": _scalar(_BINARY[name]) for name in ("eq", "lt", "gt", "le", "ge")},
    "aten::batch_norm": _batch_norm,
    "aten::div": same("Div"),
    "aten::div.Scalar": _scalar("Div"),
    "aten::elu": _elu,
    "aten::embedding": _embedding,
    "aten::gelu": _gelu,
    "aten::hardsigmoid": lambda w, node: w.add(
        "HardSigmoid", w.operand(node.inputs[0]), alpha=1 / 6, beta=0.5
    ),
    "aten::layer_norm": _layer_norm,
    "aten::leaky_relu": lambda w, node: w.add(
        "LeakyRelu",
        w.operand(node.inputs[0]),
        alpha=node.attributes.get("negative_slope", 0.01),
    ),
    "aten::linear": _linear,
    "aten::log_softmax": same("LogSoftmax", axis="dim"),
    "aten::mul.Scalar": _scalar("Mul"),
    "aten::pow.Tensor_Scalar": _scalar("Pow"),
    "aten::prelu": _prelu,
    "aten::relu": same("Relu"),
    "aten::rsub.Scalar": _scalar("Sub", swapped=True),
    "aten::silu": _silu,
    "aten::softmax": same("Softmax", axis="dim"),
    "aten::sub.Scalar": _scalar("Sub"),
    "aten::to": _to,
    "onnx::Resize": _onnx_resize,
    "aten::upsample_bilinear2d": _resize("linear", coordinate_transformation_mode="half_pixel"),
}
# Of floats these give the same bits everywhere: they choose or move, and round nothing.
EXACT_FLOATS = CHOOSE | frozenset(
    f"aten::{name}"
    for name in (
        *("relu", "clamp", "hardtanh", "relu6", "embedding", "maximum", "minimum", "abs", "neg"),
        *("eq", "lt", "gt", "le", "ge", "logical_and", "logical_or", "logical_not", "ceil"),
        *("floor", "round", "sign", "eq.Scalar", "lt.Scalar", "gt.Scalar", "le.Scalar"),
        "ge.Scalar",
    )
)
# One operation of IEEE arithmetic on each element, so the same bits everywhere too.
ROUNDED_ONCE = frozenset(
    f"aten::{name}"
    for name in (
        *("add", "sub", "mul", "div", "sqrt", "add.Scalar", "sub.Scalar", "mul.Scalar"),
        *("div.Scalar", "rsub.Scalar", "reciprocal"),
    )
)
