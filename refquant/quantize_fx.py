"""FX graph mode: fuse, prepare, calibrate or train, convert.

The names and arguments are those of ``torch.ao.quantization.quantize_fx``. A model is a torch
module (where torch is installed), a :class:`~refquant.ir.graph.Graph` that was imported from one,
or what one of these functions returned. Nothing given is changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from refquant.backend_config import BackendConfig, get_native_backend_config
from refquant.defects import Quirks, takes_quirks
from refquant.fx.convert import convert
from refquant.fx.custom_config import (
    ConvertCustomConfig,
    FuseCustomConfig,
    PrepareCustomConfig,
)
from refquant.fx.custom_module import custom_kinds
from refquant.fx.fuse import fuse
from refquant.fx.observed import Observed
from refquant.fx.prepare import prepare
from refquant.fx.suggest import warn_of_unmatched_entries
from refquant.graph_module import GraphModule
from refquant.importers.fx_torch import is_graph_module
from refquant.importers.lift import program_of
from refquant.importers.torch_capture import (
    as_types,
    capture,
    capture_graph_module,
    is_torch_module,
)
from refquant.ir.errors import VerifyError
from refquant.ir.graph import Graph
from refquant.ir.program import Program
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import TensorType
from refquant.observer_base import caller
from refquant.qconfig_mapping import QConfigMapping

__all__ = [
    "BackendConfig",
    "ConvertCustomConfig",
    "FuseCustomConfig",
    "GraphModule",
    "PrepareCustomConfig",
    "QConfigMapping",
    "convert_fx",
    "convert_to_reference_fx",
    "fuse_fx",
    "prepare_fx",
    "prepare_qat_fx",
]

Model = Any
T = TypeVar("T")


@takes_quirks
def fuse_fx(
    model: Model,
    fuse_custom_config: FuseCustomConfig | Mapping[str, Any] | None = None,
    backend_config: BackendConfig | Mapping[str, Any] | None = None,
    *,
    quirks: Quirks = "torch",
) -> GraphModule:
    """Fuse convolution, linear and batch norm with what follows them, for evaluation.

    Parameters
    ----------
    model : torch module, Graph or GraphModule
        In evaluation mode.
    fuse_custom_config : FuseCustomConfig, optional
        Attributes to preserve.
    backend_config : BackendConfig, optional
        Which patterns are fused; the native one by default.
    quirks : {"torch", "fixed", "reject"}
        What to do where torch has a defect; see :mod:`refquant.defects`.

    Returns
    -------
    GraphModule

    Raises
    ------
    VerifyError
        If modules cannot be fused, such as in training mode.
    """
    custom = _config("fuse_custom_config", fuse_custom_config, FuseCustomConfig)
    backend = _backend(backend_config)
    program, types, target = _program(model, PrepareCustomConfig(), keep=custom)
    program.keep_only_used()
    fused = fuse(program, False, backend)
    fused.keep_only_used()
    return _preserve(GraphModule(fused, types, target), fused)


@takes_quirks
def prepare_fx(
    model: Model,
    qconfig_mapping: QConfigMapping | Mapping[str, Any],
    example_inputs: Any,
    prepare_custom_config: PrepareCustomConfig | Mapping[str, Any] | None = None,
    _equalization_config: QConfigMapping | Mapping[str, Any] | None = None,
    backend_config: BackendConfig | Mapping[str, Any] | None = None,
    *,
    quirks: Quirks = "torch",
) -> GraphModule:
    """Prepare a model for quantization after training.

    Parameters
    ----------
    model : torch module, Graph or GraphModule
        The float model, in evaluation mode.
    qconfig_mapping : QConfigMapping
        Which observers each part of the model gets.
    example_inputs : tuple of arrays or tensors
        Positional inputs, from which the shapes follow. None with a Graph, which knows them.
    prepare_custom_config : PrepareCustomConfig, optional
        Custom, standalone and non-traceable modules, quantized inputs and outputs.
    _equalization_config : QConfigMapping, optional
        Of EqualizationQConfigs: where inputs and weights are scaled against each other.
    backend_config : BackendConfig, optional
        What the back-end supports; the native one by default.
    quirks : {"torch", "fixed", "reject"}
        What to do where torch has a defect; see :mod:`refquant.defects`.

    Returns
    -------
    GraphModule
        With observers: call it with calibration data, then :func:`convert_fx` it.

    Raises
    ------
    VerifyError
        If an argument is wrong, or the model cannot be prepared; the call is named.
    LookupError
        If the classes of a fused module have different QConfigs.
    """
    custom = _config("prepare_custom_config", prepare_custom_config, PrepareCustomConfig)
    return _prepare(
        model, qconfig_mapping, False, example_inputs, custom, _equalization_config, backend_config
    )


@takes_quirks
def prepare_qat_fx(
    model: Model,
    qconfig_mapping: QConfigMapping | Mapping[str, Any],
    example_inputs: Any,
    prepare_custom_config: PrepareCustomConfig | Mapping[str, Any] | None = None,
    backend_config: BackendConfig | Mapping[str, Any] | None = None,
    *,
    quirks: Quirks = "torch",
) -> GraphModule:
    """Prepare a model for quantization-aware training.

    Weighted modules become their training twins, and fake-quants take the place of observers.
    The parameters are as for :func:`prepare_fx`; the model must be in training mode. Training
    itself is torch's: ``load_state_dict`` takes over what was trained.
    """
    custom = _config("prepare_custom_config", prepare_custom_config, PrepareCustomConfig)
    return _prepare(model, qconfig_mapping, True, example_inputs, custom, None, backend_config)


@takes_quirks
def convert_fx(
    graph_module: GraphModule,
    convert_custom_config: ConvertCustomConfig | Mapping[str, Any] | None = None,
    _remove_qconfig: bool = True,
    qconfig_mapping: QConfigMapping | Mapping[str, Any] | None = None,
    backend_config: BackendConfig | Mapping[str, Any] | None = None,
    keep_original_weights: bool = False,
    *,
    quirks: Quirks = "torch",
) -> GraphModule:
    """Convert a calibrated or trained model to one of quantized operators.

    Parameters
    ----------
    graph_module : GraphModule
        From :func:`prepare_fx` or :func:`prepare_qat_fx`; it can be used on. Also a GraphModule
        that torch prepared and calibrated, or the Graph imported from one.
    convert_custom_config : ConvertCustomConfig, optional
        Custom modules, and attributes to preserve.
    _remove_qconfig : bool
        Whether modules lose their ``qconfig``.
    qconfig_mapping : QConfigMapping, optional
        That of prepare with some entries set to None, which are not quantized.
    backend_config : BackendConfig, optional
        As given to prepare.
    keep_original_weights : bool
        Whether the float weights of functions stay reachable.
    quirks : {"torch", "fixed", "reject"}
        What to do where torch has a defect; see :mod:`refquant.defects`.

    Returns
    -------
    GraphModule

    Raises
    ------
    VerifyError
        If ``graph_module`` is not prepared, or the mapping contradicts that of prepare.
    """
    return _convert(
        graph_module,
        False,
        convert_custom_config,
        backend_config,
        qconfig_mapping,
        remove_qconfig=_remove_qconfig,
        keep_original_weights=keep_original_weights,
    )


@takes_quirks
def convert_to_reference_fx(
    graph_module: GraphModule,
    convert_custom_config: ConvertCustomConfig | Mapping[str, Any] | None = None,
    _remove_qconfig: bool = True,
    qconfig_mapping: QConfigMapping | Mapping[str, Any] | None = None,
    backend_config: BackendConfig | Mapping[str, Any] | None = None,
    *,
    quirks: Quirks = "torch",
) -> GraphModule:
    """Convert to the reference form: quantize and dequantize around float operators.

    It tells another back-end what to compute. The parameters are as for :func:`convert_fx`.
    """
    return _convert(
        graph_module,
        True,
        convert_custom_config,
        backend_config,
        qconfig_mapping,
        remove_qconfig=_remove_qconfig,
    )


@takes_quirks
def _convert_to_reference_decomposed_fx(
    graph_module: GraphModule,
    convert_custom_config: ConvertCustomConfig | Mapping[str, Any] | None = None,
    qconfig_mapping: QConfigMapping | Mapping[str, Any] | None = None,
    backend_config: BackendConfig | Mapping[str, Any] | None = None,
    *,
    quirks: Quirks = "torch",
) -> GraphModule:
    """Convert to the reference form with plain integer tensors instead of quantized ones."""
    return _convert(
        graph_module,
        True,
        convert_custom_config,
        backend_config,
        qconfig_mapping,
        remove_qconfig=False,
        is_decomposed=True,
    )


# ---- how it is done


def _prepare(
    model: Model,
    qconfig_mapping: Any,
    is_qat: bool,
    example_inputs: Any,
    custom: PrepareCustomConfig,
    equalization: Any,
    backend_config: Any,
) -> GraphModule:
    mapping = _mapping("qconfig_mapping", qconfig_mapping)
    scaled = QConfigMapping()
    if equalization is not None:
        scaled = _mapping("_equalization_config", equalization)
    backend = _backend(backend_config)
    program, types, target = _program(model, custom, example_inputs, custom)
    if program.meta.get("observed") is not None:
        raise VerifyError("prepare: the model is prepared already; convert it, or start anew")
    warn_of_unmatched_entries(program, mapping)
    program = prepare(program, mapping, is_qat, custom, scaled, backend)
    return _preserve(GraphModule(program, types, target), program)


def _convert(
    graph_module: Any,
    is_reference: bool,
    convert_custom_config: Any,
    backend_config: Any,
    qconfig_mapping: Any,
    *,
    remove_qconfig: bool,
    is_decomposed: bool = False,
    keep_original_weights: bool = False,
) -> GraphModule:
    custom = _config("convert_custom_config", convert_custom_config, ConvertCustomConfig)
    mapping = None if qconfig_mapping is None else _mapping("qconfig_mapping", qconfig_mapping)
    made = _prepared(graph_module)
    made.program.meta["preserved"] = _attributes(graph_module, custom)
    engine = Target.parse(made.target).engine
    observed = Observed.of(made.program)
    convert(
        made.program,
        is_reference=is_reference,
        custom=custom,
        backend=_backend(backend_config),
        remove_qconfig=remove_qconfig,
        qconfig_mapping=mapping,
        is_decomposed=is_decomposed,
        keep_original_weights=keep_original_weights,
        reduce_range=engine in (Engine.FBGEMM, Engine.X86),
    )
    # What is quantized when it comes in, the first call tells.
    quantized = observed is not None and bool(observed.custom.input_quantized_indexes)
    types = () if quantized else made.types
    return _preserve(GraphModule(made.program, types, made.target), made.program)


def _prepared(model: Any) -> GraphModule:
    """Return a copy of a prepared model: of ours, of torch's, or of one imported from torch."""
    if isinstance(model, GraphModule):
        return model.copy()
    if isinstance(model, Graph) and model.program is not None:
        types = tuple(value.type for value in model.inputs)
        return GraphModule(model.program.copy(), types, str(model.target))
    if is_torch_module(model) and is_graph_module(model):
        return GraphModule(capture_graph_module(model))
    raise VerifyError(
        f"input model must be a GraphModule from prepare_fx, got {type(model).__name__}"
    )


