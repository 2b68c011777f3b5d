"""Which patterns a back-end quantizes, with which dtypes, and what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self, get_args

from refquant.backend_config.fuser import Fuser, FuserMethod, NodeGetter
from refquant.backend_config.pattern import Pattern, normalize, reverse
from refquant.ir.errors import VerifyError
from refquant.ir.names import object_type
from refquant.ir.types import DType


class ObservationType(Enum):
    """How the input and the output of a pattern are observed."""

    OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT = 0
    """An observer of its own for the output, as for conv and linear."""
    OUTPUT_SHARE_OBSERVER_WITH_INPUT = 1
    """The output has the input's observer, as for cat and max_pool."""
    INPUT_OUTPUT_NOT_OBSERVED = 2
    """Neither is observed, as for ``x.shape`` and ``x.size()``."""


@dataclass
class DTypeWithConstraints:
    """A dtype, and what else is required of the QConfig that asks for it.

    Parameters
    ----------
    dtype : DType, optional
        The quantized type.
    quant_min_lower_bound, quant_max_upper_bound : int or float, optional
        The observer's range of quantized values must lie within these.
    scale_min_lower_bound : int or float, optional
        The observer's ``eps`` must not be smaller.
    scale_max_upper_bound : int or float, optional
        Not enforced, as in torch.
    scale_exact_match, zero_point_exact_match : optional
        For ops with fixed quantization parameters, such as sigmoid: the observer must be a
        ``FixedQParamsObserver`` or ``FixedQParamsFakeQuantize`` with these.
    """

    dtype: DType | None = None
    quant_min_lower_bound: int | float | None = None
    quant_max_upper_bound: int | float | None = None
    scale_min_lower_bound: int | float | None = None
    scale_max_upper_bound: int | float | None = None
    scale_exact_match: float | None = None
    zero_point_exact_match: int | None = None


@dataclass(init=False)
class DTypeConfig:
    """One supported combination of dtypes: those that observers of the QConfig must have.

    Parameters
    ----------
    input_dtype, output_dtype, weight_dtype : DType or DTypeWithConstraints, optional
        None accepts any.
    bias_dtype : DType, optional
        None accepts any.
    is_dynamic : bool, optional
        Whether inputs are quantized at run time.

    Raises
    ------
    VerifyError
        If one is not a dtype of refquant.

    Examples
    --------
    >>> from refquant.ir.types import qint8, quint8
    >>> config = DTypeConfig(quint8, quint8, DTypeWithConstraints(qint8, -127))
    >>> config.weight_dtype, config.weight_dtype_with_constraints.quant_min_lower_bound
    (refquant.qint8, -127)
    """

    input_dtype_with_constraints: DTypeWithConstraints
    output_dtype_with_constraints: DTypeWithConstraints
    weight_dtype_with_constraints: DTypeWithConstraints
    bias_dtype: DType | None
    is_dynamic: bool | None

    def __init__(
        self,
        input_dtype: DType | DTypeWithConstraints | None = None,
        output_dtype: DType | DTypeWithConstraints | None = None,
        weight_dtype: DType | DTypeWithConstraints | None = None,
        bias_dtype: DType | None = None,
        is_dynamic: bool | None = None,
    ) -> None:
        self.input_dtype_with_constraints = _with_constraints("input_dtype", input_dtype)
        self.output_dtype_with_constraints = _with_constraints("output_dtype", output_dtype)
        self.weight_dtype_with_constraints = _with_constraints("weight_dtype", weight_dtype)
        _expect("DTypeConfig: bias_dtype", bias_dtype, DType | None)
        self.bias_dtype = bias_dtype
        self.is_dynamic = is_dynamic

    @property
    def input_dtype(self) -> DType | None:
        """The input's dtype."""
        return self.input_dtype_with_constraints.dtype

    @property
    def output_dtype(self) -> DType | None:
        """The output's dtype."""
        return self.output_dtype_with_constraints.dtype

    @property
    def weight_dtype(self) -> DType | None:
        """The weight's dtype."""
        return self.weight_dtype_with_constraints.dtype

    @classmethod
    def from_dict(cls, dtype_config_dict: Mapping[str, Any]) -> Self:
        """Return the config of a dictionary as ``to_dict`` writes it; every item is optional."""
        names = ("input_dtype", "output_dtype", "weight_dtype", "bias_dtype", "is_dynamic")
        return cls(*map(dtype_config_dict.get, names))

    def to_dict(self) -> dict[str, Any]:
        """Return what is set: ``input_dtype``, ``output_dtype``, and so on."""
        given: dict[str, Any] = {
            "input_dtype": self.input_dtype and self.input_dtype_with_constraints,
            "output_dtype": self.output_dtype and self.output_dtype_with_constraints,
            "weight_dtype": self.weight_dtype and self.weight_dtype_with_constraints,
            "bias_dtype": self.bias_dtype,
            "is_dynamic": self.is_dynamic,
        }
        return {key: value for key, value in given.items() if value is not None}


