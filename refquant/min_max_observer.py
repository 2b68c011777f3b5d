"""Observers that keep a minimum and a maximum: running or averaged, per tensor or channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.qtensor import Array
from refquant.ir.target import Target
from refquant.ir.types import DType, QScheme, per_channel_affine, per_tensor_affine, quint8
from refquant.kernels.calculate_qparams import F32, FLOAT32_EPS, is_unobserved
from refquant.kernels.min_max import min_max_compiled, min_max_per_channel_compiled
from refquant.observer_base import (
    ObserverBase,
    UniformQuantizationObserverBase,
    real,
    require_qscheme,
)


class MinMaxObserver(UniformQuantizationObserverBase):
    """Keep the minimum and the maximum of all data.

    Infinity is kept as a range without end and NaN as NaN, as torch does; the scale then is not
    finite, and ``calculate_qparams`` warns. All-zero data gives the scale ``eps``.

    Parameters
    ----------
    dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic, target
        See ``UniformQuantizationObserverBase``; ``qscheme`` must be per tensor.

    Examples
    --------
    >>> observer = MinMaxObserver.with_args(dtype=quint8)()
    >>> _ = observer(np.array([-1.0, 3.0]))
    >>> observer.calculate_qparams()
    (array([0.01568628], dtype=float32), array([64], dtype=int32))
    >>> print(observer.report())
    MinMaxObserver: quint8 per_tensor_affine [0, 255]
      seen        2 elements in 1 batches
      range       -1 to 3
      scale       0.0156862754
      zero point  64
    """

    def __init__(
        self,
        dtype: DType = quint8,
        qscheme: QScheme = per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: Mapping[str, Any] | None = None,
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        *,
        target: Target = Target(),
    ) -> None:
        require_qscheme(type(self).__name__, qscheme, per_channel=False)
        super().__init__(
            *(dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic),
            target=target,
        )
        self.reset_min_max_vals()
        _refuse_reduced_symmetric(self)

    def reset_min_max_vals(self) -> None:
        """Forget what was observed."""
        self.register_buffer("min_val", np.array(np.inf, np.float32))
        self.register_buffer("max_val", np.array(-np.inf, np.float32))
        self.batches = self.elements = 0

    def observe(self, x: Array) -> None:
        """Extend the range."""
        low, high = min_max_compiled(x)
        self.min_val = np.asarray(np.minimum(low, self.min_val))
        self.max_val = np.asarray(np.maximum(high, self.max_val))

    def merge(self, other: Self) -> Self:
        """Add what ``other`` has seen; exactly as if this observer had seen it itself.

        Examples
        --------
        >>> a, b = MinMaxObserver(), MinMaxObserver()
        >>> _ = a(np.ones(3)), b(np.zeros(3))
        >>> a.merge(b)
        MinMaxObserver(min_val=0.0, max_val=1.0)
        """
        self._require_same_settings(other)
        self.min_val = np.asarray(np.minimum(other.min_val, self.min_val))
        self.max_val = np.asarray(np.maximum(other.max_val, self.max_val))
        self._add_counts(other)
        return self


class MovingAverageMinMaxObserver(MinMaxObserver):
    r"""Keep moving averages of the batches' minima and maxima.

    .. math:: m \leftarrow m + c \cdot (m_{batch} - m)

    in float32, each operation rounded; the first batch is taken as it is.

    Parameters
    ----------
    averaging_constant : float
        The weight of a new batch.
    dtype, qscheme, reduce_range, quant_min, quant_max, eps, is_dynamic, factory_kwargs, target
        See ``UniformQuantizationObserverBase``; ``is_dynamic`` needs ``averaging_constant`` 1.

    Examples
    --------
    >>> observer = MovingAverageMinMaxObserver(averaging_constant=0.5)
    >>> for high in (1.0, 3.0):
    ...     _ = observer(np.array([0.0, high]))
    >>> observer
    MovingAverageMinMaxObserver(min_val=0.0, max_val=2.0)
    """

    def __init__(
        self,
        averaging_constant: float = 0.01,
        dtype: DType = quint8,
        qscheme: QScheme = per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        factory_kwargs: Mapping[str, Any] | None = None,
        *,
        target: Target = Target(),
    ) -> None:
        real("averaging_constant", averaging_constant)
        self.averaging_constant = averaging_constant
        if is_dynamic and averaging_constant != 1:
            raise UnsupportedError(
                "MovingAverageMinMaxObserver: is_dynamic needs averaging_constant=1, "
                f"got {averaging_constant}"
            )
        super().__init__(
            *(dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic),
            target=target,
        )

    def observe(self, x: Array) -> None:
        """Move the averages."""
        low, high = min_max_compiled(x)
        if not is_unobserved(self.min_val, self.max_val):
            low = moved(self.min_val, low, float(self.averaging_constant))
            high = moved(self.max_val, high, float(self.averaging_constant))
        self.min_val, self.max_val = np.asarray(low), np.asarray(high)

    merge = ObserverBase.merge


def moved(average: Any, new: Any, constant: float) -> Any:
    """Return a float32 moving average after one more value."""
    with np.errstate(invalid="ignore", over="ignore"):
        return average + np.float32(constant) * (new - average)


class PerChannelMinMaxObserver(UniformQuantizationObserverBase):
    """Keep the minimum and the maximum of each channel.

    Parameters
    ----------
    ch_axis : int
        The channel axis.
    dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic, target
        See ``UniformQuantizationObserverBase``; ``qscheme`` must be per channel, and
        ``is_dynamic`` False.

    Examples
    --------
    >>> observer = PerChannelMinMaxObserver()
    >>> _ = observer(np.array([[-1.0, 3.0], [0.0, 1.0]]))
    >>> observer.calculate_qparams()
    (array([0.01568628, 0.00392157], dtype=float32), array([64,  0], dtype=int32))
    """

    _resizable = frozenset({"min_val", "max_val"})

    def __init__(
        self,
        ch_axis: int = 0,
        dtype: DType = quint8,
        qscheme: QScheme = per_channel_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: Mapping[str, Any] | None = None,
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        *,
        target: Target = Target(),
    ) -> None:
        require_qscheme(type(self).__name__, qscheme, per_channel=True)
        if is_dynamic:
            raise UnsupportedError(f"{type(self).__name__} cannot be dynamic")
        super().__init__(
            *(dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic),
            target=target,
        )
        self.ch_axis = ch_axis
        self.reset_min_max_vals()
        _refuse_reduced_symmetric(self)

    def reset_min_max_vals(self) -> None:
        """Forget what was observed."""
        self.register_buffer("min_val", np.empty(0, np.float32))
        self.register_buffer("max_val", np.empty(0, np.float32))
        self.batches = self.elements = 0

    def observe(self, x: Array) -> None:
        """Extend each channel's range."""
        low, high = self._batch_range(x)
        if self._has_range():
            low, high = np.minimum(low, self.min_val), np.maximum(high, self.max_val)
        self.min_val, self.max_val = low, high

    def _has_range(self) -> bool:
        return bool(self.min_val.size and self.max_val.size)

    def _batch_range(self, x: Array) -> tuple[F32, F32]:
        if x.ndim < 2:
            raise VerifyError(
                f"{type(self).__name__}: the data must have 2 dimensions or more, "
                f"got shape {list(x.shape)}"
            )
        if not -x.ndim <= self.ch_axis < x.ndim:
            raise VerifyError(
                f"{type(self).__name__}: ch_axis {self.ch_axis} is outside the {x.ndim} "
                f"dimensions of the data, shape {list(x.shape)}"
            )
        channels = x.shape[self.ch_axis]
        if self._has_range() and self.min_val.size not in (1, channels) and channels != 1:
            raise VerifyError(
                f"{type(self).__name__}: the data has {channels} channels, shape {list(x.shape)}, "
                f"axis {self.ch_axis}; what was observed before has {self.min_val.size}"
            )
        return min_max_per_channel_compiled(x, self.ch_axis)

    def merge(self, other: Self) -> Self:
        """Add what ``other`` has seen; exactly as if this observer had seen it itself."""
        self._require_same_settings(other)
        if not self._has_range():
            self.min_val, self.max_val = other.min_val.copy(), other.max_val.copy()
        elif other._has_range():
            if other.min_val.size != self.min_val.size:
                raise VerifyError(
                    f"merge: {self.min_val.size} channels and {other.min_val.size} channels"
                )
            self.min_val = np.minimum(other.min_val, self.min_val)
            self.max_val = np.maximum(other.max_val, self.max_val)
        self._add_counts(other)
        return self

    def _check_loaded(self, local: dict[str, Array]) -> None:
        """Refuse different numbers of channels."""
        low, high = (local.get(name, getattr(self, name)) for name in ("min_val", "max_val"))
        if low.shape != high.shape:
            raise VerifyError(
                f"state_dict: min_val has shape {list(low.shape)}, max_val {list(high.shape)}"
            )

    def _upgrade(self, local: dict[str, Array], version: int | None) -> dict[str, Array]:
        """Rename the buffers of versions below 3."""
        local = super()._upgrade(local, version)
        if version is not None and version < 3:
            names = {"min_vals": "min_val", "max_vals": "max_val"}
            local = {names.get(key, key): value for key, value in local.items()}
        return local


