"""QConfigMapping: which QConfig each op of a model gets, and torch's default mappings."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Self

from refquant.backend_config.families import FIXED_QPARAMS_0TO1, FIXED_QPARAMS_NEG1TO1
from refquant.equalization import EqualizationQConfig
from refquant.fake_quantize import FixedQParamsFakeQuantize, default_weight_fake_quant
from refquant.ir.errors import VerifyError
from refquant.ir.names import canonical, object_type
from refquant.observer import (
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
    default_placeholder_observer,
    default_weight_observer,
)
from refquant.qconfig import (
    QConfig,
    QConfigDynamic,
    default_quint8_weight_qconfig,
    default_reuse_input_qconfig,
    default_symmetric_qnnpack_qat_qconfig,
    default_symmetric_qnnpack_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
)

__all__ = ["QConfigMapping", "get_default_qat_qconfig_mapping", "get_default_qconfig_mapping"]

AnyQConfig = QConfig | QConfigDynamic | EqualizationQConfig
QConfigAny = AnyQConfig | None
_STYLES = (
    *("global_qconfig", "object_type_qconfigs", "module_name_regex_qconfigs"),
    *("module_name_qconfigs", "module_name_object_type_order_qconfigs"),
)


class QConfigMapping:
    """Which QConfig each op gets; None leaves an op in float.

    Of the five levels a later one wins over those before it: ``set_global``, ``set_object_type``,
    ``set_module_name_regex``, ``set_module_name``, ``set_module_name_object_type_order``.

    Object types (classes, functions, methods) are kept as names; a class or function of torch may
    be given in their place.

    Examples
    --------
    >>> from refquant.qconfig import default_qconfig
    >>> mapping = (
    ...     QConfigMapping()
    ...     .set_global(default_qconfig)
    ...     .set_object_type("nn.Linear", None)
    ...     .set_module_name_regex("encoder.*conv[0-9]+", None)
    ... )
    >>> mapping.object_type_qconfigs
    OrderedDict([('torch.nn.Linear', None)])
    """

    def __init__(self) -> None:
        self.global_qconfig: QConfigAny = None
        self.object_type_qconfigs: OrderedDict[str, QConfigAny] = OrderedDict()
        self.module_name_regex_qconfigs: OrderedDict[str, QConfigAny] = OrderedDict()
        self.module_name_qconfigs: OrderedDict[str, QConfigAny] = OrderedDict()
        self.module_name_object_type_order_qconfigs: OrderedDict[
            tuple[str, str, int], QConfigAny
        ] = OrderedDict()

    def set_global(self, global_qconfig: QConfigAny) -> Self:
        """Set the QConfig of all that no other level names."""
        self.global_qconfig = _checked(global_qconfig)
        return self

    def set_object_type(self, object_type: Any, qconfig: QConfigAny) -> Self:
        """Set the QConfig of a module class, a function or a method's name.

        Raises
        ------
        VerifyError
            If it is none of these, or not a QConfig.
        """
        self.object_type_qconfigs[_named(object_type)] = _checked(qconfig)
        return self

    def set_module_name_regex(self, module_name_regex: str, qconfig: QConfigAny) -> Self:
        """Set the QConfig of the modules whose path begins with what the pattern matches.

        Patterns are tried in the order in which they were first set.

        Raises
        ------
        VerifyError
            If it is not a regular expression, or not a QConfig.
        """
        try:
            re.compile(_text("module_name_regex", module_name_regex))
        except re.error as error:
            raise VerifyError(
                f"module_name_regex {module_name_regex!r} is not a regular expression: {error}"
            ) from None
        self.module_name_regex_qconfigs[module_name_regex] = _checked(qconfig)
        return self

    def set_module_name(self, module_name: str, qconfig: QConfigAny) -> Self:
        """Set the QConfig of the module at a path, and of what is in it."""
        self.module_name_qconfigs[_text("module_name", module_name)] = _checked(qconfig)
        return self

    def set_module_name_object_type_order(
        self, module_name: str, object_type: Any, index: int, qconfig: QConfigAny
    ) -> Self:
        """Set the QConfig of the ``index``-th op of a kind directly in the module at a path."""
        if not isinstance(index, int) or isinstance(index, bool):
            raise VerifyError(f"index must be an int, got {index!r}")
        key = _text("module_name", module_name), _named(object_type), index
        self.module_name_object_type_order_qconfigs[key] = _checked(qconfig)
        return self

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for style in _STYLES:
            given = getattr(self, style)
            rows = given.items() if isinstance(given, OrderedDict) else ()
            lines.append(f" {style}")
            lines += [f"  {key}: {qconfig}" for key, qconfig in rows] or [f"  {given}"]
        return "\n".join([*lines, ")"])

    def to_dict(self) -> dict[str, Any]:
        """Return the levels, but for the global one as lists of tuples, under torch's keys."""
        order = self.module_name_object_type_order_qconfigs
        return {
            "": self.global_qconfig,
            "object_type": list(self.object_type_qconfigs.items()),
            "module_name_regex": list(self.module_name_regex_qconfigs.items()),
            "module_name": list(self.module_name_qconfigs.items()),
            "module_name_object_type_order": [(*key, q) for key, q in order.items()],
        }

    @classmethod
    def from_dict(cls, qconfig_dict: Mapping[str, Any]) -> Self:
        """Return the mapping of a dictionary as ``to_dict`` writes it; every item is optional.

        Raises
        ------
        VerifyError
            If a level is not a list of such tuples.
        """
        mapping = cls()
        if "" in qconfig_dict:
            mapping.set_global(qconfig_dict[""])
        setters: dict[str, tuple[int, Callable[..., Any]]] = {
            "object_type": (2, mapping.set_object_type),
            "module_name_regex": (2, mapping.set_module_name_regex),
            "module_name": (2, mapping.set_module_name),
            "module_name_object_type_order": (4, mapping.set_module_name_object_type_order),
        }
        for level, (length, set_level) in setters.items():
            for row in qconfig_dict.get(level, []):
                if not isinstance(row, tuple | list) or len(row) != length:
                    raise VerifyError(f"{level!r}: expected tuples of {length}, got {row!r}")
                set_level(*row)
        return mapping


