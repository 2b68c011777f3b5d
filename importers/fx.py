"""Importing torch modules and FX GraphModules: the walk over the traced graph."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refquant.importers.builder import Rule, rebuild
from refquant.importers.fx_torch import (
    TORCH_VERSION,
    as_arrays,
    call_torch,
    is_graph_module,
    require_torch,
)
from refquant.importers.lift import OPERATION
from refquant.importers.rules import Prepacked, TorchBuilder
from refquant.importers.torch_capture import capture, capture_graph_module
from refquant.importers.torch_functions import FUNCTIONS, METHODS
from refquant.importers.torch_memory import refuse_unwritten
from refquant.importers.torch_modules import MODULES
from refquant.importers.torch_operators import MAKES_MEMORY, METHOD_FORMS, OPERATORS
from refquant.importers.torch_quantized_modules import QUANTIZED_MODULES, fake_quantize, observe
from refquant.importers.torch_recurrent import RECURRENT
from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError
from refquant.ir.graph import Graph, Node, Origin, Scope, Value
from refquant.ir.module import Module, Packed
from refquant.ir.program import Call, Program, each
from refquant.ir.qtensor import QTensor, Tensor, type_of
from refquant.ir.target import Target
from refquant.ir.text import RESERVED
from refquant.ir.types import Dim, DType, QScheme, TensorType


@dataclass(frozen=True)
class Constant:
    """A tensor or packed parameters that the model holds, not yet used as an operand."""

    name: str
    raw: Any


@dataclass(frozen=True)
class _Poison:
    """Stands for the result of a node that could not be imported."""


_TABLES = (MODULES, QUANTIZED_MODULES, RECURRENT)


class FxBuilder(TorchBuilder):
    """The builder with what rules need to read modules."""

    def __init__(self, root: Module) -> None:
        super().__init__()
        self._paths: dict[int, str] = {id(part): path for path, part in root.named_modules()}
        self.memory: dict[str, str] = {}  # whose memory a view's value shares
        self.copies: dict[str, str] = {}  # of which value it is the same tensor
        self.overwritten: list[Value] = []  # by the call in hand
        self.spoilt: list[Value] = []

    def operand(self, value: Any) -> Any:
        """Turn the tensor constants in an argument into parameters."""
        if isinstance(value, Constant) and isinstance(value.raw, np.ndarray | QTensor):
            return self.parameter(value.name, value.raw)
        if isinstance(value, np.ndarray | QTensor):
            return self.parameter("constant", value)
        if isinstance(value, tuple | list):
            return rebuild(value, map(self.operand, value))
        if isinstance(value, dict):
            return {key: self.operand(part) for key, part in value.items()}
        return value

    def owner(self, value: Value) -> str:
        """Return the name of the value whose memory a value shares: mostly its own."""
        return self.memory.get(value.name, value.name)

    def overwrite(self, value: Value) -> None:
        """Let the result of the call in hand stand for ``value``: the call writes to it."""
        self.overwritten.append(value)

    def spoil(self, value: Value) -> None:
        """Refuse later uses of ``value``: whether the call in hand writes to it is not known."""
        self.spoilt.append(value)

    def is_view(self, value: Value) -> bool:
        """Whether a tensor may be a view of another one's memory."""
        same = self.copies.get(value.name, value.name)
        return self.memory.get(same, same) != same

    def number(self, value: Any, kind: Any) -> Any:
        """Return a Python number from a number or a tensor of one element."""
        if isinstance(value, Value):
            value = self.constant(value)
        if isinstance(value, np.ndarray):
            value = value.reshape(-1)[0]
        return None if value is None else kind(value)

    def constant(self, value: Value) -> Tensor:
        """Return a tensor that the model holds; refuse one that is computed."""
        if value.name not in self.graph.parameters:
            raise UnsupportedError(f"{value.name} has to be known, but is computed")
        found: Tensor = self.graph.parameter(value.name)
        return found

    def path(self, module: Any) -> str:
        """Return where a module sits in the model."""
        return str(self._paths.get(id(module), ""))

    def of(self, module: Any, name: str, rows: slice | None = None) -> Value | None:
        """Return a module's tensor as a parameter, or a part of its rows; None if absent."""
        tensor = getattr(module, name, None)
        if tensor is None:
            return None
        full = f"{self.path(module)}.{name}".lstrip(".")
        if rows is None:
            return self.parameter(full, tensor)
        return self.parameter(f"{full}.{rows.start}", tensor[rows])

    def packed(
        self, packed: Any, module: Any = None, rank: int = 0
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return weight, bias and, for a convolution of ``rank``, its geometry."""
        if isinstance(packed, Prepacked):
            found = packed.weight.type.rank - 2
            if rank and found != rank:
                raise UnsupportedError(f"parameters packed for {found} dimensions, not {rank}")
            return packed.weight, packed.bias, packed.geometry if rank else {}
        name = packed.name if isinstance(packed, Constant) else self.path(module)
        raw: Packed = packed.raw if isinstance(packed, Constant) else packed
        weight = raw.weight
        if rank and len(weight.shape) == rank + 3:  # torch packs conv1d as a conv2d of height 1
            assert isinstance(weight, QTensor)
            weight = weight.with_int_repr(weight.int_repr.squeeze(-2))
        weight_value = self.parameter(f"{name}.weight", weight)
        bias_value = None if raw.bias is None else self.parameter(f"{name}.bias", raw.bias)
        geometry = {
            key: value[-rank:] if isinstance(value, tuple) else value
            for key, value in raw.geometry.items()
        }
        return weight_value, bias_value, geometry if rank else {}

    def rule_of(self, module: Any) -> Rule:
        """Return the rule of a module: its own, of its class, or of an observer or fake-quant."""
        if getattr(module, "program", None) is not None:
            return _inline
        own = getattr(type(module), "emit", None)
        if own is not None:
            return lambda b, module, *args, **kwargs: module.emit(b, *args, **kwargs)
        rule = next((t[module.kind] for t in _TABLES if module.kind in t), None)
        if rule is not None:
            return rule
        if module.role == "fake_quantize":
            return fake_quantize
        if module.role in ("observer", "equalization"):
            return observe
        raise UnsupportedError(f"module {module.kind}")

    def stateful(self, module: Any) -> str:
        """Add an observer or fake-quant with its state; return its path."""
        path = self.path(module)
        if path not in self.graph.modules:
            self.graph.modules[path] = flat(module)
        return path


def flat(module: Any) -> Module:
    """Return an observer or fake-quant as one record, with the observer in it flattened."""
    config, state = dict(module.config), dict(module.state)
    for name, part in module.parts.items():
        config["observer"] = part.kind
        config |= {f"observer.{key}": value for key, value in part.config.items()}
        state |= {f"{name}.{key}": value for key, value in part.state.items()}
    config = {key: _written(value) for key, value in config.items()}
    kept = {key: value for key, value in config.items() if value is not NotImplemented}
    return Module(module.kind, kept, state, role=module.role)


def _written(value: Any) -> Any:
    if isinstance(value, QScheme):
        return str(value)
    plain = value is None or isinstance(value, bool | int | float | str | DType)
    return value if plain else NotImplemented


@dataclass
class _Import:
    """One import in progress: the program, the values found so far, and what failed."""

    program: Program
    builder: FxBuilder
    prefix: str = ""
    env: dict[Call, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def argument(self, value: Any) -> Any:
        """Replace calls by what they stand for."""
        return each(value, self.env.__getitem__)

    def origin(self, call: Call) -> Origin:
        """Return where a call came from, in torch's terms."""
        stack = call.notes.get("stack", ())
        scope = tuple(Scope(owner.path, owner.kind) for owner in stack)
        if call.kind == "call_module":
            target = self.program.root.get(call.target).kind
            enclosing = scope[:-1] if scope and scope[-1].path == call.target else scope
            return Origin(call.kind, target, call.name, call.target, enclosing)
        path = scope[-1].path if scope else call.owner.path if call.owner else ""
        return Origin(call.kind, call.target, call.name, path, scope)

    def fail(self, node: Call, reason: str) -> None:
        """Note a call that cannot be imported."""
        where = node.target if node.kind == "call_module" else node.name
        self.failures.append(f"{where}: {reason}")
        self.env[node] = _Poison()

    def run(self, call: Call) -> None:
        """Import one call."""
        b = self.builder
        if call.kind == "get_attr":
            try:
                found = self.program.root.get(call.target)
                self.env[call] = Constant(f"{self.prefix}{call.target}", found)
            except AttributeError:
                self.fail(call, f"the module has no attribute {call.target!r}")
            return
        try:
            args = self.argument(call.args)
            kwargs = self.argument(call.kwargs)
            rule = self.rule(call)
            if _contains((args, kwargs), _Poison):
                self.env[call] = _Poison()
                return
            if rule is None:
                self.env[call] = self.evaluate(call, args, kwargs)
                return
            b.open(self.origin(call))
            b.overwritten, b.spoilt = [], []
            first = len(b.graph.nodes)
            result = rule(b, *b.operand(args), **b.operand(kwargs))
            self.env[call] = b.close(call.name, result)
            self.note_views(b.graph.nodes[first:])
            changed: list[Any] = list(b.overwritten)
            if not changed and _is_in_place(call, self.program.root):
                changed = [args[0] if args else kwargs.get("input", kwargs.get("self"))]
            for value in b.spoilt:
                self.refuse_later_uses(call, value)
            for value in changed:
                self.refuse_changed_views(call, value)
                self.rebind(value, self.env[call])
        except UnsupportedError as error:
            self.fail(call, str(error))
        except RefquantError as error:
            raise type(error)(f"node {call.name}: {error}") from None
        except _MISUSE as error:
            reason = str(error).strip().split("\n")[0]
            self.fail(call, f"{call.target} called in a form that is not known ({reason})")

    def rule(self, call: Call) -> Rule | None:
        """Return the rule of a call, or None if it computes on constants only."""
        if call.kind == "call_module":
            module = self.program.root.get(call.target)
            of_class = self.builder.rule_of(module)
            return lambda b, *args, **kwargs: of_class(b, module, *args, **kwargs)
        if not _contains(self.inputs_of(call), Value | Constant | _Poison):
            made = {call.target, call.target.rpartition(".")[0]} & MAKES_MEMORY
            return _found(call) if made else None
        found = _found(call)
        if found is None and _contains(self.inputs_of(call), Value | _Poison):
            raise UnsupportedError(f"{call.kind} {call.target}")
        return found

    def inputs_of(self, call: Call) -> list[Any]:
        """Return what the call's direct inputs stand for."""
        return [self.env[source] for source in call.inputs]

    def evaluate(self, call: Call, args: Any, kwargs: Any) -> Any:
        """Compute a call that depends on no activation: shape arithmetic, tables."""
        if call.target == "torch._assert":
            FUNCTIONS["torch._assert"](self.builder, *args, **kwargs)
            return None
        module, _, name = call.target.rpartition(".")
        raw_args, raw_kwargs = _raw(args), _raw(kwargs)
        if module in ("operator", "math", "builtins") and not _contains(args, Constant):
            return getattr(importlib.import_module(module), name)(*raw_args, **raw_kwargs)
        result = call_torch(call.kind, call.target, raw_args, raw_kwargs)
        is_tensor = isinstance(result, np.ndarray | QTensor)
        return Constant(call.name, result) if is_tensor else result

    def note_views(self, nodes: list[Node]) -> None:
        """Note which results may share the memory of their operand."""
        for node in nodes:
            if node.op in _VIEWS and node.inputs and node.inputs[0] is not None:
                name, b = node.inputs[0].name, self.builder
                for value in node.outputs:
                    b.memory[value.name] = b.memory.get(name, name)
                    if node.op in ("aten::alias", "aten::dropout"):
                        b.copies[value.name] = b.copies.get(name, name)

    def refuse_changed_views(self, node: Call, changed: Any) -> None:
        """Refuse a change in place that another view of the same memory shows later."""
        if not isinstance(changed, Value):
            return
        memory = self.builder.owner(changed)
        order = {n: i for i, n in enumerate(self.program)}
        for other, value in self.env.items():
            if not isinstance(value, Value) or self.is_same(value, changed) or other is node:
                continue
            shared = self.builder.owner(value) == memory
            if shared and any(order[user] > order[node] for user in other.users):
                raise UnsupportedError(f"a change in place of memory that {other.name} shares")

    def refuse_later_uses(self, node: Call, spoilt: Value) -> None:
        """Refuse a use of memory that torch writes to in one memory format only."""
        memory = self.builder.owner(spoilt)
        order = {n: i for i, n in enumerate(self.program)}
        for other, value in self.env.items():
            shared = isinstance(value, Value) and self.builder.owner(value) == memory
            if shared and any(order[user] > order[node] for user in other.users):
                raise UnsupportedError(
                    f"{other.name} is used after {node.target}, which writes to it in "
                    "channels-last memory only; use the result"
                )

    def rebind(self, old: Any, new: Any) -> None:
        """After an in-place call every name of the argument stands for the result."""
        for node, value in self.env.items():
            if value is old or self.is_same(value, old):
                self.env[node] = new

    def is_same(self, one: Any, other: Any) -> bool:
        """Whether two values are the same tensor in torch."""
        if not isinstance(one, Value) or not isinstance(other, Value):
            return False
        copies = self.builder.copies
        return copies.get(one.name, one.name) == copies.get(other.name, other.name)


def _inline(b: FxBuilder, module: Module, *args: Any, **kwargs: Any) -> Any:
    """Import the calls of a standalone module in place."""
    job = _Import(module.program, b, f"{b.path(module)}.")
    given = iter(args)
    for call in module.program:
        if call.kind == "placeholder":
            default = call.args[0] if call.args else None
            job.env[call] = next(given, kwargs.get(call.target, default))
        elif call.kind == "output":
            if job.failures:
                raise UnsupportedError("; ".join(job.failures))
            return job.argument(call.args[0])
        else:
            job.run(call)
    raise VerifyError(f"{b.path(module)} returns nothing")


# What a wrong call raises: of a rule, of NumPy, or of torch computing on constants.
_MISUSE = (
    *(TypeError, AttributeError, LookupError, ValueError),
    *(AssertionError, ArithmeticError, RuntimeError),
)
# Ops whose result is, or may be, a view of their first operand.
_VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        *("alias", "contiguous", "dropout", "to", "reshape", "view", "flatten", "expand"),
        *("permute", "transpose", "squeeze", "unsqueeze", "select", "slice", "unfold"),
        *("split_with_sizes", "unbind", "as_strided"),
    )
)


