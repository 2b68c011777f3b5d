"""Run the comparisons with torch at full length and write ``docs/exactness.md`` from the counts.

``python tests/exactness.py [--exhaustive] [--jobs 2]``. Each capability is a process of its own,
because torch reads it when it is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from refquant.machine import describe

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "exactness.md"
# What depends on the instruction set, and under avx512 also the rest.
DEPENDENT = ("test_histogram.py", "test_observers.py", "test_fake_quant_modules.py")
INDEPENDENT = (
    *("test_fake_quantize.py", "test_choose_qparams.py", "test_weights.py"),
    *("test_quantize.py", "test_decomposed.py"),
)
HEADER = """# Exactness: what was compared with torch, and how much of it differed

Written by `python tests/exactness.py` from the ledgers of the tests; nothing is entered by hand.
Equality is of bits, but that NaN equals NaN and -0 equals 0. `capability` is the value of
`ATEN_CPU_CAPABILITY`, which decides the instruction set of torch's own kernels; under avx2 and
default the subjects that depend on it are compared. A run that finds a difference fails and writes
no page. The same comparisons run in CI with smaller numbers (`pytest --ledger` prints them).

"""


def counts(files: Sequence[str], capability: str) -> dict[str, dict[str, str | int]]:
    """Run test files at full length under a capability; return their ledger."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.json"
        command = [sys.executable, "-m", "pytest", "-q", "--sweep", "--ledger-json", str(ledger)]
        command += [str(HERE / name) for name in files]
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
        done = subprocess.run(command, env=environment, cwd=HERE.parent, check=False)
        if done.returncode:
            raise SystemExit(f"exactness: tests failed under {capability}; the page is unchanged")
        content: dict[str, dict[str, str | int]] = json.loads(ledger.read_text())
        return content


def page(ledgers: dict[str, dict[str, dict[str, str | int]]]) -> str:
    """Return the page: a table for each capability."""
    facts = describe()
    names = ("cpu", "python", "torch", "numpy", "numba")
    lines = [HEADER + ", ".join(f"{name} {facts[name]}" for name in names) + "."]
    for capability, ledger in ledgers.items():
        lines += ["", f"## capability {capability}", "", "| subject | compared | mismatches |"]
        lines += ["|---|---:|---:|"]
        lines += [
            f"| {subject} | {count['compared']:,} {count['unit']} | {count['mismatches']} |"
            for subject, count in ledger.items()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exhaustive", action="store_true", help="also every float32 (minutes)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    arguments = parser.parse_args()
    runs = {
        "avx512": ((*DEPENDENT, *INDEPENDENT), "avx512"),
        "avx2": (DEPENDENT, "avx2"),
        "default": (DEPENDENT, "default"),
    }
    if arguments.exhaustive:
        runs["avx512, all inputs"] = (("exhaustive.py",), "avx512")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        ledgers = dict(zip(runs, pool.map(lambda run: counts(*run), runs.values()), strict=True))
    PAGE.write_text(page(ledgers))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
