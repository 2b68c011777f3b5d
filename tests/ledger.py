"""What was compared with torch, counted: ``pytest --ledger`` prints it, a test fills it."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Count:
    """How much of one subject was compared, and how much of it differed."""

    unit: str = "elements"
    compared: int = 0
    mismatches: int = 0


@dataclass
class Ledger:
    """Counts by subject, of all tests of one run.

    ``sweep`` says whether this run is a long one.
    """

    sweep: bool = False
    counts: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))

    def size(self, short: int, full: int) -> int:
        """Return how much to do: ``short`` in CI, ``full`` under ``pytest --sweep``."""
        return full if self.sweep else short

    def equal(self, subject: str, actual: Any, expected: Any) -> None:
        """Compare elements for equality (NaN equals NaN, -0 equals 0) and count them."""
        actual, expected = np.asarray(actual), np.asarray(expected)
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), subject
        if actual.dtype.kind not in "biuf":  # bfloat16 and fp8 of ml_dtypes
            actual, expected = actual.astype(np.float32), expected.astype(np.float32)
        count = self.counts[subject]
        count.compared += actual.size
        if np.array_equal(actual, expected):
            return
        same = (actual == expected) | ((actual != actual) & (expected != expected))
        count.mismatches += int(np.count_nonzero(~same))
        np.testing.assert_array_equal(actual, expected, err_msg=subject)

    def run(self, subject: str, same: bool, why: str = "") -> None:
        """Count one whole run, such as an observer fed with several batches."""
        count = self.counts[subject]
        count.unit = "runs"
        count.compared += 1
        count.mismatches += not same
        assert same, f"{subject}: {why}"

    def lines(self) -> list[str]:
        """Return the table, a line for each subject."""
        return [
            f"{subject:<60} {count.compared:>14,} {count.unit:<8} {count.mismatches:>4} mismatches"
            for subject, count in sorted(self.counts.items())
        ]

    def write(self, path: Path) -> None:
        """Write the counts as JSON."""
        path.write_text(json.dumps({k: vars(v) for k, v in sorted(self.counts.items())}))
