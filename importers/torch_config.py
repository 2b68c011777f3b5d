"""torch's quantization configs into ours: QConfigs, mappings, back-end and custom configs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from refquant.importers.fx_torch import require_torch, to_tensor
from refquant.ir.errors import UnsupportedError
from refquant.ir.names import object_type
from refquant.ir.types import TORCH_DTYPES, QScheme


def from_torch_config(config: Any) -> Any:
    """Return our equivalent of a config of torch.

    Parameters
    ----------
    config
        A QConfig, QConfigMapping, BackendConfig, PrepareCustomConfig or any other config of
        ``torch.ao.quantization``, or what one consists of: observer and fake-quant classes and
        their factories, dtypes, qschemes, fuser methods, object types. A dictionary, list or
        tuple of these gives the same of ours, for ``from_dict``. What is not torch's (None,
        numbers, strings, the user's own functions and classes) stays as it is.

    Raises
    ------
    UnsupportedError
        If there is no equivalent, as for a user's subclass of torch's observers.
    """
    torch = require_torch()
    kind = type(config)
    if translate := _OBJECTS.get(f"{kind.__module__}.{kind.__qualname__}"):
        return translate(config)
    if isinstance(config, torch.dtype):
        return _known(TORCH_DTYPES, config)
    if isinstance(config, torch.qscheme):
        return _known({scheme.value: scheme for scheme in QScheme}, config)
    if isinstance(config, torch.Tensor):
        return to_tensor(config)
    if isinstance(config, torch.device):
        return str(config)
    if isinstance(config, dict):
        return _dict(config)
    if kind in (list, tuple):
        return kind(map(from_torch_config, config))
    if isinstance(config, partial):
        return _partial(config)
    if isinstance(config, type):
        return _class(torch, config)
    if isinstance(config, torch.nn.Module):
        raise _unknown(kind)
    if callable(config):
        return _function(config)
    if kind.__module__.partition(".")[0] == "torch":
        raise _unknown(kind)
    return config


def _unknown(kind: type) -> UnsupportedError:
    return UnsupportedError(
        f"from_torch_config: refquant has no equivalent of {kind.__module__}.{kind.__qualname__}"
    )


def _known(ours: dict[str, Any], config: Any) -> Any:
    name = str(config).removeprefix("torch.")
    if name not in ours:
        raise UnsupportedError(f"from_torch_config: refquant has no {config}")
    return ours[name]


# Configs and observers are of the layer above this one, which must not be imported from here:
# they are looked up by torch's name when one is met.
_PLACES = (
    *("qconfig", "qconfig_mapping", "observer", "fake_quantize", "equalization"),
    *("backend_config", "fx.custom_config"),
)


def _find(name: str) -> Any:
    for place in _PLACES:
        found = getattr(import_module(f"refquant.{place}"), name, None)
        if found is not None:
            return found
    return None


def _ours(name: str) -> Any:
    found = _find(name)
    if found is None:
        raise UnsupportedError(f"from_torch_config: refquant has no {name}")
    return found


# ---- classes and functions


def _class(torch: Any, kind: type) -> Any:
    quantization = torch.ao.quantization
    if kind is quantization.utils.MatchAllNode:
        return _ours("MATCH_ALL")
    torchs_own = kind.__module__.startswith("torch.")
    observers = (quantization.ObserverBase, quantization.FakeQuantizeBase)
    if issubclass(kind, observers) or kind.__module__ == "torch.ao.quantization.fx._equalize":
        name = kind.__name__
        found = (_find(name) or _find(name.removeprefix("_"))) if torchs_own else None
        if found is None:
            raise _unknown(kind)
        return found
    return object_type(kind) if torchs_own else kind


def _function(function: Callable[..., Any]) -> Any:
    """Return a function of torch as a name, or as the rule it is; the user's as it is."""
    rule = _rule(function)
    if rule is not function:
        return rule
    name = object_type(function)
    return name if name.startswith(("torch.", "operator.", "builtins.getattr")) else function


