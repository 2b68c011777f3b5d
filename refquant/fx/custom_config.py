"""What prepare, convert and fuse are told besides QConfigs: modules treated in a special way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

from refquant.backend_config import BackendConfig
from refquant.ir.errors import VerifyError
from refquant.ir.names import object_type
from refquant.qconfig_mapping import QConfigMapping

__all__ = [
    "ConvertCustomConfig",
    "FuseCustomConfig",
    "PrepareCustomConfig",
    "QuantType",
    "StandaloneModuleConfigEntry",
]


class QuantType(IntEnum):
    """When activations are quantized."""

    DYNAMIC = 0
    STATIC = 1
    QAT = 2
    WEIGHT_ONLY = 3


def quant_type_from_str(name: str) -> QuantType:
    """Return the QuantType that dictionaries call ``static``, ``dynamic``, ...

    Raises
    ------
    VerifyError
        If there is none.

    Examples
    --------
    >>> quant_type_from_str("weight_only").name
    'WEIGHT_ONLY'
    """
    for quant_type in QuantType:
        if name == quant_type.name.lower():
            return quant_type
    accepted = ", ".join(quant_type.name.lower() for quant_type in QuantType)
    raise VerifyError(f"Unknown QuantType name {name!r}; use {accepted}")


@dataclass
class StandaloneModuleConfigEntry:
    """How a standalone module is quantized, by itself; None means as its parent.

    Parameters
    ----------
    qconfig_mapping : QConfigMapping or None
        QConfigs of what is in it.
    example_inputs : tuple
        Inputs of the module.
    prepare_custom_config : PrepareCustomConfig or None
        Custom config of what is in it; None means an empty one.
    backend_config : BackendConfig or None
        The back-end.
    """

    qconfig_mapping: QConfigMapping | None
    example_inputs: tuple[Any, ...]
    prepare_custom_config: PrepareCustomConfig | None
    backend_config: BackendConfig | None


class FuseCustomConfig:
    """What ``fuse_fx`` is told.

    Examples
    --------
    >>> FuseCustomConfig().set_preserved_attributes(["version"])
    FuseCustomConfig({'preserved_attributes': ['version']})
    """

    def __init__(self) -> None:
        self.preserved_attributes: list[str] = []

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if value}
        return f"{type(self).__name__}({given})"

    def set_preserved_attributes(self, attributes: list[str]) -> Self:
        """Set the attributes that the model keeps although nothing uses them."""
        self.preserved_attributes = attributes
        return self

    @classmethod
    def from_dict(cls, fuse_custom_config_dict: Mapping[str, Any]) -> Self:
        """Return the config of a dictionary as ``to_dict`` writes it; every item is optional."""
        preserved = fuse_custom_config_dict.get("preserved_attributes", [])
        return cls().set_preserved_attributes(preserved)

    def to_dict(self) -> dict[str, Any]:
        """Return what is set, under torch's keys."""
        return {k: v for k, v in vars(self).items() if v}


class ConvertCustomConfig(FuseCustomConfig):
    """What ``convert_fx`` is told.

    Examples
    --------
    >>> class Observed: ...
    >>> class Quantized: ...
    >>> config = ConvertCustomConfig().set_observed_to_quantized_mapping(Observed, Quantized)
    >>> config.to_dict()["observed_to_quantized_custom_module_class"]["static"][Observed]
    <class 'refquant.fx.custom_config.Quantized'>
    """

    def __init__(self) -> None:
        self.observed_to_quantized_mapping: dict[QuantType, dict[Any, Any]] = {}
        super().__init__()

    def set_observed_to_quantized_mapping(
        self, observed_class: Any, quantized_class: Any, quant_type: QuantType = QuantType.STATIC
    ) -> Self:
        """Set what an observed custom module becomes: a class with ``from_observed``."""
        mapping = self.observed_to_quantized_mapping.setdefault(QuantType(quant_type), {})
        mapping[_own_class(observed_class)] = _own_class(quantized_class)
        return self

    @classmethod
    def from_dict(cls, convert_custom_config_dict: Mapping[str, Any]) -> Self:
        """Return the config of a dictionary as ``to_dict`` writes it; every item is optional.

        Raises
        ------
        VerifyError
            If a kind of quantization is unknown.
        """
        config = super().from_dict(convert_custom_config_dict)
        key = "observed_to_quantized_custom_module_class"
        for name, mapping in convert_custom_config_dict.get(key, {}).items():
            quant_type = quant_type_from_str(name)
            for observed, quantized in mapping.items():
                config.set_observed_to_quantized_mapping(observed, quantized, quant_type)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return what is set, under torch's keys."""
        return _without_empty(
            observed_to_quantized_custom_module_class=_by_name(self.observed_to_quantized_mapping),
            preserved_attributes=self.preserved_attributes,
        )


