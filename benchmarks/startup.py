"""How long it takes from starting Python to a first result, with kernels kept or compiled.

``python benchmarks/startup.py [--runs 5]``. Each line is the fastest of several fresh processes
without torch; "cold" has an empty cache of kernels.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CONVOLUTION = """
import numpy as np, refquant
from refquant.ir.op import OPS
x = refquant.QTensor(np.zeros((1, 64, 14, 14), np.uint8), 0.1, 0)
w = refquant.QTensor(np.ones((64, 64, 3, 3), np.int8), 0.1, 0, None, refquant.qint8)
geometry = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, scale=1.0, zero_point=0)
op = OPS["quantized::conv2d"]
op.bind(refquant.Target(), fast=True)(x, op.pack(w, **geometry), None, **geometry)
"""
NETWORK = """
import numpy as np, refquant
x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
refquant.load({path!r})(x)
"""


class Start(NamedTuple):
    """Seconds from start to the end of a process, and how many are wanted at most.

    ``cpu`` is the processor's time in it, which others on the machine do not lengthen.
    """

    what: str
    seconds: float
    cpu: float
    wanted: float


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(
    command: list[str], cache: str, runs: int, *, cold: bool = False
) -> tuple[float, float]:
    times = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as empty:
            env = {**os.environ, "NUMBA_CACHE_DIR": empty if cold else cache}
            start, before = time.perf_counter(), _cpu()
            subprocess.run(command, check=True, env=env, capture_output=True)
            times.append((time.perf_counter() - start, _cpu() - before))
    return min(times)


def measure(runs: int = 5) -> Iterator[Start]:
    """Yield each line as it is measured."""
    import nets

    from refquant.importers import from_fx

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "net.rq")
        from_fx(*nets.quantized_net("resnet18")).save(path)
        python = [sys.executable, "-c"]
        network, warmup = NETWORK.format(path=path), ["-m", "refquant", "warmup", path]
        empty = _seconds([*python, "import numpy"], folder, runs)
        yield Start("import numpy, to compare with", *empty, float("inf"))
        yield Start("import refquant", *_seconds([*python, "import refquant"], folder, runs), 0.6)
        cold = _seconds([*python, network], folder, 1 + runs // 3, cold=True)
        yield Start("ResNet-18 to its first result, cold", *cold, 10.0)
        _seconds([*python, network], folder, 1)
        warm = _seconds([*python, network], folder, runs)
        yield Start("ResNet-18 to its first result, warm", *warm, float("inf"))
        _seconds([*python, CONVOLUTION], folder, 1)
        yield Start("one conv2d, warm", *_seconds([*python, CONVOLUTION], folder, runs), 1.5)
        again = _seconds([sys.executable, *warmup], folder, runs)
        yield Start("refquant warmup of a warm ResNet-18", *again, 2.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    for row in measure(parser.parse_args().runs):
        wanted = "" if row.wanted == float("inf") else f"at most {row.wanted:g}"
        print(f"{row.what:40} {row.seconds:6.2f} s, CPU {row.cpu:5.2f} s  {wanted}", flush=True)


if __name__ == "__main__":
    main()
