"""What all observers share: the call, the quantized range, and scale and zero point from it."""

from __future__ import annotations

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

import numpy as np

from refquant.factory import HasFactories
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.qtensor import Array, QTensor
from refquant.ir.target import Target
from refquant.ir.types import (
    DType,
    QScheme,
    float8_e4m3fn,
    float8_e5m2,
    int8,
    int16,
    int32,
    per_tensor_affine,
    qint8,
    qint32,
    quint4x2,
    quint8,
    uint8,
    uint16,
)
from refquant.kernels.calculate_qparams import (
    F32,
    FLOAT32_EPS,
    calculate_qparams,
    is_unobserved,
    quant_range,
)
from refquant.observer_plot import draw_ranges, new_axes
from refquant.observer_report import ObserverReport
from refquant.stateful import Stateful

ACCEPTED_DTYPES = (
    *(qint8, quint8, quint4x2, qint32),
    *(int8, uint8, int16, int32, float8_e5m2, float8_e4m3fn, uint16),
)


class Observed(np.ndarray[Any, Any]):
    """What calling an observer returns: the data itself, which can be asked on.

    A view, so that ``Observer()(x).calculate_qparams()`` is one expression. What is computed from
    it is a plain array again.
    """

    observer: ObserverBase | None = None

    def calculate_qparams(self) -> tuple[Array, Array]:
        """Return the observer's scale and zero point.

        Raises
        ------
        VerifyError
            If this is a part of what was observed.
        """
        if self.observer is None:
            raise VerifyError("calculate_qparams: this array is a part of what was observed")
        return self.observer.calculate_qparams()

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Return results of arithmetic as plain arrays."""
        return array[()] if return_scalar else array


class ObserverBase(ABC, HasFactories, Stateful):
    """Base of all observers: call one with data, then ask it for scale and zero point.

    Parameters
    ----------
    dtype : DType
        The quantized type that the data is to get.
    is_dynamic : bool
        Whether scale and zero point are to be computed anew from each input at run time.
    """

    def __init__(self, dtype: DType, is_dynamic: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.is_dynamic = is_dynamic

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Take note of ``x`` and return it, the same object."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Array, Array]:
        """Return scale and zero point for what was observed."""

    def __call__(self, x: Any) -> Any:
        """Take note of ``x`` and return it, as a view that answers ``calculate_qparams``."""
        y = self.forward(x)
        if not isinstance(y, np.ndarray):
            return y
        observed = y.view(Observed)
        observed.observer = self
        return observed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of ``repr``."""
        return ""

    def merge(self, other: Self) -> Self:
        """Add what ``other`` has seen, where the result is the same as from all the data.

        Raises
        ------
        UnsupportedError
            If the statistics depend on the order of the data.
        """
        raise UnsupportedError(
            f"{type(self).__name__} cannot merge exactly: histograms and moving averages depend "
            "on the order of the data. Feed all batches to one observer in their order, or use "
            "MinMaxObserver or PerChannelMinMaxObserver, which merge exactly"
        )


