"""Importing torch modules and FX GraphModules: the walk over the traced graph."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refquant.importers.builder import Rule, rebuild
from refquant.importers.fx_torch import as_arrays, require_torch, to_tensor, trace
from refquant.importers.rules import TorchBuilder
from refquant.importers.torch_functions import FUNCTIONS, METHODS
from refquant.importers.torch_modules import MODULES, qualified_name
from refquant.importers.torch_quantized_modules import QUANTIZED_MODULES, fake_quantize, observe
from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError
from refquant.ir.graph import Graph, Module, Node, Origin, Scope, Value
from refquant.ir.qtensor import type_of
from refquant.ir.target import Target
from refquant.ir.text import RESERVED
from refquant.ir.types import DTYPES, Dim, DType, TensorType


@dataclass(frozen=True)
class Constant:
    """A tensor or packed parameters that the model holds, not yet used as an operand."""

    name: str
    raw: Any


@dataclass(frozen=True)
class _Poison:
    """Stands for the result of a node that could not be imported."""


def _function_names(torch: Any) -> dict[Any, str]:
    """Return the public name of every function, by identity."""
    names: dict[Any, str] = {}
    for prefix, module in (
        ("torch.nn.functional", torch.nn.functional),
        ("operator", operator),
        ("torch", torch),
    ):
        public_first = sorted(vars(module).items(), key=lambda item: item[0].startswith("_"))
        for name, function in public_first:
            if callable(function) and not inspect.isclass(function) and not name.startswith("__"):
                try:
                    names.setdefault(function, f"{prefix}.{name}")
                except TypeError:
                    continue
    names[getattr] = "builtins.getattr"
    return names


def _function_name(function: Any, names: dict[Any, str]) -> str:
    if function in names:
        return names[function]
    kind = type(function).__name__
    if kind in ("OpOverload", "OpOverloadPacket"):
        return f"torch.ops.{function}"
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"


class FxBuilder(TorchBuilder):
    """The builder with what rules need to read torch's modules."""

    def __init__(self, root: Any) -> None:
        super().__init__()
        self._torch = require_torch()
        self._paths = {id(module): path for path, module in root.named_modules()}

    def operand(self, value: Any) -> Any:
        """Turn the tensor constants in an argument into parameters."""
        if isinstance(value, Constant) and isinstance(value.raw, self._torch.Tensor):
            return self.parameter(value.name, to_tensor(value.raw))
        if isinstance(value, self._torch.Tensor):
            return self.parameter("constant", to_tensor(value))
        if isinstance(value, tuple | list):
            return rebuild(value, map(self.operand, value))
        if isinstance(value, dict):
            return {key: self.operand(part) for key, part in value.items()}
        return value

    def drop_unused_parameters(self) -> None:
        """Forget constants whose number was read into an attribute."""
        used = {v.name for node in self.graph.nodes for v in node.inputs if v is not None}
        used |= {v.name for v in self.graph.outputs}
        for name in set(self.graph.parameters) - used:
            del self.graph.parameters[name]

    def number(self, value: Any, kind: Any) -> Any:
        """Return a Python number from a number or a tensor of one element."""
        if isinstance(value, Value):
            if value.name not in self.graph.parameters:
                raise UnsupportedError(f"{value.name}: a scale or zero point that is computed")
            value = np.asarray(self.graph.parameter(value.name)).reshape(-1)[0]
        return None if value is None else kind(value)

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
            return self.parameter(full, to_tensor(tensor))
        return self.parameter(f"{full}.{rows.start}", to_tensor(tensor[rows]))

    def packed(
        self, packed: Any, module: Any = None, rank: int = 0
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return weight, bias and, for a convolution of ``rank``, its geometry."""
        name = packed.name if isinstance(packed, Constant) else self.path(module)
        raw = packed.raw if isinstance(packed, Constant) else packed
        weight, bias = raw.unpack()
        if rank and weight.dim() == rank + 3:  # torch packs conv1d as a conv2d of height 1
            weight = weight.squeeze(-2)
        weight_value = self.parameter(f"{name}.weight", to_tensor(weight))
        bias_value = None if bias is None else self.parameter(f"{name}.bias", to_tensor(bias))
        if not rank:
            return weight_value, bias_value, {}
        geometry: dict[str, Any] = {
            key: tuple(getattr(raw, key)())[-rank:] for key in ("stride", "padding", "dilation")
        }
        geometry["groups"] = raw.groups()
        if raw.transpose():
            geometry["output_padding"] = tuple(raw.output_padding())[-rank:]
        return weight_value, bias_value, geometry

    def rule_of(self, module: Any) -> Rule:
        """Return the rule of a module by its class, or as an observer or fake-quant."""
        name = qualified_name(module)
        rule = MODULES.get(name) or QUANTIZED_MODULES.get(name)
        if rule is not None:
            return rule
        bases = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}
        if "torch.ao.quantization.fake_quantize.FakeQuantizeBase" in bases:
            return fake_quantize
        if "torch.ao.quantization.observer.ObserverBase" in bases:
            return observe
        raise UnsupportedError(f"module {name}")

    def stateful(self, module: Any) -> str:
        """Add an observer or fake-quant with its state; return its path."""
        path = self.path(module)
        if path not in self.graph.modules:
            config = {
                key: self._plain(value)
                for key, value in vars(module).items()
                if not key.startswith("_") and key not in ("training", "activation_post_process")
            }
            inner = getattr(module, "activation_post_process", None)
            if inner is not None:
                config["observer"] = qualified_name(inner)
                config |= {
                    f"observer.{key}": self._plain(value)
                    for key, value in vars(inner).items()
                    if not key.startswith("_") and key != "training"
                }
            config = {key: value for key, value in config.items() if value is not NotImplemented}
            state = {
                # A copy: torch goes on calibrating, and cannot resize what NumPy sees.
                key: np.asarray(to_tensor(value.clone()))
                for key, value in module.state_dict().items()
                if isinstance(value, self._torch.Tensor)
            }
            self.graph.modules[path] = Module(qualified_name(module), config, state)
        return path

    def _plain(self, value: Any) -> Any:
        if isinstance(value, self._torch.dtype):
            name = str(value).removeprefix("torch.")
            return DTYPES.get(name, name)
        if isinstance(value, self._torch.qscheme):
            return str(value).removeprefix("torch.")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return NotImplemented


@dataclass
class _Import:
    """One import in progress: the FX graph, the values found so far, and what failed."""

    module: Any
    builder: FxBuilder
    names: dict[Any, str]
    scopes: dict[str, tuple[str, Any]]
    env: dict[Any, Any] = field(default_factory=dict)
    memory: dict[str, str] = field(default_factory=dict)  # whose memory a view's value shares
    copies: dict[str, str] = field(default_factory=dict)  # of which value it is the same tensor
    failures: list[str] = field(default_factory=list)

    def argument(self, value: Any) -> Any:
        """Replace FX nodes by what they stand for, and torch's types by ours."""
        torch = self.builder._torch
        if isinstance(value, torch.fx.Node):
            return self.env[value]
        if isinstance(value, slice):
            return slice(*map(self.argument, (value.start, value.stop, value.step)))
        if isinstance(value, torch.Size | tuple):
            return tuple(map(self.argument, value))
        if isinstance(value, list):
            return list(map(self.argument, value))
        if isinstance(value, dict):
            return {key: self.argument(part) for key, part in value.items()}
        if isinstance(value, torch.dtype):
            name = str(value).removeprefix("torch.")
            if name not in DTYPES:
                raise UnsupportedError(f"dtype {name}")
            return DTYPES[name]
        if isinstance(value, torch.memory_format | torch.device):
            return str(value).removeprefix("torch.")
        return value

    def origin(self, node: Any) -> Origin:
        """Return where a node came from, in torch's terms."""
        stack = node.meta.get("nn_module_stack") or {}
        scope = tuple(
            Scope(path, f"{kind.__module__}.{kind.__qualname__}")
            for path, kind in stack.values()
            if isinstance(kind, type)
        )
        if node.op == "call_module":
            target = qualified_name(self.module.get_submodule(node.target))
            enclosing = scope[:-1] if scope and scope[-1].path == node.target else scope
            return Origin(node.op, target, node.name, node.target, enclosing)
        target = node.target
        if node.op == "call_function":
            target = _function_name(target, self.names)
        path = scope[-1].path if scope else self.scopes.get(node.name, ("", None))[0]
        return Origin(node.op, target, node.name, path, scope)

    def fail(self, node: Any, reason: str) -> None:
        """Note a node that cannot be imported."""
        where = node.target if node.op == "call_module" else node.name
        self.failures.append(f"{where}: {reason}")
        self.env[node] = _Poison()

    def run(self, node: Any) -> None:
        """Import one node."""
        b = self.builder
        if node.op == "get_attr":
            try:
                found = operator.attrgetter(node.target)(self.module)
            except AttributeError:
                self.fail(node, f"the module has no attribute {node.target!r}")
            else:
                self.env[node] = Constant(node.target, found)
            return
        try:
            args = self.argument(tuple(node.args))
            kwargs = self.argument(dict(node.kwargs))
            rule = self.rule(node)
            if _contains((args, kwargs), _Poison):
                self.env[node] = _Poison()
                return
            if rule is None:
                self.env[node] = self.evaluate(node, args, kwargs)
                return
            b.open(self.origin(node))
            first = len(b.graph.nodes)
            result = rule(b, *b.operand(args), **b.operand(kwargs))
            self.env[node] = b.close(node.name, result)
            self.note_views(b.graph.nodes[first:])
            if _is_in_place(node, self.module):
                changed = args[0] if args else kwargs.get("input")
                self.refuse_changed_views(node, changed)
                self.rebind(changed, self.env[node])
        except UnsupportedError as error:
            self.fail(node, str(error))
        except RefquantError as error:
            raise type(error)(f"node {node.name}: {error}") from None
        except _MISUSE as error:
            reason = str(error).strip().split("\n")[0]
            self.fail(node, f"{node.target} called in a form that is not known ({reason})")

    def rule(self, node: Any) -> Rule | None:
        """Return the rule of a node, or None if it computes on constants only."""
        if node.op == "call_module":
            module = self.module.get_submodule(node.target)
            of_class = self.builder.rule_of(module)
            return lambda b, *args, **kwargs: of_class(b, module, *args, **kwargs)
        if not _contains(self.inputs_of(node), Value | Constant | _Poison):
            return None
        if node.op == "call_method":
            name = node.target
            table = METHODS
        else:
            name = _function_name(node.target, self.names)
            table = FUNCTIONS
        found = table.get(name) or table.get(name.removesuffix("_"))
        if found is None and _contains(self.inputs_of(node), Value | _Poison):
            raise UnsupportedError(f"{node.op} {name}")
        return found

    def inputs_of(self, node: Any) -> list[Any]:
        """Return what the node's direct inputs stand for."""
        return [self.env[source] for source in node.all_input_nodes]

    def evaluate(self, node: Any, args: Any, kwargs: Any) -> Any:
        """Compute a node that depends on no activation: shape arithmetic, tables."""
        torch = self.builder._torch
        if node.op == "call_function" and node.target is torch._assert:
            FUNCTIONS["torch._assert"](self.builder, *args, **kwargs)
            return None
        raw_args, raw_kwargs = _raw(self.restore(args)), _raw(self.restore(kwargs))
        if node.op == "call_method":
            receiver, *rest = raw_args
            result = getattr(receiver, node.target)(*rest, **raw_kwargs)
        else:
            result = node.target(*raw_args, **raw_kwargs)
        return Constant(node.name, result) if isinstance(result, torch.Tensor) else result

    def restore(self, value: Any) -> Any:
        """Turn our dtypes back into torch's, to call torch with them."""
        if isinstance(value, DType):
            return getattr(self.builder._torch, value.name)
        if isinstance(value, tuple | list):
            return rebuild(value, map(self.restore, value))
        if isinstance(value, dict):
            return {key: self.restore(part) for key, part in value.items()}
        return value

    def note_views(self, nodes: list[Node]) -> None:
        """Note which results may share the memory of their operand."""
        for node in nodes:
            if node.op in _VIEWS and node.inputs and node.inputs[0] is not None:
                name = node.inputs[0].name
                for value in node.outputs:
                    self.memory[value.name] = self.memory.get(name, name)
                    if node.op in ("aten::alias", "aten::dropout"):
                        self.copies[value.name] = self.copies.get(name, name)

    def refuse_changed_views(self, node: Any, changed: Any) -> None:
        """Refuse a change in place that another view of the same memory shows later."""
        if not isinstance(changed, Value):
            return
        memory = self.memory.get(changed.name, changed.name)
        order = {n: i for i, n in enumerate(node.graph.nodes)}
        for other, value in self.env.items():
            if not isinstance(value, Value) or self.is_same(value, changed) or other is node:
                continue
            shared = self.memory.get(value.name, value.name) == memory
            if shared and any(order[user] > order[node] for user in other.users):
                raise UnsupportedError(f"a change in place of memory that {other.name} shares")

    def rebind(self, old: Any, new: Any) -> None:
        """After an in-place call every name of the argument stands for the result."""
        for node, value in self.env.items():
            if value is old or self.is_same(value, old):
                self.env[node] = new

    def is_same(self, one: Any, other: Any) -> bool:
        """Whether two values are the same tensor in torch."""
        if not isinstance(one, Value) or not isinstance(other, Value):
            return False
        return self.copies.get(one.name, one.name) == self.copies.get(other.name, other.name)


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
        *("split_with_sizes", "unbind"),
    )
)


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