def _rule(function: Any) -> Any:
    """Return a fuser or getter of torch as ours; the user's as it is, whatever it is."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", "")
    if name == "_sequential_wrapper2.<locals>.fuser_method":
        return _ours("Fuser")("sequential", object_type(function.__closure__[0].cell_contents))
    if module == "torch.ao.quantization.fuser_method_mappings" and name.startswith("fuse_"):
        return _ours("Fuser")(name.removeprefix("fuse_"))
    if module == "torch.ao.quantization.backend_config.onednn":
        return _onednn(name)
    return function


def _onednn(name: str) -> Any:
    """Return a fuser of oneDNN's back-end, or a getter of nodes, of which ours are fewer."""
    if name.startswith("_fuse_"):
        return _ours("Fuser")(name.removeprefix("_fuse_"))
    for what in ("root_node_getter", "extra_inputs_getter"):
        for side in ("left", "right"):
            if name.endswith(f"{what}_{side}"):
                return getattr(import_module("refquant.backend_config.fuser"), f"{what}_{side}")
    raise UnsupportedError(f"from_torch_config: refquant has no {name}")


# ---- factories


def _partial(made: partial[Any]) -> partial[Any]:
    keywords = {key: from_torch_config(value) for key, value in made.keywords.items()}
    return partial(from_torch_config(made.func), *map(from_torch_config, made.args), **keywords)


def _factory(wrapper: Any) -> Any:
    plain = not wrapper.p.args and not wrapper.p.keywords
    if plain and list(wrapper.callable_args) == ["factory_kwargs"]:
        return from_torch_config(wrapper.p.func)  # a class that prepare told the device
    factory = import_module("refquant.factory").Factory(_partial(wrapper.p))
    return factory.with_callable_args(
        **{key: _later(make) for key, make in wrapper.callable_args.items()}
    )


def _later(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: from_torch_config(make())


# ---- objects


_RULES = ("fuser_method", "root_node_getter", "extra_inputs_getter")


def _dict(config: dict[Any, Any]) -> dict[Any, Any]:
    return {
        from_torch_config(key): _rule(value) if key in _RULES else from_torch_config(value)
        for key, value in config.items()
    }


def _constructor(given: Any) -> Any:
    """Return an observer's class or factory; only here is ``nn.Identity`` not a module."""
    is_identity = isinstance(given, type) and object_type(given) == "torch.nn.Identity"
    return _ours("Identity") if is_identity else from_torch_config(given)


def _pair(config: Any) -> Any:
    with warnings.catch_warnings():  # torch warned of QConfigDynamic when it was made
        warnings.simplefilter("ignore", FutureWarning)
        return _ours(type(config).__name__)(*map(_constructor, config))


def _enum(member: Any) -> Any:
    return _ours(type(member).__name__)[member.name]


def _fields(config: Any) -> Any:
    return _ours(type(config).__name__)(*map(from_torch_config, vars(config).values()))


def _from_dict(config: Any) -> Any:
    return _ours(type(config).__name__).from_dict(_dict(config.to_dict()))


def _pattern_config(config: Any) -> Any:
    # The dictionary leaves out the constraints of a missing dtype.
    return _from_dict(config).set_dtype_configs(from_torch_config(config.dtype_configs))


def _backend_config(config: Any) -> Any:
    made = _ours("BackendConfig")(config.name)
    return made.set_backend_pattern_configs(from_torch_config(config.configs))


_OBJECTS: dict[str, Callable[[Any], Any]] = {
    f"torch.ao.quantization.{name}": translate
    for name, translate in {
        "observer._PartialWrapper": _factory,
        "qconfig.QConfig": _pair,
        "qconfig.QConfigDynamic": _pair,
        "fx._equalize.EqualizationQConfig": _pair,
        "qconfig_mapping.QConfigMapping": _from_dict,
        "backend_config.backend_config.ObservationType": _enum,
        "backend_config.backend_config.DTypeWithConstraints": _fields,
        "backend_config.backend_config.DTypeConfig": _fields,
        "backend_config.backend_config.BackendPatternConfig": _pattern_config,
        "backend_config.backend_config.BackendConfig": _backend_config,
        "quant_type.QuantType": _enum,
        "fx.custom_config.FuseCustomConfig": _from_dict,
        "fx.custom_config.ConvertCustomConfig": _from_dict,
        "fx.custom_config.PrepareCustomConfig": _from_dict,
        "fx.custom_config.StandaloneModuleConfigEntry": _fields,
    }.items()
}