class UniformQuantizationObserverBase(ObserverBase):
    """Base of the observers that choose a scale and a zero point for evenly spaced values.

    Parameters
    ----------
    dtype : DType
        quint8, qint8, qint32, quint4x2, int8, uint8, int16, uint16, int32, float8_e5m2 or
        float8_e4m3fn.
    qscheme : QScheme
        How a range becomes scale and zero point.
    reduce_range : bool
        Use one bit less.
    quant_min, quant_max : int, optional
        Range of the quantized values; by default that of ``dtype``.
    factory_kwargs : mapping, optional
        torch's device and dtype of the buffers; only the CPU and float32 are accepted.
    eps : float
        The smallest scale.
    is_dynamic : bool
        See ``ObserverBase``.
    target : Target
        The machine whose bits are meant; matters to ``HistogramObserver`` only.

    Raises
    ------
    VerifyError
        If dtype, scheme or range are not accepted.
    """

    _version: ClassVar[int] = 3
    eps: F32
    min_val: F32
    max_val: F32

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
        super().__init__(dtype, is_dynamic)
        self.qscheme = _qscheme(qscheme)
        self.target = target
        if reduce_range:
            warnings.warn(
                "reduce_range is deprecated in torch; give the range by quant_min and quant_max",
                UserWarning,
                stacklevel=caller(),
            )
        self.reduce_range = reduce_range
        _check_factory_kwargs(factory_kwargs)
        self.register_buffer("eps", np.array([real("eps", eps)], np.float32))
        if dtype not in ACCEPTED_DTYPES:
            accepted = ", ".join(map(str, ACCEPTED_DTYPES))
            raise VerifyError(
                f"{type(self).__name__}: dtype {dtype!r} is not one of {accepted}; "
                "for float16 use PlaceholderObserver"
            )
        self.has_customized_qrange = quant_min is not None and quant_max is not None
        self.quant_min, self.quant_max = quant_range(dtype, quant_min, quant_max, reduce_range)
        stored = None if dtype.is_floating_point else np.iinfo(dtype.storage)
        if stored is not None and not stored.min <= self.quant_min <= self.quant_max <= stored.max:
            warnings.warn(
                f"{type(self).__name__}: the range [{self.quant_min}, {self.quant_max}] exceeds "
                f"{dtype}, which torch accepts here and saturates when it quantizes; give a range "
                f"within [{stored.min}, {stored.max}]",
                UserWarning,
                stacklevel=caller(),
            )
        self.batches = 0
        self.elements = 0

    def forward(self, x: Array) -> Array:
        """Take note of ``x``, an array of numbers, and return it; an empty one changes nothing.

        Raises
        ------
        VerifyError
            If ``x`` does not fit; then nothing has changed.
        """
        data = observable(type(self).__name__, x)
        if data.size:
            with self.unchanged_on_error():
                self.observe(data)
            self.batches += 1
            self.elements += data.size
        return x

    def observe(self, x: Array) -> None:
        """Update the statistics by data that is not empty; a subclass defines it, or forward.

        Raises
        ------
        UnsupportedError
            If it does not.
        """
        raise UnsupportedError(f"{type(self).__name__} defines neither observe nor forward")

    def _calculate_qparams(self, min_val: F32, max_val: F32) -> tuple[F32, Array]:
        """Return scale and zero point for a range; 1 and 0 with a warning before any data."""
        if is_unobserved(min_val, max_val):
            warnings.warn(
                f"{type(self).__name__}: must run observer before calling calculate_qparams; "
                "returning scale 1 and zero point 0. Call the observer with data first",
                UserWarning,
                stacklevel=caller(),
            )
            return np.array([1.0], np.float32), np.array([0])
        scale, zero_point = calculate_qparams(
            *(min_val, max_val, self.quant_min, self.quant_max, self.dtype, self.qscheme),
            *(float(self.eps[0]), self.has_customized_qrange),
        )
        if not np.all(np.isfinite(scale)):
            warnings.warn(
                f"{type(self).__name__}: the scale is not finite, the range is "
                f"[{np.min(min_val)}, {np.max(max_val)}]; remove NaN and infinity from the data",
                RuntimeWarning,
                stacklevel=caller(),
            )
        return scale, zero_point

    def calculate_qparams(self) -> tuple[F32, Array]:
        """Return scale and zero point for what was observed.

        Returns
        -------
        scale : float32, shape (1,) or (C,)
        zero_point : int32, int64 or float32 as in torch, shape of scale
            Before any data 1 and 0, with a ``UserWarning``.

        Raises
        ------
        VerifyError
            If a loaded minimum is greater than its maximum.
        """
        return self._calculate_qparams(self.min_val, self.max_val)

    def reset_min_max_vals(self) -> None:
        """Forget what was observed.

        Raises
        ------
        UnsupportedError
            If the class cannot.
        """
        raise UnsupportedError("Cannot reset min/max values in the given observer.")

    def report(self) -> ObserverReport:
        """Return what was observed and what was chosen, to print or to read."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scale, zero_point = self.calculate_qparams()
        return ObserverReport(
            observer=type(self).__name__,
            dtype=self.dtype,
            qscheme=self.qscheme,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            batches=self.batches,
            elements=self.elements,
            min_val=self.min_val.copy(),
            max_val=self.max_val.copy(),
            scale=scale,
            zero_point=zero_point,
        )

    def plot(self, axes: Any = None) -> Any:
        """Draw the observed range of each channel; needs the extra ``plot``.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        matplotlib Figure

        Raises
        ------
        UnsupportedError
            If matplotlib is not installed.
        VerifyError
            If nothing was observed.
        """
        self._require_data("plot")
        axes = new_axes()[0] if axes is None else axes
        draw_ranges(axes, self.report())
        return axes.figure

    def _require_data(self, what: str) -> None:
        if is_unobserved(self.min_val, self.max_val):
            raise VerifyError(f"{what}: {type(self).__name__} has seen no data")

    def extra_repr(self) -> str:
        """Return the range."""
        return f"min_val={self.min_val}, max_val={self.max_val}"

    def _upgrade(self, local: dict[str, Array], version: int | None) -> dict[str, Array]:
        """Reset eps where torch does: in a state without a version number."""
        if version is not None and version != 1:
            return local
        return {**local, "eps": default_eps(type(self).__name__, local.get("eps"), self.eps)}

    def _require_same_settings(self, other: UniformQuantizationObserverBase) -> None:
        if type(other) is not type(self):
            raise VerifyError(
                f"merge: expected a {type(self).__name__}, got a {type(other).__name__}"
            )
        for name in ("dtype", "qscheme", "quant_min", "quant_max", "eps", "ch_axis"):
            mine, theirs = getattr(self, name, None), getattr(other, name, None)
            if mine != theirs:
                raise VerifyError(f"merge: {name} differs: {mine} and {theirs}")

    def _add_counts(self, other: UniformQuantizationObserverBase) -> None:
        self.batches += other.batches
        self.elements += other.elements


def real(name: str, value: Any) -> float:
    """Return a setting as a float.

    Raises
    ------
    VerifyError
        If it is not a number.
    """
    if isinstance(value, str) or not isinstance(value, int | float | np.number):
        raise VerifyError(f"{name} must be a number, got {value!r}")
    return float(value)


def default_eps(owner: str, *lost: Array | None) -> F32:
    """Return the default eps, and warn if another one is lost by it."""
    for eps in lost:
        if eps is not None and np.any(eps != np.float32(FLOAT32_EPS)):
            warnings.warn(
                f"{owner}: eps {eps} is replaced by {FLOAT32_EPS:.9g}, as torch does for a "
                "state_dict without version and in load_observer_state_dict",
                UserWarning,
                stacklevel=caller(),
            )
            break
    return np.array([FLOAT32_EPS], np.float32)


def observable(observer: str, x: Any) -> Array:
    """Return ``x`` as an array of real numbers.

    Raises
    ------
    VerifyError
        If it is quantized, complex or no array of numbers.
    """
    if isinstance(x, QTensor):
        raise VerifyError(
            f"{observer}: expected real values, got {x.type.dtype}; dequantize first"
        )
    if isinstance(x, np.ma.MaskedArray):
        raise VerifyError(f"{observer}: a masked array would be observed whole; compress it first")
    data = np.asarray(x)
    if data.dtype.kind in "biuf" or data.dtype.name in ("bfloat16", *_FLOAT8):
        return data
    raise VerifyError(f"{observer}: expected an array of real numbers, got {data.dtype}")


_FLOAT8 = (float8_e5m2.name, float8_e4m3fn.name)


def _qscheme(qscheme: QScheme) -> QScheme:
    try:
        return QScheme(qscheme)
    except ValueError:
        accepted = ", ".join(QScheme)
        raise VerifyError(f"qscheme {qscheme!r} is not one of {accepted}") from None


def require_qscheme(observer: str, qscheme: QScheme, per_channel: bool) -> None:
    """Refuse the schemes that an observer does not have.

    Raises
    ------
    UnsupportedError
        If ``qscheme`` is per tensor where per channel is needed or the other way.
    """
    if _qscheme(qscheme).is_per_channel != per_channel:
        accepted = ", ".join(s for s in QScheme if s.is_per_channel == per_channel)
        raise UnsupportedError(f"{observer} has the qschemes {accepted}, got {qscheme}")


def _check_factory_kwargs(factory_kwargs: Mapping[str, Any] | None) -> None:
    for key, value in (factory_kwargs or {}).items():
        accepted = {"device": ("cpu",), "dtype": ("float32", "torch.float32")}.get(key, ())
        if value is not None and str(value) not in accepted:
            raise UnsupportedError(
                f"factory_kwargs {key}={value}: observers keep float32 on the CPU only"
            )


def caller() -> int:
    """Return the ``stacklevel`` at which a warning points out of refquant."""
    depth, frame = 1, cast(Any, sys._getframe(1))
    while frame is not None and frame.f_globals.get("__name__", "").startswith("refquant."):
        depth, frame = depth + 1, frame.f_back
    return depth
