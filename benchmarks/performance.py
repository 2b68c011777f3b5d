"""Run every benchmark and write docs/performance.md and docs/performance.svg.

``python benchmarks/performance.py [--quick] [--only networks] [--from FILE]``. Takes about a
quarter of an hour, or two minutes with ``--quick``. What was measured is kept in
``build/performance.json``, from which ``--from`` writes the page again. The exit code is 1 if
numbers that are meant to be equal are not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# NumPy's float products would otherwise take all cores, whatever torch is told.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import memory
import networks
import numpy as np
import observers
import operators
import others
import page
import peak
import startup
import torch
from pairs import Pair, line, measure, set_threads
from results import Result, write_results

from refquant import RefquantError

ROOT = Path(__file__).parent.parent
BOTH = (1, 2)


class Section(NamedTuple):
    """Pairs of one kind, for each number of threads, and the seconds for each of them."""

    name: str
    pairs: Callable[[int], Iterator[Pair]]
    budget: float
    threads: tuple[int, ...] = BOTH


def _observed() -> Iterator[Pair]:
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    for family in (observers.observers, observers.quantizers, observers.fake_quants):
        yield from family(x)


def _products(other: str) -> Callable[[int], Iterator[Pair]]:
    if other == "float32":
        return lambda _: others.in_float()
    if other == "onnxruntime":
        return others.in_onnxruntime
    return lambda _: operators.products(other)


def sections() -> list[Section]:
    """Return everything that is timed in pairs."""
    return [
        *(Section("products", _products(other), 0.2) for other in networks.OTHERS),
        *(
            Section("pointwise", lambda _, e=engine: operators.elementwise(e), 0.2)  # type: ignore[misc]
            for engine in ("fbgemm", "qnnpack")
        ),
        Section("pointwise", others.pointwise_in_onnxruntime, 0.2),
        Section("observers", lambda _: _observed(), 0.2, (1,)),
        *(
            Section("networks", lambda threads, o=other: networks.images(o, threads), 2.0)  # type: ignore[misc]
            for other in networks.OTHERS
        ),
        *(
            Section("networks", lambda threads, o=other: networks.sequences(o, threads), 2.0)  # type: ignore[misc]
            for other in ("fbgemm", "float32", "onnxruntime")
        ),
        Section("batch", lambda _: networks.by_batch(), 1.0),
        Section("size", lambda _: networks.by_size(), 1.0),
        Section("peak", lambda _: peak.against_peak(), 0.2, (1,)),
        Section("onnx.reference", lambda _: others.in_onnx_reference(), 0.5, (1,)),
        Section("onnx.reference", lambda _: others.network_in_onnx_reference(), 0.5, (1,)),
    ]


def _wanted(section: str, pair: Pair) -> float | None:
    """Return the ratio to reach on one thread."""
    if section == "products":
        dense = 1.5 if pair.name.startswith("depthwise") else 1.0
        return {"fbgemm": dense, "qnnpack": 10.0}.get(pair.other)
    return pair.wanted


def run(section: Section, quick: bool) -> Iterator[Result]:
    """Measure a section."""
    macs = peak.macs_by_name()
    for threads in section.threads[: 1 if quick else None]:
        set_threads(threads)
        names: Counter[str] = Counter()
        for pair in section.pairs(threads):
            names[pair.name] += 1
            if names[pair.name] > 1:  # other operands
                pair = pair._replace(name=f"{pair.name}, {names[pair.name]}")
            try:
                row = measure(pair, section.budget / (8 if quick else 1), least=3 if quick else 7)
            except (RuntimeError, IndexError, RefquantError) as error:  # by torch or refquant
                reason = str(error).partition("\n")[0]
                print(f"{threads} {pair.name} ({pair.other}) is refused: {reason}", flush=True)
                continue
            print(f"{threads} {line(row)}", flush=True)
            yield Result(
                section.name,
                pair.name,
                pair.other,
                threads,
                row.equal,
                row.ours,
                row.theirs,
                row.median,
                _wanted(section.name, pair) if threads == 1 else None,
                pair.note,
                pair.macs or macs.get(pair.name, 0),
            )


def collect(only: str, quick: bool) -> dict[str, Any]:
    """Measure everything, and describe the machine."""
    results: list[Result] = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for section in sections():
            if only in section.name:
                results += run(section, quick)
        start = list(startup.measure(1 if quick else 5)) if only in "startup" else []
        held = memory.measure(50 if quick else 1000) if only in "memory" else None
    return {
        "machine": page.machine(),
        "results": results,
        "startup": start,
        "memory": held,
    }


def main() -> int:
    """Measure or read, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="a section")
    parser.add_argument("--from", dest="source", type=Path, help="a performance.json")
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    began = time.perf_counter()
    if arguments.source:
        found = json.loads(arguments.source.read_text())
    else:
        found = collect(arguments.only, arguments.quick)
        write_results(found, ROOT / "build" / "performance.json")
        found = json.loads((ROOT / "build" / "performance.json").read_text())
    page.write(found, arguments.output)
    wrong = [row for row in map(Result._make, found["results"]) if row.equal is False]
    for row in wrong:
        print(f"NOT EQUAL: {row.name} ({row.other}, {row.threads} threads)")
    print(f"{len(found['results'])} pairs, in {time.perf_counter() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
