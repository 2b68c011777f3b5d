"""Equalization's observers and its scale against torch's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Ledger
from torch.ao.quantization.fx import _equalize

from refquant import equalization, importers, qint8, quint8
from refquant.equalization import EqualizationQConfig, calculate_equalization_scale
from refquant.ir.errors import VerifyError
from refquant.ir.types import per_channel_affine, per_tensor_affine, per_tensor_symmetric
from refquant.observer import MinMaxObserver
from refquant.qconfig import Identity

RNG = np.random.default_rng
INPUT, WEIGHT = "_InputEqualizationObserver", "_WeightEqualizationObserver"
SHAPES = [(4, 3), (2, 3, 5), (2, 1, 4, 4), (1, 7, 2, 3, 2), (3, 70), (0, 3)]


def pair(kind: str, batches: list[Any], **keywords: Any) -> tuple[Any, Any]:
    """Return our observer and torch's after the same batches."""
    theirs = getattr(_equalize, kind)(**keywords)
    ours = getattr(equalization, kind)(**importers.from_torch_config(keywords))
    for batch in batches:
        theirs(torch.tensor(batch))
        assert ours(batch) is batch
    return ours, theirs


def batches(shape: tuple[int, ...], seed: int, spread: float = 3.0) -> list[Any]:
    rng = RNG(seed)
    return [
        (rng.standard_normal(shape) * np.exp(rng.standard_normal(shape) * spread)).astype(
            np.float32
        )
        for _ in range(3)
    ]


def assert_same_state(ours: Any, theirs: Any, ledger: Ledger) -> None:
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        ledger.equal("equalization observer state", state[key], value.numpy())
    assert state._metadata[""] == {"version": 1}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", [torch.per_tensor_affine, torch.per_tensor_symmetric])
def test_columns(shape: tuple[int, ...], scheme: Any, ledger: Ledger) -> None:
    for seed in range(ledger.size(5, 200)):
        for kind in (INPUT, WEIGHT):
            ours, theirs = pair(kind, batches(shape, seed), qscheme=scheme)
            assert_same_state(ours, theirs, ledger)
            fresh = getattr(equalization, kind)()
            fresh.load_state_dict(theirs.state_dict())
            assert_same_state(fresh, theirs, ledger)
            getattr(_equalize, kind)().load_state_dict(
                importers.to_torch_state_dict(ours.state_dict())
            )
            if kind == INPUT:
                assert ours.equalization_shape == theirs.equalization_shape


def scales(inputs: tuple[Any, Any], weights: tuple[Any, Any]) -> tuple[Any, Any]:
    ours = calculate_equalization_scale(inputs[0], weights[0])
    return ours, _equalize.calculate_equalization_scale(inputs[1], weights[1]).numpy()


def awkward(values: list[float]) -> Any:
    """Return two rows, so that every pair of values is one column's range."""
    return np.array([(a, b) for a in values for b in values], np.float32).T.copy()


TABLE = [0.0, -0.0, 1.0, 4.0, 1e-45, 1e38, 3e38, -3e38, np.inf, -np.inf, np.nan]


def test_scale(ledger: Ledger) -> None:
    """The quotient is exact, and the root is correctly rounded, which torch's is not."""
    cases = [(batches((4, 70), seed), batches((6, 70), seed + 1)) for seed in range(20)]
    rng = RNG(1)
    order = rng.permutation(len(TABLE) ** 2)
    cases.append(([awkward(TABLE)], [awkward(TABLE)[:, order]]))
    for data, weight in cases:
        inputs, weights = pair(INPUT, data), pair(WEIGHT, weight)
        actual, expected = scales(inputs, weights)
        (low, high), (weight_low, weight_high) = (
            inputs[1].get_input_minmax(),
            weights[1].get_weight_col_minmax(),
        )
        quotient = (weight_high - weight_low) / (high - low)
        root = torch.sqrt(quotient.double()).float()
        root[root == 0] = 1
        root = torch.nan_to_num(root, nan=1, posinf=1, neginf=1)
        ledger.equal("equalization scale, root correctly rounded", actual, root.numpy())
        assert actual.dtype == expected.dtype
        ulp = np.spacing(expected)  # MKL's root
        assert np.all(np.abs(actual - expected) <= ulp)


