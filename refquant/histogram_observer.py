"""``HistogramObserver``: a histogram whose range grows, and the best range to quantize."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.qtensor import Array
from refquant.ir.target import Target
from refquant.ir.types import (
    DType,
    QScheme,
    int16,
    int32,
    per_tensor_affine,
    qint32,
    quint8,
    uint16,
)
from refquant.kernels.calculate_qparams import F32, FLOAT32_EPS, is_unobserved
from refquant.kernels.histogram import (
    UPSAMPLE,
    Histogram,
    extremes_compiled,
    observe_compiled,
)
from refquant.kernels.histogram_search import Search, search_compiled
from refquant.observer_base import (
    UniformQuantizationObserverBase,
    caller,
    require_qscheme,
)
from refquant.observer_plot import draw_histogram, draw_search, new_axes
from refquant.observer_report import ObserverReport

_WIDE = {qint32: 2**32, int32: 2**32, int16: 2**16, uint16: 2**16}


class HistogramObserver(UniformQuantizationObserverBase):
    """Keep a histogram of all data and choose the range with the least quantization error.

    The histogram's range follows the data: where a batch exceeds it, the old counts are dealt to
    new bins. ``calculate_qparams`` narrows the range from both ends, in steps of one hundred
    thousandth of the counts, until the error of the quantized values would grow.

    Infinite elements are left out, with a warning. The bits depend on the target's instruction
    set (the range's subdivision is contracted to fused operations) and, above 16 million equal
    elements or 32,768 bins, on its number of threads.

    Parameters
    ----------
    bins : int
        Number of bins.
    dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic, target
        See ``UniformQuantizationObserverBase``; ``qscheme`` must be per tensor, ``is_dynamic``
        False and ``dtype`` not a float8 type.

    Examples
    --------
    >>> observer = HistogramObserver()
    >>> x = np.append(np.linspace(-1, 1, 10_000), 50.0)
    >>> _ = observer(x)
    >>> print(observer.report())
    HistogramObserver: quint8 per_tensor_affine [0, 255]
      seen        10001 elements in 1 batches
      range       -1 to 50
      chosen      -1 to 49.9750977, 0.0100% clipped
      scale       0.199902341
      zero point  5
    """

    histogram: F32

    def __init__(
        self,
        bins: int = 2048,
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
        require_qscheme("HistogramObserver", qscheme, per_channel=False)
        if is_dynamic:
            raise UnsupportedError("HistogramObserver cannot be dynamic")
        super().__init__(
            *(dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic),
            target=target,
        )
        if bins < 1:
            raise VerifyError(f"HistogramObserver: bins must be >= 1, got {bins}")
        if dtype.is_floating_point:
            raise VerifyError(f"HistogramObserver: dtype must be an integer type, got {dtype}")
        self.bins = bins
        self.upsample_rate = UPSAMPLE
        self.dst_nbins = _WIDE.get(dtype, 2**8)
        empty = Histogram.empty(bins)
        self.register_buffer("histogram", empty.counts)
        self.register_buffer("min_val", np.array(np.inf, np.float32))
        self.register_buffer("max_val", np.array(-np.inf, np.float32))

    def observe(self, x: Array) -> None:
        """Count the elements, over a wider range if need be."""
        state = self._state()
        seen = extremes_compiled(x)
        after = observe_compiled(state, x, self.target, seen)
        if seen.has_infinity:
            warnings.warn(
                "HistogramObserver: infinite elements are left out of the histogram",
                UserWarning,
                stacklevel=caller(),
            )
        self.histogram = after.counts
        self.min_val, self.max_val = np.asarray(after.minimum), np.asarray(after.maximum)

    def _state(self) -> Histogram:
        if self.histogram.shape != (self.bins,):
            raise VerifyError(
                f"HistogramObserver: the histogram has shape {list(self.histogram.shape)}, "
                f"but bins is {self.bins}"
            )
        return Histogram(self.histogram, np.float32(self.min_val), np.float32(self.max_val))

    def search(self) -> Search:
        """Return the range with the least quantization error, and the errors met on the way.

        Raises
        ------
        VerifyError
            If the state has no usable range.
        """
        return search_compiled(self._state(), self.dst_nbins, self.target)

    def calculate_qparams(self) -> tuple[F32, Array]:
        """Return scale and zero point for the range with the least error.

        Returns
        -------
        scale : float32, shape (1,)
        zero_point : int32 or int64, shape (1,)
            Before any data 1 and 0, with a ``UserWarning``.
        """
        if is_unobserved(self.min_val, self.max_val):
            return self._calculate_qparams(self.min_val, self.max_val)
        found = self.search()
        return self._calculate_qparams(np.asarray(found.minimum), np.asarray(found.maximum))

    def report(self) -> ObserverReport:
        """Return what was observed and what was chosen, to print or to read."""
        report = super().report()
        if is_unobserved(self.min_val, self.max_val):
            return report
        found = self.search()
        kept = float(np.sum(self.histogram[found.start_bin : found.end_bin + 1], dtype=np.float64))
        total = float(np.sum(self.histogram, dtype=np.float64))
        return replace(
            report,
            chosen=(float(found.minimum), float(found.maximum)),
            clipped=1 - kept / total if total and self.min_val < self.max_val else 0.0,
        )

    def plot(self, axes: Any = None) -> Any:
        """Draw the histogram, the chosen range and what it clips, and the errors of the search.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            Where to draw the histogram, alone; a new figure with both by default.

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
        first, *rest = new_axes(2) if axes is None else [axes]
        draw_histogram(first, self.histogram, self.report())
        if rest:
            draw_search(rest[0], self.search())
        return first.figure

    def _upgrade(self, local: dict[str, Array], version: int | None) -> dict[str, Array]:
        """Give the empty minimum and maximum of versions below 3 their values of today."""
        local = dict(super()._upgrade(local, version))
        if version is None or version < 3:
            for name, unset in (("min_val", np.inf), ("max_val", -np.inf)):
                if name in local and local[name].shape == (0,):
                    local[name] = np.array(unset, np.float32)
        return local
