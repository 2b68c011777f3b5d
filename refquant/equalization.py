"""Cross-layer equalization: its QConfig and the observers that find one scale per column."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from refquant.factory import HasFactories
from refquant.ir.errors import VerifyError
from refquant.ir.qtensor import Array
from refquant.ir.types import (
    DType,
    QScheme,
    per_channel_affine,
    per_channel_symmetric,
    per_tensor_affine,
    per_tensor_symmetric,
    qint8,
    quint8,
)
from refquant.kernels.calculate_qparams import F32, is_unobserved
from refquant.min_max_observer import PerChannelMinMaxObserver
from refquant.observer_base import caller
from refquant.qconfig import Identity
from refquant.stateful import Stateful

__all__ = [
    "EqualizationQConfig",
    "calculate_equalization_scale",
    "default_equalization_qconfig",
    "get_equalization_qconfig_dict",
    "input_equalization_observer",
    "weight_equalization_observer",
]

_PER_CHANNEL = {
    per_tensor_affine: per_channel_affine,
    per_tensor_symmetric: per_channel_symmetric,
}


class _EqualizationObserver(ABC, HasFactories, Stateful):
    """What the observers of input and weight share: minimum and maximum of each column."""

    def __init__(self, part: str, dtype: DType, qscheme: QScheme, *settings: Any) -> None:
        super().__init__()
        self.dtype = dtype
        self.qscheme = qscheme
        per_channel = _PER_CHANNEL.get(qscheme, qscheme)
        observer = PerChannelMinMaxObserver(1, dtype, per_channel, False, *settings)
        setattr(self, part, observer)
        self._parts.append(part)
        self.equalization_scale: Array = np.array(1)

    def _observe(self, observer: PerChannelMinMaxObserver, x: Array) -> Array:
        if not 2 <= np.ndim(x) <= 5:
            raise VerifyError(
                f"{type(self).__name__} is for linear and conv, data of 2 to 5 dimensions, "
                f"got shape {list(np.shape(x))}"
            )
        return observer.forward(x)

    @property
    def role(self) -> str:
        """What a graph calls it for."""
        return "equalization"

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Take note of ``x`` and return it."""

    def __call__(self, x: Array) -> Array:
        """Take note of ``x`` and return it."""
        with self.unchanged_on_error():
            return self.forward(x)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._parts)
        return f"{type(self).__name__}({parts})"


