"""Output sizes and source positions of ATen's upsampling kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.types import Shape, TensorType
from refquant.kernels import checks
from refquant.kernels.layout import is_contiguous_channels_last
from refquant.kernels.rounding import fma

F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Sizes = Sequence[int] | None
Factors = Sequence[float] | None


def output_lengths(
    lengths: Sequence[int], output_size: Sizes, scale_factors: Factors
) -> list[int]:
    """Return the given size, or the lengths times the factors, rounded down.

    Examples
    --------
    >>> output_lengths([4, 5], None, [2.0, 1.5])
    [8, 7]
    """
    if output_size is not None:
        return [int(n) for n in output_size]
    assert scale_factors is not None
    return [int(n * factor) for n, factor in zip(lengths, scale_factors, strict=True)]


def infer_upsample(
    op: str,
    x: TensorType,
    rank: int,
    output_size: Sizes,
    scale_factors: Factors,
    *,
    quantized: bool = True,
) -> TensorType:
    """Check rank, size and factors; spatial lengths become the new ones."""
    if not quantized:
        checks.is_float32(op, x)
    checks.float_or_per_tensor(op, x)
    if x.rank != rank + 2:
        raise VerifyError(f"{op}: expected rank {rank + 2}, got {x}")
    if (output_size is None) == (scale_factors is None):
        raise VerifyError(f"{op}: exactly one of output_size and scale_factors must be given")
    given = output_size if scale_factors is None else scale_factors
    if given is None or len(given) != rank:
        raise VerifyError(f"{op}: expected {rank} lengths or factors, got {given}")
    lengths = [n for n in x.shape[2:] if isinstance(n, int)]
    if len(lengths) != rank:
        raise VerifyError(f"{op}: cannot resample a symbolic length of {x}")
    out: Shape = tuple(output_lengths(lengths, output_size, scale_factors))
    if any(isinstance(n, int) and n < 1 for n in (*lengths, *out)):
        raise VerifyError(f"{op}: lengths must be >= 1, got {lengths} to {list(out)}")
    return x.with_shape(x.shape[:2] + out)


def takes_float_vectors(x: npt.NDArray[np.float32], sizes: Sequence[int]) -> bool:
    """Whether torch takes its vectorised float kernel, which copies where a length stays.

    Its nearest form also halves the index, whatever the scale factor, where a length doubles.
    """
    if len(sizes) == 2 and sum(sizes) <= 128:
        return True
    return is_contiguous_channels_last(x) and x.shape[1] > 3


def _ratio(length: int, out: int, factor: float | None) -> np.float32:
    if factor is not None and factor > 0:
        return np.float32(1.0 / factor)
    return np.float32(length) / np.float32(out)


def nearest(
    length: int, out: int, factor: float | None, *, exact: bool, vectors: bool = False
) -> Ints:
    """Return which source each output copies; for ``vectors`` see :func:`takes_float_vectors`.

    Examples
    --------
    >>> nearest(2, 5, None, exact=False), nearest(2, 5, None, exact=True)
    (array([0, 0, 0, 1, 1]), array([0, 0, 1, 1, 1]))
    """
    if vectors and not exact and out in (length, 2 * length):
        return np.arange(out) // (out // length)
    position = np.arange(out).astype(np.float32) + np.float32(0.5 if exact else 0)
    source = np.floor(position * _ratio(length, out, factor)).astype(np.int64)
    return np.asarray(np.minimum(source, length - 1))


class Neighbours(NamedTuple):
    """The two sources of each output along one dimension and their weights."""

    first: Ints
    second: Ints
    first_weight: F32
    second_weight: F32


def linear(
    length: int,
    out: int,
    factor: float | None,
    align_corners: bool,
    *,
    fused: bool,
    vectors: bool = False,
) -> Neighbours:
    """Return neighbours and weights of linear interpolation, all in float32.

    For ``vectors`` see :func:`takes_float_vectors`.

    Examples
    --------
    >>> linear(2, 3, None, True, fused=False).second_weight
    array([0. , 0.5, 0. ], dtype=float32)
    """
    position = np.arange(out).astype(np.float32)
    if vectors and out == length:
        source = position
    elif align_corners:
        ratio = np.float32(length - 1) / np.float32(out - 1) if out > 1 else np.float32(0)
        source = ratio * position
    else:
        ratio, centre = _ratio(length, out, factor), position + np.float32(0.5)
        if fused:
            source = fma(ratio, centre, np.float32(-0.5))
        else:
            source = ratio * centre - np.float32(0.5)
        source = np.maximum(source, np.float32(0))
    first = np.minimum(source.astype(np.int64), length - 1)
    weight = source - first.astype(np.float32)
    return Neighbours(*(first, np.minimum(first + 1, length - 1)), np.float32(1) - weight, weight)


def cubic(length: int, out: int, factor: float | None, align_corners: bool) -> tuple[Ints, F32]:
    """Return the four sources of each output (clamped to the edge) and their weights."""
    position = np.arange(out).astype(np.float32)
    if align_corners:
        ratio = np.float32(length - 1) / np.float32(out - 1) if out > 1 else np.float32(0)
        source = ratio * position
    else:
        ratio = _ratio(length, out, factor)
        source = ratio * (position + np.float32(0.5)) - np.float32(0.5)
    first = np.floor(source)
    t = (source - first).astype(np.float64)
    a = -0.75

    def near(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    weights = np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], -1)
    sources = first.astype(np.int64)[:, np.newaxis] + np.arange(-1, 3)
    return np.clip(sources, 0, length - 1), weights.astype(np.float32)
