"""Tables that the graph algorithms look up, derived from a back-end config.

Patterns are in the form of the matcher: nested, the last node first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, TypeVar

from refquant.backend_config.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    get_pattern_in_reversed_nested_tuple_format,
)
from refquant.backend_config.fuser import Fuser, FuserMethod, NodeGetter
from refquant.backend_config.pattern import MATCH_ALL, Pattern, leaves
from refquant.ir.errors import VerifyError
from refquant.ir.names import object_type

__all__ = [
    "entry_to_pretty_str",
    "get_fused_module_classes",
    "get_fuser_method_in_reversed_nested_tuple_format",
    "get_fuser_method_mapping",
    "get_fuser_method_new",
    "get_fusion_pattern_to_extra_inputs_getter",
    "get_fusion_pattern_to_root_node_getter",
    "get_module_to_qat_module",
    "get_pattern_in_reversed_nested_tuple_format",
    "get_pattern_to_dtype_configs",
    "get_pattern_to_input_type_to_index",
    "get_qat_module_classes",
    "get_root_module_to_quantized_reference_module",
    "pattern_to_human_readable",
    "remove_boolean_dispatch_from_name",
    "sorted_patterns_dict",
]

T = TypeVar("T")


def sorted_patterns_dict(patterns: Mapping[Pattern, T]) -> dict[Pattern, T]:
    """Return the patterns in the order in which they are tried: those of more nodes first.

    Examples
    --------
    >>> list(sorted_patterns_dict({"a": 0, ("b", "c"): 0, "d": 0, ("e", ("f", "g")): 0}))
    [('e', ('f', 'g')), ('b', 'c'), 'a', 'd']
    """

    def rank(item: tuple[Pattern, T]) -> int:
        return -leaves(item[0]) if isinstance(item[0], tuple) else 1

    return dict(sorted(patterns.items(), key=rank))


def _by_pattern(
    backend_config: BackendConfig, field: Callable[[BackendPatternConfig], T | None]
) -> dict[Pattern, T]:
    """Return one field of every pattern that has it."""
    found = (
        (pattern, field(config))
        for pattern, config in backend_config._pattern_complex_format_to_config.items()
    )
    return {pattern: value for pattern, value in found if value is not None}


def get_pattern_to_dtype_configs(
    backend_config: BackendConfig,
) -> dict[Pattern, list[DTypeConfig]]:
    """Return the supported dtypes of every pattern."""
    return _by_pattern(backend_config, lambda config: config.dtype_configs)


def get_pattern_to_input_type_to_index(
    backend_config: BackendConfig,
) -> dict[Pattern, dict[str, int]]:
    """Return which arguments are weight and bias, for every pattern."""
    return _by_pattern(backend_config, lambda config: config._input_type_to_index)


def get_module_to_qat_module(backend_config: BackendConfig) -> dict[Pattern, str]:
    """Return what takes a module's place in quantization-aware training."""
    return _by_pattern(backend_config, lambda config: config.qat_module)


def get_fusion_pattern_to_root_node_getter(
    backend_config: BackendConfig,
) -> dict[Pattern, NodeGetter]:
    """Return how to find the root among matched nodes, where it is not the last one."""
    return _by_pattern(backend_config, lambda config: config._root_node_getter)


def get_fusion_pattern_to_extra_inputs_getter(
    backend_config: BackendConfig,
) -> dict[Pattern, NodeGetter]:
    """Return how to find, among matched nodes, the inputs that a root does not have."""
    return _by_pattern(backend_config, lambda config: config._extra_inputs_getter)


def get_fuser_method_mapping(backend_config: BackendConfig) -> dict[Pattern, FuserMethod]:
    """Return how patterns are fused; callables then take modules in the matcher's order."""
    return _by_pattern(
        backend_config,
        lambda config: (
            None
            if config.fuser_method is None
            else get_fuser_method_in_reversed_nested_tuple_format(config)
        ),
    )


def get_qat_module_classes(backend_config: BackendConfig) -> tuple[str, ...]:
    """Return the modules for quantization-aware training, each once."""
    return tuple(dict.fromkeys(c.qat_module for c in backend_config.configs if c.qat_module))


