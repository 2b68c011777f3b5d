"""The sums of machines without VNNI, compiled: bytes multiplied in pairs of 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import jit

Array = npt.NDArray[Any]


@jit
def multiply_pairs(
    x: Array,
    weight: Array,
    groups: int,
    pairs: int,
    channels: int,
    zero_point: int,
    weight_sums: Array,
    weight_zero_point: Array,
    unseen: Array,
    y: Array,
) -> None:
    """Multiply rows of bytes by a weight (groups, pairs, channels, 2); all arrays are flat.

    Parameters
    ----------
    x : uint8, (rows, groups, 2 * pairs)
        Raw bytes.
    weight_sums : int32, (groups, channels)
        Sums of the weight less its zero points.
    weight_zero_point : int32, (groups, channels)
        Zero points of the weight.
    unseen : uint8, (rows, 2 * pairs) or empty
        1 where a byte of ``x`` is padding that is left out; it is 0 there.
    y : int32, (rows, groups, channels)
        Sums of products less zero points.
    """
    depth, outputs = 2 * pairs, groups * channels
    for row in range(y.size // outputs):
        for group in range(groups):
            begin, end = row * outputs + group * channels, group * channels
            total = y[begin : begin + channels]
            for c in range(channels):
                total[c] = -zero_point * weight_sums[end + c]
            feed = x[(row * groups + group) * depth :]
            feed_sum = np.int32(0)
            for pair in range(pairs):
                first, second = np.int32(feed[2 * pair]), np.int32(feed[2 * pair + 1])
                feed_sum += first + second
                if first == 0 and second == 0:
                    continue
                at = 2 * (group * pairs + pair) * channels
                factor = weight[at : at + 2 * channels]
                for c in range(channels):
                    product = first * np.int32(factor[2 * c])
                    product += second * np.int32(factor[2 * c + 1])
                    product = min(max(product, np.int32(-32768)), np.int32(32767))
                    total[c] += product
            for c in range(channels):
                total[c] -= weight_zero_point[end + c] * feed_sum
            if unseen.size:
                for k in range(depth):
                    if unseen[row * depth + k]:
                        at = 2 * (group * pairs + k // 2) * channels + k % 2
                        for c in range(channels):
                            total[c] += zero_point * np.int32(weight[at + 2 * c])


@jit
def count_saturated(
    x: Array, weight: Array, groups: int, pairs: int, channels: int, counts: Array
) -> None:
    """Add to ``counts`` how many pairs saturate, and how many outputs have such a pair.

    ``x`` and ``weight`` are those of :func:`multiply_pairs`.
    """
    hits = np.zeros(channels, np.int64)
    for row in range(x.size // (2 * groups * pairs)):
        for group in range(groups):
            hits[:] = 0
            for pair in range(pairs):
                at = 2 * ((row * groups + group) * pairs + pair)
                first, second = np.int32(x[at]), np.int32(x[at + 1])
                begin = 2 * (group * pairs + pair) * channels
                for c in range(channels):
                    product = first * np.int32(weight[begin + 2 * c])
                    product += second * np.int32(weight[begin + 2 * c + 1])
                    hits[c] += product > 32767 or product < -32768
            counts[0] += hits.sum()
            counts[1] += np.count_nonzero(hits)
