"""``quantized_decomposed``, fake-quants and observers: torch's bits, ties and specials first.

The values of whole sweeps are drawn by ``floats.hugging``; ``test_any_types`` draws types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from hypothesis import given
from hypothesis import strategies as st
from ledger import Ledger
from oracle import assert_same_strides, call_torch, from_torch, this_machine, to_torch
from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver
from values import chunks

from refquant.importers import from_fx
from refquant.ir import OPS, Module, VerifyError
from refquant.ir.qtensor import type_of
from refquant.ir.types import (
    TORCH_DTYPES,
    DType,
    TensorType,
    bfloat16,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    float64,
    int8,
    uint8,
    uint16,
)
from refquant.kernels.decomposed import BOUNDS
from refquant.kernels.decomposed_fake_quant import fake_quant_per_channel_backward
from refquant.ledger.draw.decomposed import TARGETS, a_call, drawn_scales, range_of
from refquant.ledger.draw.floats import hugging
from refquant.ops import function

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
        ({"dtype": TORCH_DTYPES["float32"]}, "expected a plain integer dtype, got float32"),
        ({"dtype": TORCH_DTYPES["quint8"]}, "expected a plain integer dtype, got quint8"),
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


# ---- whole sweeps against torch

MACHINE = this_machine()
X32, ONES = np.ones((2, 3), np.float32), np.ones(2)
U8, GROUP = {"quant_min": 0, "quant_max": 255, "dtype": uint8}, {"group_size": 2}
HALF = [float16, bfloat16]


def same(
    ledger: Ledger, subject: str, name: str, operands: tuple[Any, ...], attributes: dict[str, Any]
) -> Any:
    """Reference and kernel give torch's values, dtypes and strides, and ``infer`` their types."""
    name = f"quantized_decomposed::{name}"
    expected = call_torch(name, operands, attributes)
    op = OPS[name]
    types = [None if x is None else type_of(x) for x in operands]
    inferred = op.infer(*types, **attributes)
    kernels = {op.reference, *op.kernels.values()}
    for kernel in kernels:
        actual = kernel(*operands, **attributes)
        several = isinstance(expected, tuple)
        pairs = zip(actual, expected, strict=True) if several else [(actual, expected)]
        for one, other in pairs:
            assert one.dtype == other.dtype
            assert_same_strides(one, other)
            if one.dtype == float8_e5m2.storage:  # whose NaN NumPy's equality does not know
                one, other = one.astype(np.float32), other.astype(np.float32)
            ledger.equal(subject, one, other)
        assert inferred == (tuple(map(type_of, actual)) if several else type_of(actual))
    return expected


