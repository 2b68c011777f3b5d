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

    @property
    def ratio(self) -> float:
        """The other's fastest run over ours."""
        return self.theirs / self.ours

    @property
    def missed(self) -> bool:
        """Whether the wanted ratio was not reached."""
        return self.wanted is not None and self.ratio < self.wanted


def write_results(found: dict[str, Any], path: Path) -> None:
    """Keep what was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1))


def geometric_mean(results: Iterable[Result]) -> float:
    """Return the geometric mean of the ratios."""
    return float(np.exp(np.mean([np.log(row.ratio) for row in results])))