def test_scale_with_exact_roots(ledger: Ledger) -> None:
    """Where the quotient is the square of a small number, every root gives the same bits."""
    rng = RNG(2)
    for _ in range(20):
        width = 2.0 ** rng.integers(-20, 20, 33)
        ratio = (rng.integers(0, 2000, 33) * 2.0 ** rng.integers(-12, 1, 33)) ** 2
        data = np.stack([np.zeros(33), width]).astype(np.float32)
        weight = np.stack([np.zeros(33), width * ratio]).astype(np.float32)
        actual, expected = scales(pair(INPUT, [data]), pair(WEIGHT, [weight]))
        ledger.equal("equalization scale, exact roots", actual, expected)


@pytest.mark.parametrize("shape", SHAPES[:5])
def test_scaled_range(shape: tuple[int, ...], ledger: Ledger) -> None:
    for seed in range(ledger.size(10, 300)):
        ours, theirs = pair(INPUT, batches(shape, seed))
        scale = np.exp(RNG(seed).standard_normal(shape[1])).astype(np.float32)
        if seed == 0:
            scale[0] = np.inf
        theirs.set_equalization_scale(torch.tensor(scale))
        ours.set_equalization_scale(scale)
        expected = theirs.equalization_scale.numpy()
        ledger.equal("equalization scale, shaped", ours.equalization_scale, expected)
        for mine, wanted in zip(
            ours.calculate_scaled_minmax(), theirs.calculate_scaled_minmax(), strict=True
        ):
            ledger.equal("equalization, scaled range", mine, wanted.numpy())
        mine, wanted = pair(WEIGHT, batches(shape, seed))
        mine.set_equalization_scale(scale)
        assert mine.equalization_scale is scale
        assert (mine.ch_axis, wanted.ch_axis) == (1, 1)


def test_scaled_range_with_nan(ledger: Ledger) -> None:
    data = np.float32([[np.nan, 1], [2, np.inf]])
    for scale in ([1, 2], [0, 0], [np.nan, 1]):
        ours, theirs = pair(INPUT, [data])
        ours.set_equalization_scale(np.float32(scale))
        theirs.set_equalization_scale(torch.tensor(scale, dtype=torch.float32))
        for mine, wanted in zip(
            ours.calculate_scaled_minmax(), theirs.calculate_scaled_minmax(), strict=True
        ):
            ledger.equal("equalization, scaled range", mine, wanted.numpy())


@pytest.mark.filterwarnings("ignore:must run observer before")
def test_without_data_or_scale() -> None:
    seen = batches((2, 3), 0)
    for data, weight in (([], []), (seen, []), ([], seen)):
        inputs, weights = pair(INPUT, data), pair(WEIGHT, weight)
        with pytest.warns(UserWarning, match="Must run observer"):
            ours, theirs = scales(inputs, weights)
        assert (
            (ours.shape, ours.dtype, ours) == (theirs.shape, theirs.dtype, theirs) == ((), int, 1)
        )
        for observer, other in (inputs, weights):
            initial = other.equalization_scale.numpy()
            assert observer.equalization_scale.dtype == initial.dtype
        for observer, one in zip(inputs, (np.array(1), torch.tensor(1)), strict=True):
            observer.set_equalization_scale(one)
            with pytest.warns(UserWarning, match="Must call calculate_equalization_scale"):
                assert observer.calculate_scaled_minmax() == (None, None)
            assert observer.equalization_scale == 1
            assert observer.equalization_scale.shape == ()


def test_settings() -> None:
    for kind, part, keywords in (
        (INPUT, "input_obs", {}),
        (INPUT, "input_obs", {"dtype": torch.qint8, "quant_min": -5, "quant_max": 9}),
        (WEIGHT, "weight_col_obs", {}),
        (WEIGHT, "weight_col_obs", {"qscheme": torch.per_channel_symmetric}),
        (WEIGHT, "weight_col_obs", {"qscheme": torch.per_tensor_symmetric, "quant_min": 0}),
    ):
        ours, theirs = pair(kind, [], **keywords)
        for mine, wanted in ((ours, theirs), (getattr(ours, part), getattr(theirs, part))):
            assert mine.dtype is importers.from_torch_config(wanted.dtype)
            assert mine.qscheme is importers.from_torch_config(wanted.qscheme)
        for name in ("quant_min", "quant_max", "ch_axis"):
            assert getattr(getattr(ours, part), name) == getattr(getattr(theirs, part), name)
    made = equalization.input_equalization_observer()
    assert (made.dtype, made.qscheme) == (quint8, per_tensor_symmetric)
    assert equalization.weight_equalization_observer().dtype is qint8
    assert repr(made).startswith("_InputEqualizationObserver(input_obs=PerChannelMinMaxObserver(")


