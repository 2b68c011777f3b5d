"""``quantized_decomposed``, fake-quants and observers: torch's bits, ties and specials first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from hypothesis import given
from hypothesis import strategies as st
from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver

from refquant.ir import OPS, Module, VerifyError
from refquant.ir.types import DTYPES, TensorType, float32, int8, uint8

SCALES = st.floats(2**-20, 2**10)
RANGES = [(uint8, 0, 255), (int8, -128, 127), (int8, -127, 127), (uint8, 0, 15)]


def ties(scale: float, low: int, high: int) -> Any:
    """Values whose quotient by the scale lies within 3 ulp of k + 0.5, and awkward ones."""
    k = np.arange(low - 3, high + 3, dtype=np.float64) + 0.5
    x = (k * scale).astype(np.float32)
    steps = [x]
    for _ in range(3):
        steps += [np.nextafter(steps[-1], np.float32(np.inf))]
    down = [x]
    for _ in range(3):
        down += [np.nextafter(down[-1], np.float32(-np.inf))]
    special = np.array([0, -0.0, 1e-45, -1e-40, 1e10, -1e10], np.float32)
    return np.concatenate([*steps, *down, special])


@given(scale=SCALES, which=st.sampled_from(RANGES), offset=st.integers(0, 100))
def test_quantize_per_tensor(scale: float, which: Any, offset: int) -> None:
    dtype, low, high = which
    zero_point = low + offset % (high - low)
    x = ties(scale, low - zero_point, high - zero_point)
    arguments = (scale, zero_point, low, high)
    ops = torch.ops.quantized_decomposed
    expected = ops.quantize_per_tensor(torch.from_numpy(x), *arguments, getattr(torch, dtype.name))
    q = OPS["quantized_decomposed::quantize_per_tensor"].reference(x, *arguments, dtype)
    np.testing.assert_array_equal(q, expected.numpy())
    back = ops.dequantize_per_tensor(expected, *arguments, expected.dtype)
    actual = OPS["quantized_decomposed::dequantize_per_tensor"].reference(q, *arguments, dtype)
    np.testing.assert_array_equal(actual, back.numpy())


@given(
    scales=st.lists(SCALES, min_size=2, max_size=4),
    double=st.booleans(),
    which=st.sampled_from(RANGES),
)
def test_quantize_per_channel(scales: list[float], double: bool, which: Any) -> None:
    dtype, low, high = which
    s = np.array(scales, np.float64 if double else np.float32)
    z = np.arange(len(scales)) + max(low, 0)
    x = np.stack([ties(float(scale), low, high) for scale in s])
    torch_args = (torch.from_numpy(s), torch.from_numpy(z), 0, low, high)
    ops = torch.ops.quantized_decomposed
    expected = ops.quantize_per_channel(
        torch.from_numpy(x), *torch_args, getattr(torch, dtype.name)
    )
    q = OPS["quantized_decomposed::quantize_per_channel"].reference(x, s, z, 0, low, high, dtype)
    np.testing.assert_array_equal(q, expected.numpy())
    back = ops.dequantize_per_channel(expected, *torch_args, expected.dtype)
    op = OPS["quantized_decomposed::dequantize_per_channel"]
    np.testing.assert_array_equal(op.reference(q, s, z, 0, low, high, dtype), back.numpy())


@given(low=st.floats(-1e4, 1e4, width=32), high=st.floats(-1e4, 1e4, width=32))
@pytest.mark.parametrize("form", ["choose_qparams", "choose_qparams_symmetric"])
def test_choose_qparams(form: str, low: float, high: float) -> None:
    x = np.array([low, high], np.float32)
    function = getattr(torch.ops.quantized_decomposed, form).tensor
    for dtype, qmin, qmax in RANGES[:3]:
        eps = 1.1920928955078125e-07
        scale, zero = function(torch.from_numpy(x), qmin, qmax, eps, getattr(torch, dtype.name))
        ours = OPS[f"quantized_decomposed::{form}.tensor"].reference(x, qmin, qmax, eps, dtype)
        np.testing.assert_array_equal(ours[0], scale.numpy())
        np.testing.assert_array_equal(ours[1], zero.numpy())
        assert ours[0].dtype == scale.numpy().dtype
        assert ours[1].dtype == zero.numpy().dtype


@given(scale=SCALES, zero_point=st.integers(0, 255), enabled=st.booleans())
def test_fake_quantize_per_tensor(scale: float, zero_point: int, enabled: bool) -> None:
    module = FakeQuantize()
    module.scale[:] = scale
    module.zero_point[:] = zero_point
    module.disable_observer()
    if not enabled:
        module.disable_fake_quant()
    x = np.concatenate([ties(scale, -zero_point, 255 - zero_point), [np.nan, np.inf, -np.inf]])
    x = x.astype(np.float32)
    expected = module(torch.from_numpy(x)).numpy()
    ours = Module("FakeQuantize", {"quant_min": 0, "quant_max": 255}, _state(module))
    actual = OPS["observer::fake_quantize"].reference(x, ours)
    np.testing.assert_array_equal(actual, expected)


def test_fake_quantize_per_channel() -> None:
    module = FakeQuantize(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=1,
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 50)).astype(np.float32)
    module(torch.from_numpy(x))
    module.disable_observer()
    scales = module.scale.numpy()
    x[0, :, :] = (rng.integers(-140, 140, (3, 50)) + 0.5) * scales[:, None]
    x[1, :, :3] = [np.nan, np.inf, -np.inf]
    expected = module(torch.from_numpy(x)).numpy()
    config = {"quant_min": -128, "quant_max": 127, "ch_axis": 1}
    actual = OPS["observer::fake_quantize"].reference(x, Module("F", config, _state(module)))
    np.testing.assert_array_equal(actual, expected)


def _state(module: Any) -> dict[str, Any]:
    return {key: value.numpy().copy() for key, value in module.state_dict().items()}


X = TensorType(float32, (2, 3))
ARGUMENTS = {"scale": 1.0, "zero_point": 0, "quant_min": 0, "quant_max": 255}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": DTYPES["float32"]}, "expected a plain integer dtype, got float32"),
        ({"dtype": DTYPES["quint8"]}, "expected a plain integer dtype, got quint8"),
        ({"dtype": int8}, r"range \[0, 255\] does not fit int8"),
        ({"quant_min": 300}, r"range \[300, 255\] does not fit uint8"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    attributes = ARGUMENTS | {"dtype": uint8} | change
    with pytest.raises(VerifyError, match=message):
        OPS["quantized_decomposed::quantize_per_tensor"].infer(X, **attributes)


def test_a_fake_quant_without_state_is_refused() -> None:
    with pytest.raises(VerifyError, match="has no scale and zero_point in its state"):
        OPS["observer::fake_quantize"].reference(np.zeros(2, np.float32), Module("F"))
