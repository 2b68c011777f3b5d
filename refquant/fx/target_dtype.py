"""The dtypes that a back-end is asked to compute each call in, and whether it can."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from refquant.backend_config import BackendConfig, DTypeConfig, DTypeWithConstraints
from refquant.backend_config.lookup import get_root_module_to_quantized_reference_module
from refquant.defects import reproduce
from refquant.fake_quantize import FixedQParamsFakeQuantize
from refquant.fx.match import Match, NoTensors
from refquant.fx.node_qconfigs import (
    QConfigAny,
    bias_dtype,
    dtype_of,
    is_fused,
    is_supported_by_dtype_configs,
    qconfig_dtypes,
    sample,
)
from refquant.ir.errors import VerifyError
from refquant.ir.program import Call, Program
from refquant.ir.types import float32, quint8
from refquant.observer import (
    FixedQParamsObserver,
    NoopObserver,
    PlaceholderObserver,
    ReuseInputObserver,
)
from refquant.observer_base import caller
from refquant.qconfig import (
    QConfig,
    float16_dynamic_qconfig,
    float16_static_qconfig,
    qconfig_equals,
)

Constructor = Callable[[], Any]
FLOAT = PlaceholderObserver.with_args(dtype=float32)
QUINT8 = PlaceholderObserver.with_args(dtype=quint8)
FLOAT_QCONFIG = QConfig(activation=FLOAT, weight=FLOAT)


@dataclass(frozen=True)
class TargetDType:
    """What to observe a call's operands and result with; a None observes nothing.

    Attributes
    ----------
    input, output, weight, bias : constructor or None
        Of observers, whose dtype is the wanted one.
    weight_index, bias_index : int or None
        Which positional arguments are weight and bias.
    reuse_input : bool
        Whether the QConfig says to keep the input's observer.
    share : bool
        Whether the pattern's result has the observer of its input.
    is_standalone : bool
        Whether the call is of a standalone module.
    """

    input: Constructor | None = FLOAT
    output: Constructor | None = FLOAT
    weight: Constructor | None = FLOAT
    bias: Constructor | None = FLOAT
    weight_index: int | None = None
    bias_index: int | None = None
    reuse_input: bool = False
    share: bool = False
    is_standalone: bool = False


NOTHING = TargetDType(None, None)


def is_reuse_input(qconfig: QConfigAny) -> bool:
    """Whether a QConfig says to keep the input's observer."""
    return (
        qconfig is not None
        and isinstance(sample(qconfig.activation), ReuseInputObserver)
        and isinstance(sample(qconfig.weight), NoopObserver)
    )


_BIAS: dict[Any, Constructor] = {}


def _bias_constructor(dtype: Any) -> Constructor:
    return _BIAS.setdefault(dtype, PlaceholderObserver.with_args(dtype=dtype))


def target_of(
    call: Call,
    qconfig: QConfigAny,
    match: Match | None,
    backend: BackendConfig,
    no_tensors: NoTensors,
) -> TargetDType:
    """Return the target dtypes of a call that has a QConfig."""
    if no_tensors(call):
        return NOTHING
    entry = None
    if call.kind == "call_function":
        entry = backend._pattern_complex_format_to_config.get(call.target)
    indices = entry._input_type_to_index if entry else {}
    return TargetDType(
        qconfig.activation,
        qconfig.activation,
        qconfig.weight,
        _bias_constructor(bias_dtype(*qconfig_dtypes(qconfig))),
        indices.get("weight"),
        indices.get("bias"),
        is_reuse_input(qconfig),
        match is not None and match.shares_observer,
        match is not None and match.is_standalone_module,
    )


def is_weight(call: Call, arg: Any, target: TargetDType | None) -> bool:
    """Whether an argument is the call's weight."""
    return _is_at(call, arg, target.weight_index if target else None, "weight")


def is_bias(call: Call, arg: Any, target: TargetDType | None) -> bool:
    """Whether an argument is the call's bias."""
    return _is_at(call, arg, target.bias_index if target else None, "bias")


def _is_at(call: Call, arg: Any, index: int | None, name: str) -> bool:
    if index is not None and index < len(call.args) and call.args[index] is arg:
        return True
    return call.kwargs.get(name) is arg


