"""``onnx::RoiAlign``: regions of a map, sampled between its pixels and pooled."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType, int64
from refquant.kernels.onnx.operator import operator


def reference(
    X: Array,  # noqa: N803
    rois: Array,
    batch_indices: Array,
    *,
    mode: str,
    output_height: int,
    output_width: int,
    sampling_ratio: int,
    spatial_scale: float,
    half_pixel: bool,
) -> Array:
    """Divide each region into bins and return the average, or largest, of samples in each.

    A sample between pixels is the sum of the four around it, weighted by nearness; one more than
    a pixel outside is 0. The largest is that of the weighted pixels, not of their sums.

    Parameters
    ----------
    X : float tensor (N, C, H, W)
    rois : float tensor (R, 4)
        Left, top, right, bottom of each region.
    batch_indices : int64 tensor (R,)
        Which image.
    mode : {"avg", "max"}
    output_height, output_width : int
        Number of bins.
    sampling_ratio : int
        Samples along each axis of a bin; 0 for as many as a bin has pixels.
    spatial_scale : float
        From the units of the regions to pixels.
    half_pixel : bool
        Whether pixel centres lie at halves; otherwise regions are at least one pixel long.

    Returns
    -------
    float tensor (R, C, output_height, output_width)

    Raises
    ------
    VerifyError
        If an image does not exist.

    Examples
    --------
    >>> how = dict(mode="avg", output_height=1, output_width=1, sampling_ratio=2)
    >>> x, box, first = np.float32([[[[1, 2], [3, 4]]]]), np.float32([[0, 0, 1, 1]]), np.int64([0])
    >>> reference(x, box, first, **how, spatial_scale=1.0, half_pixel=False)
    array([[[[2.5]]]], dtype=float32)
    """
    bins = (output_height, output_width)
    out = np.zeros((len(rois), X.shape[1], *bins), X.dtype)
    if batch_indices.size and not 0 <= batch_indices.min() <= batch_indices.max() < len(X):
        raise VerifyError(f"RoiAlign: batch_indices must lie in [0, {len(X)})")
    shift = 0.5 if half_pixel else 0.0
    for r, (box, image) in enumerate(zip(rois, batch_indices, strict=True)):
        left, top, right, bottom = box.astype(np.float64) * spatial_scale - shift
        height, width = bottom - top, right - left
        if not half_pixel:
            height, width = max(height, 1.0), max(width, 1.0)
        rows = _samples(top, height, bins[0], sampling_ratio, X.shape[2])
        columns = _samples(left, width, bins[1], sampling_ratio, X.shape[3])
        out[r] = _pooled(X[image], rows, columns, mode)
    return out


# Of each bin's samples along an axis: the two pixels, and the weights of both.
Samples = tuple[Any, Any, Any, Any]


def _samples(start: float, length: float, bins: int, ratio: int, size: int) -> Samples:
    """Return where the samples of each bin lie: (bins, samples)."""
    step = length / bins
    count = ratio if ratio > 0 else max(1, int(np.ceil(step)))
    place = start + step * (np.arange(bins)[:, None] + (np.arange(count) + 0.5) / count)
    outside = (place < -1.0) | (place > size)
    place = np.clip(place, 0, None)
    low = np.minimum(np.floor(place).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    fraction = np.where(low >= size - 1, 0.0, place - low)
    weight = np.where(outside, 0.0, 1.0)
    return low, high, (1 - fraction) * weight, fraction * weight


def _pooled(image: Array, rows: Samples, columns: Samples, mode: str) -> Array:
    parts = []
    for row, row_weight in ((rows[0], rows[2]), (rows[1], rows[3])):
        for column, column_weight in ((columns[0], columns[2]), (columns[1], columns[3])):
            index: Any = (slice(None), row[:, :, None, None], column[None, None])
            weights = row_weight[:, :, None, None] * column_weight[None, None]
            parts.append(image[index] * weights.astype(image.dtype))
    if mode == "max":
        return np.asarray(np.max(parts, axis=0).max(axis=(2, 4)))
    return np.asarray(sum(parts).mean(axis=(2, 4)), image.dtype)


def infer(x: TensorType, rois: TensorType, batch_indices: TensorType, **how: Any) -> TensorType:
    """Check ranks and types."""
    if x.rank != 4 or rois.rank != 2 or rois.shape[1] != 4 or rois.dtype != x.dtype:
        raise VerifyError(f"RoiAlign: expected (N, C, H, W) and boxes (R, 4), got {x} and {rois}")
    if batch_indices.shape != rois.shape[:1] or batch_indices.dtype != int64:
        raise VerifyError(f"RoiAlign: expected an int64 image for each box, got {batch_indices}")
    bins = (how["output_height"], how["output_width"])
    if min(bins) < 1 or how["mode"] not in ("avg", "max"):
        raise VerifyError(f"RoiAlign: mode {how['mode']!r} with {bins[0]} x {bins[1]} bins")
    return x.with_shape((rois.shape[0], x.shape[1], *bins))


OPS = (
    operator(
        "RoiAlign",
        reference,
        infer,
        Case(
            "outside",
            (
                np.ones((1, 1, 2, 2), np.float32),
                np.array([[4, 4, 6, 6]], np.float32),
                np.array([0], np.int64),
            ),
            {
                **{"mode": "avg", "output_height": 1, "output_width": 1},
                **{"sampling_ratio": 1, "spatial_scale": 1.0, "half_pixel": True},
            },
            [[[[0]]]],
            "more than a pixel outside there is nothing",
        ),
    ),
)
