"""``python -m refquant.ledger``: compare every quantized operator with torch, write the ledger."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch and Numba start their threads

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.target import Target
from refquant.ir.types import DTYPES
from refquant.ledger import check, oracle, page
from refquant.ledger.cell import Cell
from refquant.ledger.check import Outcome
from refquant.ledger.draw import SAMPLERS
from refquant.ledger.known import is_expected
from refquant.ledger.plan import cells
from refquant.ledger.run import environment, run_all

SHORT, LONG = 1_000_000, 10_000_000  # elements a cell
_COMMAND = (sys.executable, "-m", "refquant.ledger")
out = Console(stderr=True)


def main(
    only: Annotated[str, typer.Option(help="Cells to run: a pattern such as '*::add*'.")] = "*",
    long: Annotated[bool, typer.Option("--long", help="Ten times the elements.")] = False,
    elements: Annotated[int, typer.Option(help="Elements a cell, instead.")] = 0,
    seed: Annotated[int, typer.Option(help="Another seed draws other samples.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes at a time.")] = os.cpu_count() or 1,
    write: Annotated[
        Path | None,
        typer.Option(help="Folder for ledger.md and ledger.json; cells not run stay in them."),
    ] = None,
    reproduce: Annotated[str, typer.Option(help="Run one sample of this cell and show it.")] = "",
    sample: Annotated[int, typer.Option(help="Which sample to reproduce.")] = 0,
) -> None:
    """Compare; exit code 1 if a result differs and that is not a known limit."""
    if reproduce:
        raise SystemExit(_reproduce(reproduce, sample, seed))
    chosen = list(cells(only))
    if not chosen:
        raise VerifyError(f"--only {only!r}: no cell matches; operators are {', '.join(SAMPLERS)}")
    started = time.perf_counter()
    unexpected: list[str] = []
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as bar:
        task = bar.add_task("cells", total=len(chosen))

        def report(cell: Cell, outcome: Outcome) -> None:
            bar.advance(task)
            if not is_expected(cell, outcome):
                unexpected.append(_line(cell, outcome, seed))
                bar.console.print(unexpected[-1])

        amount = elements or (LONG if long else SHORT)
        found = run_all(chosen, amount, seed, jobs, report)
    compared = sum(outcome.elements for outcome in found.values())
    wrong = sum(outcome.mismatches for outcome in found.values())
    seconds = time.perf_counter() - started
    print(
        f"{len(found):,} cells, {compared:,} elements, {wrong:,} mismatches, "
        f"{len(unexpected)} unexpected cells, {seconds:.0f} s"
    )
    if write:
        _write(write, found, seed)
    raise SystemExit(1 if unexpected else 0)


def _line(cell: Cell, outcome: Outcome, seed: int) -> str:
    if outcome.status == "crash":
        return f"{cell}: the process died or fell silent: {outcome.refusal}"
    again = f"--reproduce '{cell}' --sample {outcome.first} --seed {seed}"
    if outcome.status == "broken":
        return f"{cell}: {outcome.error}; {again}"
    return (
        f"{cell}: {outcome.mismatches} of {outcome.elements} elements differ, worst "
        f"{outcome.worst:g}; {again}"
    )


def _write(folder: Path, found: dict[Cell, Outcome], seed: int) -> None:
    """Write both files, each whole or not at all."""
    from refquant.ir.file import whole_file
    from refquant.machine import describe

    before = folder / "ledger.json"
    if before.exists():
        found = {**page.read(before.read_text()), **found}
    facts = describe()
    machine = {key: facts[key] for key in ("cpu", "python", "torch", "numpy", "numba")}
    names = oracle.names()
    for file, text in (
        ("ledger.json", page.as_json(found, names, machine, seed)),
        ("ledger.md", page.as_page(found, names, machine, seed)),
    ):
        with whole_file(folder / file) as part:
            part.write(text.encode())
    print(f"wrote {folder / 'ledger.md'} and {folder / 'ledger.json'}")


def _reproduce(text: str, index: int, seed: int) -> int:
    """Run one sample by torch, kernel and reference; print the first difference of each."""
    try:
        name, target, dtype = text.split(" ")
        cell = Cell(name, Target.parse(target), DTYPES[dtype])
    except (ValueError, KeyError):
        raise VerifyError(
            f"--reproduce {text!r}: expected 'operator engine/isa dtype', "
            "such as 'quantized::add fbgemm/avx2 quint8'"
        ) from None
    if name not in SAMPLERS:
        raise VerifyError(f"--reproduce: no samples for {name!r}")
    variables = environment(cell.target.isa)
    if variables != dict(os.environ):  # torch reads them when it is loaded
        return subprocess.run([*_COMMAND, *sys.argv[1:]], env=variables, check=False).returncode
    oracle.hide(cell.target.isa)
    cell, call = check.sample(cell, index, seed)
    print(f"{cell}, threads {cell.target.threads}, sample {index}, seed {seed}")
    for operand in call.operands:
        print(f"  operand {check.text_of(operand)}")
    for key, value in call.attributes.items():
        print(f"  {key} = {value!r}")
    expected = check.by_torch(cell, call)
    print(f"torch: {check.text_of(expected)}")
    wrong = 0
    for fast, executor in ((True, "kernel"), (False, "reference")):
        actual = check.by_refquant(cell, call, fast=fast)
        if isinstance(actual, Exception) or isinstance(expected, Exception):
            print(f"{executor}: {check.text_of(actual)}")
            continue
        compared, mismatches, worst = check.different(actual, expected)
        wrong += mismatches
        print(f"{executor}: {mismatches} of {compared} elements differ, worst {worst:g}")
        for line in check.differences(actual, expected):
            print(f"  {line}")
    return 1 if wrong else 0


def run() -> None:
    """Run the command; expected errors are one line and exit code 2."""
    try:
        typer.run(main)
    except (RefquantError, OSError) as error:
        print(f"refquant.ledger: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    run()
