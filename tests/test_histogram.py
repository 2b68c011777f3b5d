"""HistogramObserver's counting and search against torch, reference and compiled, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from ledger import Ledger
from oracle import this_machine, torch_as
from torch.ao.quantization.observer import HistogramObserver

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.target import Target
from refquant.kernels import histogram, histogram_search
from refquant.kernels.float_sum import total, total_compiled
from refquant.kernels.histc import histc
from refquant.kernels.histogram import Histogram, linspace, observe, observe_compiled
from refquant.kernels.histogram_search import search, search_compiled

Rng = np.random.Generator

OBSERVE = (observe, observe_compiled)
SEARCH = (search, search_compiled)
DST_BINS = {
    torch.quint8: 256,
    torch.qint8: 256,
    torch.quint4x2: 256,
    torch.int16: 2**16,
    torch.uint16: 2**16,
    torch.qint32: 2**32,
}
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BINS = (1, 2, 3, 7, 100, 256, 2048, 2048, 2048, 4096)
SIZES = (1, 7, 64, 1000, 5000, 32_768, 50_000)


def _relu(rng: Rng, n: int, batch: int) -> Any:
    return np.maximum(rng.standard_normal(n), 0) * (1 + batch)


def _outliers(rng: Rng, n: int, batch: int) -> Any:
    x = rng.standard_normal(n)
    x[rng.integers(0, n)] = 100 * rng.standard_normal()
    if rng.random() < 0.5:
        x[rng.integers(0, n, 2)] = np.inf, -np.inf
    return x


DATA: dict[str, Callable[[Rng, int, int], Any]] = {
    "normal": lambda rng, n, batch: rng.standard_normal(n) * np.exp(rng.uniform(-1, 1)),
    "relu": _relu,
    "uniform growing": lambda rng, n, batch: rng.uniform(-1, 1 + batch, n),
    "heavy tails": lambda rng, n, batch: rng.standard_t(2, n),
    "constant": lambda rng, n, batch: np.full(n, rng.choice([0.0, 1.5, -2.0, 3e7])),
    "integers": lambda rng, n, batch: rng.integers(-5, 6, n).astype(np.float64),
    "log-normal": lambda rng, n, batch: np.exp(rng.standard_normal(n) * 2),
    "outliers": _outliers,
    "tiny": lambda rng, n, batch: rng.standard_normal(n) * 1e-6 * np.exp(rng.uniform(-10, 10)),
}


def _array(x: torch.Tensor) -> Any:
    """Return the array with the values and strides of a tensor, of any float dtype."""
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def _same(state: Histogram, observer: HistogramObserver) -> bool:
    return (
        np.array_equal(state.counts, observer.histogram.numpy(), equal_nan=True)
        and state.counts.dtype == state.minimum.dtype == state.maximum.dtype == np.float32
        and np.array_equal(state.minimum, observer.min_val.numpy(), equal_nan=True)
        and np.array_equal(state.maximum, observer.max_val.numpy(), equal_nan=True)
    )


def _forward(observer: HistogramObserver, x: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observer(x)


def _observer(state: Histogram, dtype: torch.dtype = torch.quint8) -> HistogramObserver:
    observer = HistogramObserver(bins=state.counts.size, dtype=dtype)
    observer.histogram = torch.from_numpy(state.counts.copy())
    observer.min_val, observer.max_val = (torch.tensor(float(v)) for v in state[1:])
    return observer


def _check_search(
    ledger: Ledger,
    subject: str,
    state: Histogram,
    observer: HistogramObserver,
    dtype: torch.dtype,
    target: Target,
) -> None:
    """Compare the new range and every error on the way there."""
    errors = []
    plain = observer._compute_quantization_error

    def recorded(start: int, end: int) -> float:
        error = plain(start, end)
        errors.append((start, end, error))
        return error

    observer._compute_quantization_error = recorded
    with torch_as(target):
        expected = [np.float32(v.item()) for v in observer._non_linear_param_search()]
    for function in SEARCH:
        found = function(state, DST_BINS[dtype], target)
        assert isinstance(found.start_bin, int)
        same = np.array_equal(found[:2], expected, equal_nan=True) and np.array_equal(
            found.errors, np.array(errors).reshape(-1, 3), equal_nan=True
        )
        ledger.run(subject, same, f"{function.__name__} {state} {dtype}")


@pytest.mark.parametrize("threads", [1, 2])
def test_runs(ledger: Ledger, threads: int) -> None:
    rng = np.random.default_rng(threads)
    target = replace(this_machine(), threads=threads)
    dtypes = list(DST_BINS)
    for run in range(ledger.size(40, 1000)):
        bins = int(rng.choice(BINS)) if run % 20 else 40_000
        dtype = dtypes[run % len(dtypes)]
        observer = HistogramObserver(bins=bins, dtype=dtype)
        states = [Histogram.empty(bins)] * 2
        kind = list(DATA)[run % len(DATA)]
        for batch in range(int(rng.integers(1, 5))):
            if rng.random() < 0.2:
                kind = str(rng.choice(list(DATA)))
            n = int(rng.choice(SIZES)) if rng.random() < 0.95 else 300_000
            x = DATA[kind](rng, n, batch).astype(np.float32)
            before = [state.counts.copy() for state in states]
            with torch_as(target):
                _forward(observer, torch.from_numpy(x))
            after = [f(state, x, target) for f, state in zip(OBSERVE, states, strict=True)]
            for state, counts in zip(states, before, strict=True):
                np.testing.assert_array_equal(state.counts, counts)
            states = after
            for state in states:
                subject = f"HistogramObserver histogram and range, threads={threads}"
                ledger.run(subject, _same(state, observer), f"{kind} {n} {bins}")
        if np.isfinite(states[0].minimum):
            subject = f"HistogramObserver search, threads={threads}"
            _check_search(ledger, subject, states[0], observer, dtype, target)


@pytest.mark.parametrize("threads", [1, 2])
def test_dtypes(ledger: Ledger, threads: int) -> None:
    """Positions and counts are in the dtype of the batch, the state in float32."""
    rng = np.random.default_rng(threads)
    target = replace(this_machine(), threads=threads)
    for run in range(ledger.size(80, 1000)):
        bins = int(rng.choice([1, 2, 100, 256, 2048]))
        observer = HistogramObserver(bins=bins)
        states = [Histogram.empty(bins)] * 2
        kind = list(DATA)[run % len(DATA)]
        for batch in range(3):
            dtype = FLOATS[rng.integers(0, 4)]
            n = int(rng.choice([1, 100, 200, 201, 700, 3000, 20_000]))
            data = np.clip(DATA[kind](rng, n, batch), -60_000, 60_000)
            x = torch.from_numpy(data).to(dtype)
            with torch_as(target):
                _forward(observer, x)
            states = [
                f(state, _array(x), target) for f, state in zip(OBSERVE, states, strict=True)
            ]
            for state in states:
                subject = f"HistogramObserver {str(dtype)[6:]}, threads={threads}"
                ledger.run(subject, _same(state, observer), f"{kind} {n} {bins}")


SPECIAL = np.array(
    [
        *(0, -0.0, 1, -1, 2, 1 + 2**-23, 1e-45, -1e-45, 1e-40, 3e-38, 1e9, 2**24, 2**25),
        *(1e38, -1e38, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan),
    ],
    np.float32,
)


def _loaded(rng: Rng) -> Histogram:
    """Return a state as a state_dict could hold it, sensible or not."""
    bins = int(rng.choice([1, 2, 3, 7, 100]))
    ends = rng.choice(SPECIAL, 2)
    if rng.random() < 0.3:
        ends = (rng.standard_normal(2) * 10.0 ** rng.integers(-44, 38)).astype(np.float32)
    if rng.random() < 0.85:
        ends = np.sort(ends)
    counts = [
        np.zeros(bins),
        rng.integers(0, 100, bins),
        rng.standard_normal(bins) * 10,
        rng.integers(0, 2, bins) * 1e38,
        rng.random(bins) * 1e-40,
        np.where(rng.random(bins) < 0.05, rng.choice([np.nan, np.inf, 1e30]), 1),
        np.exp(-0.5 * ((np.arange(bins) - bins / 2) / (bins / 8)) ** 2) * 1e4,
    ][rng.integers(0, 7)].astype(np.float32)
    return Histogram(counts, *ends)


def test_search_of_any_state(ledger: Ledger) -> None:
    rng = np.random.default_rng(3)
    dtypes = list(DST_BINS)
    for run in range(ledger.size(12, 60)):
        state, dtype = _loaded(rng), dtypes[run % len(dtypes)]
        subject = "HistogramObserver search of any state"
        _check_search(ledger, subject, state, _observer(state, dtype), dtype, this_machine())


def test_search_goes_on_at_equal_errors(ledger: Ledger) -> None:
    """Errors that overflow are equal, and only a larger one stops the search."""
    counts = np.full(50, 1e30, np.float32)
    for width in (1e10, 1e12, 0.0):
        state = Histogram(counts, np.float32(-width), np.float32(width))
        subject = "HistogramObserver search of any state"
        _check_search(ledger, subject, state, _observer(state), torch.quint8, this_machine())


def test_observe_into_any_state(ledger: Ledger) -> None:
    """Torch raises where refquant does, and agrees elsewhere."""
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(ledger.size(600, 10_000)):
        state, dtype = _loaded(rng), FLOATS[rng.integers(0, 4)]
        data = rng.choice(SPECIAL, int(rng.integers(1, 6))).astype(np.float64)
        if rng.random() < 0.3:
            data = np.full(3, state.minimum, np.float64)
        elif rng.random() < 0.1:
            data = data * 1e10
        with np.errstate(all="ignore"):
            x = torch.from_numpy(data).to(dtype)
        observer = _observer(state)
        try:
            states = [function(state, _array(x), this_machine()) for function in OBSERVE]
        except VerifyError as error:
            refused += 1
            with pytest.raises(VerifyError, match=r"range|numbers|index"):
                observe_compiled(state, _array(x), this_machine())
            if "past the last" not in str(error):  # where torch corrupts its memory
                with pytest.raises(RuntimeError):
                    _forward(observer, x)
            continue
        _forward(observer, x)
        for after in states:
            subject = "HistogramObserver histogram from any state"
            ledger.run(subject, _same(after, observer), f"{state} {x}")
    assert refused


def test_layouts(ledger: Ledger) -> None:
    rng = np.random.default_rng(5)
    x = torch.from_numpy(rng.standard_normal((4, 6, 10, 30)).astype(np.float32))
    for layout in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(0, 3),
        x[:, ::2, :, 1::3],
        x[:1, :1, :1, :1].expand(2, 3, 4, 5),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            y = layout.to(dtype)
            observer = HistogramObserver(bins=20)
            target = replace(this_machine(), threads=2)
            with torch_as(target):
                observer(y)
            for function in OBSERVE:
                state = function(Histogram.empty(20), _array(y), target)
                ledger.run("HistogramObserver layouts", _same(state, observer), str(y.stride()))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_saturation(ledger: Ledger, threads: int) -> None:
    """Adding one stops at 2**24 in float32, at 2048 in float16, at 256 in bfloat16."""
    target = replace(this_machine(), threads=threads)
    sizes = (*(2**i + j for i in (8, 9, 11, 12) for j in (-1, 0, 1)), 401, 600, 601, 10_000)
    for dtype in (torch.float16, torch.bfloat16):
        for n in sizes:
            x = torch.ones(n, dtype=dtype)
            with torch_as(target):
                expected = _array(torch.histc(x, 3, 0, 2))
            actual = histc(_array(x), 3, 0, 2, target)
            ledger.equal(f"histc {str(dtype)[6:]} saturation", actual, expected)
            state = observe_compiled(
                Histogram(np.zeros(3, np.float32), np.float32(0), np.float32(2)),
                *(_array(x), target),
            )
            expected = expected.astype(np.float32)
            ledger.equal(f"histc {str(dtype)[6:]} saturation", state.counts, expected)


def test_saturation_float32(ledger: Ledger) -> None:
    x = np.zeros(2**25 + 3, np.float32)
    x[-1] = 1
    for threads in (1, 2):
        target = replace(this_machine(), threads=threads)
        with torch_as(target):
            expected = torch.histc(torch.from_numpy(x), 2, 0, 1).numpy()
        state = observe_compiled(Histogram.empty(2), x, target)
        ledger.equal("histc float32 saturation", state.counts, expected)
        assert expected[0] == threads * 2**24


def _neighbours(x: Any) -> tuple[Any, Any]:
    """Return the numbers just below and just above."""
    return np.nextafter(x, np.float32(-np.inf)), np.nextafter(x, np.float32(np.inf))


def test_histc_at_boundaries(ledger: Ledger) -> None:
    """Elements within an ulp of where one bin ends and the next begins."""
    rng = np.random.default_rng(6)
    for _ in range(ledger.size(100, 1000)):
        bins = int(rng.choice([1, 3, 7, 100, 2048, 40_000]))
        low, high = np.sort(rng.standard_normal(2) * np.exp(rng.uniform(-20, 20)))
        low, high = np.float32(low), np.float32(high)
        boundary = linspace(low, high, bins + 1)
        x = np.clip(np.concatenate([boundary, *_neighbours(boundary), [low, high]]), low, high)
        expected = torch.histc(torch.from_numpy(x), bins, float(low), float(high)).numpy()
        ledger.equal("histc float32", histc(x, bins, low, high), expected)
        compiled = observe_compiled(Histogram.empty(bins), x, this_machine()).counts
        ledger.equal("histc float32", compiled, expected)
        outside = np.concatenate(_neighbours(x))
        expected = torch.histc(torch.from_numpy(outside), bins, float(low), float(high)).numpy()
        ledger.equal("histc float32", histc(outside, bins, low, high), expected)


def test_linspace(ledger: Ledger) -> None:
    rng = np.random.default_rng(7)
    target = this_machine()
    for _ in range(ledger.size(200, 2000)):
        steps = int(rng.choice([0, 1, 2, 3, 8, 101, 2049, 32_769]))
        start, end = (rng.standard_normal(2) * np.exp(rng.uniform(-90, 80))).astype(np.float32)
        expected = torch.linspace(float(start), float(end), steps).numpy()
        ledger.equal("linspace float32", linspace(start, end, steps, target), expected)
        if steps > 1:
            compiled = np.empty(steps, np.float32)
            histogram._fill_linspace(start, end, target.fused_multiply_add, compiled)
            ledger.equal("linspace float32", compiled, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_total(ledger: Ledger, threads: int) -> None:
    rng = np.random.default_rng(8)
    target = replace(this_machine(), threads=threads)
    for n in (*range(1, 70), 511, 2047, 2048, 32_767, 32_768, 32_769, 40_000, 65_537, 100_003):
        x = (rng.standard_normal(n) * np.exp(rng.standard_normal(n) * 3)).astype(np.float32)
        with torch_as(target):
            expected = torch.from_numpy(x).sum().numpy()
        for actual in (total(x, target), total_compiled(x, threads)):
            ledger.equal("sum of a float32 vector", np.float32(actual), expected)


def test_steps_without_remainder() -> None:
    """The compiled floor division by product equals the one by remainder."""
    rng = np.random.default_rng(9)
    for last in np.float32([255, 65535]):
        for _ in range(200):
            width = np.float32(np.exp(rng.uniform(-30, 30)))
            step = rng.integers(-3, last + 10, 50).astype(np.float32)
            tie = step * width
            for position in np.concatenate([tie, *_neighbours(tie)]):
                expected = histogram_search._step_of(position, width, last)
                assert histogram_search._near_step_of(position, width, last) == expected


def test_bounds_out_of_order(ledger: Ledger) -> None:
    """The bounds of a denormal range may descend in the middle."""
    unit = np.float32(1e-45)
    rng = np.random.default_rng(10)
    for _ in range(200):
        bins = int(rng.integers(2, 40))
        low, high = np.sort(rng.integers(-100, 100, 2)).astype(np.float32) * unit
        if low == high:
            continue
        first = np.array([low, high], np.float32)
        second = np.array([low - unit, high + 5 * unit], np.float32)
        observer = HistogramObserver(bins=bins)
        states = [Histogram.empty(bins)] * 2
        for x in (first, second):
            observer(torch.from_numpy(x))
            states = [f(s, x, this_machine()) for f, s in zip(OBSERVE, states, strict=True)]
        for state in states:
            ledger.run("HistogramObserver denormal ranges", _same(state, observer), f"{low}")


@pytest.mark.parametrize("function", OBSERVE)
def test_what_is_refused(function: Any) -> None:
    state = function(Histogram.empty(4), np.float32([0, 1]))
    with pytest.raises(VerifyError, match="elements must be numbers, got NaN"):
        function(state, np.float32([np.nan, np.inf]))
    with pytest.raises(UnsupportedError, match=r"must be one of float64, .* got int64"):
        function(state, np.array([1, 2]))
    with pytest.raises(VerifyError, match=r"range is too large for float16, got 1000000"):
        function(function(state, np.float32([1e6])), np.float16([1]))
    with pytest.raises(VerifyError, match="bfloat16 cannot index 2047 bins"):
        function(Histogram.empty(2047), np.array([0, 1], ml_dtypes.bfloat16))
    with pytest.raises(VerifyError, match="range must be finite"):
        function(state._replace(minimum=np.float32(-np.inf)), np.float32([1]))
    np.testing.assert_array_equal(state.counts, [1, 0, 0, 1])
    for nothing in (np.float32([]), np.float32([np.inf, -np.inf])):
        assert function(state, nothing) is state


def test_histogram_needs_bins() -> None:
    with pytest.raises(VerifyError, match="bins must be > 0, got 0"):
        Histogram.empty(0)


@pytest.mark.parametrize("function", SEARCH)
def test_search_refuses(function: Any) -> None:
    state = Histogram.empty(2)
    with pytest.raises(VerifyError, match="dst_bins must be in"):
        function(state, 2**33)
    with pytest.raises(VerifyError, match="counts must be a non-empty float32 vector"):
        function(state._replace(counts=np.zeros((2, 2), np.float32)), 256)
