"""Conversion: observers become quantize and dequantize, weighted modules reference modules."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from refquant.backend_config import BackendConfig
from refquant.backend_config.lookup import (
    get_fused_module_classes,
    get_pattern_to_dtype_configs,
    get_qat_module_classes,
    get_root_module_to_quantized_reference_module,
)
from refquant.fx.attributes import Attributes
from refquant.fx.custom_config import ConvertCustomConfig
from refquant.fx.custom_module import quantized_module
from refquant.fx.equalize import equalize
from refquant.fx.lstm import DEQUANT_STUB, QUANTIZABLE_ATTENTION, QUANTIZABLE_LSTM
from refquant.fx.match import is_observed_standalone, is_observer
from refquant.fx.node_qconfigs import (
    QConfigAny,
    compare_mappings,
    generate_node_name_to_qconfig,
    is_fused,
    is_supported_by_dtype_configs,
    qconfig_dtypes,
    update_for_fusion,
    update_for_qat,
)
from refquant.fx.observed import Observed
from refquant.fx.qat import float_module, is_training_module
from refquant.fx.quant_type import OBSERVABLE, is_static
from refquant.fx.quantize_node import replace_observer
from refquant.fx.reference_modules import reference_module
from refquant.fx.weights import run_weight_observers, weight_qparams
from refquant.graph_observers import observer_of
from refquant.importers.fx import flat
from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.module import Module
from refquant.ir.program import Call, Program
from refquant.ir.types import qint32, quint4x2
from refquant.observer_base import caller
from refquant.qconfig import qconfig_equals
from refquant.qconfig_mapping import QConfigMapping

_WEIGHT_DTYPES = {*OBSERVABLE, quint4x2} - {qint32}


def convert(
    program: Program,
    *,
    is_reference: bool,
    custom: ConvertCustomConfig,
    backend: BackendConfig,
    remove_qconfig: bool = True,
    qconfig_mapping: QConfigMapping | None = None,
    is_decomposed: bool = False,
    keep_original_weights: bool = False,
    reduce_range: bool = True,
) -> None:
    """Convert a prepared program, in place.

    Parameters
    ----------
    reduce_range : bool
        Whether dynamically quantized activations lose a bit, as on fbgemm and x86.

    Raises
    ------
    VerifyError
        If the program is not prepared, or where torch raises AssertionError.
    """
    observed = Observed.of(program)
    if observed is None:
        raise VerifyError("convert: the model has no observers of prepare; call prepare_fx first")
    qconfigs = observed.node_name_to_qconfig
    if qconfig_mapping is not None:
        qconfigs = _converted_qconfigs(program, observed, qconfig_mapping, backend)
    make_observers_live(program)
    equalize(program, observed.equalization)
    run_weight_observers(program, backend)
    job = _Conversion(
        program, observed, qconfigs, custom, backend, is_reference, is_decomposed, reduce_range
    )
    job.run()
    program.eliminate_dead_code()
    program.keep_only_used()
    if not is_reference:
        from refquant.fx.lower import lower

        lower(program, qconfigs, keep_original_weights)
    if remove_qconfig:
        _remove_qconfig(program.root)
    program.keep_only_used()
    program.meta.pop("observed", None)


def make_observers_live(program: Program) -> None:
    """Replace the records of observers and fake-quants by objects; one used twice stays one."""
    made: dict[int, Any] = {}
    for path, module in list(program.root.named_modules(shared=True)):
        if isinstance(module, Module) and is_observer(module):
            if path.endswith("activation_post_process"):
                continue
            if id(module) not in made:
                made[id(module)] = observer_of(flat(module))
            program.root.set(path, made[id(module)])


def _converted_qconfigs(
    program: Program, observed: Observed, mapping: QConfigMapping, backend: BackendConfig
) -> dict[str, QConfigAny]:
    mapping = copy.deepcopy(mapping)
    if observed.is_qat:
        update_for_qat(mapping, backend)
    update_for_fusion(program, mapping)
    compare_mappings(observed.qconfig_mapping, mapping)
    kept = {
        path: module.config.get("qconfig")
        for path, module in program.root.named_modules()
        if isinstance(module, Module)
    }
    found = generate_node_name_to_qconfig(program, mapping)
    for path, qconfig in kept.items():
        program.root.get(path).config["qconfig"] = qconfig
    for name, qconfig in observed.node_name_to_qconfig.items():
        if name not in found:
            raise VerifyError(f"convert: expected key {name} in convert's qconfigs by node")
        if found[name] is not None and not qconfig_equals(qconfig, found[name]):
            raise VerifyError(
                f"convert: {name} has another qconfig than in prepare; expected the same, or None"
            )
    return found


class _Conversion:
    """The pass over the calls that replaces observers and modules."""

    def __init__(
        self,
        program: Program,
        observed: Observed,
        qconfigs: dict[str, QConfigAny],
        custom: ConvertCustomConfig,
        backend: BackendConfig,
        is_reference: bool,
        is_decomposed: bool,
        reduce_range: bool,
    ) -> None:
        self.program, self.observed, self.qconfigs = program, observed, qconfigs
        self.custom, self.backend = custom, backend
        self.is_reference, self.is_decomposed = is_reference, is_decomposed
        self.reduce_range = reduce_range
        self.attributes = Attributes(program.root)
        self.references = get_root_module_to_quantized_reference_module(backend)
        self.training = frozenset(get_qat_module_classes(backend))
        self.fused = frozenset(get_fused_module_classes(backend))
        self.dtype_configs = get_pattern_to_dtype_configs(backend)
        self.custom_kinds = {
            key if isinstance(key, str) else f"{key.__module__}.{key.__qualname__}"
            for table in custom.observed_to_quantized_mapping.values()
            for key in table
        }
        # As they are now: where a module is called twice, torch converts it twice.
        self.modules = {call.target: module for call, module in program.owners()}
        self.quantized: set[Call] = set()  # calls whose result is quantized already

    def run(self) -> None:
        inputs = 0
        for call in list(self.program):
            if call.kind == "placeholder":
                if inputs in self.observed.custom.input_quantized_indexes:
                    self.dequantize(call)
                inputs += 1
            elif call.kind == "output":
                self.keep_outputs_quantized(call)
            elif call.kind == "call_module":
                try:
                    self.module_call(call, self.modules[call.target])
                except RefquantError as error:
                    where = "" if call.target in str(error) else f"{call.target}: "
                    raise type(error)(f"{where}{error}") from None

    def module_call(self, call: Call, module: Any) -> None:
        if is_observer(module):
            if call.args[0] in self.quantized:
                self.observer_to_dequantize(call)
            else:
                replace_observer(
                    self.program,
                    call,
                    module,
                    self.qconfigs,
                    self.attributes,
                    self.is_decomposed,
                    self.reduce_range,
                )
        elif module.kind == DEQUANT_STUB:
            self.observer_to_dequantize(call)
        elif is_observed_standalone(module):
            self.standalone(call, module)
        elif module.kind in self.references or module.kind in self.training:
            self.weighted(call, module)
        elif module.kind in self.fused:
            if module[0].kind in self.references:
                self.weighted(call, module)
        elif module.kind in self.custom_kinds or _own_kind(module) in self.custom_kinds:
            self.custom_module(call, module)

    # ---- dequantize

    def dequantize(self, call: Call) -> None:
        """Dequantize a result for all its users."""
        made = self.program.call("call_method", "dequantize", (call,), after=call)
        for user in list(call.users):
            if user is not made:
                user.replace_input(call, made)

    def observer_to_dequantize(self, call: Call) -> None:
        """Replace an observer, or a stub, after a quantized result by dequantize."""
        source = call.args[0]
        call.replace_all_uses_with(source)
        self.program.erase(call)
        self.dequantize(source)

    def skip_dequantize(self, call: Call, source: Any, what: str) -> None:
        """Give a module the quantized value itself."""
        if not isinstance(source, Call):
            raise VerifyError(f"expected a tensor as {what}, got {source!r}")
        if source.kind == "call_method" and source.target == "dequantize":
            call.replace_input(source, source.args[0])
            if not source.users:
                self.program.erase(source)

    def keep_outputs_quantized(self, call: Call) -> None:
        wanted = self.observed.custom.output_quantized_indexes
        returned = call.args[0]
        if not wanted:
            return
        if isinstance(returned, list | tuple):
            for index in wanted:
                if not -len(returned) <= index < len(returned):
                    raise VerifyError(
                        f"output_quantized_idxs {index}: the model returns {len(returned)} values"
                    )
                self.remove_dequantize(returned[index], call)
        elif isinstance(returned, Call | dict):
            if 0 in wanted:
                self.remove_dequantize(returned, call)
        else:
            warnings.warn(
                f"Unsupported node type for output_quantized_idxs: {type(returned)}",
                stacklevel=caller(),
            )

    def remove_dequantize(self, value: Any, call: Call) -> None:
        if (
            isinstance(value, Call)
            and value.kind == "call_method"
            and value.target == "dequantize"
        ):
            call.replace_input(value, value.args[0])
        elif isinstance(value, list | tuple):
            for part in value:
                self.remove_dequantize(part, call)
        elif isinstance(value, dict):
            for part in value.values():
                self.remove_dequantize(part, call)
        else:
            warnings.warn(
                f"Unsupported node type in recursive remove dequantize: {type(value)}",
                stacklevel=caller(),
            )

    # ---- modules

    def standalone(self, call: Call, module: Any) -> None:
        """Convert a standalone module, with quantized inputs and output as configured."""
        inner = Observed.of(module.program)
        assert inner is not None
        for index, arg in enumerate(call.args):
            if index in inner.custom.input_quantized_indexes and isinstance(arg, Call):
                self.skip_dequantize(call, arg, "its input")
        outputs = inner.custom.output_quantized_indexes
        if outputs:
            if outputs[0] != 0:
                raise VerifyError(f"only output_quantized_idxs [0] is supported, got {outputs}")
            self.dequantize(call)
        made = module.program.copy()
        convert(
            made,
            is_reference=self.is_reference,
            custom=ConvertCustomConfig(),
            backend=self.backend,
            reduce_range=self.reduce_range,
        )
        made.root.program = made
        self.program.root.set(call.target, made.root)
        self.modules[call.target] = made.root

    def weighted(self, call: Call, module: Module) -> None:
        """Replace a module with a weight by its reference module, if its QConfig allows."""
        qconfig = module.config.get("qconfig")
        fake_quant = None
        if module.kind in self.training and is_training_module(module):
            fake_quant = module.parts["weight_fake_quant"]
            module = float_module(module)
            self.program.root.set(call.target, module)
        skipped = call.name in self.qconfigs and self.qconfigs[call.name] is None
        if qconfig is None or skipped or call.name not in self.observed.observed:
            return
        if not is_supported_by_dtype_configs(qconfig, self.dtype_configs.get(module.kind, [])):
            return
        if qconfig_dtypes(qconfig)[1] not in _WEIGHT_DTYPES:
            return
        inner: Any = module[0] if is_fused(module) else module
        if inner.kind not in self.references:
            raise VerifyError(f"no reference quantized module is configured for {inner.kind}")
        run = not (self.is_decomposed and self.is_reference and fake_quant is not None)
        qparams = weight_qparams(inner, qconfig, fake_quant, run)
        made = reference_module(inner, {"is_decomposed": self.is_decomposed, **qparams})
        if inner is module:
            self.program.root.set(call.target, made)
        else:
            module.parts[next(iter(module.parts))] = made

    def custom_module(self, call: Call, module: Module) -> None:
        """Replace an observed custom module by its quantized class."""
        qconfig = module.config.get("qconfig")
        if qconfig is not None and is_static(qconfig):
            self.quantized.add(call)
            if module.kind == QUANTIZABLE_LSTM:
                state = call.args[1] if len(call.args) == 2 else None
                if not isinstance(state, tuple) or len(state) != 2:
                    raise VerifyError(
                        "a quantized LSTM must be called with (input, (hidden, cell)), got "
                        f"{len(call.args)} arguments"
                    )
                for source in (call.args[0], *state):
                    self.skip_dequantize(call, source, "input, hidden and cell")
            elif module.kind == QUANTIZABLE_ATTENTION:
                if len(call.args) != 3:
                    raise VerifyError(
                        "quantized attention must be called with (query, key, value), got "
                        f"{len(call.args)} arguments"
                    )
                for source in call.args:
                    self.skip_dequantize(call, source, "query, key and value")
            else:
                self.skip_dequantize(call, call.args[0], "the first argument")
                observer = self.observer_after(call)
                if observer is None:
                    raise VerifyError(f"no observer follows the custom module {module.kind}")
                module.parts["activation_post_process"] = observer
        made = quantized_module(module, self.custom, call.target)
        self.program.root.set(call.target, made)

    def observer_after(self, call: Call) -> Any:
        for user in call.users:
            if user.kind == "call_module" and is_observer(self.program.root.get(user.target)):
                return self.program.root.get(user.target)
        return None


def _own_kind(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _remove_qconfig(root: Module) -> None:
    for _, module in root.named_modules():
        if isinstance(module, Module):
            module.config.pop("qconfig", None)
            if is_observer(module.parts.get("activation_post_process")):
                del module.parts["activation_post_process"]
