"""Time prepare and convert against torch, and show that both are linear in the model's calls.

``python benchmarks/graph_mode.py [--runs 5] [--longest 10000]``. Every pair is first compared
node for node; ratios are our time over torch's, side by side in one process.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import nets
import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization import quantize_fx as torch_fx

from refquant import quantize_fx
from refquant.importers import from_fx, from_torch_config
from refquant.importers.torch_capture import capture_graph_module
from refquant.program_diff import program_diff

MAPPING = get_default_qconfig_mapping("fbgemm")
OURS = from_torch_config(MAPPING)


class Chain(nn.Module):
    """Linear layers and relus, one after the other, without a container to look them up in."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        for i in range(length):
            self.add_module(f"layer{i}", nn.Linear(4, 4) if i % 2 == 0 else nn.ReLU6())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the last layer returns."""
        for i in range(self.length):
            x = getattr(self, f"layer{i}")(x)
        return x


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that ``work`` took, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def check(ours: Any, theirs: Any, what: str) -> None:
    """Stop if the graphs are not the same."""
    difference = program_diff(ours.program, capture_graph_module(theirs))
    if difference:
        raise SystemExit(f"{what}: {difference}")


def steps(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    """Return the times of both sides for one pass through prepare and convert."""
    example = (torch.randn(shape),)
    source, another = copy.deepcopy(model), copy.deepcopy(model)
    prepare, prepared = timed(lambda: quantize_fx.prepare_fx(source, OURS, example))
    torch_prepare, theirs = timed(lambda: torch_fx.prepare_fx(another, MAPPING, example))
    check(prepared, theirs, "prepared")
    with torch.no_grad():
        theirs(*example)
    prepared.load_state_dict(theirs.state_dict())
    convert, converted = timed(lambda: quantize_fx.convert_fx(prepared))
    torch_convert, quantized = timed(lambda: torch_fx.convert_fx(theirs))
    check(converted, quantized, "converted")
    graph = from_fx(model, example)
    known, _ = timed(lambda: quantize_fx.prepare_fx(graph, OURS, None))
    return {
        "prepare": (prepare, torch_prepare),
        "prepare an imported graph": (known, torch_prepare),
        "convert": (convert, torch_convert),
        "prepare + convert": (prepare + convert, torch_prepare + torch_convert),
    }


def network(name: str, runs: int) -> None:
    """Print the ratios of one network."""
    model = nets.float_net(name)
    shape = (1, 3, 224, 224)
    steps(model, shape)
    rows = [steps(model, shape) for _ in range(runs)]
    for step in rows[0]:
        ours = min(row[step][0] for row in rows)
        theirs = min(row[step][1] for row in rows)
        ratios = [row[step][0] / row[step][1] for row in rows]
        print(
            f"{name:12} {step:26} ours {ours * 1e3:8.1f} ms, torch {theirs * 1e3:8.1f} ms, "
            f"ratio {ours / theirs:5.2f}, median {statistics.median(ratios):5.2f}"
        )


def chains(longest: int, torch_up_to: int = 100) -> None:
    """Print the time per call of chains of growing length."""
    print(f"{'layers':>7} {'prepare':>12} {'convert':>12}   microseconds a layer (torch's)")
    for length in (n for n in (100, 300, 1000, 3000, 10000) if n <= longest):
        model = Chain(length).eval()
        example = (torch.randn(2, 4),)
        graph = from_fx(model, example)
        prepare, prepared = timed(lambda: quantize_fx.prepare_fx(graph, OURS, None))  # noqa: B023
        prepared(torch.randn(2, 4).numpy())
        convert, _ = timed(lambda: quantize_fx.convert_fx(prepared))  # noqa: B023
        beside = ("", "")
        if length <= torch_up_to:
            spent, theirs = timed(lambda: torch_fx.prepare_fx(model, MAPPING, example))  # noqa: B023
            theirs(*example)
            later, _ = timed(lambda: torch_fx.convert_fx(theirs))  # noqa: B023
            beside = (f"({spent / length * 1e6:.0f})", f"({later / length * 1e6:.0f})")
        print(
            f"{length:7} {prepare / length * 1e6:7.0f} {beside[0]:>7} "
            f"{convert / length * 1e6:7.0f} {beside[1]:>7}"
        )


def main() -> None:
    """Time ResNet-50, and chains."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--longest", type=int, default=10000)
    arguments = parser.parse_args()
    torch.backends.quantized.engine = "fbgemm"
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("resnet18", "resnet50", "mobilenet_v2"):
            network(name, arguments.runs)
        chains(arguments.longest)


if __name__ == "__main__":
    main()
