"""One block of memory for values that live at different times."""

from __future__ import annotations

from typing import NamedTuple

ALIGNMENT = 64


class Lifetime(NamedTuple):
    """First and last step in which a value is used, and its bytes."""

    first: int
    last: int
    size: int

    def meets(self, other: Lifetime) -> bool:
        """Whether some step needs both."""
        return self.first <= other.last and other.first <= self.last


def assign(values: list[Lifetime]) -> tuple[list[int], int]:
    """Return the offset of each value, and the size of the block.

    The largest values are laid out first, each at the lowest offset where it overlaps none that
    lives at the same time.

    Examples
    --------
    >>> assign([Lifetime(0, 1, 64), Lifetime(1, 2, 128), Lifetime(2, 3, 64)])
    ([128, 0, 128], 192)
    """
    offsets = [0] * len(values)
    placed: list[int] = []
    for index in sorted(range(len(values)), key=lambda i: -values[i].size):
        value, offset = values[index], 0
        for other in sorted(placed, key=offsets.__getitem__):
            if not value.meets(values[other]):
                continue
            if offset + value.size <= offsets[other]:
                break
            end = offsets[other] + values[other].size
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[index] = offset
        placed.append(index)
    ends = [offset + value.size for offset, value in zip(offsets, values, strict=True)]
    return offsets, max(ends, default=0)
