"""What a comparison of two graphs found: rows side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class GraphRow:
    """One line of a side by side table: a node of ours, of torch's, or both."""

    ours: str
    torch: str
    differences: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both are there and agree."""
        return bool(self.ours and self.torch) and not self.differences


@dataclass(frozen=True)
class GraphDiff:
    """Two graphs aligned node by node; false when they are the same."""

    rows: tuple[GraphRow, ...] = field(default=())

    @property
    def differences(self) -> tuple[GraphRow, ...]:
        """The rows that differ."""
        return tuple(row for row in self.rows if not row.equal)

    def __bool__(self) -> bool:
        return bool(self.differences)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "equal": not self,
            "rows": [asdict(row) | {"equal": row.equal} for row in self.rows],
        }

    def __str__(self) -> str:
        lines = [f"  {'ours':60} torch"]
        for row in self.rows:
            mark = " " if row.equal else "!"
            lines.append(f"{mark} {row.ours[:59]:60} {row.torch[:80]}")
            lines += [f"      {difference}" for difference in row.differences]
        count = len(self.differences)
        lines.append("the graphs are the same" if not count else f"{count} rows differ")
        return "\n".join(lines)
