"""Quantized operations as ONNX operators, each with what it promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Node, Value
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor
from refquant.ir.types import TensorType, float32, float64, int32, quint8
from refquant.kernels import quantized_conv, quantized_linear
from refquant.kernels.accumulate import Sums as Way
from refquant.kernels.accumulate import weight_zero_points
from refquant.kernels.clamp import SCRAMBLING
from refquant.kernels.layer import stand_in
from refquant.kernels.requantize import Rounding, Stage, accumulator_scale, finish_scaled
from refquant.onnx_export.conversions import CONVERSIONS, Written
from refquant.onnx_export.floats import (
    FLOATS,
    adaptive_window,
    geometry,
    window,
)
from refquant.onnx_export.requantization import (
    Linear,
    Spelled,
    Sums,
    bounds,
    is_same,
    linear,
    spelled,
)
from refquant.onnx_export.writer import MICROSOFT, Writer

F32 = npt.NDArray[np.float32]
WriteQuantized = Callable[[Writer, Node], Written]

_SUMS_FLOAT = "the float product is rounded as it is summed, so results near a tie move by a step"
_BETWEEN = "the operator runs on floats; results near a tie may move by a step"
_STEPS = "integer sums, and the rounding gives the engine's result for every sum it can have"
_ORT = "onnxruntime's own rounding; ties and values within an ulp of them may move by a step"


def between(op: str) -> WriteQuantized:
    """Return the writer of an operation that runs on floats between two conversions."""
    write = FLOATS[op]

    def written(w: Writer, node: Node) -> Written:
        x = node.inputs[0]
        assert x is not None
        first = _float_node(w, node)
        found = write(w, first)
        assert isinstance(found, str)
        result = node.outputs[0].type
        return w.quantize(found, result), False, _BETWEEN

    return written


def _float_node(w: Writer, node: Node) -> Node:
    """Return the node with its quantized operands as real values."""
    inputs = []
    for value in node.inputs:
        if value is None or not value.type.dtype.is_quantized:
            inputs.append(value)
            continue
        inputs.append(w.real_value(value))
    return Node(node.op, tuple(inputs), node.attributes, node.outputs, node.origin)


# ---- products


def _weight(w: Writer, value: Value | None) -> QTensor:
    data = w.data(value)
    if not isinstance(data, QTensor):
        raise UnsupportedError("a weight that is computed")
    return data


def _bias(w: Writer, value: Value | None) -> F32 | None:
    data = w.data(value)
    if value is not None and not isinstance(data, np.ndarray):
        raise UnsupportedError("a bias that is computed")
    return None if data is None else np.asarray(data, np.float32)


def _conv(relu: bool) -> WriteQuantized:
    def written(w: Writer, node: Node) -> Written:
        x, weight_value, bias_value = node.inputs
        assert x is not None
        weight, bias = _weight(w, weight_value), _bias(w, bias_value)
        kernel = weight.shape[2:]
        how = geometry(node, kernel)
        if not w.qoperator:
            real = w.add("Conv", w.real(x), _dequantized(w, weight), _vector(w, bias), **how)
            return _quantized(w, node, real, relu), False, _SUMS_FLOAT
        axes: Any = [node.attributes[n] for n in ("stride", "padding", "dilation", "groups")]
        form = quantized_conv.Geometry(kernel, *axes)
        stage, way = quantized_conv.plan("conv", stand_in(_known(x.type)), weight, form, w.target)
        low = int(node.attributes["zero_point"]) if relu else 0  # type: ignore[arg-type]
        integers = _Integers(w, x, weight, bias, stage, way, node.outputs[0].type, low)
        return integers.write(
            "QLinearConv", "ConvInteger", w.operand(x), integers.weight, how, (1,) * len(kernel)
        )

    return written


def _linear(relu: bool) -> WriteQuantized:
    def written(w: Writer, node: Node) -> Written:
        x, weight_value, bias_value = (*node.inputs, None)[:3]
        assert x is not None
        weight, bias = _weight(w, weight_value), _bias(w, bias_value)
        if not w.qoperator:
            turned = w.add("Transpose", _dequantized(w, weight), perm=[1, 0])
            real = w.add("MatMul", w.real(x), turned)
            if bias is not None:
                real = w.add("Add", real, w.constant(bias, "bias"))
            return _quantized(w, node, real, relu), False, _SUMS_FLOAT
        kind = _known(x.type)
        stage = quantized_linear.stage("linear", stand_in(kind), weight, w.target)
        way = quantized_linear.sums_of(stand_in(kind), w.target)
        low = int(node.attributes["zero_point"]) if relu else 0  # type: ignore[arg-type]
        integers = _Integers(w, x, weight, bias, stage, way, node.outputs[0].type, low)
        columns = np.ascontiguousarray(integers.weight.T)
        return integers.write("QLinearMatMul", "MatMulInteger", w.operand(x), columns, {}, ())

    return written


def _linear_dynamic(relu: bool) -> WriteQuantized:
    def written(w: Writer, node: Node) -> Written:
        x, weight_value, bias_value = (*node.inputs, None)[:3]
        weight, bias = _weight(w, weight_value), _bias(w, bias_value)
        q, scale, zero = w.add_all("DynamicQuantizeLinear", [w.operand(x)], 3)
        columns = w.constant(np.ascontiguousarray(weight.int_repr.T), "weight")
        zeros = weight_zero_points(weight, len(weight.int_repr)).reshape(-1).astype(np.int8)
        shared = zeros[0] if np.all(zeros == zeros[:1]) else zeros
        total = w.add("MatMulInteger", q, columns, zero, w.constant(shared, "zero_point"))
        unit = w.add("Mul", scale, w.constant(np.asarray(weight.scale, np.float32), "scale"))
        real = w.add("Mul", w.cast(total, float32), unit)
        if bias is not None:
            real = w.add("Add", real, w.constant(bias, "bias"))
        why = "ONNX takes all 8 bits of the input, torch 7, and rounds its scale otherwise"
        return w.add("Relu", real) if relu else real, False, why

    return written


def _known(kind: TensorType) -> TensorType:
    """Return a type with a batch of 1: rounding does not depend on it."""
    return kind.with_shape(tuple(n if isinstance(n, int) else 1 for n in kind.shape))


def _dequantized(w: Writer, weight: QTensor) -> str:
    return w.dequantize(w.constant(weight.int_repr, "weight"), weight.type)


def _vector(w: Writer, bias: F32 | None) -> str:
    return "" if bias is None else w.constant(bias, "bias")


def _quantized(w: Writer, node: Node, real: str, relu: bool) -> str:
    return w.quantize(w.add("Relu", real) if relu else real, node.outputs[0].type)


def may_saturate(weight: npt.NDArray[np.int8], way: Way) -> bool:
    """Whether two neighbouring products of bytes can be too large for 16 bits together."""
    rows = weight.reshape(*weight.shape[:2], -1)
    if way is Way.PAIRED and weight.ndim > 2:
        ordered = quantized_conv.in_pairs(rows, False).astype(np.int64)
        ordered = np.pad(ordered, ((0, 0), (0, ordered.shape[1] % 2)))
        pairs = ordered.reshape(len(ordered), -1, 2)
        largest = 255 * np.maximum(pairs, 0).sum(-1).max(initial=0)
        smallest = 255 * np.minimum(pairs, 0).sum(-1).min(initial=0)
        return bool(largest > 2**15 - 1 or smallest < -(2**15))
    return 2 * 255 * int(np.abs(weight.astype(np.int64)).max(initial=0)) > 2**15 - 1


class _Integers:
    """A product of integers that is being written."""

    def __init__(
        self,
        w: Writer,
        x: Value,
        weight: QTensor,
        bias: F32 | None,
        stage: Stage,
        way: Way,
        result: TensorType,
        low: int,
    ) -> None:
        if x.type.dtype != quint8:
            raise UnsupportedError(f"integers of {x.type.dtype} as an operand")
        self.w, self.bias, self.result = w, bias, result
        self.source = x.type
        self.weight = weight.int_repr
        scale, zero_point = x.type.per_tensor()
        out_scale, out_zero = result.per_tensor()
        channels = len(self.weight)
        self.zero = weight_zero_points(weight, channels).astype(np.int64).reshape(-1)
        self.scales = np.broadcast_to(np.asarray(weight.scale, np.float32), channels)
        self.unit = accumulator_scale(scale, weight.scale)
        constants = stage.constants(scale, weight.scale, out_scale, bias, channels)
        ends = bounds(self.weight, self.zero, zero_point)
        self.sums = Sums(stage, constants, Rounding(out_scale, out_zero, low), *ends)
        # Pairs of products that a machine adds in 16 bits: exact where none can be too large.
        self.saturates = way is not Way.EXACT and may_saturate(self.weight, way)

    def write(
        self,
        rounded: str,
        plain: str,
        x: str,
        weight: npt.NDArray[np.int8],
        how: dict[str, Any],
        trailing: tuple[int, ...],
    ) -> Written:
        """Write the operator that rounds, if its rounding is the engine's; else spell it out."""
        w, sums = self.w, self.sums
        form = linear(sums, self.unit, self.bias)
        fits = np.abs(form.bias.astype(np.int64)).max(initial=0) < 2**30
        if rounded == "QLinearMatMul":  # which has no bias
            fits = not np.any(form.bias)
        if fits and is_same(lambda total: form.finish(total, sums.rounding), sums):
            name = self._rounded(rounded, form, x, weight, how)
            return self._promise(self._limited(name))
        chain = spelled(sums)
        if chain is None:
            if rounded == "QLinearMatMul" and np.any(form.bias):
                raise UnsupportedError("no form in ONNX is near the engine's rounding")
            name = self._limited(self._rounded(rounded, form, x, weight, how))
            return name, False, "no form in ONNX has the engine's rounding for every sum"
        total = w.add(plain, x, w.constant(weight, "weight"), *self._zeros(), **how)
        return self._promise(self._spell(total, chain, trailing))

    def _promise(self, name: str) -> Written:
        if self.saturates:
            return name, False, "the engine adds pairs of products in 16 bits, which saturate"
        return name, True, _STEPS

    def _zeros(self) -> list[str]:
        _, zero_point = self.source.per_tensor()
        zero = self.zero if np.any(self.zero != self.zero[:1]) else self.zero[:1].reshape(())
        return [
            self.w.constant(np.uint8(zero_point), "zero_point"),
            self.w.constant(zero.astype(np.int8), "zero_point"),
        ]

    def _rounded(
        self, op: str, form: Linear, x: str, weight: npt.NDArray[np.int8], how: dict[str, Any]
    ) -> str:
        w = self.w
        own = [x, *w.qparams(self.source)]
        scale = self.scales if len(set(self.scales.tolist())) > 1 else self.scales[0]
        zeros = np.zeros(np.shape(scale), np.int8) if np.ndim(scale) else np.int8(self.zero[0])
        theirs = [
            w.constant(weight, "weight"),
            w.constant(np.asarray(scale, np.float32), "scale"),
            w.constant(zeros, "zero_point"),
        ]
        bias = w.constant(form.bias, "bias") if np.any(form.bias) else ""
        result = w.qparams(self.result)
        if op == "QLinearMatMul":
            return w.add(op, *own, *theirs, *result)
        return w.add(op, *own, *theirs, *result, bias, **how)

    def _limited(self, name: str) -> str:
        """Limit integers where a relu is part of the operation."""
        low = self.sums.rounding.low
        return name if low == 0 else self.w.add("Max", name, self.w.constant(np.uint8(low)))

    def _spell(self, total: str, chain: Spelled, trailing: tuple[int, ...]) -> str:
        """Write a rounding as float operators, in the order of ``Spelled.finish``."""
        w, c = self.w, self.sums.constants
        _, zero_point, low, high = self.sums.rounding

        def each(values: npt.NDArray[Any]) -> str:
            first = values.reshape(-1)[:1].reshape(())
            shared = bool(np.all(values == first))
            return w.constant(first if shared else values.reshape(-1, *trailing))

        if c.integer is not None and np.any(c.integer):
            total = w.add("Add", total, each(c.integer))
        real = w.cast(total, float32)
        ends = [w.constant(np.float32(end)) for end in (low, high)]
        zero = w.constant(np.float32(zero_point))
        if self.sums.stage.finish is finish_scaled:
            real = w.add("Mul", real, each(c.multiplier))
            real = w.add("Mul", real, each(c.factor))
            real = w.add("Add", real, each(c.addend))
            real = w.add("Mul", real, w.constant(np.float32(c.output)))
            limited = w.add("Clip", w.add("Add", real, zero), *ends)
            return w.cast(w.add("Round", limited), quint8)
        if chain.wide:
            real = w.add("Add", w.cast(real, float64), each(chain.addend))
            real = w.cast(real, float32)
        elif np.any(chain.addend):
            real = w.add("Add", real, each(chain.addend))
        whole = w.add("Round", w.add("Mul", real, each(c.multiplier)))
        return w.cast(w.add("Clip", w.add("Add", whole, zero), *ends), quint8)


