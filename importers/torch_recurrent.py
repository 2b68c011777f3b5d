"""Rules for recurrent modules: float, reference, dynamic, quantizable and quantized.

The loop over time is written out, so that every step can be looked at. Gates come in the order
input, forget, cell, output (LSTM) and reset, update, new (GRU). A layer's whole input is projected
at once, which for the dynamic modules means one scale for all its time steps; the hidden state is
projected step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from refquant.importers import torch_functional as f
from refquant.importers import torch_quantized as q
from refquant.importers.builder import Rule
from refquant.importers.rules import (
    PrepackedCell,
    TorchBuilder,
    evaluation_only,
    is_tensor,
    only,
)
from refquant.importers.torch_functions import COMMON
from refquant.importers.torch_quantized_modules import reference_weight
from refquant.importers.torch_tensors import cat, chunk, getitem, new_filled, stack
from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Value
from refquant.ir.packed_cell import PackedCell
from refquant.ir.types import Dim

Mod = Any
Project = Callable[[Value], Value]
States = tuple[Value, ...]
_sigmoid, _tanh, _relu = COMMON["sigmoid"], COMMON["tanh"], COMMON["relu"]


def _add(b: TorchBuilder, x: Value, y: Value) -> Value:
    return b.emit("aten::add", x, y)


def _mul(b: TorchBuilder, x: Value, y: Value) -> Value:
    return b.emit("aten::mul", x, y)


# ---- one step, from the projected input


def lstm_step(
    b: TorchBuilder, gates: Value, state: tuple[Value, Value], project: Project
) -> tuple[Value, Value]:
    """Return the next hidden and cell state."""
    hidden, cell = state
    i, forget, g, o = chunk(b, _add(b, project(hidden), gates), 4, 1)
    i, forget, g, o = _sigmoid(b, i), _sigmoid(b, forget), _tanh(b, g), _sigmoid(b, o)
    cell = _add(b, _mul(b, forget, cell), _mul(b, i, g))
    return _mul(b, o, _tanh(b, cell)), cell


def gru_step(
    b: TorchBuilder, gates: Value, state: tuple[Value, ...], project: Project
) -> tuple[Value, ...]:
    """Return the next hidden state.

    torch adds reset and update gates in place, in the rows of all three: what is a row's end for
    the sigmoid follows from that.
    """
    (hidden,) = state
    recurrent = project(hidden)
    ni, nh = chunk(b, gates, 3, 1)[2], chunk(b, recurrent, 3, 1)[2]
    r, z = (_sigmoid(b, part) for part in chunk(b, _add(b, recurrent, gates), 3, 1)[:2])
    n = _tanh(b, _add(b, ni, _mul(b, nh, r)))
    return (_add(b, _mul(b, b.emit("aten::sub", hidden, n), z), n),)


def rnn_step(activation: Rule) -> Any:
    """Return the step of a plain cell."""

    def step(
        b: TorchBuilder, gates: Value, state: tuple[Value, ...], project: Project
    ) -> tuple[Value, ...]:
        return (activation(b, _add(b, project(state[0]), gates)),)

    return step


_STEPS: dict[str, Any] = {
    "LSTM": lstm_step,
    "GRU": gru_step,
    "RNN_TANH": rnn_step(_tanh),
    "RNN_RELU": rnn_step(_relu),
}


# ---- projections by form


def _dynamic(b: TorchBuilder, packed: Any, name: str, reduce_range: bool | None) -> Project:
    weight, bias = b.parameter(f"{name}.weight", packed.weight), None
    if packed.bias is not None:
        bias = b.parameter(f"{name}.bias", packed.bias)
    return _projection(b, weight, bias, reduce_range)


def _projection(
    b: TorchBuilder,
    weight: Value,
    bias: Value | None,
    reduce_range: bool | None,
    op: str = "quantized::linear_dynamic",
) -> Project:
    if not weight.type.dtype.is_quantized:  # rounded to float16
        return lambda x: b.emit("quantized::linear_dynamic_fp16", x, weight, bias)
    if op != "quantized::linear_dynamic":
        return lambda x: b.emit(op, x, weight, bias)
    limited = bool(reduce_range)
    return lambda x: b.emit("quantized::linear_dynamic", x, weight, bias, reduce_range=limited)


def _projections(b: TorchBuilder, module: Mod, place: str, index: int) -> tuple[Project, Project]:
    """Return how the input and the hidden state of one direction are projected."""
    if "_all_weight_values" in module.parts:
        cell: PackedCell = module.parts["_all_weight_values"].parts[str(index)].param
        name = f"{b.path(module)}.{place}"
        return (
            _dynamic(b, cell.ih, f"{name}.ih", cell.reduce_range),
            _dynamic(b, cell.hh, f"{name}.hh", cell.reduce_range),
        )
    return tuple(_float(b, module, part, f"_{place}") for part in ("ih", "hh"))  # type: ignore[return-value]


def _float(b: TorchBuilder, module: Mod, part: str, place: str) -> Project:
    name = f"weight_{part}{place}"
    if f"{name}_qscheme" in module.config:
        weight = reference_weight(b, module, name)
    else:
        found = b.of(module, name)
        assert found is not None
        weight = found
    bias = b.of(module, f"bias_{part}{place}")
    return lambda x: f.linear(b, x, weight, bias)


# ---- layers


def recurrent(b: TorchBuilder, module: Mod, input: Value, hx: Any = None) -> tuple[Value, Any]:
    """``nn.LSTM``, ``GRU``, ``RNN``, their reference and their dynamic forms."""
    mode = module.config.get("mode", module.kind.rpartition(".")[2])
    only(input.type.rank == 3, f"{mode} without a batch dimension")
    only(not module.config.get("proj_size", 0), f"{mode} with proj_size")
    evaluation_only(module.training and module.dropout > 0, mode)
    if module.batch_first:
        input = b.emit("aten::transpose", input, dim0=0, dim1=1)
    steps, rows = input.type.shape[:2]
    if isinstance(steps, Dim):
        raise UnsupportedError(f"{mode} over a symbolic number of steps")
    places = ("", "_reverse") if module.bidirectional else ("",)
    projections = [
        _projections(b, module, f"l{layer}{place}", layer * len(places) + index)
        for layer in range(module.num_layers)
        for index, place in enumerate(places)
    ]
    shape = (len(projections), rows, module.hidden_size)
    given = _initial(b, hx, 2 if mode == "LSTM" else 1, input, shape)
    output, states = unrolled(b, mode, input, given, projections, len(places))
    if module.batch_first:
        output = b.emit("aten::transpose", output, dim0=0, dim1=1)
    return output, states if mode == "LSTM" else states[0]


def unrolled(
    b: TorchBuilder,
    mode: str,
    input: Value,
    given: States,
    projections: Sequence[tuple[Project, Project]],
    directions: int,
    batch_sizes: Sequence[int] | None = None,
) -> tuple[Value, States]:
    """Write out all layers, directions and steps; return the outputs and the last states.

    With ``batch_sizes`` the rows of all steps lie one after the other, and the sequences, the
    longest first, end at different steps.
    """
    finals: list[States] = []
    for index in range(0, len(projections), directions):
        halves: list[Value] = []
        for project, recur in projections[index : index + directions]:
            gates = project(input)
            state = tuple(getitem(b, part, len(finals)) for part in given)
            backwards = len(halves) == 1
            run = _run if batch_sizes is None else partial(_run_packed, batch_sizes=batch_sizes)
            output, state = run(b, _STEPS[mode], gates, state, recur, backwards)
            halves.append(output)
            finals.append(state)
        input = cat(b, halves, input.type.rank - 1) if directions > 1 else halves[0]
    return input, tuple(stack(b, parts, 0) for parts in zip(*finals, strict=True))


def _run(
    b: TorchBuilder, step: Any, gates: Value, state: States, recur: Project, backwards: bool
) -> tuple[Value, States]:
    steps = gates.type.shape[0]
    assert isinstance(steps, int)
    outputs: dict[int, Value] = {}
    for t in range(steps - 1, -1, -1) if backwards else range(steps):
        state = step(b, getitem(b, gates, t), state, recur)
        outputs[t] = state[0]
    return stack(b, [outputs[t] for t in sorted(outputs)], 0), state


def _rows(b: TorchBuilder, x: Value, start: int, end: int) -> Value:
    return b.emit("aten::slice", x, dim=0, start=start, end=end, step=1)


def _run_packed(
    b: TorchBuilder,
    step: Any,
    gates: Value,
    state: States,
    recur: Project,
    backwards: bool,
    batch_sizes: Sequence[int],
) -> tuple[Value, States]:
    starts = [sum(batch_sizes[:t]) for t in range(len(batch_sizes))]
    initial, ended = state, [state] * 0
    outputs: dict[int, Value] = {}
    rows = batch_sizes[-1] if backwards else batch_sizes[0]
    state = tuple(_rows(b, part, 0, rows) for part in state)
    order = range(len(batch_sizes))
    for t in reversed(order) if backwards else order:
        now = batch_sizes[t]
        if now < rows:
            ended.append(tuple(_rows(b, part, now, rows) for part in state))
            state = tuple(_rows(b, part, 0, now) for part in state)
        elif now > rows:
            more = (_rows(b, part, rows, now) for part in initial)
            state = tuple(cat(b, pair, 0) for pair in zip(state, more, strict=True))
        rows = now
        state = step(b, _rows(b, gates, starts[t], starts[t] + now), state, recur)
        outputs[t] = state[0]
    if ended:
        state = tuple(cat(b, parts, 0) for parts in zip(state, *reversed(ended), strict=True))
    return cat(b, [outputs[t] for t in order], 0), state


# ---- the operators


def _cell_projections(b: TorchBuilder, cell: Any, index: int) -> tuple[Project, Project]:
    """Return the projections of packed parameters, made in the graph or held by the model."""
    if isinstance(cell, PrepackedCell):
        ih, hh = (
            _projection(b, *b.packed(part)[:2], cell.reduce_range, cell.op)
            for part in (cell.ih, cell.hh)
        )
        return ih, hh
    raw: PackedCell = cell.raw
    return (
        _dynamic(b, raw.ih, f"{cell.name}.ih", raw.reduce_range),
        _dynamic(b, raw.hh, f"{cell.name}.hh", raw.reduce_range),
    )


_COMMON = ("hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional")
_PACKED, _PADDED = ("batch_sizes", *_COMMON), (*_COMMON, "batch_first")


def quantized_recurrent(mode: str) -> Rule:
    """Return the rule of ``torch.quantized_lstm`` or ``torch.quantized_gru``.

    A sequence comes as one tensor, or as packed rows with the batch size of each step.
    """

    def rule(b: TorchBuilder, input: Value, *args: Any, **options: Any) -> tuple[Value, ...]:
        name = f"quantized_{mode.lower()}"
        is_packed = is_tensor(args[1]) if mode == "GRU" else is_tensor(args[0])
        call = dict(zip(_PACKED if is_packed else _PADDED, args, strict=False)) | options
        only(call["has_biases"], f"{name} without biases")
        evaluation_only(call["train"] and call["dropout"] > 0, name)
        projections = [_cell_projections(b, cell, i) for i, cell in enumerate(call["params"])]
        directions = 2 if call["bidirectional"] else 1
        given = tuple(call["hx"]) if mode == "LSTM" else (call["hx"],)
        batch_sizes = np.asarray(b.constant(call["batch_sizes"])).tolist() if is_packed else None
        swap = call.get("batch_first", False)
        if swap:
            input = b.emit("aten::transpose", input, dim0=0, dim1=1)
        if isinstance(input.type.shape[0], Dim):
            raise UnsupportedError(f"{name} over a symbolic number of steps")
        output, states = unrolled(b, mode, input, given, projections, directions, batch_sizes)
        if swap:
            output = b.emit("aten::transpose", output, dim0=0, dim1=1)
        return (output, *states)

    return rule


def quantized_cell(mode: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.quantized_lstm_cell_dynamic`` and its relatives.

    Activations are quantized to 7 bits; the biases are those that were packed.
    """

    def rule(
        b: TorchBuilder, input: Value, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any
    ) -> Any:
        ih, hh = (_projection(b, *b.packed(part)[:2], True) for part in (w_ih, w_hh))
        state = tuple(hx) if mode == "LSTM" else (hx,)
        made = _STEPS[mode](b, ih(input), state, hh)
        return made if mode == "LSTM" else made[0]

    return rule


