"""Observers against torch's: settings, statistics, scale and zero point, state, errors."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Ledger
from oracle import this_machine, to_torch, torch_as
from torch.ao.quantization import fake_quantize as torch_fake_quantize
from torch.ao.quantization import observer as torch_observer
from torch.ao.quantization.utils import determine_qparams as torch_determine_qparams

import refquant
from refquant import fake_quantize, observer
from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError
from refquant.ir.types import DTYPES, QScheme
from refquant.observer_base import ACCEPTED_DTYPES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
BFLOAT16 = DTYPES["bfloat16"].storage
PER_TENSOR = ("MinMaxObserver", "MovingAverageMinMaxObserver")
PER_CHANNEL = ("PerChannelMinMaxObserver", "MovingAveragePerChannelMinMaxObserver")
FACTORIES = [name for name in torch_observer.__all__ if name.islower()]


def both(name: str, **arguments: Any) -> tuple[Any, Any]:
    """Construct an observer or fake-quant of ours and torch's with the same arguments."""
    ours = getattr(fake_quantize, name, None) or getattr(observer, name)
    theirs = getattr(torch_fake_quantize, name, None) or getattr(torch_observer, name)
    return ours(**arguments), theirs(**{key: to_torch(v) for key, v in arguments.items()})


def assert_same_state(ours: Any, theirs: Any) -> None:
    expected = theirs.state_dict()
    actual = ours.state_dict()
    assert set(actual) == set(expected)
    for key, tensor in expected.items():
        value = tensor.clone().numpy()  # torch could not resize a buffer that NumPy sees
        assert (actual[key].dtype, actual[key].shape) == (value.dtype, value.shape), key
        np.testing.assert_array_equal(actual[key], value, err_msg=key)


