"""Time int8 operators against torch's engines, in turn in one process, as ratios.

``python benchmarks/operators.py [--only 3x3] [--engines fbgemm,onednn] [--budget 0.3]``. One
thread. Every pair is first compared bit for bit.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from elementwise import elementwise
from pairs import Pair, image, kernel, report, set_threads

from refquant import QTensor, qint8
from refquant.importers.fx_torch import to_torch
from refquant.ir.op import OPS

# rows, K, columns
PRODUCTS = (
    *((1, 1, 1), (1, 64, 64), (1, 512, 1000), (1, 1024, 1024), (4, 512, 1000), (8, 768, 768)),
    *((16, 16, 16), (16, 64, 256), (16, 1024, 1024), (64, 64, 64), (64, 256, 1024)),
    *((256, 256, 256), (256, 64, 1024), (1024, 1024, 1024), (1024, 1024, 64)),
    *((128, 768, 768), (128, 768, 3072), (128, 3072, 768)),
)
# inputs, outputs, kernel, stride, size of the image, groups, dilation
CONVOLUTIONS = (
    *((3, 64, 7, 2, 224, 1, 1), (64, 64, 3, 1, 56, 1, 1), (64, 128, 3, 2, 56, 1, 1)),
    *((128, 128, 3, 1, 28, 1, 1), (256, 256, 3, 1, 14, 1, 1), (512, 512, 3, 1, 7, 1, 1)),
    *((64, 256, 1, 1, 56, 1, 1), (1024, 256, 1, 1, 14, 1, 1), (256, 512, 1, 2, 56, 1, 1)),
    *((3, 32, 3, 2, 224, 1, 1), (16, 96, 1, 1, 112, 1, 1), (24, 144, 1, 1, 56, 1, 1)),
    *((576, 96, 1, 1, 14, 1, 1), (320, 1280, 1, 1, 7, 1, 1), (2048, 512, 1, 1, 7, 1, 1)),
    *((128, 128, 3, 1, 56, 32, 1), (256, 256, 3, 1, 28, 1, 2), (32, 64, 5, 1, 28, 1, 1)),
)
# channels, kernel, stride, size of the image
DEPTHWISE = (
    *((32, 3, 1, 112), (96, 3, 2, 112), (144, 3, 1, 56), (192, 3, 2, 56), (384, 3, 1, 14)),
    *((576, 3, 2, 14), (960, 3, 1, 7), (240, 5, 1, 14)),
)


def weights(rng: np.random.Generator, *shape: int) -> QTensor:
    """Return weights quantized per channel."""
    q = rng.integers(-127, 128, shape).astype(np.int8)
    scales = rng.uniform(0.001, 0.01, shape[0])
    return QTensor(q, scales, np.zeros(shape[0], np.int64), 0, qint8)


def linear(engine: str, rows: int, depth: int, columns: int) -> Pair:
    """Return a linear with bias."""
    rng = np.random.default_rng([rows, depth, columns])
    x = QTensor(rng.integers(0, 128, (rows, depth), np.uint8), 0.03, 11)
    weight = weights(rng, columns, depth)
    bias = rng.normal(size=columns).astype(np.float32)
    ours = kernel("quantized::linear", engine)
    pack = OPS["quantized::linear"].pack
    assert pack is not None
    packed, scale = pack(weight), 0.02 * depth**0.5
    torch_packed = torch.ops.quantized.linear_prepack(to_torch(weight), torch.from_numpy(bias))
    tensor = to_torch(x)
    return Pair(
        f"linear {rows} x {depth} x {columns}",
        lambda: ours(x, packed, bias, scale, 60),
        lambda: torch.ops.quantized.linear(tensor, torch_packed, scale, 60),
        other=engine,
    )


def convolution(
    engine: str,
    inputs: int,
    outputs: int,
    size: int,
    stride: int,
    edge: int,
    groups: int,
    dilation: int,
) -> Pair:
    """Return a convolution with bias and relu whose padding keeps the size."""
    rng = np.random.default_rng([inputs, outputs, size, edge])
    x = image(rng, 1, inputs, edge, edge)
    weight = weights(rng, outputs, inputs // groups, size, size)
    bias = rng.normal(size=outputs).astype(np.float32)
    padding = dilation * (size - 1) // 2
    geometry: dict[str, Any] = {
        **{"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (dilation,) * 2},
        "groups": groups,
    }
    name = "quantized::conv2d_relu"
    ours, pack = kernel(name, engine), OPS[name].pack
    assert pack is not None
    output = {"scale": 0.02 * (inputs // groups * size * size) ** 0.5, "zero_point": 3}
    packed = pack(weight, **geometry, **output)
    lists = [list(value) for value in list(geometry.values())[:3]]
    torch_packed = torch.ops.quantized.conv2d_prepack(
        to_torch(weight), torch.from_numpy(bias), *lists, groups
    )
    tensor = to_torch(x)
    kind = "depthwise" if groups == inputs else "conv"
    more = (f" groups {groups}" if 1 < groups < inputs else "") + f" dilated {dilation}" * (
        dilation > 1
    )
    return Pair(
        f"{kind} {size}x{size}/{stride} {inputs} to {outputs} at {edge}{more}",
        lambda: ours(x, packed, bias, **geometry, **output),
        lambda: torch.ops.quantized.conv2d_relu(tensor, torch_packed, *output.values()),
        other=engine,
    )


def products(engine: str) -> Iterator[Pair]:
    """Yield linears, convolutions and depthwise convolutions."""
    torch.backends.quantized.engine = engine
    for shape in PRODUCTS:
        yield linear(engine, *shape)
    for geometry in CONVOLUTIONS:
        yield convolution(engine, *geometry)
    for channels, size, stride, edge in DEPTHWISE:
        yield convolution(engine, channels, channels, size, stride, edge, channels, 1)


def main() -> None:
    """Print a line for each pair: microseconds, the ratio of the fastest runs, the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--engines", default="fbgemm")
    parser.add_argument("--budget", type=float, default=0.3)
    arguments = parser.parse_args()
    set_threads(1)
    warnings.simplefilter("ignore")
    for engine in arguments.engines.split(","):
        every = (pair for family in (products, elementwise) for pair in family(engine))
        rows = report((pair for pair in every if arguments.only in pair.name), arguments.budget)
        ratios = [row.ratio for row in rows]
        print(f"{engine}: geometric mean {np.exp(np.mean(np.log(ratios))):.2f}\n")


if __name__ == "__main__":
    main()