def rows_of(n: int) -> int:
    """Return how many rows share ``n`` elements."""
    return max(n // 100, 1) if n < 10_000 else 1000


@pytest.mark.parametrize("source", [float32, *HALF], ids=str)
@pytest.mark.parametrize("dtype", TARGETS, ids=str)
def test_per_tensor_sweep(ledger: Ledger, dtype: DType, source: DType) -> None:
    low, high = BOUNDS[dtype]
    full = 10_000_000 if source == float32 else 1_000_000
    for rng, n, _ in chunks(ledger, 5_000, full):
        scale = float(drawn_scales(rng, None, np.float64))
        zero_point = int(rng.integers(max(low, -300), min(high, 300) + 1))
        x = hugging(rng, n, scale, zero_point, (low, high), source.storage)
        attributes = {"scale": scale, "zero_point": zero_point} | range_of(dtype)
        subject = f"decomposed quantize_per_tensor {dtype}"
        q = same(ledger, subject, "quantize_per_tensor", (x,), attributes)
        subject = f"decomposed dequantize_per_tensor {dtype}"
        for out_dtype in (None, source):
            options = attributes | {"out_dtype": out_dtype}
            same(ledger, subject, "dequantize_per_tensor", (q,), options)
        if n > 10_000:
            continue
        s, z = np.array([scale]), np.array(zero_point)
        ends = np.array(low), np.array([high])
        limits = range_of(dtype)
        for name, value in (("quantize_per_tensor", x), ("dequantize_per_tensor", q)):
            subject = f"decomposed {name} {dtype}"
            same(ledger, subject, f"{name}.tensor", (value, s, z), limits)
            same(ledger, subject, f"{name}.tensor2", (value, s, z, *ends), {"dtype": dtype})


@pytest.mark.parametrize("double", [False, True], ids=["float32 scales", "float64 scales"])
@pytest.mark.parametrize("dtype", TARGETS, ids=str)
def test_per_channel_sweep(ledger: Ledger, dtype: DType, double: bool) -> None:
    low, high = BOUNDS[dtype]
    for i, (rng, n, _) in enumerate(chunks(ledger, 5_000, 5_000_000)):
        rows = rows_of(n)
        scales = drawn_scales(rng, rows, np.float64 if double else np.float32)
        zero_points = rng.integers(max(low, -300), min(high, 300) + 1, rows)
        x = hugging(rng, n // rows, scales[:, None], zero_points[:, None], (low, high))
        axis = i % 2
        x = np.ascontiguousarray(x.T) if axis else x
        operands: Any = (x, scales, zero_points)
        attributes = {"axis": axis} | range_of(dtype)
        subject = f"decomposed quantize_per_channel {dtype}"
        q = same(ledger, subject, "quantize_per_channel", operands, attributes)
        if dtype in (float8_e5m2, float8_e4m3fn, uint16):
            zero_points = zero_points.astype(np.float32)
        if dtype in (float8_e5m2, float8_e4m3fn):
            continue  # torch has no arithmetic on float8
        subject = f"decomposed dequantize_per_channel {dtype}"
        for z in (zero_points, None):
            options = attributes | {"out_dtype": (None, float16, bfloat16, float64)[i % 4]}
            same(ledger, subject, "dequantize_per_channel", (q, scales, z), options)


@pytest.mark.parametrize("source", [float32, float16, bfloat16, float64], ids=str)
@pytest.mark.parametrize("dtype", [int8, uint8], ids=str)
def test_per_token_and_per_group_sweep(ledger: Ledger, dtype: DType, source: DType) -> None:
    low, high = BOUNDS[dtype]
    for i, (rng, n, _) in enumerate(chunks(ledger, 5_000, 2_500_000)):
        rows = rows_of(n)
        length = max(n // rows // 8, 1) * 8
        kind = source.storage if i % 2 else np.float32
        scales = drawn_scales(rng, (rows, 1), kind)
        zero_points = rng.integers(low, high + 1, (rows, 1))
        zero_points = zero_points.astype((np.int32, np.int64, np.float32)[i % 3])
        x = hugging(rng, length, scales, zero_points, (low, high), source.storage)
        limits = range_of(dtype)
        subject = f"decomposed quantize_per_token {dtype}"
        q = same(ledger, subject, "quantize_per_token", (x, scales, zero_points), limits)
        subject = f"decomposed dequantize_per_token {dtype}"
        options = limits | {"output_dtype": source}
        same(ledger, subject, "dequantize_per_token", (q, scales, zero_points), options)
        groups = (np.repeat(v, 2, axis=1) for v in (scales, zero_points))
        operands = (np.where(np.isnan(x), x.dtype.type(0), x), *groups)
        options = limits | {"group_size": length // 2}
        subject = f"decomposed quantize_per_channel_group {dtype}"
        q = same(ledger, subject, "quantize_per_channel_group", operands, options)
        options |= {"output_dtype": source}
        subject = f"decomposed dequantize_per_channel_group {dtype}"
        for z in (operands[2], None):
            name = "dequantize_per_channel_group"
            same(ledger, subject, name, (q, operands[1], z), options)


@pytest.mark.parametrize("source", [float32, float16, bfloat16, float64], ids=str)
def test_choose_qparams_per_token(ledger: Ledger, source: DType) -> None:
    """Rows whose ends differ a little, so that the errors of both ends nearly cancel."""
    rng = np.random.default_rng(12)
    for i in range(ledger.size(40, 2000)):
        x = rng.normal(size=(50, 7)) * np.exp(rng.uniform(-9, 9, (50, 1)))
        x[:, 0] = -x[:, 1] * (1 + rng.integers(-3, 4, 50) * 2.0**-8)
        x[i % 50] = (0, 1e-8, np.nan, np.inf, 1e5)[i % 5]
        with np.errstate(over="ignore"):
            x = x.astype(source.storage)
        for name in ("choose_qparams_per_token", "choose_qparams_per_token_asymmetric"):
            same(ledger, f"decomposed {name} {source}", name, (x,), {"dtype": int8})


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("source", [float32, *HALF], ids=str)
def test_choose_qparams_of_every_type(ledger: Ledger, source: DType, symmetric: bool) -> None:
    """Half of the ranges make ``lo / scale`` a tie."""
    rng = np.random.default_rng(13)
    name = f"choose_qparams{'_symmetric' if symmetric else ''}"
    for i in range(ledger.size(600, 20_000)):
        dtype = TARGETS[i % 7]
        low, high = [(0, 255), (-128, 127), (-8, 7), (0, 2**16 - 1), (-(2**31), 2**31 - 1)][i % 5]
        size = np.exp(rng.uniform(-9, 9))
        x = rng.normal(size=3) * size
        if i % 2:
            part = (rng.integers(0, high - low) + 0.5) / (high - low)
            x[:2] = -part * size, (1 - part) * size
            x[2] = 0
        x[0] = (x[0], np.nan, np.inf, 1e-8)[0 if i % 40 else i // 40 % 4]
        with np.errstate(over="ignore"):
            x = x.astype(source.storage)
        attributes = {"quant_min": low, "quant_max": high, "eps": 2.0 ** -(i % 60), "dtype": dtype}
        same(ledger, f"decomposed {name} {source}", f"{name}.tensor", (x,), attributes)


def test_fake_quant_per_channel_sweep(ledger: Ledger) -> None:
    for i, (rng, n, _) in enumerate(chunks(ledger)):
        rows = rows_of(n)
        scales = drawn_scales(rng, rows, (np.float32, np.float64, np.float16)[i % 3])
        zero_points = rng.integers(-9, 300, rows).astype((np.int32, np.int64, np.float32)[i % 3])
        zero_points = zero_points + zero_points.dtype.type(0.75)
        x = hugging(rng, n // rows, scales[:, None], zero_points[:, None], (0, 255))
        axis = i % 2
        x = np.ascontiguousarray(x.T) if axis else x
        rest = {"axis": axis, "quant_min": 0, "quant_max": 255}
        operands = (x, scales, zero_points)
        subject = "decomposed fake_quant_per_channel"
        same(ledger, subject, "fake_quant_per_channel", operands, rest)
        leaf = to_torch(x).clone().requires_grad_(True)
        grad = hugging(rng, x.size, 0.1, 0, (0, 9)).reshape(x.shape)
        ops = torch.ops.quantized_decomposed
        ops.fake_quant_per_channel(leaf, *map(to_torch, operands[1:]), *rest.values()).backward(
            to_torch(grad)
        )
        actual = fake_quant_per_channel_backward(grad, *operands, **rest)
        expected = from_torch(leaf.grad)
        ledger.equal(f"{subject} backward", actual, expected)
        assert np.all(np.isnan(expected) | (np.signbit(actual) == np.signbit(expected)))


@pytest.mark.parametrize(
    "dtype", [d for d in TORCH_DTYPES.values() if not d.is_quantized], ids=str
)
def test_convert_element_type(ledger: Ledger, dtype: DType) -> None:
    rng = np.random.default_rng(14)
    x = hugging(rng, ledger.size(5_000, 1_000_000), 1, 0, (-500, 500), np.float64)
    for source in TORCH_DTYPES.values():
        if not source.is_quantized:
            values = from_torch(to_torch(x).to(to_torch(source)))
            subject = f"decomposed convert_element_type {dtype}"
            same(ledger, subject, "convert_element_type.no_fuse", (values,), {"dtype": dtype})


# ---- types and shapes drawn at random

NAMES = [name.partition("::")[2] for name in OPS if name.startswith("quantized_decomposed")]


@pytest.mark.parametrize("name", NAMES)
def test_any_types(ledger: Ledger, name: str) -> None:
    """What torch computes is computed, and what it refuses is refused.

    Torch also computes a few products and sums of float8 or uint16 that are refused here.
    """
    rng = np.random.default_rng(15)
    qualified = f"quantized_decomposed::{name}"
    accepted = 0
    for _ in range(ledger.size(150, 5000)):
        operands, attributes = a_call(rng, name)
        if refused_by_torch(qualified, operands, attributes):
            with pytest.raises(VerifyError):
                function(qualified)(*operands, **attributes)
            continue
        try:
            same(ledger, f"decomposed {name}, any types", name, operands, attributes)
            accepted += 1
        except VerifyError as error:
            assert "is not supported" in str(error)  # noqa: PT017
    assert accepted > 20


def refused_by_torch(name: str, operands: tuple[Any, ...], attributes: dict[str, Any]) -> bool:
    """Whether torch raises, of whatever class."""
    try:
        call_torch(name, operands, attributes)
    except Exception:
        return True
    return False


# ---- importing


class Decomposed(torch.nn.Module):
    """A call of every op, by overload and by name, with arguments by position and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.tensor([0.05]))
        self.register_buffer("zero", torch.tensor([3]))
        self.register_buffer("scales", torch.linspace(0.02, 0.09, 4))
        self.register_buffer("zeros", torch.arange(4))
        self.register_buffer("groups", torch.linspace(0.02, 0.09, 8).reshape(4, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ops, u8, i8 = torch.ops.quantized_decomposed, torch.uint8, torch.int8
        low, high = torch.tensor(0), torch.tensor([255])
        q0 = ops.quantize_per_tensor.default(x, 0.05, 3, 0, 255, u8)
        q1 = ops.quantize_per_tensor.tensor(x, self.one, self.zero, 0, 255, u8)
        q2 = ops.quantize_per_tensor.tensor2(x, self.one, self.zero, low, high, u8)
        q3 = ops.quantize_per_tensor(x, 0.05, 3, quant_min=0, quant_max=9, dtype=u8)
        q4 = ops.quantize_per_tensor(x, self.one, self.zero, 0, 255, u8)
        q5 = ops.quantize_per_tensor(x, self.one, self.zero, low, high, u8)
        half = torch.float16
        results = [
            ops.dequantize_per_tensor.default(q0, 0.05, 3, 0, 255, u8, out_dtype=half),
            ops.dequantize_per_tensor.tensor(q1, self.one, self.zero, 0, 255, u8),
            ops.dequantize_per_tensor.tensor2(q2, self.one, self.zero, low, high, u8),
            *(ops.dequantize_per_tensor(q, 0.05, 3, 0, 255, u8) for q in (q3, q4, q5)),
        ]
        for form in (ops.choose_qparams, ops.choose_qparams_symmetric):
            scale, zero_point = form.tensor(x, -128, 127, 1e-6, i8)
            q = ops.quantize_per_tensor.tensor(x, scale, zero_point, -128, 127, i8)
            results += [scale, zero_point, q, form(x, -128, 127, 1e-6, i8)[0]]
        per_channel = self.scales, self.zeros, 0, -128, 127, i8
        q = ops.quantize_per_channel.default(x, *per_channel)
        results += [q, ops.dequantize_per_channel.default(q, *per_channel, out_dtype=half)]
        named = {"scales": self.scales, "zero_points": self.zeros, "axis": 0}
        q = ops.quantize_per_channel(x, **named, quant_min=0, quant_max=9, dtype=u8)
        results += [q, ops.dequantize_per_channel(q, self.scales, None, 0, 0, 9, u8)]
        for choose in (
            ops.choose_qparams_per_token,
            ops.choose_qparams_per_token_asymmetric.default,
            ops._choose_qparams_per_token_asymmetric_impl,
        ):
            scale, zero_point = choose(x, i8)
            q = ops.quantize_per_token(x, scale, zero_point, -128, 127, i8)
            back = ops.dequantize_per_token.default(q, scale, zero_point, -128, 127, i8, half)
            results += [scale, zero_point, q, back]
        group = self.groups, self.groups * 0, -8, 7, i8, 4
        q = ops.quantize_per_channel_group.default(x, *group)
        results += [q, ops.dequantize_per_channel_group(q, self.groups, None, *group[2:], half)]
        results.append(ops.fake_quant_per_channel.default(x, *per_channel[:-1]))
        results.append(ops.convert_element_type.no_fuse(x, torch.bfloat16))
        return tuple(results)


def test_a_traced_network_of_every_op_imports_and_agrees(ledger: Ledger) -> None:
    x = hugging(np.random.default_rng(16), 8, np.full((4, 1), 0.05), 3, (-100, 100))
    x = np.nan_to_num(x, posinf=3, neginf=-3)
    module = torch.fx.symbolic_trace(Decomposed())
    graph = from_fx(module, (x,))
    used = {node.op for node in graph.nodes if node.op.startswith("quantized_decomposed")}
    assert used == {f"quantized_decomposed::{name}" for name in NAMES}
    expected = from_torch(module(to_torch(x)))
    for executor in ("fast", "reference"):
        actual = graph(x, executor=executor)
        for one, other in zip(actual, expected, strict=True):
            ledger.equal("decomposed, imported", one, other)


@pytest.mark.parametrize(
    ("name", "operands", "attributes", "message"),
    [
        ("quantize_per_tensor", (X32,), {"scale": 0.0, "zero_point": 0} | U8, "scale 0.0"),
        ("quantize_per_tensor.tensor", (X32, ONES[:0], ONES), U8, "scale must have one element"),
        ("quantize_per_tensor.tensor", (X32, ONES[:1] * 0, ONES[:1]), U8, "scale 0.0"),
        ("dequantize_per_tensor", (X32,), {"scale": 1.0, "zero_point": 0} | U8, "expected uint8"),
        ("quantize_per_channel", (X32, ONES, None), {"axis": 0} | U8, "zero_points must be"),
        ("quantize_per_channel", (X32, ONES, ONES), {"axis": 1} | U8, "do not fit axis 1"),
        ("quantize_per_channel", (X32, ONES, ONES[:1]), {"axis": 0} | U8, "do not fit axis 0"),
        ("quantize_per_token", (X32, ONES, ONES), U8, r"do not broadcast"),
        ("quantize_per_token", (X32, ONES[:1], ONES[:1]), U8, "expected 2 scales, one per token"),
        ("choose_qparams.tensor", (X32,), U8 | {"eps": 0.1, "quant_min": 1}, "must include 0"),
        ("choose_qparams_per_token", (X32,), {"dtype": uint8}, "dtype must be int8, got uint8"),
        ("choose_qparams_per_token", (X32[:, :0],), {"dtype": int8}, "tokens with elements"),
        ("quantize_per_channel_group", (X32, ONES, ONES), U8 | GROUP, "must divide 3 columns"),
        (
            "quantize_per_channel_group",
            (X32 * np.nan, ONES, ONES),
            U8 | {"group_size": 3},
            "x must not hold NaN",
        ),
        (
            "quantize_per_channel_group",
            (X32[None], ONES, ONES),
            U8 | {"group_size": 3},
            "expected a matrix",
        ),
        (
            "quantize_per_channel_group",
            (X32, ONES, ONES),
            U8 | {"group_size": 1},
            "group_size must be > 1",
        ),
    ],
)
def test_what_torch_refuses_is_refused(
    name: str, operands: tuple[Any, ...], attributes: dict[str, Any], message: str
) -> None:
    assert refused_by_torch(f"quantized_decomposed::{name}", operands, attributes)
    with pytest.raises(VerifyError, match=message):
        function(f"quantized_decomposed::{name}")(*operands, **attributes)