# ---- functions of one byte


def _table(w: Writer, node: Node) -> Written:
    """Write a function of one byte as its 256 values."""
    x = node.inputs[0]
    assert x is not None
    name = node.op.replace("quantized::", "aten::")
    if not w.qoperator and name in FLOATS:
        return between(name)(w, node)
    if x.type.dtype != quint8:
        raise UnsupportedError(f"a table of {x.type.dtype}")
    scale, zero_point = x.type.per_tensor()
    kernel = OPS[node.op].bind(w.target, fast=False)

    def values(q: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        found: QTensor = kernel(QTensor(q, scale, zero_point), **node.attributes)
        return found.int_repr

    every = np.arange(256, dtype=np.uint8)
    table = values(every)
    # Short rows go through torch's scalar code, whose rounding may differ.
    tail = np.concatenate([values(part) for part in np.array_split(every, 32)])
    index = w.cast(w.operand(x), int32)
    same = bool(np.array_equal(table, tail))
    why = "all 256 results" if same else "torch's vector and scalar code differ at some of them"
    if node.op in _LIMITS and w.target.engine in SCRAMBLING and x.type.rank > 3:
        same, why = False, "torch puts results of channels-last maps in another order"
    return w.add("Gather", w.constant(table, "table"), index, axis=0), same, why


def _relu(w: Writer, node: Node) -> Written:
    x = node.inputs[0]
    assert x is not None
    _, zero_point = x.type.per_tensor()
    zero = w.constant(np.asarray(zero_point, x.type.dtype.storage))
    return w.add("Max", w.operand(x), zero), True, "the larger of two integers"


# ---- two operands, and pools


def _sum(op: str, relu: bool) -> WriteQuantized:
    def written(w: Writer, node: Node) -> Written:
        a, b = node.inputs
        assert a is not None
        assert b is not None
        result = node.outputs[0].type
        if not w.qoperator:
            real = w.add(op, w.real(a), w.real(b))
            return _quantized(w, node, real, relu), False, _BETWEEN
        sides = [name for x in (a, b) for name in (w.operand(x), *w.qparams(x.type))]
        name = w.add(f"QLinear{op}", *sides, *w.qparams(result), domain=MICROSOFT)
        if relu:
            zero = w.constant(np.asarray(result.per_tensor()[1], result.dtype.storage))
            name = w.add("Max", name, zero)
        return name, False, _ORT

    return written


def _average(rank: int) -> WriteQuantized:
    def written(w: Writer, node: Node) -> Written:
        x = node.inputs[0]
        assert x is not None
        if not w.qoperator:
            return between(node.op)(w, node)
        how = window(node, rank)
        how["count_include_pad"] = int(bool(node.attributes.get("count_include_pad", True)))
        ends = [*w.qparams(x.type), *w.qparams(node.outputs[0].type)]
        name = w.add("QLinearAveragePool", w.operand(x), *ends, domain=MICROSOFT, **how)
        return name, False, _ORT

    return written


def _adaptive(rank: int) -> WriteQuantized:
    def written(w: Writer, node: Node) -> Written:
        x = node.inputs[0]
        assert x is not None
        how = adaptive_window(node, rank)
        if not w.qoperator or how is not None:
            return between(node.op)(w, node)
        ends = [*w.qparams(x.type), *w.qparams(node.outputs[0].type)]
        name = w.add(
            "QLinearGlobalAveragePool", w.operand(x), *ends, domain=MICROSOFT, channels_last=0
        )
        return name, False, _ORT

    return written


def _cat(w: Writer, node: Node) -> Written:
    result = node.outputs[0].type
    dim = node.attributes.get("dim", 0)
    if all(x is not None and x.type.qparams == result.qparams for x in node.inputs):
        joined = w.add("Concat", *map(w.operand, node.inputs), axis=dim)
        return joined, True, "integers side by side"
    real = w.add("Concat", *map(w.real, node.inputs), axis=dim)
    return w.quantize(real, result), False, _BETWEEN


_RANKS = (1, 2, 3)
_LIMITS = ("aten::clamp", "aten::hardtanh", "aten::relu6")
TABLES = (
    *("quantized::hardswish", "quantized::sigmoid", "quantized::elu", "quantized::leaky_relu"),
    *("quantized::celu", "aten::sigmoid", "aten::tanh", "aten::hardsigmoid", "aten::gelu"),
    *("aten::leaky_relu", *_LIMITS),
    *("quantized::add_scalar", "quantized::mul_scalar"),
    *("quantized::add_scalar_relu", "quantized::mul_scalar_relu"),
)
# Operations that ONNX has for floats only.
BETWEEN = (
    *(f"quantized::conv_transpose{rank}d" for rank in _RANKS),
    *("quantized::layer_norm", "quantized::softmax", "quantized::matmul", "quantized::prelu"),
)
NORMS = ("batch_norm", "batch_norm1d", "batch_norm2d", "batch_norm3d")
QUANTIZED: dict[str, WriteQuantized] = {
    **{f"quantized::conv{rank}d": _conv(False) for rank in _RANKS},
    **{f"quantized::conv{rank}d_relu": _conv(True) for rank in _RANKS},
    "quantized::linear": _linear(False),
    "quantized::linear_relu": _linear(True),
    **dict.fromkeys(TABLES, _table),
    "aten::relu": _relu,
    "quantized::add": _sum("Add", False),
    "quantized::add_relu": _sum("Add", True),
    "quantized::mul": _sum("Mul", False),
    "quantized::mul_relu": _sum("Mul", True),
    **{f"aten::avg_pool{rank}d": _average(rank) for rank in _RANKS},
    **{f"aten::adaptive_avg_pool{rank}d": _adaptive(rank) for rank in _RANKS},
    "aten::mean": between("aten::mean"),
    "aten::upsample_bilinear2d": between("aten::upsample_bilinear2d"),
    "aten::cat": _cat,
    "quantized::cat": _cat,
    **{name: between(f"aten::{name.removeprefix('quantized::')}") for name in BETWEEN},
    **{f"quantized::{name}": between("aten::batch_norm") for name in NORMS},
    "quantized::linear_dynamic": _linear_dynamic(False),
    "quantized::linear_relu_dynamic": _linear_dynamic(True),
    **CONVERSIONS,
}
