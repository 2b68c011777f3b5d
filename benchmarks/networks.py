"""Time whole networks against torch's engines, float32 and onnxruntime, in turn in one process.

``python benchmarks/networks.py [--others fbgemm,onnxruntime] [--threads 1] [--budget 1]``. What
torch quantized is first compared bit for bit.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy has no call for it

import nets
import numpy as np
import sequence_nets
import torch
from onnx_nets import session, to_onnx
from pairs import Pair, report, set_threads, target
from torch import nn

from refquant import Graph
from refquant.importers import from_fx

ENGINES = ("fbgemm", "onednn", "x86", "qnnpack")
OTHERS = (*ENGINES, "float32", "onnxruntime")
# Times that refquant is to be faster by.
WANTED = {"fbgemm": 1.5, "onnxruntime": 1.1, "qnnpack": 10.0}
TITLES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2"}
Made = tuple[nn.Module, tuple[torch.Tensor]]


def imported(model: nn.Module, inputs: tuple[torch.Tensor, ...], engine: str) -> Graph:
    """Return torch's network in the IR, for this machine."""
    return from_fx(model, inputs, target=str(target(engine)))  # type: ignore[no-any-return]


def macs_of(graph: Graph, inputs: tuple[torch.Tensor, ...]) -> int:
    """Return the products of bytes in one run, the textbook ones."""
    total = 0
    values = graph.run(*(x.numpy() for x in inputs), record=True).values
    for node in graph.nodes:
        if node.op.startswith(("quantized::conv", "quantized::linear")):
            weight = node.inputs[1]
            assert weight is not None
            shape = graph.parameter(weight.name).shape
            total += int(np.prod(values[node.name].shape)) * int(np.prod(shape[1:]))
    return total


def against_torch(name: str, made: Made, engine: str, *, exact: bool = True) -> Pair:
    """Return a network that torch quantized for an engine."""
    model, inputs = made
    graph = imported(model, inputs, engine)
    x = inputs[0].numpy()
    torch.backends.quantized.engine = engine
    return Pair(
        name,
        lambda: graph(x),
        lambda: model(inputs[0]),
        WANTED.get(engine),
        engine,
        exact,
        macs=macs_of(graph, inputs),
    )


def _against_onnxruntime(name: str, made: Made, threads: int) -> Pair:
    model, inputs = made
    graph = imported(model, inputs, "fbgemm")
    runs = session(to_onnx(graph), threads)
    x, entry = inputs[0].numpy(), runs.get_inputs()[0].name
    theirs: Callable[[], Any] = lambda: runs.run(None, {entry: x})  # noqa: E731
    note = _difference(graph, graph(x), theirs()[0])
    return Pair(
        name,
        lambda: graph(x),
        theirs,
        WANTED["onnxruntime"],
        "onnxruntime",
        False,
        note,
        macs_of(graph, inputs),
    )


def _difference(graph: Graph, ours: Any, theirs: Any) -> str:
    """Say how far onnxruntime is, in steps of the last scale."""
    last = graph.nodes[-1].inputs[0]
    assert last is not None
    difference = np.abs(np.float64(ours) - theirs)
    if last.type.qparams is None:
        return f"differs from onnxruntime by {difference.max():.2g} at most"
    steps = np.rint(difference / last.type.qparams.scale)
    count = int((steps > 0).sum())
    return f"{count} of {steps.size} logits differ from onnxruntime's, by {steps.max():.0f} steps"


def _against_float(name: str, quantized: Made, model: nn.Module) -> Pair:
    inputs = quantized[1]
    graph = imported(*quantized, "fbgemm")
    x = inputs[0].numpy()
    return Pair(name, lambda: graph(x), lambda: model(inputs[0]), other="float32", exact=False)


def images(other: str, threads: int, size: int = 224) -> Iterator[Pair]:
    """Yield the convolutional networks against one other."""
    for name, title in TITLES.items():
        made = nets.quantized_net(name, size, other if other in ENGINES else "fbgemm")
        if other in ENGINES:
            yield against_torch(title, made, other)
        elif other == "float32":
            yield _against_float(title, made, nets.float_net(name, size))
        else:
            yield _against_onnxruntime(title, made, threads)


def sequences(other: str, threads: int) -> Iterator[Pair]:
    """Yield the networks of dynamic linears, of which fbgemm is the engine.

    A layer norm's sum is in torch's own order, so that the encoder's last bits are not promised.
    """
    encoder, recurrent = sequence_nets.quantized_encoder(), sequence_nets.quantized_lstm()
    names = "encoder, 2 layers of 768, 128 tokens", "LSTM, 2 layers of 512, 32 steps"
    if other == "fbgemm":
        yield against_torch(names[0], encoder, other, exact=False)
        yield against_torch(names[1], recurrent, other)
    elif other == "float32":
        yield _against_float(names[0], encoder, sequence_nets.encoder())
        yield _against_float(names[1], recurrent, sequence_nets.lstm())
    elif other == "onnxruntime":
        yield _against_onnxruntime(names[0], encoder, threads)


def by_batch(batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)) -> Iterator[Pair]:
    """Yield ResNet-18 on more and more images at once."""
    model, inputs = nets.quantized_net("resnet18")
    for batch in batches:
        images = torch.randn(batch, *inputs[0].shape[1:])
        pair = against_torch(f"ResNet-18, batch {batch}", (model, (images,)), "fbgemm")
        yield pair._replace(wanted=None)


def by_size(sizes: tuple[int, ...] = (64, 128, 224, 320, 512)) -> Iterator[Pair]:
    """Yield ResNet-18 on larger and larger images."""
    for size in sizes:
        made = nets.quantized_net("resnet18", size)
        pair = against_torch(f"ResNet-18, image {size}", made, "fbgemm")
        yield pair._replace(wanted=None)


def main() -> None:
    """Print a line for each pair: microseconds, the ratio of the fastest runs, the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--others", default=",".join(OTHERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=1.0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    set_threads(arguments.threads)
    with torch.no_grad():
        for other in arguments.others.split(","):
            report(images(other, arguments.threads), arguments.budget)
            report(sequences(other, arguments.threads), arguments.budget)


if __name__ == "__main__":
    main()