def assert_same_qparams(ours: Any, theirs: Any) -> None:
    for actual, expected in zip(ours.calculate_qparams(), theirs.calculate_qparams(), strict=True):
        value = expected.numpy()
        assert (actual.dtype, actual.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(actual, value)


def random_settings(rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    per_channel = bool(rng.random() < 0.5)
    name = str(rng.choice(PER_CHANNEL if per_channel else PER_TENSOR))
    schemes = [scheme for scheme in QScheme if scheme.is_per_channel == per_channel]
    settings: dict[str, Any] = {
        "dtype": ACCEPTED_DTYPES[rng.integers(len(ACCEPTED_DTYPES))],
        "qscheme": schemes[rng.integers(len(schemes))],
        "reduce_range": bool(rng.random() < 0.3),
    }
    if rng.random() < 0.5:
        ranges = ((0, 127), (-8, 7), (0, 15), (-100, 27), (-127, 127), (0, 1), (0, 255))
        settings["quant_min"], settings["quant_max"] = ranges[rng.integers(len(ranges))]
    if rng.random() < 0.3:
        settings["eps"] = float(rng.choice([2**-12, 1e-3, 1e-30, 0.0]))
    if per_channel:
        settings["ch_axis"] = int(rng.integers(-2, 2))
    if name.startswith("Moving"):
        settings["averaging_constant"] = float(rng.choice([0.01, 0.3, 1.0, 0.0]))
    return name, settings


def random_batch(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    x = rng.standard_normal(shape) * np.exp(rng.uniform(-20, 10)) + rng.normal()
    kind = rng.integers(8)
    if kind == 0:
        x = np.abs(x)
    elif kind == 1:
        x = -np.abs(x)
    elif kind == 2:
        x = np.full(shape, rng.choice([0.0, 2.0, -2.0]))
    elif kind == 3 and rng.random() < 0.2:
        x.flat[rng.integers(x.size)] = rng.choice([np.nan, np.inf, -np.inf])
    types = (np.float32, np.float32, np.float32, np.float64, np.float16, BFLOAT16)
    with np.errstate(over="ignore"):
        x = x.astype(types[rng.integers(len(types))])
    if x.ndim == 4 and rng.random() < 0.3:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return np.repeat(x, 2, axis=0)[::2] if rng.random() < 0.1 else x


def test_min_max_observers(ledger: Ledger) -> None:
    rng = np.random.default_rng(1)
    runs = 0
    while runs < ledger.size(400, 3000):
        name, settings = random_settings(rng)
        if settings["reduce_range"] and settings["qscheme"].is_symmetric:
            settings["reduce_range"] = settings["dtype"] != refquant.quint8  # else refused
        ours, theirs = both(name, **settings)
        shape = (int(rng.integers(1, 6)),) * int(rng.integers(2, 5))
        for _ in range(rng.integers(1, 5)):
            x = random_batch(rng, shape)
            theirs(to_torch(x))
            assert ours.forward(x) is x
        assert_same_state(ours, theirs)
        if np.any(ours.min_val > ours.max_val):  # rounding can cross two moving averages
            with pytest.raises(AssertionError, match="should be less than max"):
                theirs.calculate_qparams()
            with pytest.raises(VerifyError, match="must not be greater than max"):
                ours.calculate_qparams()
        else:
            assert_same_qparams(ours, theirs)
        runs += 1
        ledger.run(f"observer, {settings['dtype']} {settings['qscheme']}", True)


def test_determine_qparams(ledger: Ledger) -> None:
    """Torch's function of this name: wider types, and two other zero points."""
    values = [-np.inf, -3e38, -5.0, -1e-7, -0.0, 0.0, 1e-45, 0.3, 1e30, np.inf, np.nan]
    low, high = (v.ravel() for v in np.meshgrid(*[np.array(values, np.float32)] * 2))
    ordered = ~(low > high)
    low, high = low[ordered], high[ordered]
    for dtype in ACCEPTED_DTYPES:
        for scheme in QScheme:
            for limits in ((0, 255), (-8, 7), (-5, 250)):
                for customized in (False, True):
                    arguments = (*limits, dtype, 2.0**-12, customized, scheme)
                    expected = torch_determine_qparams(
                        *(torch.from_numpy(v) for v in (low, high)),
                        *(*limits, to_torch(dtype), torch.tensor([2.0**-12])),
                        *(customized, to_torch(scheme)),
                    )
                    actual = observer.determine_qparams(low, high, *arguments)
                    for mine, theirs in zip(actual, expected, strict=True):
                        ledger.equal("determine_qparams", mine, theirs.numpy())
    scale, zero_point = observer.determine_qparams(np.empty(0), np.empty(0), 0, 255, dtype)
    assert (scale.dtype, zero_point.dtype) == (np.float32, np.int64)


def random_values(rng: np.random.Generator, kind: int, size: int, batch: int) -> Any:
    """Draw from one of nine kinds of distribution."""
    normal = rng.standard_normal(size)
    values = [
        normal * np.exp(rng.uniform(-1, 1)),
        np.maximum(normal, 0) * (1 + batch),
        rng.uniform(-1, 1 + batch, size),
        rng.standard_t(2, size),
        np.full(size, rng.choice([0.0, 1.5, -2.0])),
        rng.integers(-5, 6, size).astype(float),
        np.exp(normal * 2),
        normal,
        normal * 1e-6 * np.exp(rng.uniform(-10, 10)),
    ][kind]
    if kind == 7:
        values[rng.integers(size)] = 100 * rng.standard_normal()
        if rng.random() < 0.3:
            values[rng.integers(size)] = rng.choice([np.inf, -np.inf])
    return values.astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
def test_histogram_observer(threads: int, ledger: Ledger) -> None:
    rng = np.random.default_rng(threads)
    machine = this_machine()
    target = refquant.Target(machine.engine, machine.isa, threads)
    largest = ledger.size(20_000, 300_000)
    with torch_as(target):
        for _ in range(ledger.size(30, 1000)):
            settings: dict[str, Any] = {
                "bins": int(rng.choice([2048, 2048, 2048, 256, 100, 4096, 7])),
                "dtype": ACCEPTED_DTYPES[rng.integers(8)],
                "qscheme": (refquant.per_tensor_affine, refquant.per_tensor_symmetric)[
                    rng.integers(2)
                ],
            }
            if rng.random() < 0.3:
                settings |= {"quant_min": 0, "quant_max": 127}
            ours, theirs = both("HistogramObserver", **settings)
            ours.target = target
            kind = int(rng.integers(9))
            for batch in range(rng.integers(1, 6)):
                size = int(np.exp(rng.uniform(0, np.log(largest))))
                x = random_values(rng, kind, size, batch)
                ours(x)
                theirs(torch.from_numpy(x))
            assert_same_state(ours, theirs)
            assert_same_qparams(ours, theirs)
            ledger.run(f"HistogramObserver with qparams, threads={threads}", True)


@pytest.mark.parametrize("name", FACTORIES)
def test_predefined_factories_have_torchs_settings(name: str) -> None:
    if name in ("get_observer_state_dict", "load_observer_state_dict", "get_block_size"):
        assert name == "get_block_size" or callable(getattr(observer, name))
        return
    ours, theirs = both(name)
    assert type(ours).__name__ == type(theirs).__name__
    for key, expected in vars(theirs).items():
        if not key.startswith("_") and key not in ("training", "upsample_rate"):
            assert to_torch(getattr(ours, key)) == expected, key


def test_settings_that_make_no_sense() -> None:
    for settings in ({"eps": None}, {"eps": "1"}, {"dtype": "qint8"}):
        with pytest.raises(VerifyError):
            observer.MinMaxObserver(**settings)
    with pytest.raises(VerifyError, match="averaging_constant must be a number"):
        observer.MovingAverageMinMaxObserver(averaging_constant=None)
    with pytest.raises(VerifyError, match="zero_point must be int32"):
        observer.FixedQParamsObserver(1.0, 2**40)
    narrow = {"quant_min": np.int8(-128), "quant_max": np.int8(127)}
    assert observer.MinMaxObserver(dtype=refquant.qint8, **narrow).quant_max == 127
    with pytest.raises(VerifyError, match="masked"):
        observer.MinMaxObserver()(np.ma.masked_equal(np.arange(3.0), 1))


def test_users_own_observers() -> None:
    class Median(refquant.observer.UniformQuantizationObserverBase):
        def forward(self, x: Any) -> Any:
            self.middle = np.median(x)
            return x

        def calculate_qparams(self) -> Any:
            return np.float32([self.middle]), np.int32([0])

    made = fake_quantize.FakeQuantize(Median)
    np.testing.assert_array_equal(made(np.float32([1, 2, 2.9])), [0, 2, 2])
    with pytest.raises(UnsupportedError, match="neither observe nor forward"):
        refquant.observer.UniformQuantizationObserverBase.observe(made.activation_post_process, 1)


MISTAKES: list[tuple[str, dict[str, Any]]] = [
    ("MinMaxObserver", {"quant_min": 3, "quant_max": 9}),
    ("MinMaxObserver", {"quant_min": 0, "quant_max": 0}),
    ("MinMaxObserver", {"dtype": refquant.qint8, "quant_min": -200, "quant_max": 127}),
    ("MinMaxObserver", {"dtype": refquant.qint32, "quant_min": 0, "quant_max": 2**32}),
    ("MinMaxObserver", {"dtype": refquant.float16}),
    ("MinMaxObserver", {"dtype": refquant.int64}),
    ("MinMaxObserver", {"qscheme": refquant.per_channel_affine}),
    ("MinMaxObserver", {"qscheme": refquant.per_tensor_symmetric, "reduce_range": True}),
    ("MovingAverageMinMaxObserver", {"is_dynamic": True}),
    ("MovingAverageMinMaxObserver", {"qscheme": refquant.per_channel_affine}),
    ("PerChannelMinMaxObserver", {"qscheme": refquant.per_tensor_affine}),
    ("PerChannelMinMaxObserver", {"is_dynamic": True}),
    (
        "PerChannelMinMaxObserver",
        {"qscheme": refquant.per_channel_symmetric, "reduce_range": True},
    ),
    ("HistogramObserver", {"is_dynamic": True}),
    ("HistogramObserver", {"qscheme": refquant.per_channel_affine}),
    ("FixedQParamsObserver", {"scale": 1.0, "zero_point": 0, "is_dynamic": True}),
    ("FakeQuantize", {"quant_min": 0, "quant_max": 256}),
    ("FakeQuantize", {"quant_min": -1, "quant_max": 5}),
    ("FakeQuantize", {"quant_min": 9, "quant_max": 2}),
]


@pytest.mark.parametrize(("name", "settings"), MISTAKES)
def test_mistakes_are_torchs_error_class(name: str, settings: dict[str, Any]) -> None:
    theirs = getattr(torch_fake_quantize, name, None) or getattr(torch_observer, name)
    with pytest.raises((AssertionError, NotImplementedError)) as expected:
        theirs(**{key: to_torch(value) for key, value in settings.items()})
    with pytest.raises(RefquantError) as actual:
        (getattr(fake_quantize, name, None) or getattr(observer, name))(**settings)
    assert isinstance(actual.value, expected.type)
    assert "\n" not in str(actual.value)


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda o: o.PerChannelMinMaxObserver(ch_axis=3), np.ones((2, 3), np.float32)),
        (lambda o: o.PerChannelMinMaxObserver(), np.ones((), np.float32)),
        (lambda o: o.PerChannelMinMaxObserver(), np.ones(3, np.float32)),
        (lambda o: o.HistogramObserver(), np.array([1, np.nan], np.float32)),
        (lambda o: o.HistogramObserver(), np.array([1, 2], np.int64)),
    ],
)
def test_bad_data_is_torchs_error_class_and_changes_nothing(make: Any, x: Any) -> None:
    ours, theirs = make(observer), make(torch_observer)
    with pytest.raises((RuntimeError, IndexError)) as expected:
        theirs(torch.from_numpy(x))
    before = ours.state_dict()
    with pytest.raises(RefquantError) as actual:
        ours(x)
    assert isinstance(actual.value, expected.type)
    assert all(np.array_equal(before[key], value) for key, value in ours.state_dict().items())
    assert ours.batches == 0


