"""Custom modules: classes of the user that replace float modules, and observed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refquant.fx.custom_config import ConvertCustomConfig, PrepareCustomConfig, QuantType
from refquant.fx.node_qconfigs import QConfigAny
from refquant.fx.quant_type import is_static, quant_type
from refquant.fx.quantizable import OBSERVED, QUANTIZED
from refquant.ir.errors import UnsupportedError, VerifyError


def custom_kinds(config: PrepareCustomConfig) -> set[str]:
    """Return the classes of the float custom modules."""
    return {kind for table in config.float_to_observed_mapping.values() for kind in table}


def observed_module(
    module: Any, qconfig: QConfigAny, config: PrepareCustomConfig, path: str
) -> Any:
    """Return what a float custom module becomes in prepare."""
    mapping = config.float_to_observed_mapping
    if not is_static(qconfig):  # the setter knows static classes only; see the defects
        known = {kind: found for table in mapping.values() for kind, found in table.items()}
        mapping = {quant_type(qconfig): known}
    found = _swapped(module, qconfig, mapping, path, "observed")
    made = _make(found, "from_float", module, OBSERVED, path)
    made.config.setdefault("qconfig", qconfig)
    return made


def quantized_module(module: Any, config: ConvertCustomConfig, path: str) -> Any:
    """Return what an observed custom module becomes in convert."""
    qconfig = module.config.get("qconfig")
    if qconfig is None:
        raise VerifyError(f"{path}: the custom module {module.kind} has no qconfig to convert by")
    found = _swapped(module, qconfig, config.observed_to_quantized_mapping, path, "quantized")
    return _make(found, "from_observed", module, QUANTIZED, path)


def _swapped(
    module: Any,
    qconfig: QConfigAny,
    mapping: Mapping[QuantType, Mapping[Any, Any]],
    path: str,
    what: str,
) -> Any:
    kind = quant_type(qconfig)
    table = {_name(key): value for key, value in mapping.get(kind, {}).items()}
    name = _name(type(module)) if type(module).__name__ != "Module" else module.kind
    found = table.get(module.kind, table.get(name))
    if found is None:
        raise VerifyError(
            f"{path}: no {what} class for {module.kind} in the mapping for "
            f"{kind.name.lower()} quantization, which has {sorted(table) or 'no classes'}"
        )
    return found


def _name(kind: Any) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _make(found: Any, method: str, module: Any, built_in: Mapping[str, Any], path: str) -> Any:
    if isinstance(found, str):
        if found not in built_in:
            raise UnsupportedError(
                f"{path}: {found} is a class of torch that cannot be run here; give a class of "
                f"your own with {method}, which takes and returns refquant.ir.Module"
            )
        return built_in[found](module)
    make = getattr(found, method, None)
    if make is None:
        raise VerifyError(f"{path}: custom class {found.__qualname__} has no {method}")
    return make(module)
