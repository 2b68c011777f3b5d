"""Rules for calls that make memory, write to it, or look at it in another way.

A graph has no memory: what torch writes to a tensor becomes a new value, and every later use of
the tensor becomes a use of that value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refquant.importers.builder import Rule
from refquant.importers.rules import TorchBuilder, ints, is_tensor, only
from refquant.importers.torch_tensors import binary
from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Graph, Value
from refquant.ir.qtensor import QTensor
from refquant.ir.types import DType, QParams, QScheme, element_count, float32

Ints = Sequence[int]
Given = dict[str, Any]

# ---- memory that is written to later


def _format(memory_format: Any) -> str | None:
    return None if memory_format in (None, "preserve_format") else str(memory_format)


def empty(
    b: TorchBuilder,
    *size: Any,
    dtype: DType | None = None,
    memory_format: Any = None,
    **options: Any,
) -> Value:
    """``torch.empty``."""
    return b.emit(
        "aten::empty.memory_format",
        size=ints(size),
        dtype=dtype or float32,
        memory_format=_format(memory_format),
    )


def empty_like(
    b: TorchBuilder, input: Value, *, memory_format: Any = None, **options: Any
) -> Value:
    """``torch.empty_like``."""
    dtype = options.get("dtype") or input.type.dtype
    only(dtype == input.type.dtype, f"empty_like with dtype {dtype}")
    return b.emit("aten::empty_like", input, memory_format=_format(memory_format))


def empty_quantized(
    b: TorchBuilder, size: Ints, qtensor: Value, *, memory_format: Any = None, **options: Any
) -> Value:
    """``torch.empty_quantized``."""
    return b.emit(
        "aten::empty_quantized", qtensor, size=tuple(size), memory_format=_format(memory_format)
    )


def empty_affine_quantized(
    b: TorchBuilder,
    size: Any,
    *,
    dtype: DType,
    scale: Any = 1.0,
    zero_point: Any = 0,
    memory_format: Any = None,
    **options: Any,
) -> Value:
    """``torch._empty_affine_quantized``."""
    return b.emit(
        "aten::_empty_affine_quantized",
        size=tuple(size),
        scale=b.number(scale, float),
        zero_point=b.number(zero_point, int),
        dtype=dtype,
        memory_format=_format(memory_format),
    )


def empty_per_channel(
    b: TorchBuilder,
    size: Any,
    *,
    scales: Value,
    zero_points: Value,
    axis: int,
    dtype: DType,
    memory_format: Any = None,
    **options: Any,
) -> Value:
    """``torch._empty_per_channel_affine_quantized``."""
    return b.emit(
        "aten::_empty_per_channel_affine_quantized",
        size=tuple(size),
        scales=tuple(np.asarray(b.constant(scales)).tolist()),
        zero_points=tuple(np.asarray(b.constant(zero_points)).tolist()),
        axis=axis,
        dtype=dtype,
        memory_format=_format(memory_format),
    )


MAKES_MEMORY: dict[str, Rule] = {
    "_empty_per_channel_affine_quantized": empty_per_channel,
    "empty": empty,
    "empty_like": empty_like,
    "empty_quantized": empty_quantized,
    "_empty_affine_quantized": empty_affine_quantized,
}
_UNWRITTEN = frozenset(
    f"aten::{name}"
    for name in (
        *("empty.memory_format", "empty_like", "empty_quantized", "_empty_affine_quantized"),
        "_empty_per_channel_affine_quantized",
    )
)
# Where an operand gives only memory and type: op and position.
_NOT_READ = frozenset(
    (
        *(("memory::write", 1), ("aten::leaky_relu.out", 1)),
        *(("quantized::add.out", 2), ("quantized::add_relu.out", 2)),
        *(("aten::fill.Scalar", 0), ("aten::fill.Tensor", 0)),
        *((op, 0) for op in _UNWRITTEN),
    )
)


def refuse_unwritten(graph: Graph) -> None:
    """Refuse a graph that reads memory to which nothing was written.

    Raises
    ------
    UnsupportedError
        With the value and who reads it.
    """
    unwritten = {
        value.name for node in graph.nodes if node.op in _UNWRITTEN for value in node.outputs
    }
    if not unwritten:
        return
    for node in graph.nodes:
        for position, value in enumerate(node.inputs):
            read = value is not None and value.name in unwritten
            if read and (node.op, position) not in _NOT_READ:
                assert value is not None
                raise UnsupportedError(
                    f"{node} reads {value.name}, to which nothing was written; its contents "
                    "are not defined"
                )
    for value in graph.outputs:
        if value.name in unwritten:
            raise UnsupportedError(
                f"the model returns {value.name}, to which nothing was written; its contents "
                "are not defined"
            )


# ---- writing


def write(b: TorchBuilder, result: Value, out: Value, *, keep_qparams: bool = False) -> Value:
    """Return a result with the strides of the tensor it is written to.

    ``keep_qparams`` is for operators that write integers of other parameters than ``out`` has.
    """
    if result.type.shape != out.type.shape:
        raise UnsupportedError(
            f"out has shape {list(out.type.shape)}, the result {list(result.type.shape)}; torch "
            "resizes out, which it has deprecated"
        )
    b.overwrite(out)
    return b.emit("memory::write", result, out, keep_qparams=keep_qparams)


def _split(args: tuple[Any, ...], rest: Given) -> tuple[tuple[Any, ...], Given, Value]:
    """Take ``out`` from the arguments: by name, or the last one."""
    if "out" in rest:
        others = {key: value for key, value in rest.items() if key != "out"}
        return args, others, rest["out"]
    return args[:-1], rest, args[-1]


def into(rule: Rule, *, keep_qparams: bool = False) -> Rule:
    """Return the form of a rule that writes to ``out``."""

    def form(b: TorchBuilder, *args: Any, **rest: Any) -> Value:
        args, rest, out = _split(args, rest)
        return write(b, rule(b, *args, **rest), out, keep_qparams=keep_qparams)

    return form


def replacing(rule: Rule) -> Rule:
    """Return the form of a rule that returns another tensor than ``out``, which stays as it is."""

    def form(b: TorchBuilder, *args: Any, **rest: Any) -> Value:
        args, rest, _ = _split(args, rest)
        result: Value = rule(b, *args, **rest)
        return result

    return form


def in_place(rule: Rule) -> Rule:
    """Return the form of a rule that writes to its first argument.

    Only a quantized one has the strides of that tensor: for it they decide how torch rounds.
    """

    def form(b: TorchBuilder, input: Value, *args: Any, **rest: Any) -> Value:
        result: Value = rule(b, input, *args, **rest)
        if input.type.dtype.is_quantized:
            return write(b, result, input)
        b.overwrite(input)
        return result

    return form


def leaky_relu_(b: TorchBuilder, input: Value, negative_slope: float = 0.01) -> Value:
    """``F.leaky_relu_``."""
    b.overwrite(input)
    if not input.type.dtype.is_quantized:
        return b.emit("aten::leaky_relu", input, negative_slope=negative_slope)
    return b.emit("aten::leaky_relu.out", input, input, negative_slope=negative_slope)


def leaky_relu_out(
    b: TorchBuilder, input: Value, negative_slope: float = 0.01, *, out: Value
) -> Value:
    """``torch.ops.aten.leaky_relu.out``."""
    b.overwrite(out)
    return b.emit("aten::leaky_relu.out", input, out, negative_slope=negative_slope)


def fill_(b: TorchBuilder, input: Value, value: Any) -> Value:
    """``x.fill_(value)``."""
    b.overwrite(input)
    if is_tensor(value):
        return b.emit("aten::fill.Tensor", input, value)
    return b.emit("aten::fill.Scalar", input, value=value)


def zero_(b: TorchBuilder, input: Value) -> Value:
    """``x.zero_()``."""
    return fill_(b, input, 0)


def masked_fill(b: TorchBuilder, input: Value, mask: Value, value: Any) -> Value:
    """``x.masked_fill(mask, value)``."""
    if is_tensor(value):
        return b.emit("aten::masked_fill.Tensor", input, mask, value)
    return b.emit("aten::masked_fill.Scalar", input, mask, value=value)


def index_put(
    b: TorchBuilder,
    input: Value,
    indices: Sequence[Value | None],
    values: Value,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Value:
    """``x.index_put(indices, values)``."""
    return b.emit("aten::index_put", input, values, *indices, accumulate=accumulate)


def index(b: TorchBuilder, input: Value, indices: Sequence[Value | None]) -> Value:
    """``torch.ops.aten.index``."""
    return b.emit("aten::index", input, *indices)


def comparison_out(name: str) -> Rule:
    """Return the rule of a comparison that writes to ``out``."""
    compare = into(binary(f"aten::{name}"))

    def form(b: TorchBuilder, input: Value, other: Any, *, out: Value) -> Value:
        only(out.type.dtype.name == "bool", f"{name} into {out.type.dtype}; torch wants bool")
        result: Value = compare(b, input, other, out=out)
        return result

    return form


def cat_out(b: TorchBuilder, tensors: Sequence[Value], dim: int = 0, *, out: Value) -> Value:
    """``torch.cat(tensors, dim, out=out)``."""
    if not out.type.dtype.is_quantized:
        return write(b, b.emit("aten::cat", *tensors, dim=dim), out)
    scale, zero_point = out.type.per_tensor()
    attributes = {"dim": dim, "scale": scale, "zero_point": zero_point}
    return write(b, b.emit("quantized::cat", *tensors, **attributes), out)


# ---- looking at memory in another way


def as_strided(
    b: TorchBuilder, input: Value, size: Ints, stride: Ints, storage_offset: int | None = None
) -> Value:
    """``torch.as_strided`` of a tensor that is no view: strides count in its whole memory."""
    only(not b.is_view(input), "as_strided of a view")
    return b.emit(
        "aten::as_strided",
        input,
        size=tuple(size),
        stride=tuple(stride),
        storage_offset=storage_offset,
    )


def resize_(b: TorchBuilder, input: Value, size: Any, *, memory_format: Any = None) -> Value:
    """``x.resize_(size)`` to as many elements or fewer: they are taken as they lie in memory."""
    only(_format(memory_format) in (None, "contiguous_format"), f"resize_ to {memory_format}")
    have, want = element_count(input.type.shape), element_count(tuple(size))
    enough = isinstance(have, int) and isinstance(want, int) and want <= have
    only(enough, f"resize_ of {input.type} to {list(size)}; what is new is not defined")
    b.overwrite(input)
    return as_strided(b, input, size, _contiguous_steps(size))


def set_(
    b: TorchBuilder,
    input: Value,
    source: Value,
    storage_offset: int,
    size: Ints,
    stride: Ints = (),
) -> Value:
    """``x.set_(y.untyped_storage(), ...)`` with the quantization parameters of ``x``."""
    same = input.type.qparams == source.type.qparams
    only(same, f"set_ of {input.type} to memory of {source.type}: other parameters")
    b.overwrite(input)
    return as_strided(b, source, size, stride or _contiguous_steps(size), storage_offset)


def _contiguous_steps(size: Ints) -> Ints:
    steps = [1]
    for length in reversed(list(size)[1:]):
        steps.append(steps[-1] * max(length, 1))
    return tuple(reversed(steps))[: len(size)]


# ---- the quantization parameters of a tensor


def _known(name: str, read: Callable[[QParams], Any]) -> Rule:
    def rule(b: TorchBuilder, input: Value) -> Any:
        if not input.type.dtype.is_quantized:
            raise UnsupportedError(f"{name} of {input.type}, which is not quantized")
        if input.type.qparams is None:
            raise UnsupportedError(f"{name} of {input.name}, which is known only when it runs")
        return read(input.type.qparams)

    return rule


def _of_channels(name: str, read: Callable[[QTensor], Any]) -> Rule:
    def rule(b: TorchBuilder, input: Value) -> Value:
        tensor = b.constant(input)
        if not isinstance(tensor, QTensor) or tensor.axis is None:
            raise UnsupportedError(f"{name} of {input.type}; only of a constant per channel")
        return b.parameter(f"{input.name}.{name}", np.asarray(read(tensor)))

    return rule


QPARAMS: dict[str, Rule] = {
    "q_scale": _known("q_scale", lambda q: q.scale),
    "q_zero_point": _known("q_zero_point", lambda q: q.zero_point),
    "q_per_channel_axis": _known("q_per_channel_axis", lambda q: q.axis),
    "q_per_channel_scales": _of_channels("scales", lambda x: x.scale),
    "q_per_channel_zero_points": _of_channels("zero_points", lambda x: x.zero_point),
    "qscheme": _known(
        "qscheme",
        lambda q: QScheme.PER_TENSOR_AFFINE if q.axis is None else QScheme.PER_CHANNEL_AFFINE,
    ),
}
