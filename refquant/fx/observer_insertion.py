"""Observer insertion: where a back-end quantizes, an observer or fake-quant is called."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from refquant.backend_config import BackendConfig
from refquant.defects import reproduce
from refquant.equalization import (
    _InputEqualizationObserver,
    _WeightEqualizationObserver,
)
from refquant.fake_quantize import FixedQParamsFakeQuantize
from refquant.fx.attributes import Attributes
from refquant.fx.custom_module import observed_module
from refquant.fx.equalize import supports_equalization
from refquant.fx.lstm import insert_dequant_stubs, is_custom_lstm, lstm_behind
from refquant.fx.match import Match, NoTensors, is_observer
from refquant.fx.node_qconfigs import QConfigAny, dtype_of, sample
from refquant.fx.observed import Observed
from refquant.fx.quant_type import OBSERVABLE
from refquant.fx.standalone import standalone_config
from refquant.fx.target_dtype import (
    FLOAT,
    TargetDType,
    assign_targets,
    is_bias,
    is_supported,
    is_weight,
)
from refquant.ir.errors import VerifyError
from refquant.ir.program import Call, Program
from refquant.ir.types import DType, float32, quint8, uint8
from refquant.observer import FixedQParamsObserver
from refquant.observer_base import caller

# Functions whose weight is never quantized.
_FLOAT_WEIGHT = frozenset(
    f"torch.nn.functional.{name}" for name in ("layer_norm", "group_norm", "instance_norm")
)


class ObserverInsertion:
    """The pass over the calls, in their order, that inserts observers."""

    def __init__(
        self,
        program: Program,
        matches: Mapping[str, Match],
        observed: Observed,
        backend: BackendConfig,
    ) -> None:
        self.program, self.matches, self.backend = program, matches, backend
        self.observed, self.custom = observed, observed.custom
        self.attributes = Attributes(program.root)
        self.targets: dict[Call, TargetDType] = {}
        self.swapped: set[str] = set()
        self.no_tensors = NoTensors(program)

    def module(self, call: Any) -> Any:
        """Return the module that a call is of, or None."""
        if isinstance(call, Call) and call.kind == "call_module":
            return self.program.root.get(call.target)
        return None

    def is_observer(self, call: Any) -> bool:
        """Whether a value is an observer's."""
        return is_observer(self.module(call))

    def run(self) -> None:
        """Insert all observers, and note the observed calls."""
        self.targets = assign_targets(
            self.program,
            self.matches,
            self.backend,
            self.custom.input_quantized_indexes,
            self.custom.output_quantized_indexes,
            self.no_tensors,
        )
        for call in list(self.program):
            if call.kind == "output":
                call.args = tuple(self.observe_returned(arg) for arg in call.args)
            elif call.kind not in ("placeholder", "get_attr"):
                match = self.matches.get(call.name)
                supported = is_supported(match, self.targets, self.backend)
                if match is not None and match.qconfig is not None and supported:
                    self.visit(call, match)

    def visit(self, call: Call, match: Match) -> None:
        """Insert what one call of a match needs before and after it."""
        _add_names(match.matched, self.observed.observed)
        if call is match.root:
            in_branch = self.is_in_branch(call)
            self.observe_inputs(call, match)
            self.equalize_inputs(call, in_branch)
        if call is not match.last:
            return
        module = self.module(call)
        if match.is_custom_module and is_custom_lstm(module, match.qconfig):
            insert_dequant_stubs(self.program, call, self.attributes)
            self.swap_custom(call, match)
            return
        observer = self.observe_output(call)
        if observer is None:
            if match.is_custom_module and not reproduce("dynamic-custom-module", call.target):
                self.swap_custom(call, match)
            return
        for user in list(call.users):
            if user is not observer:
                user.replace_input(call, observer)
        target = self.targets[call]
        shares = (target.share and not self.is_quantized_input(call)) or target.reuse_input
        if shares and not self.share_observers(call):
            self.remove_observers(call)
        if match.is_custom_module:
            self.swap_custom(call, match)

    def swap_custom(self, call: Call, match: Match) -> None:
        """Replace a custom module by its observed class, once."""
        if call.target not in self.swapped:
            self.swapped.add(call.target)
            made = observed_module(self.module(call), match.qconfig, self.custom, call.target)
            self.program.root.set(call.target, made)

    # ---- inserting one

    def insert(self, call: Call, observer: Any) -> Call:
        """Call an observer on the result of ``call``."""
        if call in self.no_tensors.size_arithmetic:
            reproduce("tuple-counts-as-tensor", call.name)
        scales = isinstance(observer, _InputEqualizationObserver | _WeightEqualizationObserver)
        prefix = f"{call.name}_equalization_process_" if scales else "activation_post_process_"
        name = self.attributes.add(prefix, observer)
        return self.program.call("call_module", name, (call,), after=call)

    def output_constructor(self, call: Call) -> Callable[[], Any] | None:
        """Return what observes the result of ``call``, looking through an observer."""
        lstm = lstm_behind(call, self.program)
        if lstm is not None:
            return self.targets[lstm].output
        if self.is_observer(call):
            observed = call.args[0]
            if observed not in self.targets:
                raise VerifyError(f"{call.name}: expected an observer of a call, got {observed}")
            return self.targets[observed].output
        target = self.targets.get(call)
        return FLOAT if target is None else target.output

    # ---- inputs

    def observe_inputs(self, call: Call, match: Match) -> None:
        """Insert observers before a call where they are needed."""
        args = tuple(self.observe_input(call, arg, match) for arg in call.args)
        kwargs = {key: self.observe_input(call, arg, match) for key, arg in call.kwargs.items()}
        call.set_arguments(args, kwargs)

    def observe_input(self, call: Call, arg: Any, match: Match) -> Any:
        """Return an argument, or the observer that now stands before it."""
        if isinstance(arg, list | tuple):
            return type(arg)([self.observe_input(call, part, match) for part in arg])
        if not isinstance(arg, Call):
            return arg
        wanted, constructor = self.wanted_input(call, arg, match)
        if not wanted:
            return arg
        assert constructor is not None
        dtype = dtype_of(constructor)[0]
        kind = type(sample(constructor))
        for user in arg.users:
            known = self.module(user)
            if type(known) is kind and known.dtype == dtype:
                return user
        return self.insert(arg, constructor())

    def wanted_input(
        self, call: Call, arg: Call, match: Match
    ) -> tuple[bool, Callable[[], Any] | None]:
        """Whether an argument is to be observed, and by what."""
        produced = dtype_of(self.output_constructor(arg))[0]
        if match.is_standalone_module:
            kind = self.module(call).kind
            _, custom, _ = standalone_config(call, kind, self.custom, match.qconfig, self.backend)
            index = next((i for i, given in enumerate(call.args) if given is arg), None)
            quantized = index is not None and index in custom.input_quantized_indexes
            return quantized and produced != quint8, match.qconfig.activation
        target = self.targets[call]
        constructor = target.input
        if is_weight(call, arg, target):
            constructor = None if call.target in _FLOAT_WEIGHT else target.weight
        elif is_bias(call, arg, target):
            constructor = target.bias
        dtype, is_dynamic = dtype_of(constructor)
        is_first = bool(call.args) and arg is call.args[0]
        needed = needs_observer(produced, dtype, is_dynamic, target.reuse_input, is_first)
        if needed and constructor is target.input and _is_fixed(constructor):
            default: QConfigAny = self.observed.qconfig_mapping.global_qconfig
            if default is not None and not reproduce("fixed-qparams-input", call.name):
                constructor = default.activation
        declared = not needed and not is_dynamic and not target.reuse_input and dtype in OBSERVABLE
        has_tensors = arg not in self.targets or self.targets[arg].output is not None
        if declared and has_tensors and not self.is_quantized(arg):
            needed = not reproduce("declared-not-observed", call.name)
        return needed, constructor

    def is_quantized(self, value: Any) -> bool:
        """Whether a value declared to be quantized will be: an observer is behind it."""
        while isinstance(value, Call):
            if self.is_observer(value) or lstm_behind(value, self.program) is not None:
                return not getattr(self.module(value), "is_dynamic", False)
            if value.kind == "placeholder":
                return dtype_of(self.targets[value].output)[0] == quint8
            match = self.matches.get(value.name)
            if match is not None and (match.is_custom_module or match.is_standalone_module):
                return True
            if match is None or not (match.shares_observer or self.targets[value].reuse_input):
                return False
            value = next((arg for arg in value.args if isinstance(arg, Call)), None)
        return False

    def equalize_inputs(self, call: Call, in_branch: bool) -> None:
        """Insert equalization observers after those of input and weight."""
        config = self.observed.equalization.get(call.name)
        if config is None or not supports_equalization(call, self.program):
            return
        if in_branch:
            warnings.warn(
                f"Cannot equalize {call} because it is part of a branch.", stacklevel=caller()
            )
            return
        target = self.targets[call]
        args = []
        for arg in call.args:
            if isinstance(arg, Call) and not is_bias(call, arg, target):
                weight = is_weight(call, arg, target)
                made = config.weight() if weight else config.input_activation()
                args.append(self.insert(arg, made))
            else:
                args.append(arg)
        call.args = tuple(args)

    def is_in_branch(self, call: Call) -> bool:
        """Whether another user of the first argument is quantized too."""
        if self.observed.equalization.get(call.name) is None or not call.args:
            return False
        first = call.args[0]
        return isinstance(first, Call) and any(
            user is not call
            and (
                self.observed.node_name_to_qconfig.get(user.name) is not None
                or getattr(self.module(user), "role", "") == "observer"
            )
            for user in first.users
        )

    # ---- outputs

    def observe_output(self, call: Call) -> Call | None:
        """Insert an observer after a call if it is needed; return its call."""
        target = self.targets[call]
        dtype, is_dynamic = dtype_of(target.output)
        if is_dynamic or target.is_standalone or dtype not in OBSERVABLE or dtype == float32:
            return None
        if _returns_tuple(self.module(call)) and not reproduce("observed-tuple", call.name):
            return None
        assert target.output is not None
        return self.insert(call, target.output())

    def observe_returned(self, value: Any) -> Any:
        """Return what the model returns, with observers where the declared dtypes differ."""
        if isinstance(value, Call):
            target = self.targets.get(value)
            constructor = None if target is None else target.input
            wanted = dtype_of(constructor)[0] or float32
            produced = dtype_of(self.output_constructor(value))[0]
            if produced == wanted or wanted == float32:
                return value
            assert constructor is not None
            return self.insert(value, constructor())
        if isinstance(value, list | tuple):
            return type(value)([self.observe_returned(part) for part in value])
        if isinstance(value, dict):
            return {key: self.observe_returned(part) for key, part in value.items()}
        if value is None:
            return None
        raise VerifyError(f"output: cannot return {value!r}; return tensors, tuples or dicts")

    def is_quantized_input(self, call: Call) -> bool:
        """Whether the call reads a graph input directly, which then is observed elsewhere."""
        dtype = dtype_of(self.output_constructor(call))[0]
        first = call.args[0] if call.args else None
        is_input = isinstance(first, Call) and first.kind == "placeholder"
        return is_input and dtype in (quint8, uint8)

    def share_observers(self, call: Call) -> bool:
        """Make all inputs and the output use the first input's observer, if there is one."""
        first = next((arg for arg in call.args if isinstance(arg, Call | list | tuple)), None)
        if first is None:
            return False
        found: Any = first[0] if isinstance(first, list | tuple) else first
        while not self.is_observer(found):
            if not isinstance(found, Call) or found.kind == "placeholder" or not found.args:
                return False
            found = next((arg for arg in found.args if isinstance(arg, Call)), found.args[-1])
        shared = self.module(found)
        others = first[1:] if isinstance(first, list | tuple) else ()
        for other in others:
            while not self.is_observer(other):
                if not isinstance(other, Call):
                    raise VerifyError(
                        f"{call.name}: no observer before {other!r}, an element of its list"
                    )
                if not other.args:
                    return False
                other = other.args[0]
            self.program.root.set(other.target, shared)
        for user in call.users:
            if not self.is_observer(user):
                raise VerifyError(f"{call.name}: expected only observers to use it, got {user}")
            self.program.root.set(user.target, shared)
        return True

    def remove_observers(self, call: Call) -> None:
        """Remove the observers after a call again."""
        for user in list(call.users):
            user.replace_all_uses_with(call)
            self.program.erase(user)


def needs_observer(
    produced: DType | None,
    wanted: DType | None,
    is_dynamic: bool,
    reuse_input: bool,
    is_first: bool,
) -> bool:
    """Whether a value declared to be of one dtype is observed to become another."""
    if is_dynamic:
        if wanted not in OBSERVABLE or produced is None:
            raise VerifyError(
                f"dynamic quantization to {wanted} of a value of dtype {produced} is not possible"
            )
        return is_first
    if reuse_input:
        return False
    return wanted in OBSERVABLE and produced in (*OBSERVABLE, float32) and wanted != produced


def _returns_tuple(module: Any) -> bool:
    kind = getattr(module, "kind", "")
    return kind.endswith(".MultiheadAttention") or bool(getattr(module, "return_indices", False))


def _is_fixed(constructor: Callable[[], Any] | None) -> bool:
    fixed = (FixedQParamsObserver, FixedQParamsFakeQuantize)
    return constructor is not None and isinstance(sample(constructor), fixed)


def _add_names(matched: Any, names: set[str]) -> None:
    if isinstance(matched, Call):
        names.add(matched.name)
    elif isinstance(matched, list | tuple):
        for part in matched:
            _add_names(part, names)
