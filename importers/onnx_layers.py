"""Rules of layers: products, convolutions, norms and recurrences."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.importers.onnx_builder import Constant, Known, OnnxBuilder, Operand, Rule
from refquant.importers.onnx_pools import POOLS, padding, whole
from refquant.ir.errors import VerifyError
from refquant.ir.types import bfloat16, float16, float32

_HALF = (float16, bfloat16)


def in_float32(
    b: OnnxBuilder, op: str, x: Known, *operands: Known | None, **attributes: Any
) -> Known:
    """Emit an op of float32; halves go there and back."""
    own = x.type.dtype
    if own == float32:
        return b.emit(op, x, *operands, **attributes)
    b.only(own in _HALF, f"{op} of {own}")
    wide = [None if y is None else b.cast(y, float32) for y in (x, *operands)]
    half: Known = b.cast(b.emit(op, *wide, **attributes), own)
    return half


# ---- products


def _matmul(b: OnnxBuilder, x: Known, y: Known) -> Known:
    dtype = x.type.dtype
    if dtype.storage.kind in "iu":
        return b.emit("onnx::MatMul", x, y)
    if dtype == bfloat16:
        wide = b.emit("aten::matmul", b.cast(x, float32), b.cast(y, float32))
        narrow: Known = b.cast(wide, dtype)
        return narrow
    if _is_weight(x, y) and y.type.rank == 2:
        return b.emit("aten::linear", x, _turned(b, y), None)
    return b.emit("aten::matmul", x, y)


def _is_weight(x: Known, y: Known) -> bool:
    """Whether a product is a layer: only with a constant of the file do runtimes make it one."""
    return isinstance(y, Constant) and y.stored and not isinstance(x, Constant)


def _turned(b: OnnxBuilder, x: Known) -> Known:
    return b.emit("aten::permute", x, dims=(1, 0))


def _gemm(b: OnnxBuilder, x: Known, y: Known, c: Operand = None) -> Known:
    how = {name: b.get(name) for name in ("alpha", "beta", "transA", "transB")}
    columns = y.type.shape[0 if how["transB"] else -1]
    bias = _bias(c, columns)
    plain = how["alpha"] == 1.0 and (c is None or (how["beta"] == 1.0 and bias is not None))
    if not plain or not x.type.dtype.is_floating_point or not _is_weight(x, y):
        return b.emit("onnx::Gemm", x, y, c, **how)
    rows = _turned(b, x) if how["transA"] else x
    return b.emit("aten::linear", rows, y if how["transB"] else _turned(b, y), bias)


def _bias(c: Operand, columns: Any) -> Constant | None:
    """Return a constant C that adds one number to each column as a vector."""
    if not isinstance(c, Constant) or c.data.shape[:-1] not in ((), (1,)):
        return None
    row = c.data.reshape(-1)
    if row.size not in (1, columns) or not isinstance(columns, int):
        return None
    return Constant(c.name, np.ascontiguousarray(np.broadcast_to(row, columns)))


def _times(b: OnnxBuilder, x: Known, factor: float) -> Known:
    return b.emit("aten::mul", x, b.constant(np.array(factor).astype(x.type.dtype.storage)))


def _conv(b: OnnxBuilder, x: Known, w: Known, bias: Known | None = None) -> Known:
    rank = w.type.rank - 2
    b.only(1 <= rank <= 3, f"a convolution of {rank} spatial axes")
    kernel = tuple(w.type.sizes[2:])
    if b.get("kernel_shape") not in (None, kernel):
        raise VerifyError(f"kernel_shape {b.get('kernel_shape')} does not fit the weight {w.type}")
    strides = b.get("strides") or (1,) * rank
    dilations = b.get("dilations") or (1,) * rank
    begins, ends = padding(b, x, kernel, strides, dilations)
    if begins != ends:
        x, begins = padded(b, x, begins, ends), (0,) * rank
    how = {"stride": strides, "padding": begins, "dilation": dilations, "groups": b.get("group")}
    emit = in_float32 if x.type.dtype in _HALF else OnnxBuilder.emit
    return emit(b, f"aten::conv{rank}d", x, w, bias, **how)


def padded(
    b: OnnxBuilder, x: Known, begins: tuple[int, ...], ends: tuple[int, ...], value: float = 0.0
) -> Known:
    """Return a tensor with its last axes padded."""
    pairs = zip(reversed(begins), reversed(ends), strict=True)
    flat = tuple(n for pair in pairs for n in pair)
    return b.emit("aten::pad", x, pad=flat, mode="constant", value=value)


def _conv_transpose(b: OnnxBuilder, x: Known, w: Known, bias: Operand = None) -> Known:
    rank = w.type.rank - 2
    b.only(1 <= rank <= 3, f"a convolution of {rank} spatial axes")
    kernel = tuple(w.type.sizes[2:])
    strides = b.get("strides") or (1,) * rank
    dilations = b.get("dilations") or (1,) * rank
    extra = b.get("output_padding") or (0,) * rank
    spatial = whole(b, x)
    full = [
        s * (n - 1) + o + d * (k - 1) + 1
        for n, s, o, d, k in zip(spatial, strides, extra, dilations, kernel, strict=True)
    ]
    wanted, auto = b.get("output_shape"), b.get("auto_pad")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, strides, strict=True)]
    if wanted is not None:
        totals = [n - w for n, w in zip(full, wanted[-rank:], strict=True)]
        lower = auto != "SAME_UPPER"
        begins = tuple(t - t // 2 if lower else t // 2 for t in totals)
        ends = tuple(t - begin for t, begin in zip(totals, begins, strict=True))
    else:
        pads = b.get("pads") or (0,) * 2 * rank
        begins, ends = tuple(pads[:rank]), tuple(pads[rank:])
    how = {"stride": strides, "groups": b.get("group"), "dilation": dilations}
    same = begins == ends and min(begins) >= 0
    inner = begins if same else (0,) * rank
    y = b.emit(
        f"aten::conv_transpose{rank}d", x, w, bias, **how, padding=inner, output_padding=extra
    )
    if same:
        return y
    missing = tuple(max(0, -end) for end in ends)
    if any(missing):
        y = padded(b, y, (0,) * rank, missing)
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True), 2):
        b.only(begin >= 0, "a result that begins before the first window")
        stop = int(y.type.sizes[axis]) - max(0, end)
        y = b.emit("aten::slice", y, dim=axis, start=begin, end=stop, step=1)
    return y


def _deform_conv(
    b: OnnxBuilder, x: Known, w: Known, offset: Known, bias: Operand = None, mask: Operand = None
) -> Known:
    rank = w.type.rank - 2
    how = {name: b.get(name) or (1,) * rank for name in ("strides", "dilations")}
    how |= {"pads": b.get("pads") or (0,) * 2 * rank, "group": b.get("group")}
    groups = b.get("offset_group")
    return b.emit("onnx::DeformConv", x, w, offset, bias, mask, **how, offset_group=groups)


# ---- norms


def _batch_norm(
    b: OnnxBuilder, x: Known, scale: Known, shift: Known, mean: Known, var: Known
) -> Any:
    eps, training = b.get("epsilon"), b.get("training_mode", 0)
    common = {"training": False, "momentum": 0.1, "eps": eps, "cudnn_enabled": False}
    if not training:
        extra = [name for name in b.node.outputs[1:] if name]
        b.only(not extra, "statistics as results outside training")
        return in_float32(b, "aten::batch_norm", x, scale, shift, mean, var, **common)
    axes = (0, *range(2, x.type.rank))
    own_mean = b.emit("aten::mean", x, dim=axes, keepdim=False)
    own_var = b.emit("aten::var", x, dim=axes, correction=0, keepdim=False)
    y = in_float32(b, "aten::batch_norm", x, scale, shift, own_mean, own_var, **common)
    keep = b.get("momentum")

    def blended(old: Known, new: Known) -> Known:
        return b.emit("aten::add", _times(b, old, keep), _times(b, new, 1 - keep))

    return [y, blended(mean, own_mean), blended(var, own_var)]


def _instance_norm(b: OnnxBuilder, x: Known, scale: Known, shift: Known) -> Known:
    how = {"use_input_stats": True, "momentum": 0.1, "cudnn_enabled": False}
    none = (None, None)
    eps = b.get("epsilon")
    return in_float32(b, "aten::instance_norm", x, scale, shift, *none, **how, eps=eps)


def _layer_norm(b: OnnxBuilder, x: Known, scale: Known, shift: Operand = None) -> Any:
    axis = b.get("axis") % max(1, x.type.rank)
    shape = x.type.shape[axis:]
    plain = len(b.node.outputs) == 1 and all(isinstance(n, int) for n in shape)
    if not plain or x.type.dtype != float32 or scale.type.shape != shape:
        return NotImplemented
    eps = b.get("epsilon")
    return b.emit(
        "aten::layer_norm", x, scale, shift, normalized_shape=shape, eps=eps, cudnn_enable=False
    )


def _softmax(op: str) -> Rule:
    def rule(b: OnnxBuilder, x: Known) -> Any:
        axis = b.get("axis")
        if b.version >= 13:
            if x.type.dtype != float32:
                return NotImplemented  # whose function rounds each step
            return b.emit(op, x, dim=axis)
        # Before opset 13 all axes from the given one on are one.
        rank = x.type.rank
        flat = x
        if axis % rank != rank - 1:
            flat = b.emit("aten::flatten", x, start_dim=axis % rank, end_dim=-1)
        y = in_float32(b, op, flat, dim=-1)
        return y if flat is x else b.emit("aten::reshape", y, shape=x.type.shape)

    return rule


def _hardmax(b: OnnxBuilder, x: Known) -> Known:
    axis = b.get("axis")
    if b.version >= 13:
        return b.emit("onnx::Hardmax", x, axis=axis)
    flat = b.emit("aten::flatten", x, start_dim=axis % x.type.rank, end_dim=-1)
    return b.emit("aten::reshape", b.emit("onnx::Hardmax", flat, axis=-1), shape=x.type.shape)


def _lrn(b: OnnxBuilder, x: Known) -> Known:
    names = ("size", "alpha", "beta", "bias")
    return b.emit("onnx::LRN", x, **{name: b.get(name) for name in names})


def _dropout(b: OnnxBuilder, x: Known, ratio: Operand = None, training: Operand = None) -> Any:
    if training is not None and bool(b.array(training, "training_mode")):
        share = 0.5 if ratio is None else float(b.array(ratio, "ratio"))
        b.only(share == 0, "dropout in training mode: nothing says which elements")
    if len(b.node.outputs) == 1:
        return x
    mask = b.constant(np.ones(x.type.sizes, np.bool_ if b.version >= 10 else np.float32))
    return [x, mask]


# ---- recurrences


def _recurrent(kind: str, *names: str) -> Rule:
    shared = ("activations", "activation_alpha", "activation_beta", "clip", "direction")

    def rule(b: OnnxBuilder, *operands: Operand) -> Any:
        how = {name: b.get(name) for name in (*shared, *names)}
        return list(b.emit_all(f"onnx::{kind}", *operands, **how, layout=b.get("layout", 0)))

    return rule


LAYERS: dict[str, Rule] = {
    **POOLS,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DeformConv": _deform_conv,
    "Dropout": _dropout,
    "GRU": _recurrent("GRU", "linear_before_reset"),
    "Gemm": _gemm,
    "Hardmax": _hardmax,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LSTM": _recurrent("LSTM", "input_forget"),
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax("aten::log_softmax"),
    "MatMul": _matmul,
    "RNN": _recurrent("RNN"),
    "Softmax": _softmax("aten::softmax"),
}