class MovingAveragePerChannelMinMaxObserver(PerChannelMinMaxObserver):
    """Keep moving averages of each channel's minima and maxima.

    Parameters
    ----------
    averaging_constant : float
        The weight of a new batch.
    ch_axis : int
        The channel axis.
    dtype, qscheme, reduce_range, quant_min, quant_max, eps, is_dynamic, factory_kwargs, target
        See ``PerChannelMinMaxObserver``.

    Examples
    --------
    >>> observer = MovingAveragePerChannelMinMaxObserver(averaging_constant=0.5)
    >>> for high in (1.0, 3.0):
    ...     _ = observer(np.array([[0.0, high]]))
    >>> observer
    MovingAveragePerChannelMinMaxObserver(min_val=[0.], max_val=[2.])
    """

    def __init__(
        self,
        averaging_constant: float = 0.01,
        ch_axis: int = 0,
        dtype: DType = quint8,
        qscheme: QScheme = per_channel_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        factory_kwargs: Mapping[str, Any] | None = None,
        *,
        target: Target = Target(),
    ) -> None:
        super().__init__(
            *(ch_axis, dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps),
            is_dynamic,
            target=target,
        )
        real("averaging_constant", averaging_constant)
        self.averaging_constant = averaging_constant

    def observe(self, x: Array) -> None:
        """Move the averages."""
        low, high = self._batch_range(x)
        if self._has_range():
            low = moved(self.min_val, low, float(self.averaging_constant))
            high = moved(self.max_val, high, float(self.averaging_constant))
        self.min_val, self.max_val = low, high

    merge = ObserverBase.merge


def _refuse_reduced_symmetric(observer: UniformQuantizationObserverBase) -> None:
    if observer.qscheme.is_symmetric and observer.reduce_range and observer.dtype == quint8:
        raise UnsupportedError(
            f"{type(observer).__name__}: reduce_range is not possible for symmetric quint8; "
            "use quant_min=0, quant_max=127"
        )
