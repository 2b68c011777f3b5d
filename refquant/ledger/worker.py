"""One process of the ledger: cells in, one line of JSON for each out.

Started by :mod:`refquant.ledger.run`, because torch reads the variables that choose its
instruction set when it is loaded.
"""

from __future__ import annotations

import json
import sys

from refquant.ir.target import Target
from refquant.ir.types import DTYPES
from refquant.ledger import check, oracle
from refquant.ledger.cell import Cell


def main() -> None:
    """Read a job from standard input and run it."""
    job = json.loads(sys.stdin.read())
    for target in {target for _, target, _ in job["cells"]}:
        oracle.hide(Target.parse(target).isa)
    for index, (name, target, dtype) in enumerate(job["cells"]):
        cell = Cell(name, Target.parse(target), DTYPES[dtype])
        outcome = check.run(cell, job["elements"], job["seed"])
        print(json.dumps([index, outcome.as_dict()]), flush=True)


if __name__ == "__main__":
    main()