class BackendPatternConfig:
    """How one pattern is observed, fused, trained and quantized.

    Object types (classes, functions, methods) are kept as names; a class or function of torch may
    be given in their place.

    Parameters
    ----------
    pattern : str, class, function, or tuple of 2 or 3 of these, optional
        A tuple is in the order of the graph: ``("torch.nn.Conv2d", "torch.nn.ReLU")``.

    Examples
    --------
    >>> from refquant.ir.types import quint8
    >>> config = (
    ...     BackendPatternConfig(("nn.Linear", "nn.ReLU"))
    ...     .add_dtype_config(DTypeConfig(quint8, quint8))
    ...     .set_fused_module("nni.LinearReLU")
    ... )
    >>> config.pattern, config.fused_module
    (('torch.nn.Linear', 'torch.nn.ReLU'), 'torch.ao.nn.intrinsic.LinearReLU')
    """

    def __init__(self, pattern: Any = None) -> None:
        self.pattern: Pattern | None = None if pattern is None else normalize(pattern)
        self.observation_type = ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT
        self.dtype_configs: list[DTypeConfig] = []
        self.root_module: str | None = None
        self.qat_module: str | None = None
        self.reference_quantized_module: str | None = None
        self.fused_module: str | None = None
        self.fuser_method: FuserMethod | None = None
        self._root_node_getter: NodeGetter | None = None
        self._extra_inputs_getter: NodeGetter | None = None
        self._num_tensor_args_to_observation_type: dict[int, ObservationType] = {}
        self._input_type_to_index: dict[str, int] = {}
        self._pattern_complex_format: Pattern | None = None

    def __repr__(self) -> str:
        given = {k: v for k, v in vars(self).items() if v is not None and v not in ([], {})}
        return f"BackendPatternConfig({given})"

    def set_pattern(self, pattern: Any) -> Self:
        """Set the pattern, in the order of the graph.

        Raises
        ------
        VerifyError
            If the pattern was set in its reversed form already.
        """
        if self._pattern_complex_format is not None:
            raise VerifyError("only one of pattern and pattern_complex_format can be set")
        self.pattern = normalize(pattern)
        return self

    def set_observation_type(self, observation_type: ObservationType) -> Self:
        """Set how input and output are observed."""
        _expect("observation_type", observation_type, ObservationType)
        self.observation_type = observation_type
        return self

    def add_dtype_config(self, dtype_config: DTypeConfig) -> Self:
        """Add a supported combination of dtypes."""
        _expect("dtype_config", dtype_config, DTypeConfig)
        self.dtype_configs.append(dtype_config)
        return self

    def set_dtype_configs(self, dtype_configs: list[DTypeConfig]) -> Self:
        """Set all supported combinations of dtypes; the list is kept, not copied."""
        for dtype_config in dtype_configs:
            _expect("dtype_configs", dtype_config, DTypeConfig)
        self.dtype_configs = dtype_configs
        return self

    def set_root_module(self, root_module: Any) -> Self:
        """Set the module that has the weight, such as Linear of a fused LinearReLU."""
        self.root_module = _named(root_module)
        return self

    def set_qat_module(self, qat_module: Any) -> Self:
        """Set the module that takes its place in quantization-aware training."""
        self.qat_module = _named(qat_module)
        return self

    def set_reference_quantized_module(self, reference_quantized_module: Any) -> Self:
        """Set what the root module becomes in the reference model; needs ``set_root_module``."""
        self.reference_quantized_module = _named(reference_quantized_module)
        return self

    def set_fused_module(self, fused_module: Any) -> Self:
        """Set the module that the pattern is fused to."""
        self.fused_module = _named(fused_module)
        return self

    def set_fuser_method(self, fuser_method: FuserMethod | None) -> Self:
        """Set how the pattern is fused.

        Parameters
        ----------
        fuser_method : Fuser or callable
            A callable gets ``is_qat`` and then the modules in the order of the pattern, and
            returns the fused module.
        """
        if not (fuser_method is None or isinstance(fuser_method, Fuser) or callable(fuser_method)):
            raise VerifyError(f"fuser_method must be a Fuser or callable, got {fuser_method!r}")
        self.fuser_method = fuser_method
        return self

    def _set_root_node_getter(self, root_node_getter: NodeGetter | None) -> Self:
        self._root_node_getter = root_node_getter
        return self

    def _set_extra_inputs_getter(self, extra_inputs_getter: NodeGetter | None) -> Self:
        self._extra_inputs_getter = extra_inputs_getter
        return self

    def _set_num_tensor_args_to_observation_type(
        self, num_tensor_args_to_observation_type: dict[int, ObservationType]
    ) -> Self:
        self._num_tensor_args_to_observation_type = num_tensor_args_to_observation_type
        return self

    def _set_input_type_to_index(self, input_type_to_index: dict[str, int]) -> Self:
        self._input_type_to_index = input_type_to_index
        return self

    def _set_pattern_complex_format(self, pattern: Any) -> Self:
        """Set the pattern as the matcher takes it: nested, the last node first."""
        if self.pattern is not None:
            raise VerifyError("only one of pattern and pattern_complex_format can be set")
        self._pattern_complex_format = normalize(pattern)
        return self

    @classmethod
    def from_dict(cls, backend_pattern_config_dict: Mapping[str, Any]) -> Self:
        """Return the config of a dictionary as ``to_dict`` writes it; every item is optional.

        Raises
        ------
        VerifyError
            If the dtype configs are not a list of ``DTypeConfig`` or of their dictionaries.
        """
        given = backend_pattern_config_dict
        config = cls()
        if "pattern" in given:
            config.set_pattern(given["pattern"])
        if "observation_type" in given:
            config.set_observation_type(given["observation_type"])
        for item in given.get("dtype_configs", []):
            config.add_dtype_config(_from(DTypeConfig, item, "dtype_configs"))
        config.set_root_module(given.get("root_module"))
        config.set_qat_module(given.get("qat_module"))
        config.set_reference_quantized_module(given.get("reference_quantized_module_for_root"))
        config.set_fused_module(given.get("fused_module"))
        config.set_fuser_method(given.get("fuser_method"))
        config._set_root_node_getter(given.get("root_node_getter"))
        config._set_extra_inputs_getter(given.get("extra_inputs_getter"))
        config._set_num_tensor_args_to_observation_type(
            given.get("num_tensor_args_to_observation_type", {})
        )
        config._set_input_type_to_index(given.get("input_type_to_index", {}))
        if "pattern_complex_format" in given:
            config._set_pattern_complex_format(given["pattern_complex_format"])
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return what is set, under torch's keys."""
        optional = {
            "pattern": self.pattern,
            "root_module": self.root_module,
            "qat_module": self.qat_module,
            "reference_quantized_module_for_root": self.reference_quantized_module,
            "fused_module": self.fused_module,
            "fuser_method": self.fuser_method,
            "root_node_getter": self._root_node_getter,
            "extra_inputs_getter": self._extra_inputs_getter,
            "num_tensor_args_to_observation_type": (
                self._num_tensor_args_to_observation_type or None
            ),
            "input_type_to_index": self._input_type_to_index or None,
            "pattern_complex_format": self._pattern_complex_format,
        }
        return {
            "observation_type": self.observation_type,
            "dtype_configs": [config.to_dict() for config in self.dtype_configs],
            **{key: value for key, value in optional.items() if value is not None},
        }


