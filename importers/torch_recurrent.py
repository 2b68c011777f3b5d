"""Rules for recurrent modules: float, reference, dynamic, quantizable and quantized.

The loop over time is written out, so that every step can be looked at. Gates come in the order
input, forget, cell, output (LSTM) and reset, update, new (GRU). A layer's whole input is projected
at once, which for the dynamic modules means one scale for all its time steps; the hidden state is
projected step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refquant.importers import torch_functional as f
from refquant.importers import torch_quantized as q
from refquant.importers.builder import Rule
from refquant.importers.rules import TorchBuilder, evaluation_only, only
from refquant.importers.torch_functions import COMMON
from refquant.importers.torch_quantized_modules import reference_weight
from refquant.importers.torch_tensors import cat, chunk, getitem, new_filled, stack
from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Value
from refquant.ir.packed_cell import PackedCell
from refquant.ir.qtensor import QTensor
from refquant.ir.types import Dim

Mod = Any
Project = Callable[[Value], Value]
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
    """Return the next hidden state."""
    (hidden,) = state
    ri, zi, ni = chunk(b, gates, 3, 1)
    rh, zh, nh = chunk(b, project(hidden), 3, 1)
    r, z = _sigmoid(b, _add(b, rh, ri)), _sigmoid(b, _add(b, zh, zi))
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


def _dynamic(b: TorchBuilder, packed: Any, name: str, reduce_range: bool) -> Project:
    weight, bias = b.parameter(f"{name}.weight", packed.weight), None
    if packed.bias is not None:
        bias = b.parameter(f"{name}.bias", packed.bias)
    if not isinstance(packed.weight, QTensor):  # rounded to float16
        return lambda x: b.emit("quantized::linear_dynamic_fp16", x, weight, bias)
    return lambda x: b.emit(
        "quantized::linear_dynamic", x, weight, bias, reduce_range=reduce_range
    )


def _projections(b: TorchBuilder, module: Mod, place: str, index: int) -> tuple[Project, Project]:
    """Return how the input and the hidden state of one direction are projected."""
    if "_all_weight_values" in module.parts:
        cell: PackedCell = module.parts["_all_weight_values"].parts[str(index)].param
        name = f"{b.path(module)}.{place}"
        limited = bool(cell.reduce_range)
        return (
            _dynamic(b, cell.ih, f"{name}.ih", limited),
            _dynamic(b, cell.hh, f"{name}.hh", limited),
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
    directions = ("", "_reverse") if module.bidirectional else ("",)
    count = module.num_layers * len(directions)
    shape = (count, rows, module.hidden_size)
    given = _initial(b, hx, 2 if mode == "LSTM" else 1, input, shape)
    finals: list[tuple[Value, ...]] = []
    for layer in range(module.num_layers):
        halves = []
        for reverse in directions:
            index = len(finals)
            project, recur = _projections(b, module, f"l{layer}{reverse}", index)
            gates = project(input)
            state = tuple(getitem(b, part, index) for part in given)
            order = range(steps - 1, -1, -1) if reverse else range(steps)
            outputs: dict[int, Value] = {}
            for t in order:
                state = _STEPS[mode](b, getitem(b, gates, t), state, recur)
                outputs[t] = state[0]
            halves.append(stack(b, [outputs[t] for t in sorted(outputs)], 0))
            finals.append(state)
        input = cat(b, halves, 2) if len(halves) > 1 else halves[0]
    if module.batch_first:
        input = b.emit("aten::transpose", input, dim0=0, dim1=1)
    states = tuple(stack(b, parts, 0) for parts in zip(*finals, strict=True))
    return input, states if mode == "LSTM" else states[0]


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
