"""From torch to a program: the traced calls and the module tree, with arrays of our own."""

from __future__ import annotations

import sys
from collections.abc import Collection
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np

from refquant.importers.fx_torch import as_arrays, require_torch, to_tensor
from refquant.importers.torch_config import from_torch_config
from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError
from refquant.ir.module import Module, Packed
from refquant.ir.names import canonical, object_type
from refquant.ir.packed_cell import PackedCell
from refquant.ir.program import Call, Owner, Program
from refquant.ir.qtensor import QTensor, Tensor, type_of
from refquant.ir.types import TORCH_DTYPES, QScheme, TensorType

_NOTHING = object()
# Private attributes that the arithmetic depends on.
_PRIVATE = ("_reversed_padding_repeated_twice", "_qkv_same_embed_dim")


def is_torch_module(model: Any) -> bool:
    """Whether a model is torch's; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def as_types(example_inputs: Any) -> tuple[TensorType, ...]:
    """Return the types of example inputs; none if there are none."""
    if example_inputs is None or (isinstance(example_inputs, tuple) and not example_inputs):
        return ()
    return tuple(map(type_of, as_arrays(example_inputs)))


def capture(
    model: Any,
    leaf_names: Collection[str] = (),
    leaf_classes: Collection[Any] = (),
) -> Program:
    """Trace a module with the leaf rules of torch's quantization tracer.

    ``FloatFunctional`` is traced as the operators it stands for, as graph mode does.

    Parameters
    ----------
    model : torch.nn.Module
        Nothing in it is changed, and the program shares no memory with it.
    leaf_names, leaf_classes : collections
        Modules not to trace into, by path or by exact class (as such or by name).

    Raises
    ------
    VerifyError
        If it is no module, or cannot be traced.
    """
    torch = require_torch()
    from_tracer = _tracer(torch, leaf_names, {object_type(kind) for kind in leaf_classes})
    swapped = _swap_float_functional(torch, model)
    try:
        graph = from_tracer.trace(model)
        return _program(model, graph, from_tracer.node_name_to_scope)
    except RefquantError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise VerifyError(
            f"{type(model).__name__} cannot be traced by torch.fx: {reason}"
        ) from None
    finally:
        for owner, name, original in swapped:
            owner._modules[name] = original


def _swap_float_functional(torch: Any, model: Any) -> list[tuple[Any, str, Any]]:
    """Replace every FloatFunctional without observer; return what to put back."""
    quantized = torch.ao.nn.quantized
    found = [
        (owner, name, part)
        for owner in model.modules()
        for name, part in owner._modules.items()
        if type(part) is quantized.FloatFunctional
        and type(part.activation_post_process) is torch.nn.Identity
    ]
    for owner, name, _ in found:
        owner._modules[name] = quantized.FXFloatFunctional()
    return found


def capture_graph_module(model: Any) -> Program:
    """Return the program of a GraphModule as it stands, without tracing it again."""
    return _program(model, model.graph, {})


def _tracer(torch: Any, leaf_names: Collection[str], leaf_classes: Collection[str]) -> Any:
    """Return torch's quantization tracer with leaves by the names of their classes."""

    class Tracer(torch.ao.quantization.fx.tracer.QuantizationTracer):
        def is_leaf_module(self, m: Any, module_qualified_name: str) -> bool:
            known = super().is_leaf_module(m, module_qualified_name)
            return known or object_type(type(m)) in leaf_classes

    return Tracer(list(leaf_names), [])