def _found(call: Call) -> Rule | None:
    """Return the rule of a function or method by its name.

    An operator's overload and the mark of a change in place are left out if nothing is known
    by the full name.
    """
    name = call.target
    if name.startswith(OPERATION):
        return _operation(name.removeprefix(OPERATION))
    if call.kind == "call_method":
        known = METHOD_FORMS.get(name) or METHODS.get(name)
        return known or METHODS.get(name.removesuffix("_"))
    aten = name.startswith("torch.ops.aten.")
    for full in (name, name.rpartition(".")[0] if name.startswith("torch.ops.") else name):
        known = OPERATORS.get(full) or FUNCTIONS.get(full)
        if known is not None:
            return known
    if aten and not name.endswith("out"):
        name = name.split(".")[3]
        return METHODS.get(name) or FUNCTIONS.get(f"torch.{name}")
    return FUNCTIONS.get(name.removesuffix("_"))


def _operation(op: str) -> Rule:
    """Return the rule of a call of one of our own operations."""

    def rule(b: FxBuilder, *operands: Any, **attributes: Any) -> Any:
        results = b.emit_all(op, *operands, **attributes)
        return results if len(results) > 1 else results[0]

    return rule


def _contains(value: Any, kind: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_contains(part, kind) for part in value)
    if isinstance(value, dict):
        return any(_contains(part, kind) for part in value.values())
    if isinstance(value, slice):
        return _contains((value.start, value.stop, value.step), kind)
    return isinstance(value, kind)