def get_fused_module_classes(backend_config: BackendConfig) -> tuple[str, ...]:
    """Return the fused modules, each once."""
    return tuple(dict.fromkeys(c.fused_module for c in backend_config.configs if c.fused_module))


def get_root_module_to_quantized_reference_module(backend_config: BackendConfig) -> dict[str, str]:
    """Return what modules with a weight become in the reference model."""
    return {
        config.root_module: config.reference_quantized_module
        for config in backend_config.configs
        if config.root_module is not None and config.reference_quantized_module is not None
    }


def get_fuser_method_in_reversed_nested_tuple_format(config: BackendPatternConfig) -> FuserMethod:
    """Return a config's fuser; a callable is wrapped to take modules in the matcher's order.

    A ``Fuser`` is returned as it is.

    Raises
    ------
    VerifyError
        If there is none, or if the pattern is not a tuple of 2 or 3.
    """
    fuse = config.fuser_method
    if fuse is None:
        raise VerifyError("fuser_method must be set")
    if isinstance(fuse, Fuser) or config._pattern_complex_format is not None:
        return fuse
    if not isinstance(config.pattern, tuple):
        raise VerifyError(f"a pattern with a fuser must be a tuple, got {config.pattern}")
    if len(config.pattern) == 2:
        return lambda is_qat, second, first: fuse(is_qat, first, second)
    if len(config.pattern) == 3:
        return lambda is_qat, third, pair: fuse(is_qat, *reversed(pair), third)
    raise VerifyError(f"expected a pattern of 2 or 3 elements, got {config.pattern}")


def get_fuser_method_new(
    op_pattern: Pattern, fuser_method_mapping: Mapping[Pattern, FuserMethod]
) -> FuserMethod:
    """Return how a match is fused, where ``MATCH_ALL`` may stand for any of its parts.

    Raises
    ------
    VerifyError
        If it is not known.
    """
    for pattern in _with_wildcards(op_pattern):
        if pattern in fuser_method_mapping:
            return fuser_method_mapping[pattern]
    raise VerifyError(f"did not find a fuser method for {op_pattern}")


def _with_wildcards(pattern: Pattern) -> list[Pattern]:
    if isinstance(pattern, tuple):
        return list(product(*map(_with_wildcards, pattern)))
    return [pattern, MATCH_ALL]


def remove_boolean_dispatch_from_name(p: Any) -> Any:
    """Return the name of an object type."""
    return p if p is MATCH_ALL else object_type(p)


def pattern_to_human_readable(p: Any) -> Any:
    """Return the names of a pattern's object types."""
    if isinstance(p, tuple):
        return tuple(map(pattern_to_human_readable, p))
    return remove_boolean_dispatch_from_name(p)


def entry_to_pretty_str(entry: Mapping[str, Any]) -> str:
    """Return one entry of a back-end's dictionary as text, the pattern first.

    Examples
    --------
    >>> print(entry_to_pretty_str(BackendPatternConfig("nn.ReLU").to_dict()))
    {
      'pattern': torch.nn.ReLU,
      'dtype_configs': [
      ],
      'observation_type': ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT,
    }
    """
    lines = ["{"]
    if "pattern" in entry:
        lines.append(f"  'pattern': {pattern_to_human_readable(entry['pattern'])},")
    if "dtype_configs" in entry:
        lines.append("  'dtype_configs': [")
        for config in entry["dtype_configs"]:
            lines += ["    {", *(f"      '{k}': {v}," for k, v in config.items()), "    },"]
        lines.append("  ],")
    observations = "num_tensor_args_to_observation_type"
    if observations in entry:
        rows = [f"    {k}: {v}," for k, v in entry[observations].items()]
        lines += [f"  '{observations}': {{", *rows, "  },"]
    shown = ("pattern", "dtype_configs", observations)
    lines += [f"  '{key}': {value}," for key, value in entry.items() if key not in shown]
    return "\n".join([*lines, "}"])
