"""How much memory a network needs beside its packed weights, and whether it grows.

``python benchmarks/memory.py [--runs 1000]``. ResNet-50 in a process without torch. Arrays are
counted by tracemalloc, and the whole process by the operating system, both from the point where
its kernels are loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

NET = "resnet50"
WANTED = 1.3


class Memory(NamedTuple):
    """Bytes: what must be held, the peaks above it, and the growth over many runs."""

    weights: int
    activations: int  # the two largest
    arrays_first: int
    arrays_later: int
    process_first: int
    process_later: int
    growth: int
    runs: int

    @property
    def ratio(self) -> float:
        """The peak of arrays in a run over weights and two activations."""
        return self.arrays_later / (self.weights + self.activations)


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _child(path: str, runs: int) -> Memory:
    import tracemalloc

    import numpy as np

    import refquant
    from refquant import QTensor, load

    small = load(Path(refquant.__file__).parent / "data" / "digits_cnn.rq")
    small(np.zeros((1, 1, 8, 8), np.float32))  # loads the kernels
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    base = _resident("VmRSS")
    _reset_peak()
    graph = load(path)
    graph(x)
    process_first = _resident("VmHWM") - base
    graph(x)
    _reset_peak()
    before = _resident("VmRSS")
    for _ in range(runs):
        graph(x)
    growth, process_later = _resident("VmRSS") - before, _resident("VmHWM") - base
    sizes = sorted(
        prod(s if isinstance(s, int) else s.factor for s in value.type.shape)
        * value.type.dtype.storage.itemsize
        for node in graph.nodes
        for value in node.outputs
    )
    del graph
    tracemalloc.start()
    graph = load(path)
    graph(x)
    first = tracemalloc.get_traced_memory()[1]
    weights = sum(
        (p.int_repr if isinstance(p, QTensor) else p).nbytes for p in graph.parameters.values()
    )
    tracemalloc.reset_peak()
    graph(x)
    later = tracemalloc.get_traced_memory()[1]
    return Memory(
        weights, sum(sizes[-2:]), first, later, process_first, process_later, growth, runs
    )


def measure(runs: int = 1000) -> Memory:
    """Quantize the network here, and run it in another process."""
    import nets

    from refquant.importers import from_fx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.rq"
        from_fx(*nets.quantized_net(NET)).save(path)
        command = [sys.executable, __file__, "--child", str(path), "--runs", str(runs)]
        # tracemalloc cannot count what a thread pool of another library keeps.
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return Memory(*json.loads(done.stdout))


def rows(found: Memory) -> list[tuple[str, str, str]]:
    """Return what was measured: what, how much, and the target."""
    mega: Any = lambda size: f"{size / 1e6:.1f} MB"  # noqa: E731
    return [
        ("packed weights", mega(found.weights), ""),
        ("two largest activations", mega(found.activations), ""),
        (
            "arrays in a run, at most",
            f"{mega(found.arrays_later)}, {found.ratio:.2f}x",
            f"{WANTED}x",
        ),
        ("arrays while loading and in the first run", mega(found.arrays_first), ""),
        ("process in a run, beside its kernels", mega(found.process_later), ""),
        ("process while loading and in the first run", mega(found.process_first), ""),
        (f"growth over {found.runs} runs", mega(found.growth), "none"),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_child(arguments.child, arguments.runs)))
        return
    for what, size, wanted in rows(measure(arguments.runs)):
        print(f"{what:45} {size:>18}  {wanted}")


if __name__ == "__main__":
    main()