def _raw(value: Any) -> Any:
    if isinstance(value, Constant):
        return value.raw
    if isinstance(value, tuple | list):
        return rebuild(value, map(_raw, value))
    return {key: _raw(part) for key, part in value.items()} if isinstance(value, dict) else value


_IN_PLACE = frozenset(f"operator.i{name}" for name in ("add", "sub", "mul", "truediv", "pow"))


def _is_in_place(call: Call, root: Module) -> bool:
    if call.kind == "call_module":
        return bool(getattr(root.get(call.target), "inplace", False))
    name = call.target.rpartition(".")[2]
    changes_itself = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    return bool(call.kwargs.get("inplace", False)) or changes_itself or call.target in _IN_PLACE


def from_fx(
    model: Any, example_inputs: Any = None, *, target: str = "fbgemm", batch: str | None = "N"
) -> Graph:
    """Import a torch module or an FX GraphModule, in whatever state of quantization.

    Parameters
    ----------
    model : torch.nn.Module or torch.fx.GraphModule
        Float, prepared, converted, reference or decomposed. A plain module is traced with the
        leaf rules of torch's quantization tracer.
    example_inputs : tuple of tensors or arrays
        Positional inputs from which all shapes follow.
    target : str
        The machine the model was made for, as :meth:`Target.parse` reads it.
    batch : str or None
        Name of the symbolic length of dimension 0, where all inputs share it. Where the model's
        shapes are not multiples of the batch, or with None, the example's batch is fixed.

    Returns
    -------
    Graph
        Verified, with every parameter, every observer's state and the origin of every node.

    Raises
    ------
    VerifyError
        If the module cannot be traced or does not fit its inputs.
    UnsupportedError
        Listing every node that has no rule, with its path.
    """
    torch = require_torch()
    if not isinstance(model, torch.nn.Module):
        raise VerifyError(f"from_fx: expected a torch.nn.Module, got {type(model).__name__}")
    Target.parse(target)
    if batch is not None and (not batch.isidentifier() or batch in RESERVED):
        raise VerifyError(f"from_fx: batch must be a plain name such as 'N', got {batch!r}")
    arrays = as_arrays(example_inputs)
    program = capture_graph_module(model) if is_graph_module(model) else capture(model)
    return graph_of(program, tuple(map(type_of, arrays)), target=target, batch=batch)