def _program(
    model: Model,
    custom: PrepareCustomConfig,
    example_inputs: Any = None,
    keep: FuseCustomConfig | None = None,
) -> tuple[Program, tuple[TensorType, ...], str]:
    """Return the calls of a model as a copy, the types of its inputs, and its machine."""
    types = as_types(example_inputs)
    if isinstance(model, GraphModule):
        program, own, target = model.program.copy(), model.types, model.target
    elif isinstance(model, Graph):
        calls = program_of(model) if model.program is None else model.program.copy()
        # ONNX has no quantized operators of torch: what is prepared is for a machine of torch's.
        of_torch = model.target.engine in TORCH_ENGINES
        program, target = calls, str(model.target if of_torch else Target())
        own = tuple(value.type for value in model.inputs)
    elif isinstance(model, Program):
        program, own, target = model.copy(), (), "fbgemm"
    elif is_torch_module(model):
        program, own, target = _captured(model, custom), (), "fbgemm"
    else:
        raise VerifyError(
            "the model must be a torch module, a Graph from from_fx or a GraphModule, got "
            f"{type(model).__name__}"
        )
    _check_leaves(program, custom)
    program.meta["preserved"] = _attributes(model, keep)
    return program, types or own, target


def _captured(model: Any, custom: PrepareCustomConfig) -> Program:
    """Trace a torch module with the leaves that the custom config names."""
    kinds = [*custom.non_traceable_module_classes, *custom.standalone_module_classes]
    program = capture(
        model,
        [*custom.non_traceable_module_names, *custom.standalone_module_names],
        [*kinds, *custom_kinds(custom)],
    )
    for call, module in program.owners():
        entry = custom.standalone_module_names.get(
            call.target, custom.standalone_module_classes.get(module.kind)
        )
        if entry is not None and module.program is None:
            inner = entry.prepare_custom_config or PrepareCustomConfig()
            traced = capture(
                model.get_submodule(call.target),
                inner.non_traceable_module_names,
                inner.non_traceable_module_classes,
            )
            # The same modules: what prepare does to the outer model reaches into it, as in torch.
            traced.root, module.program = module, traced
    return program