QUANTIZED_RECURRENT: dict[str, Rule] = {
    "torch.quantized_lstm": quantized_recurrent("LSTM"),
    "torch.quantized_gru": quantized_recurrent("GRU"),
    "torch.ops.aten.quantized_lstm": quantized_recurrent("LSTM"),
    "torch.ops.aten.quantized_gru": quantized_recurrent("GRU"),
    **{
        f"torch.ops.quantized.quantized_{mode.lower()}_cell_dynamic": quantized_cell(mode)
        for mode in _STEPS
    },
}


def _initial(
    b: TorchBuilder, hx: Any, count: int, like: Value, shape: tuple[Any, ...]
) -> tuple[Value, ...]:
    if hx is not None:
        return tuple(hx) if isinstance(hx, tuple | list) else (hx,)
    return (new_filled(0)(b, like, shape),) * count


def cell(b: TorchBuilder, module: Mod, input: Value, hx: Any = None) -> Any:
    """``nn.LSTMCell``, ``GRUCell``, ``RNNCell``, their reference and their dynamic forms."""
    mode = module.kind.rpartition(".")[2].removesuffix("Cell")
    if mode == "RNN":
        mode = f"RNN_{module.nonlinearity.upper()}"
    only(input.type.rank == 2, f"{mode} cell without a batch dimension")
    if "_packed_weight_ih" in module.state:
        name = b.path(module)
        project = _dynamic(b, module._packed_weight_ih, f"{name}.ih", True)
        recur = _dynamic(b, module._packed_weight_hh, f"{name}.hh", True)
    else:
        project, recur = (_float(b, module, part, "") for part in ("ih", "hh"))
    shape = (input.type.shape[0], module.hidden_size)
    state = _initial(b, hx, 2 if mode == "LSTM" else 1, input, shape)
    made = _STEPS[mode](b, project(input), state, recur)
    return made if mode == "LSTM" else made[0]


