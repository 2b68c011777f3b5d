"""From a dataflow graph back to calls of modules and functions, on which graph mode decides.

A graph from ONNX or from a file has operations only. Convolutions and products with constant
weights become modules, operations that graph mode knows the functions of torch that they are,
and all others stay what they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Graph, Node, Value
from refquant.ir.module import Module
from refquant.ir.program import Call, Owner, Program
from refquant.ir.qtensor import QTensor
from refquant.ir.types import Dim

# The symbol that graph mode gives the batch.
BATCH = "N"
# A call of an operation of ours by its name.
OPERATION = "refquant.ops."
_ROOT = "refquant.Graph"

_F = "torch.nn.functional."
# Operations by the function that graph mode knows, with operands and attributes under its names.
FUNCTIONS: dict[str, str] = {
    "aten::add": "operator.add",
    "aten::mul": "operator.mul",
    "aten::sub": "operator.sub",
    "aten::matmul": "torch.matmul",
    "aten::relu": f"{_F}relu",
    "aten::sigmoid": "torch.sigmoid",
    "aten::tanh": "torch.tanh",
    "aten::clamp": "torch.clamp",
    "aten::hardswish": f"{_F}hardswish",
    "aten::hardsigmoid": f"{_F}hardsigmoid",
    "aten::elu": f"{_F}elu",
    "aten::leaky_relu": f"{_F}leaky_relu",
    "aten::gelu": f"{_F}gelu",
    "aten::layer_norm": f"{_F}layer_norm",
    "aten::instance_norm": f"{_F}instance_norm",
    "aten::softmax": f"{_F}softmax",
    "aten::mean": "torch.mean",
    "aten::flatten": "torch.flatten",
    "aten::reshape": "torch.reshape",
    "aten::permute": "torch.permute",
    "aten::transpose": "torch.transpose",
    "aten::squeeze": "torch.squeeze",
    "aten::unsqueeze": "torch.unsqueeze",
    **{f"aten::max_pool{n}d": f"{_F}max_pool{n}d" for n in (1, 2, 3)},
    **{f"aten::avg_pool{n}d": f"{_F}avg_pool{n}d" for n in (1, 2, 3)},
    **{f"aten::adaptive_avg_pool{n}d": f"{_F}adaptive_avg_pool{n}d" for n in (1, 2, 3)},
}


def _global_pool(node: Node) -> tuple[str, dict[str, Any]]:
    rank = node.outputs[0].type.rank - 2
    return f"{_F}adaptive_avg_pool{rank}d", {"output_size": (1,) * rank}


def _pool(node: Node) -> tuple[str, dict[str, Any]] | None:
    """Return the pool of torch, where both ends are padded alike and by half a window at most."""
    how: dict[str, Any] = dict(node.attributes)
    kernel, pads = how["kernel_shape"], how["pads"]
    rank = len(kernel)
    begins, ends = pads[:rank], pads[rank:]
    centred = all(2 * p <= k for p, k in zip(begins, kernel, strict=True))
    if rank > 3 or begins != ends or not centred or set(how["dilations"]) != {1}:
        return None
    if how["ceil_mode"]:
        return None
    window = {"kernel_size": kernel, "stride": how["strides"], "padding": begins}
    return f"{_F}avg_pool{rank}d", {**window, "count_include_pad": how["count_include_pad"]}


def _ramp(node: Node) -> tuple[str, dict[str, Any]] | None:
    alpha = node.attributes["alpha"]
    slope = np.float32(alpha) == np.float32(1 / 6)  # type: ignore[arg-type]
    return (f"{_F}hardsigmoid", {}) if slope and node.attributes["beta"] == 0.5 else None


# Operators of ONNX that are functions of torch, at least with some attributes.
ONNX_FUNCTIONS: dict[str, Callable[[Node], tuple[str, dict[str, Any]] | None]] = {
    "onnx::AveragePool": _pool,
    "onnx::GlobalAveragePool": _global_pool,
    "onnx::HardSigmoid": _ramp,
    "onnx::HardSwish": lambda node: (f"{_F}hardswish", {}),
}
# Attributes that the functions do not have.
_LEFT_OUT = ("cudnn_enable", "cudnn_enabled")
_NAME = re.compile(r"\W+")


def program_of(graph: Graph) -> Program:
    """Return the calls that a graph without observers stands for.

    Parameters
    ----------
    graph : Graph
        A float model; what is already quantized stays so.

    Returns
    -------
    Program
        Modules are called after the nodes they come from.

    Raises
    ------
    UnsupportedError
        If the graph has observers: which calls they watch is not known.
    """
    if graph.modules:
        raise UnsupportedError(
            "the graph has observers but not the calls it was made from; import the model again"
        )
    return _Lift(graph).run()


class _Lift:
    """The calls of one graph, as they grow."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.program = Program(Module(_ROOT))
        self.calls: dict[str, Call] = {}
        self.users = Counter(
            value.name for node in graph.nodes for value in node.inputs if value is not None
        )
        self.users.update(value.name for value in graph.outputs)
        self.single = {
            value.name: node for node in graph.nodes for value in node.inputs if value is not None
        }
        self.absorbed: set[str] = set()

    def run(self) -> Program:
        """Lift every node."""
        for value in self.graph.inputs:
            name = _plain(value.name)
            self.calls[value.name] = self.program.call("placeholder", name, name=name)
        for node in self.graph.nodes:
            if node.name not in self.absorbed:
                self.node(node)
        results = self.graph.arrange(map(self.operand, self.graph.outputs))
        self.program.call("output", "output", (results,))
        return self.program

    def operand(self, value: Value | None) -> Any:
        """Return the call of a value; a constant becomes an attribute of the model."""
        if value is None:
            return None
        if value.name not in self.calls:
            path = self.path(value.name)
            self.program.root.set(path, self.graph.parameter(value.name))
            self.calls[value.name] = self.program.call("get_attr", path)
        return self.calls[value.name]

    def constant(self, value: Value | None) -> Any:
        """Return the data of a constant; None for a value that is computed."""
        if value is None or value.name not in self.graph.parameters:
            return None
        data = self.graph.parameter(value.name)
        return None if isinstance(data, QTensor) else data

    def path(self, name: str) -> str:
        """Return a free name in the model."""
        base = path = _plain(name)
        number = 1
        while self.program.root.has(path):
            path, number = f"{base}_{number}", number + 1
        return path

    def node(self, node: Node) -> None:
        """Lift one node: to a module, to a function of torch, or as it is."""
        known = MODULES.get(node.op)
        made = known(self, node) if known else None
        if made is not None:
            module, last = made
            path = self.path(node.origin.node if node.origin else node.name)
            self.program.root.parts[path] = module
            call = self.program.call("call_module", path, (self.operand(node.inputs[0]),))
            call.owner = Owner(path, module.kind)
            self.calls[last.name] = call
            return
        attributes = {key: _batch(value) for key, value in node.attributes.items()}
        operands = tuple(map(self.operand, node.inputs))
        known_to_onnx = ONNX_FUNCTIONS.get(node.op)
        found = known_to_onnx(node) if known_to_onnx else None
        if found is not None:
            call = self.function(found[0], operands, found[1])
        elif node.op in ("aten::cat", "aten::stack"):
            call = self.function(f"torch.{node.op[6:]}", (list(operands),), attributes)
        elif node.op in FUNCTIONS:
            kept = {key: value for key, value in attributes.items() if key not in _LEFT_OUT}
            call = self.function(FUNCTIONS[node.op], operands, kept)
        else:
            call = self.function(f"{OPERATION}{node.op}", operands, attributes)
        if len(node.outputs) == 1:
            self.calls[node.name] = call
            return
        for index, value in enumerate(node.outputs):
            if self.users[value.name]:
                self.calls[value.name] = self.function("operator.getitem", (call, index), {})

    def function(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Append the call of a function."""
        call = self.program.call("call_function", target, args, kwargs)
        call.owner = Owner("", _ROOT)
        return call

    def added(self, node: Node, columns: int) -> tuple[Any, Node]:
        """Return a constant vector that is only added to a node's result, and the last node."""
        user = self.single.get(node.name)
        if self.users[node.name] != 1 or user is None or user.op != "aten::add" or user.attributes:
            return None, node
        other = next((v for v in user.inputs if v is not None and v.name != node.name), None)
        bias = self.constant(other)
        if bias is None or bias.shape != (columns,) or bias.dtype != np.float32:
            return None, node
        self.absorbed.add(user.name)
        return bias, user


def _batch(value: Any) -> Any:
    """Return an attribute with the symbol of the batch that graph mode uses."""
    if isinstance(value, tuple):
        return tuple(map(_batch, value))
    return replace(value, symbol=BATCH) if isinstance(value, Dim) else value


def _plain(name: str) -> str:
    """Return a name that an attribute can have."""
    plain = _NAME.sub("_", name).strip("_") or "value"
    return f"_{plain}" if plain[0].isdigit() else plain


Made = tuple[Module, Node] | None


def _linear(lift: _Lift, node: Node) -> Made:
    weight = lift.constant(node.inputs[1])
    bias = lift.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    if weight is None or (given and bias is None):
        return None
    last = node
    if not given:
        bias, last = lift.added(node, weight.shape[0])
    config = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    return Module("torch.nn.Linear", config, {"weight": weight, "bias": bias}), last


def _matmul(lift: _Lift, node: Node) -> Made:
    """Lift a product with a constant matrix, as a linear whose weight is that matrix turned."""
    x = node.inputs[0]
    columns = lift.constant(node.inputs[1])
    if columns is None or columns.ndim != 2 or x is None or x.type.rank < 2:
        return None
    bias, last = lift.added(node, columns.shape[1])
    config = {"in_features": columns.shape[0], "out_features": columns.shape[1]}
    weight = np.ascontiguousarray(columns.T)
    return Module("torch.nn.Linear", config, {"weight": weight, "bias": bias}), last


def _conv(rank: int, transposed: bool) -> Callable[[_Lift, Node], Made]:
    kind = f"torch.nn.Conv{'Transpose' if transposed else ''}{rank}d"

    def module(lift: _Lift, node: Node) -> Made:
        weight, bias = (lift.constant(value) for value in node.inputs[1:3])
        if weight is None or (bias is None and node.inputs[2] is not None):
            return None
        how: dict[str, Any] = dict(node.attributes)
        groups = how["groups"]
        first, second = weight.shape[:2]
        config = {
            "in_channels": first if transposed else second * groups,
            "out_channels": second * groups if transposed else first,
            "kernel_size": tuple(weight.shape[2:]),
            **{key: tuple(how[key]) for key in ("stride", "padding", "dilation")},
            "transposed": transposed,
            "output_padding": tuple(how.get("output_padding", (0,) * rank)),
            "groups": groups,
            "padding_mode": "zeros",
            "_reversed_padding_repeated_twice": tuple(
                p for p in reversed(how["padding"]) for _ in range(2)
            ),
        }
        return Module(kind, config, {"weight": weight, "bias": bias}), node

    return module


def _batch_norm(lift: _Lift, node: Node) -> Made:
    weight, bias, mean, var = (lift.constant(value) for value in node.inputs[1:5])
    x = node.inputs[0]
    if weight is None or bias is None or mean is None or var is None or x is None:
        return None
    rank = {2: 1, 3: 1, 4: 2, 5: 3}.get(x.type.rank)
    if rank is None:
        return None
    config = {
        "num_features": len(weight),
        "eps": node.attributes["eps"],
        "momentum": node.attributes["momentum"],
        "affine": True,
        "track_running_stats": True,
    }
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    state["num_batches_tracked"] = np.array(0, np.int64)
    return Module(f"torch.nn.BatchNorm{rank}d", config, state), node


MODULES: dict[str, Callable[[_Lift, Node], Made]] = {
    "aten::linear": _linear,
    "aten::matmul": _matmul,
    "aten::batch_norm": _batch_norm,
    **{f"aten::conv{rank}d": _conv(rank, False) for rank in (1, 2, 3)},
    **{f"aten::conv_transpose{rank}d": _conv(rank, True) for rank in (1, 2, 3)},
}
