"""Drawing what an observer saw; the only file that needs matplotlib (extra ``plot``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.histogram_observer import HistogramObserver
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.kernels.calculate_qparams import is_unobserved
from refquant.observer_base import UniformQuantizationObserverBase


def plot(observer: UniformQuantizationObserverBase, axes: Any = None) -> Any:
    """Draw the histogram with the chosen range and the clipped share, or the ranges.

    Parameters
    ----------
    observer : observer with statistics
        A ``HistogramObserver`` gives the counts, the observed and the chosen range, the clipped
        mass, and in a second plot the error of every range that the search tried. The others
        give one bar from minimum to maximum per channel.
    axes : matplotlib Axes, optional
        Where to draw; with it the error curve is left out. By default a new figure.

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
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("plot needs matplotlib; pip install 'refquant[plot]'") from None
    if is_unobserved(observer.min_val, observer.max_val):
        raise VerifyError(f"plot: {type(observer).__name__} has seen no data")
    if isinstance(observer, HistogramObserver):
        if axes is not None:
            _draw_histogram(observer, axes)
            return axes.figure
        figure = Figure(figsize=(10, 4), layout="constrained")
        first, second = figure.subplots(1, 2)
        _draw_histogram(observer, first)
        _draw_errors(observer, second)
        return figure
    if axes is None:
        axes = Figure(layout="constrained").subplots()
    _draw_ranges(observer, axes)
    return axes.figure


def _draw_histogram(observer: HistogramObserver, axes: Any) -> None:
    report = observer.report()
    low, high = float(observer.min_val), float(observer.max_val)
    edges = np.linspace(low, high, observer.bins + 1)
    axes.stairs(observer.histogram, edges, fill=True, label="observed")
    if report.chosen is not None and report.clipped is not None:
        left, right = report.chosen
        outside = (edges[:-1] < left) | (edges[1:] > right)
        axes.stairs(
            np.where(outside, observer.histogram, 0),
            edges,
            fill=True,
            color="tab:red",
            label=f"clipped {report.clipped:.3%}",
        )
        axes.axvspan(left, right, alpha=0.15, color="tab:green", label="chosen range")
    axes.set_yscale("symlog")
    axes.set_xlabel("value")
    axes.set_ylabel("elements in bin")
    axes.set_title(f"scale {report.scale[0]:.6g}, zero point {report.zero_point[0]}")
    axes.legend()


def _draw_errors(observer: HistogramObserver, axes: Any) -> None:
    found = observer.search()
    axes.plot(found.errors[:, 2], marker=".")
    kept = np.flatnonzero(
        (found.errors[:, 0] == found.start_bin) & (found.errors[:, 1] == found.end_bin)
    )
    if kept.size:
        at = kept[-1]
        axes.plot(at, found.errors[at, 2], "o", color="tab:green", label="chosen")
        axes.legend()
    axes.set_xlabel("range tried, from wide to narrow")
    axes.set_ylabel("quantization error")
    axes.set_title("search")


def _draw_ranges(observer: UniformQuantizationObserverBase, axes: Any) -> None:
    low, high = np.atleast_1d(observer.min_val), np.atleast_1d(observer.max_val)
    axes.bar(np.arange(low.size), high - low, bottom=low)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xlabel("channel" if low.size > 1 else "tensor")
    axes.set_ylabel("observed range")
    axes.set_title(type(observer).__name__)