# ---- the LSTM that is quantized gate by gate


def _linear(b: TorchBuilder, module: Mod, x: Value) -> Value:
    y: Value = b.rule_of(module)(b, module, x)
    return _observed(b, module, y)


def _observed(b: TorchBuilder, module: Mod, value: Value) -> Value:
    observer = module.parts.get("activation_post_process")
    if observer is None or not getattr(observer, "role", ""):
        return value
    return b.rule_of(observer)(b, observer, value)  # type: ignore[no-any-return]


def _arithmetic(b: TorchBuilder, module: Mod, name: str, x: Value, y: Value) -> Value:
    if module.kind.endswith("QFunctional"):
        return q.quantized_binary(name)(b, x, y, module.scale, module.zero_point)  # type: ignore[no-any-return]
    return _observed(b, module, b.emit(f"aten::{name}", x, y))


def _quantizable_step(
    b: TorchBuilder, cell: Mod, x: Value, state: tuple[Value, Value]
) -> tuple[Value, Value]:
    only(not cell.split_gates, "a quantizable LSTM with split_gates")
    hidden, memory = state
    gates = _arithmetic(
        b, cell.gates, "add", _linear(b, cell.igates, x), _linear(b, cell.hgates, hidden)
    )
    i, forget, g, o = chunk(b, gates, 4, 1)
    i, forget, g, o = _sigmoid(b, i), _sigmoid(b, forget), _tanh(b, g), _sigmoid(b, o)
    kept = _arithmetic(b, cell.fgate_cx, "mul", forget, memory)
    new = _arithmetic(b, cell.igate_cgate, "mul", i, g)
    memory = _arithmetic(b, cell.fgate_cx_igate_cgate, "add", kept, new)
    return _arithmetic(b, cell.ogate_cy, "mul", o, _tanh(b, memory)), memory