def test_other_channels_than_before() -> None:
    ours, theirs = both("PerChannelMinMaxObserver")
    first, second = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32)
    ours(first), theirs(torch.from_numpy(first))
    with pytest.raises(RuntimeError):
        theirs(torch.from_numpy(second))
    with pytest.raises(VerifyError, match=r"3 channels.*has 2"):
        ours(second)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("x", [np.array(["a"]), np.ones(2, complex), None])
def test_what_is_no_array_of_numbers(x: Any) -> None:
    with pytest.raises(VerifyError, match="expected an array of real numbers"):
        observer.MinMaxObserver()(x)
    with pytest.raises(VerifyError, match="dequantize first"):
        observer.MinMaxObserver()(refquant.QTensor(np.zeros(2, np.uint8), 1.0, 0))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["HistogramObserver", *PER_TENSOR, *PER_CHANNEL])
def test_warnings(name: str) -> None:
    ours, _ = both(name)
    for empty in (None, np.empty((0, 3), np.float32)):
        if empty is not None:
            assert ours.forward(empty) is empty
        with pytest.warns(UserWarning, match="must run observer") as caught:
            scale, zero_point = ours.calculate_qparams()
        assert caught[0].filename == __file__
        np.testing.assert_array_equal((scale, zero_point), ([1], [0]))
    with pytest.warns(UserWarning, match=r"\[0, 300\] exceeds quint8"):
        getattr(observer, name)(quant_min=0, quant_max=300)
    if name == "HistogramObserver":
        with pytest.warns(UserWarning, match="infinite"):
            ours(np.float32([1, np.inf]))
        return
    ours(np.full((2, 2), np.nan, np.float32))
    with pytest.warns(RuntimeWarning, match="remove NaN and infinity"):
        ours.calculate_qparams()
    with pytest.warns(UserWarning, match="reduce_range"):
        both(name, reduce_range=True)