def assign_targets(
    program: Program,
    matches: Mapping[str, Match],
    backend: BackendConfig,
    quantized_inputs: list[int],
    quantized_outputs: list[int],
    no_tensors: NoTensors,
) -> dict[Call, TargetDType]:
    """Return the target dtypes of every call, those that the back-end cannot do set to float."""
    found = dict.fromkeys(program, TargetDType())
    seen: set[Call] = set()
    for match in matches.values():
        for call in _calls(match.matched):
            if call not in seen:
                seen.add(call)
                if match.qconfig is not None:
                    try:
                        found[call] = target_of(call, match.qconfig, match, backend, no_tensors)
                    except VerifyError as error:
                        raise VerifyError(f"{call.name}: {error}") from None
    _override(program, found, no_tensors, quantized_inputs, quantized_outputs)
    _propagate_plain_arguments(program, found, matches)
    seen = set()
    # torch asks this of the last call it looked at, the output, whichever match it is at.
    spared = dtype_of(found[program.output].output)[0] is None
    references = get_root_module_to_quantized_reference_module(backend)
    for match in matches.values():
        supported = is_supported(match, found, backend) and not (
            _stays_float(match, program, backend, references)
        )
        if supported or spared:
            continue
        for call in _calls(match.matched):
            if call not in seen:
                seen.add(call)
                found[call] = target_of(call, FLOAT_QCONFIG, None, backend, no_tensors)
    return found


def _stays_float(
    match: Match, program: Program, backend: BackendConfig, references: Mapping[str, str]
) -> bool:
    """Whether convert will leave the weight of a module as it is, and this is to be mended."""
    if match.pattern is None or match.qconfig is None or match.root.kind != "call_module":
        return False
    module = program.root.get(match.root.target)
    inner = module[0] if is_fused(module) and "0" in module.parts else module
    if inner.kind not in references:
        return False
    configs = backend._pattern_complex_format_to_config[match.pattern].dtype_configs
    if is_supported_by_dtype_configs(match.qconfig, configs):
        return False
    return not reproduce("float-module-between-quantizers", match.root.target)


def _calls(matched: Any) -> list[Call]:
    if isinstance(matched, Call):
        return [matched]
    if isinstance(matched, list | tuple):
        return [call for part in matched for call in _calls(part)]
    return []


def _override(
    program: Program,
    found: dict[Call, TargetDType],
    no_tensors: NoTensors,
    quantized_inputs: list[int],
    quantized_outputs: list[int],
) -> None:
    """Set what does not follow from patterns: quantized inputs and outputs, and numbers."""
    index = 0
    for call in program:
        if call.kind == "placeholder":
            if index in quantized_inputs:
                found[call] = TargetDType(QUINT8, QUINT8)
            index += 1
        elif call.kind in ("call_module", "call_method", "call_function"):
            if no_tensors(call):
                found[call] = NOTHING
        elif call.kind == "output" and 0 in quantized_outputs:
            found[call] = TargetDType(QUINT8, QUINT8)


def _rest(call: Call) -> list[int]:
    return list(range(1, len(call.args)))


def _at(*indices: int) -> Callable[[Call], list[int]]:
    return lambda call: [i for i in indices if i < len(call.args)]


# Arguments of methods that are sizes, masks or numbers, never activations.
_PLAIN_ARGUMENTS: dict[str, Callable[[Call], list[int]]] = {
    "masked_fill": _at(1, 2),
    **dict.fromkeys(("permute", "repeat", "reshape", "transpose", "view"), _rest),
    **dict.fromkeys(("size", "unsqueeze", "unsqueeze_"), _at(1)),
}


def _propagate_plain_arguments(
    program: Program, found: dict[Call, TargetDType], matches: Mapping[str, Match]
) -> None:
    """Mark what plain arguments are computed from, up through ops that only move data."""
    for call in program:
        if call.kind != "call_method" or call.target not in _PLAIN_ARGUMENTS:
            continue
        for index in _PLAIN_ARGUMENTS[call.target](call):
            arg = call.args[index]
            for part in arg if isinstance(arg, tuple | list) else [arg]:
                while isinstance(part, Call):
                    found[part] = replace(found[part], input=None, output=None)
                    match = matches.get(part.name)
                    moves = match is not None and match.shares_observer
                    part = part.args[0] if moves else None


# ---- what the back-end supports


