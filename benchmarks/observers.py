"""Time observers, quantizers and fake-quants against torch, interleaved in one process.

``python benchmarks/observers.py [--elements 1000000]``. One thread. Every pair is
first compared bit for bit; ratios are torch's time over ours.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from pairs import Pair, isa, kernel, report
from torch.ao.quantization import observer as torch_observer

from refquant import Target, observer, qint8, qint32, quint8


def observers(x: Any) -> Iterator[Pair]:
    """Yield the observers' passes over the data, and the search of the histogram."""
    target = Target("fbgemm", isa())
    tensor = torch.from_numpy(x)

    def observe(module: Any, data: Any) -> Callable[[], Any]:
        def run() -> Any:
            module(data)
            return np.asarray(module.min_val), np.asarray(module.max_val)

        return run

    for name, wanted in (("MinMaxObserver", 1.3), ("MovingAverageMinMaxObserver", None)):
        ours, theirs = getattr(observer, name)(), getattr(torch_observer, name)()
        yield Pair(f"{name} forward", observe(ours, x), observe(theirs, tensor), wanted)
    rows, row_tensor = x.reshape(1000, -1), tensor.reshape(1000, -1)
    ours, theirs = observer.PerChannelMinMaxObserver(), torch_observer.PerChannelMinMaxObserver()
    name = "PerChannelMinMaxObserver forward"
    yield Pair(name, observe(ours, rows), observe(theirs, row_tensor))

    mine, other = observer.HistogramObserver(target=target), torch_observer.HistogramObserver()
    name = "HistogramObserver forward"
    yield Pair(name, observe(mine, x), observe(other, tensor), 4)

    def grow(make: Callable[[], Any], first: Any, second: Any) -> Callable[[], Any]:
        def run() -> Any:
            module = make()
            module(first)
            module(second)
            return np.asarray(module.histogram)

        return run

    yield Pair(
        "HistogramObserver, two batches that grow",
        grow(lambda: observer.HistogramObserver(target=target), x, x * 2),
        grow(torch_observer.HistogramObserver, tensor, tensor * 2),
    )
    yield Pair(
        "HistogramObserver.calculate_qparams",
        mine.calculate_qparams,
        lambda: tuple(np.asarray(value) for value in other.calculate_qparams()),
        5,
    )


def quantizers(x: Any) -> Iterator[Pair]:
    """Yield quantize and dequantize, per tensor and per channel."""
    tensor = torch.from_numpy(x)
    rows, row_tensor = x.reshape(1000, -1), tensor.reshape(1000, -1)
    scales = np.random.default_rng(1).uniform(0.01, 0.1, 1000)
    zero_points = np.arange(1000) % 100
    quantize = kernel("aten::quantize_per_tensor")
    per_channel = kernel("aten::quantize_per_channel")
    dequantize = kernel("aten::dequantize")
    for dtype in (quint8, qint8, qint32):
        kind = getattr(torch, dtype.name)
        first = dtype == quint8
        yield Pair(
            f"quantize_per_tensor {dtype}",
            lambda d=dtype: quantize(x, 0.02, 7, d),
            lambda k=kind: torch.quantize_per_tensor(tensor, 0.02, 7, k),
            1.2 if first else None,
        )
        q, q_tensor = quantize(x, 0.02, 7, dtype), torch.quantize_per_tensor(tensor, 0.02, 7, kind)
        yield Pair(
            f"dequantize {dtype}",
            lambda q=q: dequantize(q),
            lambda q=q_tensor: q.dequantize(),
            1.1 if first else None,
        )
        operands = torch.from_numpy(scales), torch.from_numpy(zero_points)
        yield Pair(
            f"quantize_per_channel {dtype}",
            lambda d=dtype: per_channel(rows, scales, zero_points, 0, d),
            lambda k=kind, o=operands: torch.quantize_per_channel(row_tensor, *o, 0, k),
        )
        q = per_channel(rows, scales, zero_points, 0, dtype)
        q_tensor = torch.quantize_per_channel(row_tensor, *operands, 0, kind)
        yield Pair(
            f"dequantize per channel {dtype}",
            lambda q=q: dequantize(q),
            lambda q=q_tensor: q.dequantize(),
        )


def fake_quants(x: Any) -> Iterator[Pair]:
    """Yield fake-quants with their mask, and their gradients."""
    tensor = torch.from_numpy(x)
    per_tensor = kernel("aten::fake_quantize_per_tensor_affine_cachemask")
    yield Pair(
        "fake_quantize per tensor, with mask",
        lambda: per_tensor(x, 0.02, 7, 0, 255),
        lambda: torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(tensor, 0.02, 7, 0, 255),
        10,
    )
    rng = np.random.default_rng(2)
    per_channel = kernel("aten::fake_quantize_per_channel_affine_cachemask")
    for axis, shape in ((0, (1000, -1)), (1, (-1, 1000))):
        rows, row_tensor = x.reshape(shape), tensor.reshape(shape)
        scale = rng.uniform(0.01, 0.1, 1000).astype(np.float32)
        zero_point = rng.integers(0, 99, 1000).astype(np.int32)
        operands = torch.from_numpy(scale), torch.from_numpy(zero_point)
        yield Pair(
            f"fake_quantize per channel of axis {axis}, with mask",
            lambda r=rows, s=scale, z=zero_point, a=axis: per_channel(r, s, z, a, 0, 255),
            lambda r=row_tensor, o=operands, a=axis: (
                torch.ops.aten.fake_quantize_per_channel_affine_cachemask(r, *o, a, 0, 255)
            ),
            10,
        )
    grad = rng.standard_normal(x.shape).astype(np.float32)
    mask = per_tensor(x, 0.02, 7, 0, 255)[1]
    backward = kernel("aten::fake_quantize_per_tensor_affine_cachemask_backward")
    torch_backward = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask_backward
    tensors = torch.from_numpy(grad), torch.from_numpy(mask)
    yield Pair(
        "fake_quantize backward",
        lambda: backward(grad, mask),
        lambda: torch_backward(*tensors),
    )
    scale, zero = np.array([0.02], np.float32), np.array([7.0], np.float32)
    learnable = kernel("aten::_fake_quantize_learnable_per_tensor_affine_backward")
    parameters = torch.from_numpy(scale), torch.from_numpy(zero)
    yield Pair(
        "LSQ backward",
        lambda: learnable(grad, x, scale, zero, 0, 255, 1.0),
        lambda: torch.ops.aten._fake_quantize_learnable_per_tensor_affine_backward(
            tensors[0], tensor, *parameters, 0, 255, 1.0
        ),
    )


def main() -> None:
    """Print a line for each pair: microseconds, the ratio of the fastest runs, the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=1_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    x = np.random.default_rng(0).standard_normal(arguments.elements).astype(np.float32)
    report(pair for family in (observers, quantizers, fake_quants) for pair in family(x))


if __name__ == "__main__":
    main()
