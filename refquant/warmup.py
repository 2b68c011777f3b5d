"""Compiling ahead: the kernels of a model, or those that most models need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from refquant.ir.errors import RefquantError
from refquant.ir.file import load
from refquant.ir.graph import Graph
from refquant.ir.op import OPS
from refquant.ir.target import Target
from refquant.sources import read_inputs

Work = tuple[str, Callable[[], Any]]
# A network of convolutions (also depthwise), linears, a residual sum, pools and a table.
_NETWORK = Path(__file__).parent / "data" / "digits_cnn.rq"
# What the network does not have: their documented cases are run.
_OPS = (
    *("quantized::linear_dynamic", "quantized::linear_relu_dynamic", "quantized::conv1d"),
    *("quantized::add", "quantized::mul", "quantized::cat", "aten::relu", "aten::sigmoid"),
    *("aten::tanh", "aten::hardtanh", "aten::mean", "aten::avg_pool2d", "aten::dequantize"),
    *("aten::quantize_per_tensor", "aten::quantize_per_channel"),
    "aten::fake_quantize_per_tensor_affine",
    "aten::fake_quantize_per_channel_affine",
)


def work_of(name: str, graph: Graph, target: Target | None) -> Work:
    """Return a run of a model on random input."""
    inputs = read_inputs([], graph, 1)
    return name, lambda: graph.run(*inputs, target=target)


def common_work(target: Target) -> list[Work]:
    """Return a run of a small network, and the cases of operators that it does not have."""
    work = [work_of("a convolutional network", load(_NETWORK), target)]
    for name in _OPS:
        op = OPS[name]
        if target.engine in op.kernels:
            work.append((name, lambda op=op: _run_cases(op, target)))  # type: ignore[misc]
    return work


def _run_cases(op: Any, target: Target) -> None:
    kernel = op.bind(target, fast=True)
    for case in op.cases:
        if not case.engines or target.engine in case.engines:
            try:
                kernel(*case.operands, **case.attributes)
            except RefquantError:  # a case of another instruction set
                continue
