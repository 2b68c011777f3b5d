"""What an observer has seen and chosen, as one record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refquant.ir.qtensor import Array
from refquant.ir.types import DType, QScheme


@dataclass(frozen=True)
class ObserverReport:
    """What an observer has seen and chosen; ``print`` shows it.

    Parameters
    ----------
    observer : str
        Class name.
    dtype, qscheme, quant_min, quant_max
        Settings.
    batches, elements : int
        How much data was observed, in calls and in elements.
    min_val, max_val : float32 arrays
        The observed range.
    scale, zero_point : arrays
        What ``calculate_qparams`` returns.
    chosen : (float, float) or None
        The range that ``HistogramObserver`` kept.
    clipped : float or None
        Share of the histogram outside of ``chosen``.
    """

    observer: str
    dtype: DType
    qscheme: QScheme
    quant_min: int
    quant_max: int
    batches: int
    elements: int
    min_val: Array
    max_val: Array
    scale: Array
    zero_point: Array
    chosen: tuple[float, float] | None = None
    clipped: float | None = None

    def __str__(self) -> str:
        kind = f"{self.dtype} {self.qscheme} [{self.quant_min}, {self.quant_max}]"
        lines = [
            f"{self.observer}: {kind}",
            f"  seen        {self.elements} elements in {self.batches} batches",
        ]
        if self.min_val.size:
            lines.append(f"  range       {_short(self.min_val)} to {_short(self.max_val)}")
        if self.chosen is not None and self.clipped is not None:
            low, high = self.chosen
            lines.append(f"  chosen      {low:.9g} to {high:.9g}, {self.clipped:.4%} clipped")
        lines.append(f"  scale       {_short(self.scale)}")
        lines.append(f"  zero point  {_short(self.zero_point)}")
        return "\n".join(lines)


def _short(values: Array) -> str:
    flat: list[Any] = np.ravel(values).tolist()
    shown = ", ".join(f"{value:.9g}" for value in flat[:4])
    return shown if len(flat) <= 4 else f"{shown}, ... ({len(flat)} channels)"
