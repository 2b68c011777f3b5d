"""Damaged models give a graph that runs or a clear refusal; ``nox -s fuzz``.

Not collected with the other tests: 10,000 mutants take minutes. :mod:`mutants` says what is
damaged. A worker process makes, imports and runs each, under limits of time and memory; one that
hangs or crashes is reported with its number and replaced.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from mutants import Source, mutant, sources

from refquant.importers.onnx import from_onnx
from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError
from refquant.ir.types import Dim

SECONDS = 20.0  # for one mutant
STARTING = 120.0  # for a worker to be ready
MEMORY = 4 * 2**30  # more than a worker has when it starts
FED = 2**24  # elements of one input; a graph that wants more is not run
OUTCOMES = ("ran", "refused at import", "refused at run", "too large to feed", "failed")


class Report(NamedTuple):
    """What became of one mutant."""

    seed: int
    outcome: str
    detail: str = ""


def told(source: Source, data: bytes) -> dict[str, Any]:
    """Return the shapes and constants for the inputs that a mutant still has."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        names = {x.name for x in model.graph.input}
    except (DecodeError, UnicodeDecodeError):
        return {}
    given = {"shapes": source.shapes, "constants": source.constants}
    return {key: {n: x for n, x in some.items() if n in names} for key, some in given.items()}


def outcome(known: list[Source], seed: int) -> Report:
    """Make, import and run one mutant."""
    source, done, data = mutant(known, seed)
    stage = "import"
    try:
        graph = from_onnx(data, **told(source, data), target=("onnx", "ort")[seed % 2])
        stage = "run"
        rng = np.random.default_rng(seed)
        fed = []
        for value in graph.inputs:
            shape = [2 * n.factor if isinstance(n, Dim) else n for n in value.type.shape]
            if np.prod([float(n) for n in shape]) > FED:
                return Report(seed, "too large to feed")
            drawn = rng.integers(0, 20, shape) if rng.random() < 0.5 else rng.normal(size=shape)
            fed.append(np.asarray(drawn).astype(value.type.dtype.storage))
        graph(*fed)
    except RefquantError as error:
        text = str(error)
        if type(error) not in KINDS and not isinstance(error, KINDS):
            return Report(seed, "failed", f"{source.name} {done}: {type(error)}: {text}")
        if "\n" in text or not text or "Unable to allocate" in text:
            return Report(seed, "failed", f"{source.name} {done}: message {text!r}")
        return Report(seed, f"refused at {stage}", text)
    except BaseException as error:
        where = _innermost(error)
        return Report(
            seed,
            "failed",
            f"{source.name} {done}: {stage}: {type(error).__name__}: {error}{where}",
        )
    return Report(seed, "ran")


KINDS = (VerifyError, UnsupportedError)


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"


def work(pipe: Any, known: list[Source]) -> None:
    """Answer seeds with reports, within the memory limit."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(None)
    while True:
        pipe.send(outcome(known, pipe.recv()))


class Worker:
    """A process that reports on mutants; it is replaced when it hangs or dies."""

    def __init__(self, known: list[Source]) -> None:
        self.known = known
        self.process: Any = None
        self.pipe: Any = None

    def start(self) -> None:
        """Start a process unless there is one."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, end = context.Pipe()
            self.process = context.Process(target=work, args=(end, self.known), daemon=True)
            self.process.start()
            end.close()
            assert self.pipe.poll(STARTING), "the worker does not start"
            self.pipe.recv()

    def answers(self, seed: int) -> bool:
        """Whether a mutant is done in time; the process that works on it for longer ends."""
        self.start()
        self.pipe.send(seed)
        in_time: bool = self.pipe.poll(SECONDS)
        if not in_time:
            self.stop()
        return in_time

    def report(self, seed: int) -> Report:
        """Return what becomes of a mutant."""
        # Again, because kernels may have been compiled, which are kept then.
        if not self.answers(seed) and not self.answers(seed):
            return Report(seed, "failed", f"{self.label(seed)}: no answer in {SECONDS} s, twice")
        try:
            report: Report = self.pipe.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.stop()
            return Report(seed, "failed", f"{self.label(seed)}: the process died with {code}")
        return report

    def label(self, seed: int) -> str:
        """Return the source of a mutant and what was done."""
        source, done, _ = mutant(self.known, seed)
        return f"{source.name} {done}"

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def run(folder: Path, seeds: range) -> tuple[list[Report], float]:
    """Return a report for each seed, and the seconds they took; failures are printed at once."""
    worker = Worker(sources(folder))
    reports = []
    worker.start()
    begin = time.perf_counter()
    try:
        for seed in seeds:
            reports.append(worker.report(seed))
            if reports[-1].outcome == "failed":
                print(failure(reports[-1]), flush=True)
    finally:
        worker.stop()
    return reports, time.perf_counter() - begin


def failure(report: Report) -> str:
    """Return a failure with the line that repeats it."""
    again = f"pytest tests/onnx/fuzz.py --mutants 1 --first-mutant {report.seed}"
    return f"mutant {report.seed}: {report.detail}\n    {again}"


def summary(reports: list[Report], seconds: float) -> str:
    """Return the counts of all outcomes."""
    counts = Counter(report.outcome for report in reports)
    rows = ", ".join(f"{counts[name]:,} {name}" for name in OUTCOMES)
    return f"{len(reports):,} mutants in {seconds:.0f} s: {rows}"


def test_mutants(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    first, count = (pytestconfig.getoption(name) for name in ("--first-mutant", "--mutants"))
    with capsys.disabled():
        reports, seconds = run(tmp_path, range(first, first + count))
        print(f"\n{summary(reports, seconds)}")
    failures = [failure(report) for report in reports if report.outcome == "failed"]
    assert not failures, "\n".join(failures)
