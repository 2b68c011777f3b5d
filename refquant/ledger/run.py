"""Running many cells: worker processes in the right environment, and what they report."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from tempfile import TemporaryFile
from typing import IO

from refquant.ir.target import Isa
from refquant.ledger.cell import Cell
from refquant.ledger.check import Outcome
from refquant.ledger.plan import ENVIRONMENTS

CHUNK = 250  # cells of one process
PATIENCE = 300  # seconds without a word, after which a process is given up

Report = Callable[[Cell, Outcome], None]


def environment(isa: Isa) -> dict[str, str]:
    """Return the variables of a process that stands for a machine."""
    quiet = {"OMP_WAIT_POLICY": "passive", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**os.environ, **quiet, **ENVIRONMENTS[isa]}


def run_all(
    cells: Sequence[Cell], elements: int, seed: int, jobs: int, report: Report
) -> dict[Cell, Outcome]:
    """Run cells in ``jobs`` processes at a time and return what each gave.

    A cell in which a process dies or falls silent has the status ``crash``; the rest goes on.
    """
    found: dict[Cell, Outcome] = {}

    def run_chunk(chunk: tuple[Cell, ...]) -> None:
        for cell, outcome in _run_chunk(chunk, elements, seed):
            found[cell] = outcome
            report(cell, outcome)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run_chunk, _chunks(cells)))
    return {cell: found[cell] for cell in cells}


def _chunks(cells: Sequence[Cell]) -> Iterator[tuple[Cell, ...]]:
    """Split cells by environment, then by number."""
    ordered = sorted(cells, key=lambda cell: list(Isa).index(cell.target.isa))
    for _, group in groupby(ordered, key=lambda cell: cell.target.isa):
        same = list(group)
        for start in range(0, len(same), CHUNK):
            yield tuple(same[start : start + CHUNK])


def _run_chunk(
    cells: tuple[Cell, ...], elements: int, seed: int
) -> Iterator[tuple[Cell, Outcome]]:
    """Run cells in one process after another, until all are done."""
    while cells:
        done = 0
        with TemporaryFile("w+") as errors:
            with closing(_in_process(cells, elements, seed, errors)) as outcomes:
                for cell, outcome in zip(cells, outcomes, strict=False):
                    yield cell, outcome
                    done += 1
            errors.seek(0)
            said = errors.read().strip().splitlines()
        if done < len(cells):
            yield cells[done], Outcome(status="crash", refusal=said[-1] if said else "silence")
            done += 1
        cells = cells[done:]


def _in_process(
    cells: tuple[Cell, ...], elements: int, seed: int, errors: IO[str]
) -> Generator[Outcome]:
    """Yield the outcomes of cells until the process ends, by itself or for its silence."""
    job = {
        "cells": [(cell.name, str(cell.target), cell.dtype.name) for cell in cells],
        "elements": elements,
        "seed": seed,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "refquant.ledger.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=environment(cells[0].target.isa),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(job))
    process.stdin.close()
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_forward, args=(process, lines), daemon=True).start()
    try:
        while (line := lines.get(timeout=PATIENCE)) is not None:
            yield Outcome(**json.loads(line)[1])
    except queue.Empty:
        pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _forward(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Pass on what a process prints, then None."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)