def graph_of(
    program: Program, types: Sequence[TensorType], *, target: str = "fbgemm", batch: str | None
) -> Graph:
    """Return the dataflow graph of a program.

    Parameters
    ----------
    program : Program
        In whatever state of quantization.
    types : sequence of TensorType
        Of its inputs.
    target, batch
        See :func:`from_fx`.
    """
    if batch is not None and _share_batch(types):
        symbolic = [TensorType(t.dtype, (Dim(batch), *t.shape[1:]), t.qparams) for t in types]
        try:
            return _import(program, symbolic, target)
        except (VerifyError, UnsupportedError):
            pass  # the fixed batch below tells whether the symbol or the model is at fault
    return _import(program, types, target)


def _share_batch(types: Sequence[TensorType]) -> bool:
    return bool(types) and all(t.shape and t.shape[0] == types[0].shape[0] for t in types)


def _import(program: Program, types: Sequence[TensorType], target: str) -> Graph:
    builder = FxBuilder(program.root)
    job = _Import(program, builder)
    remaining = list(types)
    returned: Any = None
    for call in program:
        if call.kind == "placeholder":
            if remaining:
                job.env[call] = builder.input(call.name, remaining.pop(0))
            elif call.args:
                job.env[call] = call.args[0]
            else:
                raise VerifyError(f"from_fx: example_inputs has no value for input {call.name}")
        elif call.kind == "output":
            returned = call.args[0]
        else:
            job.run(call)
    if remaining:
        raise VerifyError(f"from_fx: {len(remaining)} example_inputs too many")
    if job.failures:
        count = len(job.failures)
        noun = "node is" if count == 1 else "nodes are"
        raise UnsupportedError(f"{count} {noun} not supported: {'; '.join(job.failures)}")
    graph = builder.graph
    outputs: list[Value] = []

    def arrange(value: Any) -> Any:
        value = job.argument(value)
        if isinstance(value, Constant):
            value = builder.operand(value)
        if isinstance(value, Value):
            outputs.append(value)
            return len(outputs) - 1
        if isinstance(value, dict):
            return {key: arrange(part) for key, part in value.items()}
        if isinstance(value, tuple | list):
            return (
                tuple(map(arrange, value)) if isinstance(value, tuple) else [*map(arrange, value)]
            )
        if value is None:
            return None
        raise UnsupportedError(f"returning {value!r}, which is not a tensor")

    graph.returns = arrange(returned)
    graph.outputs = tuple(outputs)
    refuse_unwritten(graph)
    builder.drop_unused_parameters()
    graph.provenance = {"torch": TORCH_VERSION, "target": target}
    graph.program = program
    graph.verify()
    return graph