def quantizable_lstm(
    b: TorchBuilder, module: Mod, input: Value, hidden: Any = None
) -> tuple[Value, tuple[Value, Value]]:
    """``torch.ao.nn.quantizable.LSTM`` and ``torch.ao.nn.quantized.LSTM``."""
    if module.batch_first:
        input = b.emit("aten::transpose", input, dim0=0, dim1=1)
    steps, rows = input.type.shape[:2]
    if isinstance(steps, Dim):
        raise UnsupportedError("an LSTM over a symbolic number of steps")
    directions = 2 if module.bidirectional else 1
    shape = (module.num_layers * directions, rows, module.hidden_size)
    given = tuple(hidden) if hidden is not None else (_quantized_zeros(b, input, shape),) * 2
    finals: list[tuple[Value, Value]] = []
    for layer in module.layers:
        halves = []
        for name in ("layer_fw", "layer_bw")[:directions]:
            state = tuple(getitem(b, part, len(finals)) for part in given)
            order = range(steps) if name == "layer_fw" else range(steps - 1, -1, -1)
            outputs: dict[int, Value] = {}
            for t in order:
                state = _quantizable_step(b, layer.parts[name].cell, getitem(b, input, t), state)
                outputs[t] = state[0]
            halves.append(stack(b, [outputs[t] for t in sorted(outputs)], 0))
            finals.append(state)
        input = cat(b, halves, 2) if len(halves) > 1 else halves[0]
    if module.batch_first:
        input = b.emit("aten::transpose", input, dim0=0, dim1=1)
    h, c = (stack(b, parts, 0) for parts in zip(*finals, strict=True))
    return input, (h, c)


def _quantized_zeros(b: TorchBuilder, like: Value, shape: tuple[Any, ...]) -> Value:
    if like.type.qparams is None:
        return new_filled(0)(b, like, shape)  # type: ignore[no-any-return]
    zeros = new_filled(0)(b, b.emit("aten::dequantize", like), shape)
    dtype = like.type.dtype
    return b.emit("aten::quantize_per_tensor", zeros, scale=1.0, zero_point=0, dtype=dtype)


def _table() -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    packages = ("torch.nn", "torch.ao.nn.quantized.reference", "torch.ao.nn.quantized.dynamic")
    for package in packages:
        found |= {f"{package}.{name}": recurrent for name in ("LSTM", "GRU", "RNN")}
        found |= {f"{package}.{name}Cell": cell for name in ("LSTM", "GRU", "RNN")}
    found["torch.ao.nn.quantizable.LSTM"] = quantizable_lstm
    found["torch.ao.nn.quantized.LSTM"] = quantizable_lstm
    return found


RECURRENT = _table()