def test_custom_range_that_does_not_fit_int32() -> None:
    ours, theirs = both("MinMaxObserver", dtype=refquant.qint32, quant_min=0, quant_max=2**32 - 1)
    for observed in (ours, theirs):
        observed(np.float32([-1, 2]) if observed is ours else torch.tensor([-1.0, 2]))
        with pytest.raises(RuntimeError):
            observed.calculate_qparams()


def test_one_expression() -> None:
    x = np.array([-1.0, 3.0], np.float32)
    scale, zero_point = observer.MinMaxObserver.with_args(dtype=refquant.qint8)()(
        x
    ).calculate_qparams()
    expected = torch_observer.MinMaxObserver(dtype=torch.qint8)
    expected(torch.from_numpy(x))
    assert (scale, zero_point) == tuple(value.item() for value in expected.calculate_qparams())
    y = observer.MinMaxObserver()(x)
    assert np.shares_memory(y, x)
    assert type(y + 1) is type(y.sum() + x) is np.ndarray
    with pytest.raises(VerifyError, match="part of what was observed"):
        y[:1].calculate_qparams()


def test_recording() -> None:
    ours, theirs = both("RecordingObserver")
    for x in (np.float32([1, 2]), np.float32([[3]])):
        assert ours.forward(x) is x
        theirs(torch.from_numpy(x))
        x += 1  # what was recorded is a copy
    for mine, other in zip(ours.get_tensor_value(), theirs.get_tensor_value(), strict=True):
        np.testing.assert_array_equal(mine, other.numpy())


