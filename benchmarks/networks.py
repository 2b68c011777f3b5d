"""Time whole networks against torch's fbgemm, side by side in one process, as ratios.

``python benchmarks/networks.py [--runs 20]``. Every pair is first compared bit for bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import nets
import torch

from refquant.compare import run_diff
from refquant.importers import from_fx


def seconds(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Print one line a network: milliseconds, and torch's time over ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    print("network        bit-exact  ours ms torch ms min ratio  median")
    for name in nets.NETS:
        model, inputs = nets.quantized_net(name)
        graph = from_fx(model, inputs)
        exact = run_diff(graph, model, inputs).bit_exact
        x = inputs[0].numpy()
        with torch.no_grad():
            pairs = [
                (seconds(lambda: graph(x)), seconds(lambda: model(inputs[0])))  # noqa: B023
                for _ in range(runs)
            ]
        ours, theirs = (min(times) for times in zip(*pairs, strict=True))
        median = statistics.median(b / a for a, b in pairs)
        print(
            f"{name:14} {exact!s:9} {ours * 1e3:8.1f} {theirs * 1e3:8.1f} "
            f"{theirs / ours:9.2f} {median:7.2f}"
        )


if __name__ == "__main__":
    main()
