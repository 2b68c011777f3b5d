"""What the suite measured, as a file and as tables by name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Result(NamedTuple):
    """One pair on a number of threads: whether equal, seconds, and the ratio that is wanted."""

    section: str
    name: str
    other: str
    threads: int
    equal: bool | None
    ours: float
    theirs: float
    median: float
    wanted: float | None
    note: str
    macs: int = 0

    @property
    def ratio(self) -> float:
        """The other's fastest run over ours."""
        return self.theirs / self.ours

    @property
    def missed(self) -> bool:
        """Whether the wanted ratio was not reached."""
        return self.wanted is not None and self.ratio < self.wanted


def peak_rate(results: Iterable[Result]) -> float:
    """Return the products of bytes a second that the chip can do; 0 where it was not measured."""
    rates = [row.macs / row.theirs for row in results if row.other == "peak"]
    return float(np.median(rates)) if rates else 0.0


def write_results(found: dict[str, Any], path: Path) -> None:
    """Keep what was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1))


def geometric_mean(results: Iterable[Result]) -> float:
    """Return the geometric mean of the ratios."""
    return float(np.exp(np.mean([np.log(row.ratio) for row in results])))