@pytest.mark.parametrize(
    "name", ["NoopObserver", "PlaceholderObserver", "RecordingObserver", "ReuseInputObserver"]
)
def test_observers_without_statistics(name: str) -> None:
    ours, theirs = both(name)
    x = np.ones(3, np.float32)
    assert ours.forward(x) is x
    assert to_torch(ours.dtype) == theirs.dtype
    with pytest.raises(Exception, match="should not be called"):
        theirs.calculate_qparams()
    with pytest.raises(UnsupportedError, match="has no statistics"):
        ours.calculate_qparams()
    if name == "PlaceholderObserver":
        with pytest.warns(UserWarning, match="compute_dtype"):
            observer.PlaceholderObserver(compute_dtype=refquant.qint8)


def test_factories_chain_and_compute_arguments() -> None:
    calls: list[int] = []
    make = observer.MinMaxObserver.with_args(dtype=refquant.qint8).with_args(quant_min=-8)
    make = make.with_callable_args(quant_max=lambda: calls.append(1) or 7)
    one, two = make(), make()
    assert one is not two
    assert (one.dtype, one.quant_min, one.quant_max, len(calls)) == (refquant.qint8, -8, 7, 2)
    assert make(quant_max=5).quant_max == 5
    assert len(calls) == 2
    signature = inspect.signature(observer.HistogramObserver)
    expected = inspect.signature(torch_observer.HistogramObserver)
    names = [name for name in expected.parameters if name != "kwargs"]
    assert list(signature.parameters)[: len(names)] == names


@pytest.mark.parametrize("name", ["MinMaxObserver", "PerChannelMinMaxObserver"])
def test_merging_is_exact(name: str) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((3, 5)).astype(np.float32) for _ in range(4)]
    whole, _ = both(name)
    parts = [both(name)[0] for _ in range(3)]
    for index, batch in enumerate(batches):
        whole(batch)
        parts[index % 2](batch)
    merged = parts[2].merge(parts[0]).merge(parts[1]).merge(both(name)[0])
    assert all(np.array_equal(v, merged.state_dict()[k]) for k, v in whole.state_dict().items())
    assert (merged.batches, merged.elements) == (4, 60)
    with pytest.raises(VerifyError, match="dtype differs"):
        merged.merge(both(name, dtype=refquant.qint8)[0])
    with pytest.raises(VerifyError, match="expected a"):
        merged.merge(observer.HistogramObserver())


@pytest.mark.parametrize(
    "name", ["HistogramObserver", "MovingAverageMinMaxObserver", PER_CHANNEL[1]]
)
def test_what_depends_on_order_does_not_merge(name: str) -> None:
    with pytest.raises(UnsupportedError, match="one observer in their order"):
        both(name)[0].merge(both(name)[0])


def test_reports_and_resets() -> None:
    rng = np.random.default_rng(0)
    ours = observer.HistogramObserver()
    ours(rng.standard_t(3, 10_000).astype(np.float32))
    report = ours.report()
    found = ours.search()
    inside = ours.histogram[found.start_bin : found.end_bin + 1]
    assert report.elements == 10_000
    assert 0 <= report.clipped < 0.01
    assert inside.sum() == round((1 - report.clipped) * 10_000)
    assert report.chosen == (found.minimum, found.maximum)
    assert "clipped" in str(report)
    constant = observer.HistogramObserver()
    constant(np.full(5, 2.0))
    assert constant.report().clipped == 0
    with pytest.raises(UnsupportedError, match="Cannot reset"):
        ours.reset_min_max_vals()
    other = observer.PerChannelMinMaxObserver()
    other(np.ones((9, 2)))
    assert "(9 channels)" in str(other.report())
    other.reset_min_max_vals()
    assert (other.min_val.size, other.batches) == (0, 0)


def test_plots() -> None:
    ours = observer.HistogramObserver()
    with pytest.raises(VerifyError, match="no data"):
        ours.plot()
    ours(np.random.default_rng(0).standard_normal(1000).astype(np.float32))
    histogram, search = ours.plot().axes
    assert histogram.get_legend().get_texts()[0].get_text() == "observed"
    assert len(search.lines[0].get_ydata()) == len(ours.search().errors)
    ranges = observer.PerChannelMinMaxObserver()
    ranges(np.ones((3, 2)))
    assert len(ranges.plot().axes[0].patches) == 3