def _program(model: Any, graph: Any, scopes: dict[str, tuple[str, Any]]) -> Program:
    modules = _Modules()
    program = Program(modules.module(model))
    names = graph._graph_namespace
    program._names, program._counts = set(names._used_names), dict(names._base_count)
    same: dict[Any, Call] = {}
    arguments = _Arguments(same)
    for node in graph.nodes:
        target = node.target if isinstance(node.target, str) else object_type(node.target)
        call = Call(program, node.op, target, node.name)
        program._link(call, program._end)
        call.set_arguments(arguments.plain(tuple(node.args)), arguments.plain(dict(node.kwargs)))
        if node.name in scopes:
            path, kind = scopes[node.name]
            call.owner = Owner(path, None if kind is None else object_type(kind))
        stack = node.meta.get("nn_module_stack")
        if stack:
            call.notes["stack"] = tuple(
                Owner(path, object_type(kind))
                for path, kind in stack.values()
                if isinstance(kind, type)
            )
        same[node] = call
    observed = getattr(model, "meta", {}).get("_observed_graph_module_attrs")
    if observed is not None:
        program.meta["observed"] = _observed(observed)
        for call in program:
            if call.name in observed.node_name_to_scope:
                path, kind = observed.node_name_to_scope[call.name]
                call.owner = Owner(path, None if kind is None else object_type(kind))
    return program


def _observed(attributes: Any) -> dict[str, Any]:
    """Return what torch's prepare left for its convert, in our types."""
    known: dict[int, Any] = {}

    def translated(qconfig: Any) -> Any:
        if qconfig is not None and id(qconfig) not in known:
            known[id(qconfig)] = from_torch_config(qconfig)
        return None if qconfig is None else known[id(qconfig)]

    def each_of(qconfigs: Any) -> dict[str, Any]:
        return {name: translated(qconfig) for name, qconfig in (qconfigs or {}).items()}

    return {
        "node_name_to_qconfig": each_of(attributes.node_name_to_qconfig),
        "equalization": each_of(attributes.equalization_node_name_to_qconfig),
        "qconfig_mapping": from_torch_config(attributes.qconfig_mapping),
        "custom": from_torch_config(attributes.prepare_custom_config),
        "is_qat": attributes.is_qat,
        "observed": set(attributes.observed_node_names),
    }


class _Arguments:
    """Arguments of FX nodes with calls for nodes and our types for torch's."""

    def __init__(self, same: dict[Any, Call]) -> None:
        self.torch = require_torch()
        self.same = same

    def plain(self, value: Any) -> Any:
        torch = self.torch
        if isinstance(value, torch.fx.Node):
            return self.same[value]
        if isinstance(value, slice):
            return slice(*map(self.plain, (value.start, value.stop, value.step)))
        if isinstance(value, torch.Size):
            return tuple(map(self.plain, value))
        if isinstance(value, tuple):
            return tuple(map(self.plain, value))
        if isinstance(value, list):
            return [*map(self.plain, value)]
        if isinstance(value, dict):
            return {key: self.plain(part) for key, part in value.items()}
        if isinstance(value, torch.Tensor):
            return _copied(value)
        found = plain_value(value)
        return value if found is _NOTHING else found


def plain_value(value: Any) -> Any:
    """Return a plain attribute or literal in our types, or ``_NOTHING``."""
    torch = require_torch()
    if value is None or isinstance(value, bool | int | float | str | complex):
        return value
    if value is Ellipsis:
        return value
    if isinstance(value, torch.dtype):
        name = str(value).removeprefix("torch.")
        return TORCH_DTYPES.get(name, name)
    if isinstance(value, torch.qscheme):
        return QScheme(str(value).removeprefix("torch."))
    if isinstance(value, torch.memory_format | torch.device | torch.layout):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple | list):
        parts = [plain_value(part) for part in value]
        return (
            _NOTHING if any(part is _NOTHING for part in parts) else type_of_sequence(value)(parts)
        )
    return _NOTHING


def type_of_sequence(value: Any) -> Any:
    """Return list or tuple, also for torch's own sequences."""
    return list if isinstance(value, list) else tuple