def _check_leaves(program: Program, custom: PrepareCustomConfig) -> None:
    """Refuse a custom config that names modules which were traced into."""
    named = {
        *custom.standalone_module_names,
        *(name for name in custom.non_traceable_module_names if program.root.has(name)),
    }
    called = {call.target for call in program if call.kind == "call_module"}
    inside = {call.owner.path for call in program if call.owner is not None}
    for name in named - called:
        if any(path == name or path.startswith(f"{name}.") for path in inside):
            raise VerifyError(
                f"{name} must stay one call, but was traced into; give prepare_fx the torch module"
            )


def _attributes(model: Any, keep: FuseCustomConfig | None) -> dict[str, Any]:
    """Return the attributes of a model that a config says to preserve, as far as it has them."""
    names = keep.preserved_attributes if keep is not None else []
    return {name: getattr(model, name) for name in names if hasattr(model, name)}


def _preserve(made: GraphModule, program: Program) -> GraphModule:
    for name, value in program.meta.pop("preserved", {}).items():
        setattr(made, name, value)
    return made


def _config(what: str, given: Any, kind: type[T]) -> T:
    if given is None:
        return kind()
    if isinstance(given, Mapping):
        warnings.warn(
            f"Passing a {what}_dict is deprecated in torch; pass a {kind.__name__} instead.",
            FutureWarning,
            stacklevel=caller(),
        )
        made: T = kind.from_dict(given)  # type: ignore[attr-defined]
        return made
    if not isinstance(given, kind):
        raise VerifyError(
            f"{what} must be a {kind.__name__} or a dict, got {type(given).__name__}; a config "
            "of torch is turned into one by refquant.importers.from_torch_config"
        )
    return given


def _mapping(what: str, given: Any) -> QConfigMapping:
    if given is None:
        raise VerifyError(f"{what} must be a QConfigMapping, got None")
    return _config(what, given, QConfigMapping)


def _backend(given: Any) -> BackendConfig:
    return _native() if given is None else _config("backend_config", given, BackendConfig)


@cache
def _native() -> BackendConfig:
    return get_native_backend_config()