def _named(kind: Any) -> str:
    return object_type(kind)


def _text(what: str, given: Any) -> str:
    if not isinstance(given, str):
        raise VerifyError(f"{what} must be a str, got {given!r}")
    return given


def _checked(qconfig: Any) -> QConfigAny:
    if qconfig is not None and not isinstance(qconfig, AnyQConfig):
        kind = f"{type(qconfig).__module__}.{type(qconfig).__qualname__}"
        raise VerifyError(
            f"expected a QConfig of refquant or None, got {kind}; "
            "refquant.importers.from_torch_config translates torch's"
        )
    return qconfig


_FIXED_QPARAMS_OBSERVERS = {
    default_fixed_qparams_range_0to1_observer: FIXED_QPARAMS_0TO1,
    default_fixed_qparams_range_neg1to1_observer: FIXED_QPARAMS_NEG1TO1,
}


def _default(is_qat: bool, backend: str, version: int) -> QConfigMapping:
    qconfig = (get_default_qat_qconfig if is_qat else get_default_qconfig)(backend, version)
    per_tensor = default_weight_fake_quant if is_qat else default_weight_observer
    # The kernels of fbgemm have one scale for the weight of a transposed convolution.
    weight = per_tensor if backend in ("fbgemm", "x86") else qconfig.weight
    transposed = QConfig(qconfig.activation, weight)
    norm = QConfig(qconfig.activation, default_placeholder_observer)  # its weight stays float
    mapping = QConfigMapping().set_global(qconfig)
    mapping.set_object_type("reshape", default_reuse_input_qconfig)
    for prefix in ("nn.ConvTranspose", "F.conv_transpose"):
        for rank in (1, 2, 3):
            mapping.set_object_type(f"{prefix}{rank}d", transposed)
    mapping.set_object_type("F.layer_norm", norm)
    mapping.set_object_type("nn.LayerNorm", norm)
    mapping.set_object_type("nn.PReLU", default_quint8_weight_qconfig)
    for observer, kinds in _FIXED_QPARAMS_OBSERVERS.items():
        activation = FixedQParamsFakeQuantize.with_args(observer=observer) if is_qat else observer
        fixed = QConfig(activation, per_tensor)
        for kind in kinds:
            mapping.set_object_type(kind, fixed)
    return mapping


def get_default_qconfig_mapping(backend: str = "x86", version: int = 0) -> QConfigMapping:
    """Return the default mapping for quantization after training.

    Parameters
    ----------
    backend : str
        x86, fbgemm, qnnpack or onednn.
    version : int
        0.

    Raises
    ------
    VerifyError
        If backend or version is unknown.
    """
    return _default(False, backend, version)


def get_default_qat_qconfig_mapping(backend: str = "x86", version: int = 1) -> QConfigMapping:
    """Return the default mapping for quantization-aware training.

    Parameters
    ----------
    backend : str
        x86, fbgemm, qnnpack or onednn.
    version : int
        0 or 1, see ``get_default_qat_qconfig``.

    Raises
    ------
    VerifyError
        If backend or version is unknown.
    """
    return _default(True, backend, version)


def _get_symmetric_qnnpack_qconfig_mapping() -> QConfigMapping:
    """Return the mapping with ``default_symmetric_qnnpack_qconfig``."""
    return _get_default_qconfig_mapping_with_default_qconfig(
        False, "qnnpack", default_symmetric_qnnpack_qconfig
    )


def _get_symmetric_qnnpack_qat_qconfig_mapping() -> QConfigMapping:
    """Return the mapping with ``default_symmetric_qnnpack_qat_qconfig``."""
    return _get_default_qconfig_mapping_with_default_qconfig(
        True, "qnnpack", default_symmetric_qnnpack_qat_qconfig
    )


def _get_default_qconfig_mapping_with_default_qconfig(
    is_qat: bool, backend: str, default_qconfig: QConfigAny
) -> QConfigMapping:
    """Return a back-end's default mapping with another QConfig for all but fixed qparams."""
    make = get_default_qat_qconfig_mapping if is_qat else get_default_qconfig_mapping
    mapping = make(backend).set_global(default_qconfig)
    fixed = {canonical(kind) for kinds in _FIXED_QPARAMS_OBSERVERS.values() for kind in kinds}
    for kind in mapping.object_type_qconfigs:
        if kind not in fixed:
            mapping.set_object_type(kind, default_qconfig)
    return mapping
