"""Drawing what an observer saw; the only file that needs matplotlib (extra ``plot``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import UnsupportedError
from refquant.kernels.calculate_qparams import F32
from refquant.kernels.histogram_search import Search
from refquant.observer_report import ObserverReport


def new_axes(count: int = 1) -> list[Any]:
    """Return axes side by side on a new figure.

    Raises
    ------
    UnsupportedError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("plot needs matplotlib; pip install 'refquant[plot]'") from None
    figure = Figure(figsize=(5.5 * count, 4), layout="constrained")
    return list(np.atleast_1d(figure.subplots(1, count)))


def draw_histogram(axes: Any, counts: F32, report: ObserverReport) -> None:
    """Draw the counts, the chosen range and what it clips."""
    edges = np.linspace(float(report.min_val), float(report.max_val), counts.size + 1)
    axes.stairs(counts, edges, fill=True, label="observed")
    if report.chosen is not None and report.clipped is not None:
        low, high = report.chosen
        outside = (edges[:-1] < low) | (edges[1:] > high)
        label = f"clipped {report.clipped:.3%}"
        axes.stairs(np.where(outside, counts, 0), edges, fill=True, color="tab:red", label=label)
        axes.axvspan(low, high, alpha=0.15, color="tab:green", label="chosen range")
    axes.set_yscale("symlog")
    axes.set_xlabel("value")
    axes.set_ylabel("elements in bin")
    axes.set_title(f"scale {report.scale[0]:.6g}, zero point {report.zero_point[0]}")
    axes.legend()


def draw_search(axes: Any, found: Search) -> None:
    """Draw the error of every range that the search tried."""
    first, last, error = found.errors.T
    axes.plot(error, marker=".")
    chosen = np.flatnonzero((first == found.start_bin) & (last == found.end_bin))
    axes.plot(chosen[-1:], error[chosen[-1:]], "o", color="tab:green", label="chosen")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("range tried, from wide to narrow")
    axes.set_ylabel("quantization error")
    axes.set_title("search")
    axes.legend()


def draw_ranges(axes: Any, report: ObserverReport) -> None:
    """Draw a bar from minimum to maximum for each channel."""
    low, high = np.atleast_1d(report.min_val), np.atleast_1d(report.max_val)
    axes.bar(np.arange(low.size), high - low, bottom=low)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xlabel("channel" if low.size > 1 else "tensor")
    axes.set_ylabel("observed range")
    axes.set_title(report.observer)