class _Modules:
    """torch modules as modules of ours; one used twice stays one."""

    def __init__(self) -> None:
        self.torch = require_torch()
        self.same: dict[int, Module] = {}

    def module(self, module: Any) -> Module:
        torch = self.torch
        if id(module) in self.same:
            return self.same[id(module)]
        if isinstance(module, torch.fx.GraphModule) and self.same:
            program = capture_graph_module(module)
            program.root.program = program
            self.same[id(module)] = program.root
            return program.root
        made = Module(_kind(module), training=module.training, role=_role(module))
        self.same[id(module)] = made
        for name, value in vars(module).items():
            hidden = name.startswith("_") and name not in _PRIVATE
            if name == "training" or (
                hidden and not isinstance(value, torch.ScriptObject | torch.Tensor)
            ):
                continue
            if name == "qconfig":
                made.config[name] = None if value is None else from_torch_config(value)
            elif isinstance(value, torch.ScriptObject):
                made.state[name] = packed_parameters(value)
            elif isinstance(value, torch.Tensor):
                made.state[name] = _copied(value)
                made.plain |= {name}
            elif (plain := plain_value(value)) is not _NOTHING:
                made.config[name] = plain
            elif isinstance(value, FunctionType | BuiltinFunctionType):
                made.config[name] = object_type(value)
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                # A copy: the model may be trained on, and torch cannot resize what NumPy sees.
                made.state[name] = None if value is None else _copied(value)
        for name, part in module._modules.items():
            if part is not None:
                made.parts[name] = self.module(part)
            else:
                made.config[name] = None
        return made


def _kind(module: Any) -> str:
    cls = type(module)
    if cls.__module__ == "torch.fx.graph_module":
        return "torch.fx.GraphModule"
    parametrized = "torch.nn.utils.parametrize"
    if cls.__module__ == parametrized or hasattr(module, "parametrizations"):
        cls = cls.__mro__[1]
    return canonical(f"{cls.__module__}.{cls.__qualname__}")


def _role(module: Any) -> str:
    bases = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}
    if "torch.ao.quantization.fake_quantize.FakeQuantizeBase" in bases:
        return "fake_quantize"
    if "torch.ao.quantization.observer.ObserverBase" in bases:
        return "observer"
    return "equalization" if any(name.endswith("EqualizationObserver") for name in bases) else ""


def packed_parameters(packed: Any) -> Packed | PackedCell:
    """Return what an engine packed: weight, bias and geometry, or those of a recurrent cell."""
    name = packed._type().qualified_name().rpartition(".")[2]
    if name.startswith("Embedding"):
        return Packed(_packed_weight(packed.unpack()), None, {"bits": packed.bit_rate()})
    if name.startswith("CellParams"):
        return _packed_cell(packed)
    weight, bias = packed.unpack()
    data = None if bias is None else to_tensor(bias.clone())
    geometry: dict[str, Any] = {}
    if name.startswith("Conv"):
        geometry = {
            key: tuple(getattr(packed, key)()) for key in ("stride", "padding", "dilation")
        }
        geometry["groups"] = packed.groups()
        if packed.transpose():
            geometry["output_padding"] = tuple(packed.output_padding())
    return Packed(_packed_weight(weight), data, geometry)  # type: ignore[arg-type]


def _packed_cell(packed: Any) -> PackedCell:
    (kind, _, _, flags, parts), _ = packed.__getstate__()
    if kind not in ("quantized_dynamic", "quantized_fp16"):
        raise UnsupportedError(f"packed parameters of a recurrent cell of kind {kind}")
    ih, hh = map(packed_parameters, parts)
    assert isinstance(ih, Packed)
    assert isinstance(hh, Packed)
    return PackedCell(ih, hh, bool(flags[0]) if flags else None)


def _copied(tensor: Any) -> Tensor:
    """Return a tensor with memory of its own; torch cannot clone all quantized ones."""
    tensor = tensor.detach()
    return _packed_weight(tensor) if tensor.is_quantized else to_tensor(tensor.clone())


def _packed_weight(weight: Any) -> Tensor:
    tensor = to_tensor(weight)
    if not isinstance(tensor, QTensor):
        return tensor.copy(order="K")
    qparams = tensor.scale, tensor.zero_point
    if tensor.axis is not None:  # also these may lie in the packed memory
        qparams = np.array(tensor.scale), np.array(tensor.zero_point)
    return QTensor(tensor.int_repr.copy(order="K"), *qparams, tensor.axis, tensor.dtype)