class BackendConfig:
    """The patterns that a back-end can quantize.

    Parameters
    ----------
    name : str
        Of the back-end.

    Examples
    --------
    >>> config = BackendPatternConfig("nn.Linear")
    >>> [c.pattern for c in BackendConfig("mine").set_backend_pattern_config(config).configs]
    ['torch.nn.Linear']
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._pattern_complex_format_to_config: dict[Pattern, BackendPatternConfig] = {}

    def __repr__(self) -> str:
        return f"BackendConfig({vars(self)})"

    def set_name(self, name: str) -> Self:
        """Set the back-end's name."""
        self.name = name
        return self

    def set_backend_pattern_config(self, config: BackendPatternConfig) -> Self:
        """Set the config of a pattern; it replaces the pattern's former one, in its place.

        Raises
        ------
        VerifyError
            If the config has no pattern, or a tuple of another length than 2 or 3.
        """
        _expect("config", config, BackendPatternConfig)
        pattern = get_pattern_in_reversed_nested_tuple_format(config)
        self._pattern_complex_format_to_config[pattern] = config
        return self

    def set_backend_pattern_configs(self, configs: list[BackendPatternConfig]) -> Self:
        """Set the configs of several patterns."""
        for config in configs:
            self.set_backend_pattern_config(config)
        return self

    @property
    def configs(self) -> list[BackendPatternConfig]:
        """A list of all configs."""
        return list(self._pattern_complex_format_to_config.values())

    @classmethod
    def from_dict(cls, backend_config_dict: Mapping[str, Any]) -> Self:
        """Return the config of a dictionary as ``to_dict`` writes it.

        Raises
        ------
        VerifyError
            If ``configs`` is not a list of ``BackendPatternConfig`` or of their dictionaries.
        """
        config = cls(backend_config_dict.get("name", ""))
        for item in backend_config_dict.get("configs", []):
            config.set_backend_pattern_config(_from(BackendPatternConfig, item, "configs"))
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return ``name`` and ``configs``, a list of dictionaries."""
        return {"name": self.name, "configs": [config.to_dict() for config in self.configs]}


def get_pattern_in_reversed_nested_tuple_format(config: BackendPatternConfig) -> Pattern:
    """Return a config's pattern as the matcher takes it.

    Raises
    ------
    VerifyError
        If the config has none.
    """
    if config._pattern_complex_format is not None:
        return config._pattern_complex_format
    if config.pattern is None:
        raise VerifyError("either pattern or pattern_complex_format must be set")
    return reverse(config.pattern)


def _named(kind: Any) -> str | None:
    return None if kind is None else object_type(kind)


def _expect(what: str, given: Any, accepted: Any) -> None:
    if not isinstance(given, accepted):
        kinds = [kind.__name__ for kind in get_args(accepted) or (accepted,)]
        raise VerifyError(
            f"{what} must be {' or '.join(kinds).replace('NoneType', 'None')}, got {given!r}; "
            "refquant.importers.from_torch_config translates what is torch's"
        )


def _with_constraints(name: str, given: Any) -> DTypeWithConstraints:
    _expect(f"DTypeConfig: {name}", given, DType | DTypeWithConstraints | None)
    return given if isinstance(given, DTypeWithConstraints) else DTypeWithConstraints(given)


def _from(kind: Any, given: Any, key: str) -> Any:
    if isinstance(given, Mapping):
        return kind.from_dict(given)
    _expect(f"each of {key!r}", given, kind)
    return given
