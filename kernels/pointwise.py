"""How torch splits a pointwise kernel into threads, vector bodies and scalar tails."""

from __future__ import annotations

from refquant.ir.target import Target
from refquant.ir.types import DType

GRAIN = 32_768


def vector_width(dtype: DType) -> int:
    """Elements per step of ATen's quantized vector loop: 64 for 8-bit types, 16 for qint32."""
    return 64 if dtype.storage.itemsize == 1 else 16


def chunks(n: int, target: Target, width: int = 64) -> list[tuple[int, int, int]]:
    """Return ``(start, body_end, end)`` of each thread's part of ``n`` elements.

    Elements ``start..body_end`` go through the vector kernel, ``body_end..end`` through the
    scalar one, whose roundings differ.

    Examples
    --------
    >>> chunks(100, Target())
    [(0, 64, 100)]
    >>> chunks(100_000, Target(threads=2))
    [(0, 49984, 50000), (50000, 99984, 100000)]
    """
    parts = min(target.threads, -(-n // GRAIN)) if n > GRAIN else 1
    size = -(-n // parts) if n else 0
    ends = [(start, min(start + size, n)) for start in range(0, n, size)] if n else []
    return [(start, start + (end - start) // width * width, end) for start, end in ends]