class PrepareCustomConfig(FuseCustomConfig):
    """What ``prepare_fx`` and ``prepare_qat_fx`` are told.

    Classes of float modules are kept as names, observed classes that are not torch's as they are.

    Examples
    --------
    >>> class ObservedMine: ...
    >>> config = (
    ...     PrepareCustomConfig()
    ...     .set_float_to_observed_mapping("mine.Float", ObservedMine)
    ...     .set_non_traceable_module_classes(["nn.Transformer"])
    ...     .set_input_quantized_indexes([0])
    ... )
    >>> config.float_to_observed_mapping[QuantType.STATIC], config.non_traceable_module_classes
    ({'mine.Float': <class 'refquant.fx.custom_config.ObservedMine'>}, ['torch.nn.Transformer'])
    """

    def __init__(self) -> None:
        self.standalone_module_names: dict[str, StandaloneModuleConfigEntry] = {}
        self.standalone_module_classes: dict[str, StandaloneModuleConfigEntry] = {}
        self.float_to_observed_mapping: dict[QuantType, dict[str, Any]] = {}
        self.non_traceable_module_names: list[str] = []
        self.non_traceable_module_classes: list[str] = []
        self.input_quantized_indexes: list[int] = []
        self.output_quantized_indexes: list[int] = []
        super().__init__()

    def set_standalone_module_name(
        self,
        module_name: str,
        qconfig_mapping: QConfigMapping | None,
        example_inputs: tuple[Any, ...],
        prepare_custom_config: PrepareCustomConfig | None,
        backend_config: BackendConfig | None,
    ) -> Self:
        """Set that the module at a path is quantized by itself, see the entry's parameters."""
        self.standalone_module_names[module_name] = _standalone(
            qconfig_mapping, example_inputs, prepare_custom_config, backend_config
        )
        return self

    def set_standalone_module_class(
        self,
        module_class: Any,
        qconfig_mapping: QConfigMapping | None,
        example_inputs: tuple[Any, ...],
        prepare_custom_config: PrepareCustomConfig | None,
        backend_config: BackendConfig | None,
    ) -> Self:
        """Set that modules of a class are quantized by themselves."""
        self.standalone_module_classes[object_type(module_class)] = _standalone(
            qconfig_mapping, example_inputs, prepare_custom_config, backend_config
        )
        return self

    def set_float_to_observed_mapping(
        self, float_class: Any, observed_class: Any, quant_type: QuantType = QuantType.STATIC
    ) -> Self:
        """Set what a custom module becomes: a class with ``from_float``.

        Raises
        ------
        VerifyError
            If ``quant_type`` is not static.
        """
        if quant_type != QuantType.STATIC:
            raise VerifyError(
                "set_float_to_observed_mapping is currently only supported for static quantization"
            )
        mapping = self.float_to_observed_mapping.setdefault(QuantType.STATIC, {})
        mapping[object_type(float_class)] = _own_class(observed_class)
        return self

    def set_non_traceable_module_names(self, module_names: list[str]) -> Self:
        """Set the paths of modules that are not looked into."""
        self.non_traceable_module_names = module_names
        return self

    def set_non_traceable_module_classes(self, module_classes: list[Any]) -> Self:
        """Set the classes of modules that are not looked into."""
        self.non_traceable_module_classes = list(map(object_type, module_classes))
        return self

    def set_input_quantized_indexes(self, indexes: list[int]) -> Self:
        """Set which inputs of the graph are given quantized."""
        self.input_quantized_indexes = indexes
        return self

    def set_output_quantized_indexes(self, indexes: list[int]) -> Self:
        """Set which outputs of the graph are returned quantized."""
        self.output_quantized_indexes = indexes
        return self

    @classmethod
    def from_dict(cls, prepare_custom_config_dict: Mapping[str, Any]) -> Self:
        """Return the config of a dictionary as ``to_dict`` writes it; every item is optional.

        The configs of standalone modules may be objects or dictionaries.

        Raises
        ------
        VerifyError
            If one has another type.
        """
        given = prepare_custom_config_dict
        config = super().from_dict(given)
        for key, set_entry in (
            ("standalone_module_name", config.set_standalone_module_name),
            ("standalone_module_class", config.set_standalone_module_class),
        ):
            for module, mapping, inputs, custom, backend in given.get(key, []):
                set_entry(
                    module,
                    _optional(QConfigMapping, mapping, key),
                    inputs,
                    _optional(PrepareCustomConfig, custom, key),
                    _optional(BackendConfig, backend, key),
                )
        for name, classes in given.get("float_to_observed_custom_module_class", {}).items():
            quant_type = quant_type_from_str(name)
            for float_class, observed in classes.items():
                config.set_float_to_observed_mapping(float_class, observed, quant_type)
        config.set_non_traceable_module_names(given.get("non_traceable_module_name", []))
        config.set_non_traceable_module_classes(given.get("non_traceable_module_class", []))
        config.set_input_quantized_indexes(given.get("input_quantized_idxs", []))
        config.set_output_quantized_indexes(given.get("output_quantized_idxs", []))
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return what is set, under torch's keys."""
        return _without_empty(
            standalone_module_name=_rows(self.standalone_module_names),
            standalone_module_class=_rows(self.standalone_module_classes),
            float_to_observed_custom_module_class=_by_name(self.float_to_observed_mapping),
            non_traceable_module_name=self.non_traceable_module_names,
            non_traceable_module_class=self.non_traceable_module_classes,
            input_quantized_idxs=self.input_quantized_indexes,
            output_quantized_idxs=self.output_quantized_indexes,
            preserved_attributes=self.preserved_attributes,
        )


