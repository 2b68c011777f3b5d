"""Configs as plain data, torch's and ours alike, so that they can be compared."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import Any

import torch
from torch.ao.quantization.observer import _PartialWrapper
from torch.ao.quantization.utils import MatchAllNode

from refquant.backend_config import MATCH_ALL, Fuser
from refquant.factory import Factory
from refquant.ir.names import object_type
from refquant.ir.types import DType, QScheme


def names(pattern: Any) -> Any:
    """Return a pattern, or a class in a config, by name."""
    if isinstance(pattern, tuple):
        return tuple(map(names, pattern))
    if pattern is MATCH_ALL or pattern is MatchAllNode:
        return "any node"
    return pattern if pattern is None else object_type(pattern)


def plain(value: Any) -> Any:
    """Return a dtype, qscheme, enum, constructor, fuser or getter as plain data."""
    if isinstance(value, DType | QScheme | torch.dtype | torch.qscheme):
        return str(value).removeprefix("torch.")
    if isinstance(value, Enum):
        return type(value).__name__, value.name
    if isinstance(value, Factory | _PartialWrapper):
        keywords = {key: plain(argument) for key, argument in value.p.keywords.items()}
        return plain(value.p.func), value.p.args, keywords, list(value.callable_args)
    if isinstance(value, Fuser):
        return value.kind, value.fused_class
    if isinstance(value, list):
        return list(map(plain, value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "_fields"):
        return {key: plain(item) for key, item in value._asdict().items()}
    if isinstance(value, partial) or not callable(value):
        return value
    return _function(value)


def _function(function: Any) -> Any:
    if "_sequential_wrapper2" in function.__qualname__:
        return "sequential", object_type(function.__closure__[0].cell_contents)
    if function.__module__ == "torch.ao.quantization.backend_config.onednn":
        name = function.__name__.removeprefix("_")
        if not name.startswith("fuse_"):  # a getter; ours serve several patterns
            what, side = name.split("_add_")[1].removeprefix("relu_").rsplit("_", 1)
            return f"{what}_{side}"
        return name.removeprefix("fuse_"), None
    if function.__module__ == "torch.ao.quantization.fuser_method_mappings":
        return function.__name__.removeprefix("fuse_"), None
    return function.__name__


def dtype_config(config: Any) -> list[Any]:
    """Return every field of a DTypeConfig, constraints included."""
    return [
        {k: plain(v) for k, v in vars(field).items()} if hasattr(field, "dtype") else plain(field)
        for field in vars(config).values()
    ]


MODULES = ("root_module", "qat_module", "reference_quantized_module", "fused_module")
PATTERNS = ("pattern", "_pattern_complex_format")


def pattern_config(config: Any) -> dict[str, Any]:
    """Return every field of a BackendPatternConfig."""
    described: dict[str, Any] = {}
    for key, value in vars(config).items():
        if key in MODULES or key in PATTERNS:
            described[key] = names(value)
        elif key == "dtype_configs":
            described[key] = list(map(dtype_config, value))
        else:
            described[key] = plain(value)
    return described


def backend_config(config: Any) -> list[Any]:
    """Return name and patterns of a BackendConfig, in order."""
    entries = config._pattern_complex_format_to_config.items()
    return [config.name, *((names(key), pattern_config(entry)) for key, entry in entries)]


def qconfig_mapping(mapping: Any) -> list[Any]:
    """Return all levels of a QConfigMapping, in order."""
    order = mapping.module_name_object_type_order_qconfigs
    return [
        plain(mapping.global_qconfig),
        [(names(key), plain(q)) for key, q in mapping.object_type_qconfigs.items()],
        [(key, plain(q)) for key, q in mapping.module_name_regex_qconfigs.items()],
        [(key, plain(q)) for key, q in mapping.module_name_qconfigs.items()],
        [((name, names(kind), i), plain(q)) for (name, kind, i), q in order.items()],
    ]