def is_supported(
    match: Match | None, found: Mapping[Call, TargetDType], backend: BackendConfig
) -> bool:
    """Whether some dtype configuration of the pattern fits the QConfig.

    Warns where a dtype fits but a constraint of the back-end does not.
    """
    if match is None or match.pattern is None:
        return True
    entry = backend._pattern_complex_format_to_config[match.pattern]
    root, last = match.root, match.matched[0]
    operands = [*root.args, *root.kwargs.values()]
    return any(
        all(_fits(arg, root, match.qconfig, config, found[root]) for arg in operands)
        and _output_fits(match.qconfig, config, found[last])
        for config in entry.dtype_configs
    )


def _fits(
    arg: Any, call: Call, qconfig: QConfigAny, config: DTypeConfig, target: TargetDType
) -> bool:
    if isinstance(arg, list | tuple):
        return all(_fits(part, call, qconfig, config, target) for part in arg)
    if not isinstance(arg, Call):
        return True
    if is_weight(call, arg, target):
        fits = satisfies(qconfig, config.weight_dtype_with_constraints, is_activation=False)
        same = dtype_of(target.weight)[0] == config.weight_dtype
        return config.weight_dtype is None or (same and fits)
    if is_bias(call, arg, target):
        return config.bias_dtype is None or dtype_of(target.bias)[0] == config.bias_dtype
    dtype, is_dynamic = dtype_of(target.input)
    return config.input_dtype is None or (
        config.input_dtype == dtype
        and bool(config.is_dynamic) == is_dynamic
        and satisfies(qconfig, config.input_dtype_with_constraints)
    )


def _output_fits(qconfig: QConfigAny, config: DTypeConfig, target: TargetDType) -> bool:
    dtype, is_dynamic = dtype_of(target.output)
    if is_dynamic:
        dtype = float32
    fits = satisfies(qconfig, config.output_dtype_with_constraints)
    return config.output_dtype is None or (dtype == config.output_dtype and fits)


def satisfies(
    qconfig: QConfigAny, wanted: DTypeWithConstraints, is_activation: bool = True
) -> bool:
    """Whether what a QConfig constructs keeps to a back-end's range, scale and fixed qparams."""
    if qconfig is None or wanted.dtype is None:
        return True
    constructor = qconfig.activation if is_activation else qconfig.weight
    if constructor is None:
        return True
    made = sample(constructor)
    if made.dtype != wanted.dtype:
        return True
    reason = _violation(made, wanted, qconfig, "activation" if is_activation else "weight")
    if reason is not None:
        warnings.warn(f"QConfig {reason}, ignoring {qconfig}", stacklevel=caller())
    return reason is None


def _violation(
    made: Any, wanted: DTypeWithConstraints, qconfig: QConfigAny, what: str
) -> str | None:
    observer = getattr(made, "activation_post_process", made)
    low, high = wanted.quant_min_lower_bound, wanted.quant_max_upper_bound
    if low is not None and high is not None:
        own_low = getattr(observer, "quant_min", None)
        own_high = getattr(observer, "quant_max", None)
        if own_low is None or own_high is None:
            return f"{what} must specify 'quant_min' and 'quant_max'"
        if own_low < low or own_high > high:
            return (
                f"{what} quantization range must fall within the backend's: "
                f"({own_low}, {own_high}) against ({low}, {high})"
            )
    if wanted.scale_min_lower_bound is not None:
        eps = getattr(observer, "eps", None)
        if eps is None:
            return f"{what} must specify 'eps'"
        if eps < wanted.scale_min_lower_bound:
            return (
                f"{what} eps ({eps.item()}) must be greater than or equal to the backend's min "
                f"scale value ({wanted.scale_min_lower_bound})"
            )
    scale, zero_point = wanted.scale_exact_match, wanted.zero_point_exact_match
    if scale is None or zero_point is None:
        return None
    if any(qconfig_equals(qconfig, q) for q in (float16_static_qconfig, float16_dynamic_qconfig)):
        return None
    if not isinstance(made, FixedQParamsObserver | FixedQParamsFakeQuantize):
        return (
            "must specify a FixedQParamsObserver or a FixedQParamsFakeQuantize for fixed qparams "
            "ops, as get_default_qconfig_mapping does"
        )
    if observer.scale != scale or observer.zero_point != zero_point:
        return (
            f"fixed scale ({observer.scale.item()}) and zero point ({observer.zero_point.item()}) "
            f"do not match the backend's ({scale} and {zero_point})"
        )
    return None