def _own_class(kind: Any) -> Any:
    """Return a class as it is, for its methods are called; torch's as a name."""
    if isinstance(kind, type) and not kind.__module__.startswith("torch."):
        return kind
    return object_type(kind)


def _standalone(
    qconfig_mapping: QConfigMapping | None,
    example_inputs: tuple[Any, ...],
    prepare_custom_config: PrepareCustomConfig | None,
    backend_config: BackendConfig | None,
) -> StandaloneModuleConfigEntry:
    for what, given, kind in (
        ("qconfig_mapping", qconfig_mapping, QConfigMapping),
        ("prepare_custom_config", prepare_custom_config, PrepareCustomConfig),
        ("backend_config", backend_config, BackendConfig),
    ):
        _expect(what, given, kind)
    return StandaloneModuleConfigEntry(
        qconfig_mapping, example_inputs, prepare_custom_config, backend_config
    )


def _optional(kind: Any, given: Any, key: str) -> Any:
    if isinstance(given, Mapping):
        return kind.from_dict(given)
    _expect(repr(key), given, kind)
    return given


def _expect(what: str, given: Any, kind: type) -> None:
    if given is not None and not isinstance(given, kind):
        raise VerifyError(
            f"{what}: expected a {kind.__name__} or None, got {type(given).__name__}; "
            "refquant.importers.from_torch_config translates what is torch's"
        )


def _rows(entries: Mapping[str, StandaloneModuleConfigEntry]) -> list[tuple[Any, ...]]:
    return [
        (
            module,
            entry.qconfig_mapping and entry.qconfig_mapping.to_dict(),
            entry.example_inputs,
            entry.prepare_custom_config and entry.prepare_custom_config.to_dict(),
            entry.backend_config,
        )
        for module, entry in entries.items()
    ]


def _by_name(mapping: Mapping[QuantType, dict[Any, Any]]) -> dict[str, dict[Any, Any]]:
    return {quant_type.name.lower(): classes for quant_type, classes in mapping.items()}


def _without_empty(**items: Any) -> dict[str, Any]:
    return {key: value for key, value in items.items() if value}