class _InputEqualizationObserver(_EqualizationObserver):
    """Keep the minimum and the maximum of each column of a layer's input.

    Parameters
    ----------
    dtype : DType
        The quantized type.
    qscheme : QScheme
        Per tensor.
    quant_min, quant_max : int, optional
        Range of the quantized values; by default that of ``dtype``.
    factory_kwargs : mapping, optional
        See ``UniformQuantizationObserverBase``.

    Raises
    ------
    VerifyError
        If ``qscheme`` is per channel.

    Examples
    --------
    >>> observer = _InputEqualizationObserver()
    >>> _ = observer(np.float32([[1, -2], [3, 4]]))
    >>> observer.set_equalization_scale(np.float32([2, 0.5]))
    >>> observer.calculate_scaled_minmax()
    (np.float32(-1.0), np.float32(6.0))
    """

    input_obs: PerChannelMinMaxObserver

    def __init__(
        self,
        dtype: DType = quint8,
        qscheme: QScheme = per_tensor_affine,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if qscheme not in _PER_CHANNEL:
            accepted = " or ".join(_PER_CHANNEL)
            raise VerifyError(f"Input qscheme must be per-tensor, {accepted}, got {qscheme}")
        super().__init__("input_obs", dtype, qscheme, quant_min, quant_max, factory_kwargs)
        self.equalization_shape: list[int] = []

    def forward(self, x: Array) -> Array:
        """Take note of ``x``, of 2 to 5 dimensions with the columns second, and return it."""
        self._observe(self.input_obs, x)
        self.equalization_shape = [1, np.shape(x)[1], *[1] * (np.ndim(x) - 2)]
        return x

    def get_input_minmax(self) -> tuple[F32, F32]:
        """Return minimum and maximum of each column."""
        return self.input_obs.min_val, self.input_obs.max_val

    def set_equalization_scale(self, equalization_scale: Array) -> None:
        """Set the scale of each column, shaped to multiply the input; a single 1 sets nothing.

        Raises
        ------
        VerifyError
            If there is not one for each column of the last input.
        """
        if _is_one(equalization_scale):
            return
        if equalization_scale.size != np.prod(self.equalization_shape):
            raise VerifyError(
                f"equalization_scale must have one entry per column, got "
                f"{list(equalization_scale.shape)} for the shape {self.equalization_shape}"
            )
        self.equalization_scale = equalization_scale.reshape(self.equalization_shape)

    def calculate_scaled_minmax(self) -> tuple[Any, Any]:
        """Return minimum and maximum of the scaled input; None, with a warning, without scale."""
        if _is_one(self.equalization_scale):
            warnings.warn(
                "Must call calculate_equalization_scale before calling calculate_scaled_minmax. "
                "Will not scale the next quantization observer.",
                UserWarning,
                stacklevel=caller(),
            )
            return None, None
        low, high = self.get_input_minmax()
        scale = self.equalization_scale.reshape(-1)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.min(low * scale), np.max(high * scale)


class _WeightEqualizationObserver(_EqualizationObserver):
    """Keep the minimum and the maximum of each column of a layer's weight.

    Parameters
    ----------
    dtype : DType
        The quantized type.
    qscheme : QScheme
        Any; what is per tensor is made per channel for the columns.
    quant_min, quant_max, factory_kwargs
        See ``_InputEqualizationObserver``.

    Examples
    --------
    >>> observer = _WeightEqualizationObserver()
    >>> _ = observer(np.float32([[1, -2], [3, 4]]))
    >>> observer.get_weight_col_minmax()
    (array([ 1., -2.], dtype=float32), array([3., 4.], dtype=float32))
    """

    weight_col_obs: PerChannelMinMaxObserver

    def __init__(
        self,
        dtype: DType = qint8,
        qscheme: QScheme = per_tensor_affine,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__("weight_col_obs", dtype, qscheme, quant_min, quant_max, factory_kwargs)
        self.ch_axis = 1

    def forward(self, w: Array) -> Array:
        """Take note of ``w``, of 2 to 5 dimensions with the columns second, and return it."""
        return self._observe(self.weight_col_obs, w)

    def get_weight_col_minmax(self) -> tuple[F32, F32]:
        """Return minimum and maximum of each column."""
        return self.weight_col_obs.min_val, self.weight_col_obs.max_val

    def set_equalization_scale(self, equalization_scale: Array) -> None:
        """Set the scale of each column."""
        self.equalization_scale = equalization_scale


def _is_one(scale: Array) -> bool:
    return scale.size == 1 and bool(scale.reshape(-1)[0] == 1)


def calculate_equalization_scale(
    input_obs: _InputEqualizationObserver, weight_obs: _WeightEqualizationObserver
) -> Array:
    r"""Return the scale of each column that makes input and weight equally wide.

    .. math:: s = \sqrt{(w_{max} - w_{min}) / (x_{max} - x_{min})}

    in float32, each operation rounded to nearest; 0, infinity and NaN become 1. The root here is
    correctly rounded; torch's is MKL's, which differs by one unit in the last place for about a
    sixth of all values (see the findings).

    Parameters
    ----------
    input_obs, weight_obs
        Observers that have seen data with the same number of columns.

    Returns
    -------
    float32, shape (C,)
        Before any data a single 1, with a warning.

    Raises
    ------
    VerifyError
        If the numbers of columns differ, or a minimum is greater than its maximum.

    Examples
    --------
    >>> inputs, weights = _InputEqualizationObserver(), _WeightEqualizationObserver()
    >>> _ = inputs(np.float32([[0, 5], [4, 5]])), weights(np.float32([[1, 0], [2, 9]]))
    >>> calculate_equalization_scale(inputs, weights)
    array([0.5, 1. ], dtype=float32)
    """
    ranges = input_obs.get_input_minmax(), weight_obs.get_weight_col_minmax()
    for low, high in ranges:
        if is_unobserved(low, high):
            warnings.warn(
                "Must run observer before calling calculate_equalization_scale. "
                "Returning default equalization scale 1.",
                UserWarning,
                stacklevel=caller(),
            )
            return np.array(1)
        if np.any(low > high):
            raise VerifyError(f"min {low} should be less than max {high}")
    (low, high), (weight_low, weight_high) = ranges
    if low.shape != weight_low.shape:
        raise VerifyError(
            "Input and Weight must have the same column dimension. "
            f"Found {list(low.shape)} and {list(weight_low.shape)} shapes instead."
        )
    with np.errstate(invalid="ignore", over="ignore", divide="ignore", under="ignore"):
        scale = np.sqrt((weight_high - weight_low) / (high - low))
    return np.where(np.isfinite(scale) & (scale != 0), scale, np.float32(1))


class _Pair(NamedTuple):
    input_activation: Callable[..., Any]
    weight: Callable[..., Any]


class EqualizationQConfig(_Pair):
    """How to observe a layer for equalization: constructors for its input and its weight.

    Parameters
    ----------
    input_activation, weight : observer class or factory
        ``Identity`` observes nothing.

    Raises
    ------
    VerifyError
        If an instance is given instead of a constructor.

    Examples
    --------
    >>> EqualizationQConfig(weight=_WeightEqualizationObserver).input_activation
    <class 'refquant.qconfig.Identity'>
    """

    __slots__ = ()

    def __new__(
        cls,
        input_activation: Callable[..., Any] = Identity,
        weight: Callable[..., Any] = Identity,
    ) -> EqualizationQConfig:
        """Refuse instances."""
        for given in (input_activation, weight):
            if isinstance(given, Stateful | Identity):
                kind = type(given).__name__
                raise VerifyError(
                    f"EqualizationQConfig must be given a class or a factory, got an instance of "
                    f"{kind}; use {kind}.with_args(...)"
                )
        return super().__new__(cls, input_activation, weight)


input_equalization_observer = _InputEqualizationObserver.with_args(
    dtype=quint8, qscheme=per_tensor_symmetric
)
weight_equalization_observer = _WeightEqualizationObserver.with_args(
    dtype=qint8, qscheme=per_channel_symmetric
)
default_equalization_qconfig = EqualizationQConfig(
    input_activation=input_equalization_observer, weight=weight_equalization_observer
)


def get_equalization_qconfig_dict(
    layer_sqnr_dict: Mapping[str, float], num_layers_to_equalize: int
) -> dict[str, list[tuple[str, EqualizationQConfig]]]:
    """Return a mapping's dictionary that equalizes the layers with the most noise.

    Parameters
    ----------
    layer_sqnr_dict : mapping of str to float
        Signal to quantization noise ratio by the layer's path.
    num_layers_to_equalize : int
        How many of the lowest.

    Examples
    --------
    >>> chosen = get_equalization_qconfig_dict({"a": 30.0, "b": 10.0, "c": 20.0}, 2)
    >>> [name for name, qconfig in chosen["module_name"]]
    ['b', 'c']
    """
    worst = sorted(layer_sqnr_dict, key=layer_sqnr_dict.__getitem__)[:num_layers_to_equalize]
    return {"module_name": [(name, default_equalization_qconfig) for name in worst]}
