"""Samples of pools, resampling, padding and what else walks over the pixels of images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from refquant.ir.qtensor import QTensor
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw.tensors import Rng, quantized

Attributes = dict[str, Any]
CHANNELS = (1, 2, 3, 5, 8, 13, 16, 17, 31, 32, 33, 40, 63, 64, 65, 130)


def images(
    rng: Rng, cell: Cell, size: int, rank: int, *, batched: bool = False
) -> tuple[QTensor, tuple[int, ...]]:
    """Return a batch, now and then a single image, and its spatial size."""
    channels = int(rng.choice(CHANNELS))
    count = int(rng.integers(1, 4))
    edge = max(1, round((size / channels / count) ** (1 / rank)))
    spatial = tuple(max(1, edge + int(n)) for n in rng.integers(-2, 3, rank))
    if rng.random() < 0.08:
        spatial = (1,) * rank
    single = not batched and rng.random() < 0.15
    shape = (channels, *spatial) if single else (count, channels, *spatial)
    layout = "channels_last" if rng.random() < 0.5 and not single else "contiguous"
    return quantized(rng, shape, cell.dtype, layout), spatial


def _window(rng: Rng, spatial: tuple[int, ...]) -> Attributes:
    """Return a window that fits."""
    kernel = [int(rng.integers(1, min(n, 5) + 1)) for n in spatial]
    stride = [int(s) for s in rng.integers(1, 4, len(spatial))]
    return {
        "kernel_size": kernel,
        "stride": stride if rng.random() < 0.8 else [],
        "padding": [int(rng.integers(0, k // 2 + 1)) for k in kernel],
        "ceil_mode": bool(rng.integers(2)),
    }


def max_pool(rng: Rng, cell: Cell, size: int, rank: int) -> Call:
    """Draw a window, dilated now and then."""
    x, spatial = images(rng, cell, size, rank)
    attributes = _window(rng, spatial)
    fits = [
        2 if n + 2 * p > 2 * (k - 1) and rng.random() < 0.4 else 1
        for n, p, k in zip(spatial, attributes["padding"], attributes["kernel_size"], strict=True)
    ]
    return Call((x,), {**attributes, "dilation": fits})


def avg_pool(rng: Rng, cell: Cell, size: int, rank: int) -> Call:
    """Draw a window; padding counts or not, and the divisor may be given.

    Averages of integers lie on ties by themselves where the divisor is even.
    """
    x, spatial = images(rng, cell, size, rank)
    attributes = {**_window(rng, spatial), "count_include_pad": bool(rng.integers(2))}
    if rng.random() < 0.2:
        attributes["divisor_override"] = int(rng.integers(1, 9))
    return Call((x,), attributes)


def adaptive_avg_pool(rng: Rng, cell: Cell, size: int, rank: int) -> Call:
    """Draw a size of the result, often one pixel, sometimes more than there are."""
    x, spatial = images(rng, cell, size * 2**rank, rank)  # a window has about so many pixels
    pixel = rng.random() < 0.2
    sizes = [1 if pixel else int(rng.integers(1, n + 2)) for n in spatial]
    return Call((x,), {"output_size": sizes})


def _new_size(rng: Rng, spatial: tuple[int, ...]) -> Attributes:
    """Return a size, or factors: any, exactly 2, nearly 2, or so small that the size stays."""
    if rng.random() < 0.5:
        sizes = [max(1, int(n * rng.uniform(0.3, 2.5))) for n in spatial]
        return {"output_size": sizes, "scale_factors": None}
    spans = ((1, 3.3), (1, 1.15), (2, 2.15), (2, 2))
    factors = [float(rng.uniform(*spans[int(rng.integers(4))])) for _ in spatial]
    return {"output_size": None, "scale_factors": factors}


def upsample(rng: Rng, cell: Cell, size: int, rank: int) -> Call:
    """Draw a new size; bilinear corners are aligned or not."""
    x, spatial = images(rng, cell, size, rank, batched=True)
    attributes = _new_size(rng, spatial)
    if "bilinear" in cell.name:
        attributes["align_corners"] = bool(rng.integers(2))
    return Call((x,), attributes)


def grid_sampler(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw points inside and outside of the image, many exactly between two pixels."""
    x, spatial = images(rng, cell, size, 2, batched=True)
    points = (x.shape[0], int(rng.integers(1, 12)), max(1, spatial[1]), 2)
    grid = rng.uniform(-1.3, 1.3, points)
    if rng.random() < 0.5:
        grid = np.rint(grid * spatial[0]) / spatial[0]
    attributes = {
        "interpolation_mode": 0,
        "padding_mode": int(rng.integers(0, 2)),
        "align_corners": bool(rng.integers(2)),
    }
    return Call((x, grid.astype(np.float32)), attributes)


def reflection_pad(rng: Rng, cell: Cell, size: int, rank: int) -> Call:
    """Draw a padding shorter than each edge."""
    x, spatial = images(rng, cell, size, rank)
    padding = [int(rng.integers(0, min(n, 4))) for n in reversed(spatial) for _ in range(2)]
    return Call((x,), {"padding": padding})


def channel_shuffle(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a number of groups that divides the channels."""
    x, _ = images(rng, cell, size, 2, batched=True)
    groups = [n for n in range(1, x.shape[1] + 1) if x.shape[1] % n == 0]
    return Call((x,), {"groups": int(rng.choice(groups))})


SAMPLERS: dict[str, Sampler] = {
    **{f"aten::max_pool{n}d": partial(max_pool, rank=n) for n in (1, 2, 3)},
    **{f"aten::avg_pool{n}d": partial(avg_pool, rank=n) for n in (1, 2, 3)},
    **{f"aten::adaptive_avg_pool{n}d": partial(adaptive_avg_pool, rank=n) for n in (1, 2, 3)},
    "aten::_adaptive_avg_pool3d": partial(adaptive_avg_pool, rank=3),
    **{
        f"aten::{name}{n}d": partial(upsample, rank=n)
        for name in ("upsample_nearest", "_upsample_nearest_exact")
        for n in (2, 3)
    },
    "aten::upsample_bilinear2d": partial(upsample, rank=2),
    "aten::grid_sampler_2d": grid_sampler,
    "aten::channel_shuffle": channel_shuffle,
}
