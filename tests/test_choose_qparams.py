"""Scale and zero point from a range: ATen's algorithm and FBGEMM's, where they differ too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Ledger

from refquant.ir import VerifyError
from refquant.kernels.choose_qparams import (
    choose_qparams,
    choose_qparams_fbgemm,
    choose_qparams_fbgemm_per_channel,
)

RANGES = [(0, 255), (-128, 127), (-64, 63), (0, 127), (-8, 7), (0, 15), (-32768, 32767)]
Pair = tuple[np.float32, np.float32]


def drawn(rng: np.random.Generator, n: int) -> Iterator[Pair]:
    """Yield ranges of all sizes, among them empty, one-sided and tiny ones."""
    for i in range(n):
        low = -np.float32(np.exp(rng.uniform(-14, 3)))
        high = np.float32(np.exp(rng.uniform(-14, 3)))
        if i % 5 == 0:
            low, high = (np.float32(0), high) if i % 2 else (low, np.float32(0))
        if i % 7 == 0:
            low, high = (high / 3, high) if i % 2 else (low, low / 3)
        tiny = np.float32([1, 1, 1, 1e-8, 1e-30, 1e-42][i % 6])
        yield low * tiny, high * tiny


def discriminating(rng: np.random.Generator, limits: tuple[int, int], rounds: bool) -> list[Pair]:
    """Return ranges whose two ends suggest different zero points."""
    pairs: list[Pair] = []
    for divisor in np.float32([2, 4, 8, 10, 3.7]):
        low = -(rng.integers(1, 2000, 400_000) / divisor)
        high = rng.integers(1, 2000, low.size) / np.float32(rng.choice([2, 4, 8, 10, 3.7]))
        low, high = low.astype(np.float32), high.astype(np.float32)
        scale = (high.astype(np.float64) - low) / (limits[1] - limits[0])
        if rounds:
            scale = scale.astype(np.float32).astype(np.float64)
        differ = np.rint(limits[0] - low / scale) != np.rint(limits[1] - high / scale)
        found = np.flatnonzero(differ)[:60]
        pairs += zip(low[found], high[found], strict=True)
    return pairs


def dynamic(low: np.float32, high: np.float32, limits: Any, reduce_range: bool) -> Any:
    """Return what ``quantize_per_tensor_dynamic`` chooses."""
    dtype = torch.quint8 if limits == (0, 255) else torch.qint8
    q = torch.quantize_per_tensor_dynamic(torch.tensor([low, high]), dtype, reduce_range)
    return q.q_scale(), q.q_zero_point()


def per_tensor(low: np.float32, high: np.float32, limits: Any, reduce_range: bool) -> Any:
    """Return what ``_choose_qparams_per_tensor`` chooses; it knows 0..255 only."""
    scale, zero_point = torch._choose_qparams_per_tensor(torch.tensor([low, high]), reduce_range)
    return float(scale), int(zero_point)


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize(
    ("torchs", "limits"), [(dynamic, (0, 255)), (dynamic, (-128, 127)), (per_tensor, (0, 255))]
)
def test_aten(
    ledger: Ledger, torchs: Callable[..., Any], limits: tuple[int, int], reduce_range: bool
) -> None:
    rng = np.random.default_rng(1)
    half = (int(limits[0] / 2), int(limits[1] / 2)) if reduce_range else limits
    pairs = [*drawn(rng, ledger.size(400, 40_000)), *discriminating(rng, half, False)]
    for low, high in pairs:
        expected = torchs(low, high, limits, reduce_range)
        actual = choose_qparams(low, high, *limits, reduce_range)
        ledger.run("choose_qparams ATen", actual == expected, f"[{low}, {high}] {limits}")


def fused(low: Any, high: Any, limits: tuple[int, int], symmetric: bool) -> Any:
    """Return the scales and zero points of ``fused_moving_avg_obs_fake_quant`` per channel."""
    n = len(low)
    x, zero_point = torch.zeros(n, 1), torch.zeros(n, dtype=torch.int32)
    running, scale = (torch.tensor(low), torch.tensor(high)), torch.ones(n)
    switches = torch.tensor([0]), torch.tensor([1])
    torch.fused_moving_avg_obs_fake_quant(
        x, *switches, *running, scale, zero_point, 0.01, *limits, 0, True, symmetric
    )
    return scale.numpy(), zero_point.numpy()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("limits", RANGES)
def test_fbgemm(ledger: Ledger, limits: tuple[int, int], symmetric: bool) -> None:
    rng = np.random.default_rng(2)
    pairs = [*drawn(rng, ledger.size(2000, 200_000)), *discriminating(rng, limits, True)]
    low, high = (np.array(end, np.float32) for end in zip(*pairs, strict=True))
    scale, zero_point = fused(low, high, limits, symmetric)
    compiled = choose_qparams_fbgemm_per_channel(low, high, *limits, symmetric)
    ledger.equal("choose_qparams FBGEMM scale", compiled[0], scale)
    ledger.equal("choose_qparams FBGEMM zero point", compiled[1], zero_point)
    for i in range(0, len(pairs), 1 if len(pairs) < 5000 else 50):
        expected = float(scale[i]), int(zero_point[i])
        actual = choose_qparams_fbgemm(*pairs[i], *limits, symmetric)
        ledger.run("choose_qparams FBGEMM", actual == expected, f"{pairs[i]} {limits}")


def test_the_two_algorithms_differ() -> None:
    assert choose_qparams(-7.5, 2.0, 0, 255) == (0.03725490196078431, 201)
    assert choose_qparams_fbgemm(-7.5, 2.0, 0, 255) == (0.037254903465509415, 201)
    pairs = discriminating(np.random.default_rng(3), (-8, 7), True)
    zero_points = [
        (choose_qparams(*pair, -8, 7)[1], choose_qparams_fbgemm(*pair, -8, 7)[1]) for pair in pairs
    ]
    assert any(one != other for one, other in zero_points)


@pytest.mark.parametrize(
    ("low", "high"), [(np.nan, 1.0), (0.0, np.inf), (-np.inf, 0.0), (2.0, 1.0)]
)
def test_aten_refuses_what_has_no_range(low: float, high: float) -> None:
    with pytest.raises(VerifyError, match="choose_qparams: no quantization range for"):
        choose_qparams(low, high, 0, 255)
