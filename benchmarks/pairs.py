"""The same work by refquant and by another, timed in turn and compared bit for bit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

import refquant
from refquant import Target
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor


class Pair(NamedTuple):
    """The same work by refquant and by another; both return what is compared.

    ``other`` says whose the second is; ``exact`` whether its bits are meant to be ours; ``wanted``
    the ratio to reach; ``note`` what else is to be known; ``macs`` products of bytes in it.
    """

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    wanted: float | None = None
    other: str = "torch"
    exact: bool = True
    note: str = ""
    macs: int = 0


class Row(NamedTuple):
    """What one pair took: seconds of the fastest runs, and the median of paired ratios."""

    pair: Pair
    equal: bool | None
    ours: float
    theirs: float
    median: float

    @property
    def ratio(self) -> float:
        """The other's time over ours."""
        return self.theirs / self.ours


def set_threads(threads: int) -> None:
    """Give torch and refquant so many threads."""
    torch.set_num_threads(threads)
    if set_num_threads := getattr(refquant, "set_num_threads", None):
        set_num_threads(threads)


def isa() -> str:
    """Return the instruction set of torch's own kernels here."""
    names = {"AVX512": "avx512_vnni", "AVX2": "avx2", "DEFAULT": "default"}
    return names[torch.backends.cpu.get_cpu_capability()]


def target(engine: str) -> Target:
    """Return what torch is now: the threads decide where its vectors end."""
    return Target(engine, isa(), torch.get_num_threads())


def kernel(name: str, engine: str = "fbgemm") -> Callable[..., Any]:
    """Return what a graph calls for an op: its checks were made when the graph was."""
    return OPS[name].bind(target(engine), fast=True)


def image(rng: np.random.Generator, *shape: int) -> QTensor:
    """Return activations in channels-last memory."""
    q = rng.integers(0, 128, (shape[0], *shape[2:], shape[1]), np.uint8)
    return QTensor(np.moveaxis(q, -1, 1), 0.03, 11)


def bits(result: Any) -> list[Any]:
    """Return the arrays in a result of refquant or torch."""
    if isinstance(result, tuple | list):
        return [array for part in result for array in bits(part)]
    if isinstance(result, torch.Tensor):
        return [(result.int_repr() if result.is_quantized else result).numpy()]
    return [result.int_repr if isinstance(result, QTensor) else np.asarray(result)]


def is_equal(pair: Pair) -> bool:
    """Whether both give equal arrays."""
    ours, theirs = bits(pair.ours()), bits(pair.theirs())
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def seconds(call: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(pair: Pair, budget: float = 0.3, least: int = 7, most: int = 200) -> Row:
    """Run both in turn, for about ``budget`` seconds and at least ``least`` times."""
    equal = is_equal(pair) if pair.exact else None
    pair.ours(), pair.theirs()
    once = seconds(pair.ours) + seconds(pair.theirs)
    runs = min(max(least, int(budget / once)), most)
    times = [(seconds(pair.ours), seconds(pair.theirs)) for _ in range(runs)]
    ours, theirs = (min(column) for column in zip(*times, strict=True))
    return Row(pair, equal, ours, theirs, statistics.median(b / a for a, b in times))


HEADER = f"{'':50} {'other':12} equal   ours us  other us  ratio  median  wanted"


def line(row: Row) -> str:
    """Return a row of the table."""
    equal = "-" if row.equal is None else str(row.equal)
    wanted = "" if row.pair.wanted is None else f"{row.pair.wanted:g}"
    return (
        f"{row.pair.name:50} {row.pair.other:12} {equal:5} {row.ours * 1e6:9.1f} "
        f"{row.theirs * 1e6:9.1f} {row.ratio:6.2f} {row.median:7.2f} {wanted:>7}"
    )


def report(pairs: Iterable[Pair], budget: float = 0.3) -> list[Row]:
    """Measure and print pairs."""
    print(HEADER)
    rows = []
    for pair in pairs:
        rows.append(measure(pair, budget))
        print(line(rows[-1]), flush=True)
    return rows
