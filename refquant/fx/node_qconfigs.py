"""Which QConfig each call and each module gets from a QConfigMapping."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

from refquant.backend_config import BackendConfig, DTypeConfig
from refquant.backend_config.lookup import get_module_to_qat_module
from refquant.fx.match import is_observer
from refquant.ir.errors import VerifyError
from refquant.ir.module import Module
from refquant.ir.program import Call, Owner, Program
from refquant.ir.types import DType, float16, float32
from refquant.min_max_observer import (
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from refquant.qconfig import qconfig_equals
from refquant.qconfig_mapping import QConfigMapping

QConfigAny = Any


@lru_cache(maxsize=512)
def sample(constructor: Callable[[], Any]) -> Any:
    """Return an instance that is only asked for its class and settings, never shown data."""
    return constructor()


def dtype_of(constructor: Callable[[], Any] | None) -> tuple[DType | None, bool]:
    """Return the dtype and ``is_dynamic`` of what a constructor makes."""
    if constructor is None:
        return None, False
    made = sample(constructor)
    if not hasattr(made, "dtype"):
        raise VerifyError(
            f"a QConfig must construct observers, which have a dtype; got {type(made).__name__}, "
            "use PlaceholderObserver to observe nothing"
        )
    return made.dtype, bool(getattr(made, "is_dynamic", False))


def qconfig_dtypes(qconfig: QConfigAny) -> tuple[DType | None, DType | None, bool]:
    """Return activation dtype, weight dtype, and whether activations are dynamic."""
    activation, is_dynamic = dtype_of(qconfig.activation)
    return activation, dtype_of(qconfig.weight)[0], is_dynamic


def bias_dtype(activation: DType | None, weight: DType | None, is_dynamic: bool) -> DType:
    """Return the dtype of a bias: float16 only where all is static float16."""
    return float16 if activation == weight == float16 and not is_dynamic else float32


def is_fused(module: Any) -> bool:
    """Whether a module is a container of fused modules, also for training."""
    kind = getattr(module, "kind", "")
    return kind.startswith("torch.ao.nn.intrinsic.") and ".quantized." not in kind


def update_for_fusion(program: Program, mapping: QConfigMapping) -> None:
    """Give each fused class the entry that the classes of its parts share.

    Raises
    ------
    LookupError
        If the parts have different entries.
    """
    entries = mapping.object_type_qconfigs
    if not entries:
        return
    for call, module in program.owners():
        if not is_fused(module):
            continue
        first, *rest = module.parts.values()
        shared = entries.get(first.kind)
        for part in rest:
            if not qconfig_equals(entries.get(part.kind), shared):
                raise LookupError(
                    f"{call.target}: {first.kind} and {part.kind} are fused and need equal "
                    f"qconfigs by object type; give {part.kind} the entry of {first.kind}"
                )
        if shared is not None:
            entries[module.kind] = shared


def update_for_qat(mapping: QConfigMapping, backend: BackendConfig) -> None:
    """Give each training class the entry of the class it replaces."""
    trained = get_module_to_qat_module(backend)
    for kind, qconfig in list(mapping.object_type_qconfigs.items()):
        if kind in trained:
            mapping.object_type_qconfigs[trained[kind]] = qconfig


def propagate(
    root: Module,
    entries: Mapping[str, QConfigAny],
    skipped_names: Collection[str] = (),
    skipped_kinds: Collection[str] = (),
) -> None:
    """Set ``qconfig`` on every module, from the outermost inwards, as eager mode does.

    A module's own ``qconfig`` wins over an entry for its path, that over one for its class, that
    over the enclosing module's. Skipped are only children of the root, by their own names.
    """

    def visit(module: Any, inherited: QConfigAny, path: str, top: bool) -> None:
        chosen = entries.get(module.kind, inherited)
        chosen = entries.get(path, chosen)
        if isinstance(module, Module):
            chosen = module.config.get("qconfig", chosen)
            _check_transposed(chosen, module, path)
            module.config["qconfig"] = chosen
        for name, part in getattr(module, "parts", {}).items():
            if not (top and (name in skipped_names or part.kind in skipped_kinds)):
                visit(part, chosen, f"{path}.{name}" if path else name, False)

    visit(root, None, "", True)


def _check_transposed(qconfig: QConfigAny, module: Module, path: str) -> None:
    if qconfig is None or not module.kind.startswith("torch.nn.ConvTranspose"):
        return
    per_channel = (PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver)
    if qconfig.weight is not None and isinstance(sample(qconfig.weight), per_channel):
        raise VerifyError(
            f"{path}: a per channel weight observer is not supported for {module.kind}; set a "
            "per tensor qconfig with set_object_type"
        )


def flattened(mapping: QConfigMapping) -> dict[str, QConfigAny]:
    """Return global, object type and module name entries in one dictionary."""
    return {
        "": mapping.global_qconfig,
        **mapping.object_type_qconfigs,
        **mapping.module_name_qconfigs,
    }


class _Lookup:
    """The entries of a mapping by increasing priority."""

    def __init__(self, mapping: QConfigMapping) -> None:
        self.mapping = mapping
        self._regex: dict[str, QConfigAny] = {}

    def of_type(self, kind: str | None, fallback: QConfigAny) -> QConfigAny:
        return self.mapping.object_type_qconfigs.get(kind or "", fallback)

    def __call__(self, kind: str | None, path: str, fallback: QConfigAny) -> QConfigAny:
        """Look up by class, then regex, then name; the last found wins."""
        found = self.of_type(kind, fallback)
        for pattern, qconfig in self.mapping.module_name_regex_qconfigs.items():
            if re.match(pattern, path):
                found = qconfig
                break
        names = self.mapping.module_name_qconfigs
        while path and names:
            if path in names:
                return names[path]
            path = path.rpartition(".")[0]
        return found

    def at(self, path: str, kind: str | None, index: int, fallback: QConfigAny) -> QConfigAny:
        """Look up by the position among calls of one type in one module."""
        order = self.mapping.module_name_object_type_order_qconfigs
        return order.get((path, kind or "", index), fallback) if order else fallback


def generate_node_name_to_qconfig(
    program: Program, mapping: QConfigMapping
) -> dict[str, QConfigAny]:
    """Return the QConfig of every call by its name; None is not to be quantized.

    A called module also gets it as its ``qconfig``.
    """
    lookup = _Lookup(mapping)
    default = mapping.global_qconfig
    counts: dict[tuple[str, str | None], int] = defaultdict(int)
    found: dict[str, QConfigAny] = {}
    for call in program:
        qconfig: QConfigAny = None
        if call.kind == "get_attr":
            path = call.target.rpartition(".")[0]
            qconfig = lookup(program.root.get(path).kind, path, default)
        elif call.kind == "call_function":
            owner = _owner(call)
            of_function = lookup.of_type(call.target, default)
            qconfig = lookup(owner.kind, owner.path, of_function)
            key: tuple[str, str | None] = (owner.path, call.target)
            qconfig = lookup.at(*key, counts[key], qconfig)
            counts[key] += 1
        elif call.kind == "call_method":
            owner = _owner(call)
            of_method = lookup(call.target, owner.path, default)
            qconfig = lookup(owner.kind, owner.path, of_method)
        elif call.kind == "call_module":
            module = program.root.get(call.target)
            if is_observer(module):
                continue
            qconfig = lookup(module.kind, call.target, default)
            owner = _owner(call)
            key = (owner.path.rpartition(".")[0], owner.kind)
            qconfig = lookup.at(*key, counts[key], qconfig)
            counts[key] += 1
            module.config["qconfig"] = qconfig
        found[call.name] = qconfig
    return found


def _owner(call: Call) -> Owner:
    return call.owner or Owner("", None)


def compare_mappings(prepare: QConfigMapping, convert: QConfigMapping) -> None:
    """Refuse a convert mapping that contradicts the one of prepare.

    Raises
    ------
    VerifyError
        If an entry is missing, or is neither equal nor None.
    """
    if not qconfig_equals(prepare.global_qconfig, convert.global_qconfig):
        raise VerifyError(
            "convert: expected the global qconfig of prepare, got another; set_global with "
            "the same qconfig"
        )
    for level in ("object_type", "module_name", "module_name_regex"):
        before = getattr(prepare, f"{level}_qconfigs")
        now = getattr(convert, f"{level}_qconfigs")
        for key, qconfig in before.items():
            if key not in now:
                raise VerifyError(
                    f"convert: missing key {level} {key}, which prepare had; give it the same "
                    "qconfig, or None to skip it"
                )
            if now[key] is not None and not qconfig_equals(qconfig, now[key]):
                raise VerifyError(
                    f"convert: {level} {key} has another qconfig than in prepare; expected the "
                    "same, or None to skip it"
                )


def is_supported_by_dtype_configs(qconfig: QConfigAny, configs: Collection[DTypeConfig]) -> bool:
    """Whether some dtype configuration of a back-end fits a QConfig."""
    activation, weight, is_dynamic = qconfig_dtypes(qconfig)
    for config in configs:
        given = (config.input_dtype or float32, config.weight_dtype or float32)
        output = config.output_dtype or float32
        if config.is_dynamic:
            if is_dynamic and given == (activation, weight) and output == float32:
                return True
        elif (
            given == (activation, weight)
            and output == activation
            and (config.bias_dtype or float32) == bias_dtype(activation, weight, False)
        ):
            return True
    return False