def minimum_above_maximum(api: Any, array: Callable[[Any], Any]) -> Any:
    observers = getattr(api, INPUT)(), getattr(api, WEIGHT)()
    for observer in observers:
        observer(array([[1.0, 2.0]]))
    observers[0].input_obs.min_val = array([5.0, 5.0])
    return api.calculate_equalization_scale(*observers)


def other_columns(api: Any, array: Callable[[Any], Any]) -> Any:
    observers = getattr(api, INPUT)(), getattr(api, WEIGHT)()
    observers[0](array([[1.0, 2.0]]))
    observers[1](array([[1.0, 2.0, 3.0]]))
    return api.calculate_equalization_scale(*observers)


def wrong_scale(api: Any, array: Callable[[Any], Any]) -> Any:
    observer = getattr(api, INPUT)()
    observer(array([[1.0, 2.0]]))
    observer.set_equalization_scale(array([1.0, 2.0, 3.0]))


ERRORS: list[tuple[Callable[..., Any], type[Exception]]] = [
    (minimum_above_maximum, AssertionError),
    (other_columns, ValueError),
    (wrong_scale, RuntimeError),
    (lambda api, array: getattr(api, INPUT)()(array([1.0])), ValueError),
    (lambda api, array: getattr(api, WEIGHT)()(array([[[[[[1.0]]]]]])), ValueError),
    (
        lambda api, array: getattr(api, INPUT)().set_equalization_scale(array([2.0, 3])),
        RuntimeError,
    ),
    (lambda api, _: api.EqualizationQConfig(weight=getattr(api, WEIGHT)()), ValueError),
    (lambda api, _: api.EqualizationQConfig(getattr(api, INPUT)()), ValueError),
]


@pytest.mark.parametrize(("wrong", "kind"), ERRORS)
def test_errors_are_torchs(wrong: Callable[..., Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        wrong(_equalize, torch.tensor)
    with pytest.raises(kind) as error:
        wrong(equalization, np.float32)
    assert isinstance(error.value, VerifyError)
    assert "\n" not in str(error.value)


def test_other_errors() -> None:
    with pytest.raises(TypeError):
        _equalize._InputEqualizationObserver(qscheme=torch.per_channel_affine)
    with pytest.raises(VerifyError, match="per-tensor"):
        equalization._InputEqualizationObserver(qscheme=per_channel_affine)
    for instance in (MinMaxObserver(), Identity()):
        with pytest.raises(VerifyError, match="an instance of"):
            EqualizationQConfig(weight=instance)
    observer = equalization._InputEqualizationObserver(qscheme=per_tensor_affine)
    observer(np.ones((2, 3), np.float32))
    with pytest.raises(VerifyError, match="channels"):
        observer(np.ones((2, 4, 2), np.float32))
    assert observer.equalization_shape == [1, 3]


def test_the_layers_with_the_most_noise() -> None:
    noise = {"a": 30.0, "b": 10.0, "c": 20.0, "d": 10.0}
    for n in range(6):
        theirs = _equalize.get_equalization_qconfig_dict(noise, n)
        ours = equalization.get_equalization_qconfig_dict(noise, n)
        assert [name for name, _ in ours["module_name"]] == [n for n, _ in theirs["module_name"]]
        assert importers.from_torch_config(theirs).keys() == ours.keys()


def test_nothing_is_printed_for_infinite_ranges() -> None:
    inputs = pair(INPUT, [np.float32([[0, 1], [0, 2]])])
    weights = pair(WEIGHT, [np.float32([[np.inf, 0], [1, np.nan]])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual, expected = scales(inputs, weights)
    np.testing.assert_array_equal(actual, expected)