_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow)


def _is_in_place(node: Any, root: Any) -> bool:
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(node.target), "inplace", False))
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    changes_itself = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    in_place_operator = node.target in _IN_PLACE
    return bool(node.kwargs.get("inplace", False)) or changes_itself or in_place_operator


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
    module, scopes = trace(model)
    types = [type_of(array) for array in arrays]
    if batch is not None and _share_batch(types):
        symbolic = [TensorType(t.dtype, (Dim(batch), *t.shape[1:]), t.qparams) for t in types]
        try:
            return _import(module, scopes, symbolic, target)
        except (VerifyError, UnsupportedError):
            pass  # the fixed batch below tells whether the symbol or the model is at fault
    return _import(module, scopes, types, target)


def _share_batch(types: list[TensorType]) -> bool:
    return all(t.shape and t.shape[0] == types[0].shape[0] for t in types)


def _import(
    module: Any, scopes: dict[str, tuple[str, Any]], types: list[TensorType], target: str
) -> Graph:
    torch = require_torch()
    builder = FxBuilder(module)
    job = _Import(module, builder, _function_names(torch), scopes)
    remaining = list(types)
    returned: Any = None
    for node in module.graph.nodes:
        if node.op == "placeholder":
            if remaining:
                job.env[node] = builder.input(node.name, remaining.pop(0))
            elif node.args:
                job.env[node] = node.args[0]
            else:
                raise VerifyError(f"from_fx: example_inputs has no value for input {node.name}")
        elif node.op == "output":
            returned = node.args[0]
        else:
            job.run(node)
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
    builder.drop_unused_parameters()
    graph.provenance = {"torch": torch.__version__, "target": target}
    graph.verify()
    return graph
