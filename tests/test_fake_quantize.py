"""Fake-quants against torch: ties and awkward values, every dtype and layout, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from ledger import Ledger
from oracle import assert_same_strides, call_torch, from_torch, this_machine, to_torch, torch_as

from refquant.importers import from_fx
from refquant.ir import OPS, Module, Target, VerifyError
from refquant.ir.op import Op
from refquant.ir.qtensor import type_of
from refquant.ir.types import Dim, TensorType, bool_, float32, int32, int64
from refquant.kernels.fake_quantize_backward import kernel as backward
from refquant.kernels.fused_moving_avg_obs_fake_quant import (
    State,
    fused_moving_avg_obs_fake_quant,
    fused_moving_avg_obs_fake_quant_compiled,
)
from refquant.kernels.layout import channels_last

Array = Any
DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
RANGES = [(0, 255), (-128, 127), (0, 127), (-64, 63), (0, 15), (-8, 7), (-127, 127)]
WIDE = [(-32768, 32767), (0, 65535), (-(2**31), 2**31 - 1), (-5, 2**40)]
AWKWARD = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 3e38, -3e38, 1.0, np.inf, -np.inf, np.nan]
MACHINE = this_machine()


def hugging(
    rng: np.random.Generator, n: int, scale: float, offset: float, limits: Any, dtype: Any
) -> Array:
    """Draw values, half of them within 3 ulp of ``(k + 0.5 - offset) * scale``, some awkward."""
    low, high = (max(min(limit, 40_000), -40_000) for limit in limits)
    with np.errstate(over="ignore", invalid="ignore"):
        x = (rng.normal(size=n) * scale * rng.choice([3, 60, 300])).astype(dtype)
        ties = rng.integers(low - 3, high + 4, n) + 0.5
        hug = ((ties - rng.choice([0.0, offset, low], n)) * scale).astype(dtype)
        bits = hug.view(f"i{hug.itemsize}")
        hug = (bits + rng.integers(-3, 4, n).astype(bits.dtype)).view(dtype)
        x = np.where(rng.random(n) < 0.6, hug, x)
        far = [3e9 * scale, -3e9 * scale, 9e18 * scale, 9.3e18 * scale, -9.3e18 * scale, 1e25]
        special = np.array([*AWKWARD, *far]).astype(dtype)
    at = rng.integers(0, max(n, 1), min(n // 8, special.size))
    x[at] = special[rng.permutation(special.size)[: at.size]]
    return x


def a_scale(rng: np.random.Generator, dtype: Any) -> float:
    """Return a scale that lets the ties of a dtype be finite; often not a power of two."""
    smallest, largest = (-8, 1) if dtype is np.float16 else (-14, 6)
    return float(np.exp(rng.uniform(smallest, largest)))


def compare(
    ledger: Ledger,
    subject: str,
    name: str,
    operands: Any,
    attributes: Any,
    target: Target = MACHINE,
) -> Any:
    """Reference and kernel give torch's values, masks, strides and types."""
    with torch_as(target):
        expected = call_torch(name, operands, attributes)
    several = isinstance(expected, tuple)
    op = OPS[name]
    for fast in (False, True):
        actual = op.bind(target, fast=fast)(*operands, **attributes)
        pairs = zip(actual, expected, strict=True) if several else [(actual, expected)]
        parts = ("forward", "mask") if several else ("forward",)
        for part, (one, other) in zip(parts, pairs, strict=True):
            ledger.equal(f"{subject} {part}", one, other)
            assert_same_strides(one, other)
        inferred = op.infer(*(type_of(x) for x in operands), **attributes)
        types = tuple(map(type_of, actual)) if several else type_of(actual)
        assert inferred == types
    return expected


def rounds(ledger: Ledger, short: int = 20_000, full: int = 10_000_000) -> Iterator[Any]:
    """Yield a generator and lengths until there are enough elements."""
    rng = np.random.default_rng(3)
    done = 0
    while done < ledger.size(short, full):
        n = int(rng.choice([1, 7, 15, 64, 65, 129, 1000, 4099]))
        done += n
        yield rng, n


# ---- forward and mask


@pytest.mark.parametrize("dtype", DTYPES)
def test_per_tensor(ledger: Ledger, dtype: str) -> None:
    kind = DTYPES[dtype]
    for i, (rng, n) in enumerate(rounds(ledger)):
        low, high = (RANGES + WIDE)[i % 11]
        scale = a_scale(rng, kind)
        zero_point = int(rng.integers(low, high + 1))
        x = hugging(rng, n, scale, zero_point, (low, high), kind)
        limits = {"quant_min": low, "quant_max": high}
        subject = f"fake_quantize per tensor {dtype}"
        attributes = {"scale": scale, "zero_point": zero_point} | limits
        name = "aten::fake_quantize_per_tensor_affine"
        y, _ = compare(ledger, subject, f"{name}_cachemask", (x,), attributes)
        for fast in (False, True):
            plain = OPS[name].bind(MACHINE, fast=fast)(x, **attributes)
            np.testing.assert_array_equal(plain.astype(np.float64), y.astype(np.float64))
        if high < 2**24:
            real = np.float32([zero_point + rng.uniform(-0.4, 0.4)])
            real = np.clip(real, low, high)
            s = np.array([scale], np.float32 if i % 2 else np.float64)
            compare(ledger, subject, f"{name}.tensor_qparams", (x, s, real), limits)


LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "channels_last": channels_last,
    "transposed": lambda x: np.ascontiguousarray(x.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0),
    "strided": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "gaps, channels last": lambda x: np.repeat(channels_last(x), 2, axis=1)[:, ::2],
}


def placed(layout: str, x: Array) -> Array:
    """Return ``x`` with the strides of a layout."""
    return LAYOUTS[layout](x)  # type: ignore[no-untyped-call]


def channel_case(rng: np.random.Generator, kind: Any, shape: Any, axis: int, limits: Any) -> Any:
    """Draw values, scales, and float zero points with which values divide to ties."""
    channels = shape[axis]
    scales = np.array([a_scale(rng, kind) for _ in range(channels)], np.float32)
    low, high = (max(min(limit, 40_000), -40_000) for limit in limits)
    zeros = rng.uniform(low, high, channels).astype(np.float32)
    rest = [n for d, n in enumerate(shape) if d != axis]
    n = int(np.prod(rest))
    offsets = np.where(rng.random(channels) < 0.5, zeros, np.rint(zeros))
    rows = [
        hugging(rng, n, float(s), float(z), limits, kind)
        for s, z in zip(scales, offsets, strict=True)
    ]
    return np.moveaxis(np.stack(rows).reshape(channels, *rest), 0, axis), scales, offsets


@pytest.mark.parametrize("zero", ["int32", "float32", "float16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_per_channel(ledger: Ledger, dtype: str, zero: str) -> None:
    kind = DTYPES[dtype]
    for i, (rng, n) in enumerate(rounds(ledger, short=2_000, full=600_000)):
        limits = (RANGES + WIDE)[i % (11 if zero == "int32" else 9)]
        shape = [int(rng.integers(1, 5)), int(rng.integers(1, 7)), 1 + n // 70, 1 + n // 50]
        axis = i % 4
        x, scale, offsets = channel_case(rng, kind, shape, axis, limits)
        x = placed(list(LAYOUTS)[i % 5], x)
        zero_point = (np.rint(offsets) if zero == "int32" else offsets).astype(zero)
        attributes = {"axis": axis, "quant_min": limits[0], "quant_max": limits[1]}
        subject = f"fake_quantize per channel {dtype}, zero point {zero}"
        operands = (x, scale, zero_point)
        name = "aten::fake_quantize_per_channel_affine_cachemask"
        compare(ledger, subject, name, operands, attributes)


@pytest.mark.parametrize("zero", ["float32", "float16"])
def test_float64_is_added_before_it_is_rounded_to_float32(ledger: Ledger, zero: str) -> None:
    """Half an ulp of float32 from a tie, and a float64 ulp more or less."""
    rng = np.random.default_rng(4)
    for _ in range(ledger.size(20, 2000)):
        scale, z = np.float32([np.exp(rng.uniform(-6, 3))]), rng.uniform(-100, 100, 1).astype(zero)
        ties = rng.integers(-100, 100, 1000) + 0.5
        half_ulp = np.spacing(np.abs(ties).astype(np.float32)).astype(np.float64) / 2
        near = ties + half_ulp * rng.choice([-1, 1], ties.size)
        x = (near - float(z[0])) / np.float64(np.float32(1) / scale[0])
        x = (x.view(np.int64) + rng.integers(-2, 3, x.size)).view(np.float64)[np.newaxis]
        attributes = {"axis": 0, "quant_min": -128, "quant_max": 127}
        name = "aten::fake_quantize_per_channel_affine_cachemask"
        subject = f"fake_quantize per channel float64, zero point {zero}"
        compare(ledger, subject, name, (x, scale, z), attributes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_keep_torchs_strides(ledger: Ledger, dtype: str, layout: str) -> None:
    rng = np.random.default_rng(5)
    x = placed(layout, rng.normal(size=(2, 3, 4, 70)).astype(DTYPES[dtype]))
    subject = f"fake_quantize {dtype} layouts"
    limits = {"quant_min": 0, "quant_max": 15}
    per_tensor = {"scale": 0.1, "zero_point": 3} | limits
    name = "aten::fake_quantize_per_tensor_affine"
    _, mask = compare(ledger, subject, f"{name}_cachemask", (x,), per_tensor)
    compare(ledger, subject, f"{name}_cachemask_backward", (x, mask), {})
    other = np.ascontiguousarray(x)
    compare(ledger, subject, f"{name}_cachemask_backward", (other, mask), {})
    one = np.array([1])
    switched = "aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams"
    for on in (one, one * 0):
        compare(ledger, subject, switched, (x, one * 0.1, one * 3, on), limits)
    for axis in range(4):
        channels = x.shape[axis]
        scale, zero_point = np.full(channels, 0.1, np.float32), np.full(channels, 3, np.int32)
        compare(
            ledger,
            subject,
            "aten::fake_quantize_per_channel_affine",
            (x, scale, zero_point),
            {"axis": axis} | limits,
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_awkward_scales(ledger: Ledger, dtype: str) -> None:
    with np.errstate(over="ignore"):
        x = np.array([*AWKWARD, 0.5, -2.0, 1e5, 1e15, -1e15]).astype(DTYPES[dtype])
    scales = [0.0, -0.0, 1e-45, 1e-39, 1e-38, 3e38, np.inf, -np.inf, np.nan, -0.5, 1e39, 1e-60]
    for scale in scales:
        for low, high, z in [(0, 255, 3), (-8, 7, 0), (-(2**31), 2**31 - 1, -7)]:
            limits = {"quant_min": low, "quant_max": high}
            name = "aten::fake_quantize_per_tensor_affine_cachemask"
            attributes = {"scale": scale, "zero_point": z} | limits
            compare(ledger, "fake_quantize awkward scales", name, (x,), attributes)
            for zero in (np.int32, np.float32):
                with np.errstate(over="ignore"):
                    operands = x, np.array([scale]).astype(np.float32), np.array([z], zero)
                name = "aten::fake_quantize_per_channel_affine_cachemask"
                attributes = {"axis": 0} | limits
                x2 = x.reshape(1, -1)
                compare(
                    ledger, "fake_quantize awkward scales", name, (x2, *operands[1:]), attributes
                )
    for z in (np.nan, np.inf, -np.inf, 1e30, 1e-30, 300.25):
        operands = x.reshape(1, -1), np.float32([0.3]), np.float32([z])
        name = "aten::fake_quantize_per_channel_affine_cachemask"
        compare(ledger, "fake_quantize awkward zero points", name, operands, attributes)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0, 3), (1, 1), (5,), (2, 1, 2, 1, 3)])
def test_shapes(ledger: Ledger, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    limits = {"quant_min": -8, "quant_max": 7}
    name = "aten::fake_quantize_per_tensor_affine"
    compare(ledger, "fake_quantize shapes", name, (x,), {"scale": 0.3, "zero_point": 1} | limits)
    for axis, channels in enumerate(shape):
        if channels:
            operands = x, np.full(channels, 0.3, np.float32), np.ones(channels, np.int32)
            name = "aten::fake_quantize_per_channel_affine_cachemask"
            compare(ledger, "fake_quantize shapes", name, operands, {"axis": axis} | limits)


# ---- gradients


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_torchs(ledger: Ledger, dtype: str, per_channel: bool) -> None:
    kind = DTYPES[dtype]
    form = "per_channel" if per_channel else "per_tensor"
    for rng, n in rounds(ledger):
        x = hugging(rng, n, 0.1, 3, (0, 15), kind).reshape(1, -1)
        with np.errstate(over="ignore"):
            grad = rng.permutation(hugging(rng, n, 0.1, 3, (0, 15), kind)).reshape(1, -1)
        limits = {"quant_min": 0, "quant_max": 15}
        operands: Any = (x,)
        attributes: Any = {"scale": 0.1, "zero_point": 3}
        if per_channel:
            operands, attributes = (x, np.float32([0.1]), np.int32([3])), {"axis": 0}
        function = getattr(torch, f"fake_quantize_{form}_affine")
        leaf = to_torch(x).requires_grad_(True)
        rest = [*map(to_torch, operands[1:]), *attributes.values(), *limits.values()]
        function(leaf, *rest).backward(to_torch(grad))
        name = f"aten::fake_quantize_{form}_affine_cachemask"
        for fast in (False, True):
            _, mask = OPS[name].bind(MACHINE, fast=fast)(*operands, **attributes, **limits)
            actual = OPS[f"{name}_backward"].bind(MACHINE, fast=fast)(grad, mask)
            expected = from_torch(leaf.grad)
            ledger.equal(f"fake_quantize {dtype} backward", actual, expected)
            sign = np.signbit(actual.astype(np.float32)) == np.signbit(expected.astype(np.float32))
            assert np.all(sign | np.isnan(actual.astype(np.float32)))


LEARNABLE_RANGES = [(0, 255), (-128, 127), (0, 15), (-8, 7), (-(2**31), 2**31 - 1)]


def compare_learnable(
    ledger: Ledger, form: str, operands: Any, attributes: Any, target: Target
) -> None:
    """Forward and backward of a learnable fake-quant equal torch's."""
    name = f"aten::_fake_quantize_learnable_{form}_affine"
    subject = f"learnable fake_quantize {form}"
    forward = (np.asarray(operands[1]), *operands[2:])
    compare(ledger, subject, name, forward, attributes, target)
    with torch_as(target):
        expected = call_torch(f"{name}_backward", operands, attributes)
    op = OPS[f"{name}_backward"]
    for fast in (False, True):
        actual = op.bind(target, fast=fast)(*operands, **attributes)
        for what, one, other in zip(("dX", "dScale", "dZero"), actual, expected, strict=True):
            ledger.equal(f"{subject} {what}", one, other)
            assert_same_strides(one, other)
        assert op.infer(*map(type_of, operands), **attributes) == tuple(map(type_of, actual))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lsq_per_tensor(ledger: Ledger, dtype: str) -> None:
    rng = np.random.default_rng(8)
    sizes = [0, 1, 5, 17, 64, 1000, 32_768, 50_001, 70_003]
    for i in range(ledger.size(24, 1000)):
        low, high = LEARNABLE_RANGES[i % 5]
        n = sizes[i % 9]
        scale = a_scale(rng, np.float16)
        top = min(high, 300)
        zero = rng.uniform(max(low, -300) - 2, top + 2)
        zero = [zero, np.floor(zero) + 0.5, -2.3, np.inf if top < 300 else 7.0][i % 4]
        x = hugging(rng, n, scale, float(np.rint(zero)), (-50, 50), DTYPES[dtype])
        grad = rng.normal(size=n).astype(DTYPES[dtype])
        if i % 3:  # torch's sums are then finite, and so tell orders apart
            with np.errstate(invalid="ignore"):
                x = np.where(np.abs(x.astype(np.float32)) < 1e4, x, 1).astype(x.dtype)
        operands = grad, x, np.float32([scale]), np.float32([zero])
        attributes = {"quant_min": low, "quant_max": high, "grad_factor": [1.0, 0.0123][i % 2]}
        target = Target(MACHINE.engine, MACHINE.isa, 1 + i // 9 % 2)
        compare_learnable(ledger, "per_tensor", operands, attributes, target)


def test_lsq_awkward_scales(ledger: Ledger) -> None:
    x = np.array([[*AWKWARD, 0.5, -2.0, 1e15, -1e15]], np.float32)
    for scale in (0.0, 1e-45, 1e-39, 3e38, np.inf, np.nan, -0.5):
        for column in range(x.shape[1]):
            for grad in (1.0, -np.inf, np.nan):
                part = x[:, column : column + 1]
                operands = np.float32([[grad]]), part, np.float32([scale]), np.float32([3])
                limits = {"quant_min": -8, "quant_max": 7}
                compare_learnable(ledger, "per_tensor", operands, limits, MACHINE)
                compare_learnable(ledger, "per_channel", operands, {"axis": 1} | limits, MACHINE)


def test_lsq_per_tensor_follows_the_layout(ledger: Ledger) -> None:
    rng = np.random.default_rng(9)
    for layout in LAYOUTS:
        for threads in (1, 2):
            x = placed(layout, rng.normal(size=(4, 24, 20, 21)).astype(np.float32))
            grad = rng.normal(size=x.shape).astype(np.float32)
            operands = grad, x, np.float32([0.01]), np.float32([0.4])
            attributes = {"quant_min": -8, "quant_max": 7}
            target = Target(MACHINE.engine, MACHINE.isa, threads)
            compare_learnable(ledger, "per_tensor", operands, attributes, target)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lsq_per_channel(ledger: Ledger, dtype: str) -> None:
    rng = np.random.default_rng(10)
    shapes = [(3, 5), (7, 300), (1, 40), (40, 1000), (33, 65), (2, 3, 4, 5), (4, 9, 30, 40), (6,)]
    for i in range(ledger.size(48, 1000)):
        shape = shapes[i % 8]
        axis = (i // 8) % len(shape)
        low, high = LEARNABLE_RANGES[i % 4]
        x, scale, zero = channel_case(rng, DTYPES["float16"], shape, axis, (low, high))
        x = np.ascontiguousarray(x.astype(DTYPES[dtype]))
        if i % 3:
            with np.errstate(invalid="ignore"):
                x = np.where(np.abs(x.astype(np.float32)) < 1e4, x, 1).astype(x.dtype)
        zero = (zero + rng.choice([0, 0, 0.5, -200], zero.size)).astype(np.float32)
        grad = rng.normal(size=shape).astype(DTYPES[dtype])
        attributes = {"axis": axis, "quant_min": low, "quant_max": high, "grad_factor": 0.37}
        target = Target(MACHINE.engine, MACHINE.isa, 1 + i % 2)
        compare_learnable(ledger, "per_channel", (grad, x, scale, zero), attributes, target)


# ---- the fused op


def torch_fused(x: Array, state: State, on: bool, quant: bool, rest: Any) -> Any:
    """Run torch's op on a copy of a state; return its results and the state after it."""
    tensors = [torch.tensor(part) for part in state]
    switches = [torch.tensor([int(on)]), torch.tensor([int(quant)])]
    y, mask = torch.ops.aten._fused_moving_avg_obs_fq_helper(
        to_torch(x), *switches, *tensors, *rest
    )
    return from_torch(y), from_torch(mask), State(*(part.numpy() for part in tensors))


FUSED = {
    "reference": fused_moving_avg_obs_fake_quant,
    "compiled": fused_moving_avg_obs_fake_quant_compiled,
}
SCHEMES = {
    f"{'per channel' if channel else 'per tensor'} {'symmetric' if symmetric else 'affine'}": (
        channel,
        symmetric,
    )
    for channel in (False, True)
    for symmetric in (False, True)
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("form", FUSED)
def test_fused_over_batches(ledger: Ledger, form: str, scheme: str) -> None:
    per_channel, symmetric = SCHEMES[scheme]
    rng = np.random.default_rng(11)
    for i in range(ledger.size(25, 2000)):
        low, high = (RANGES + WIDE)[i % 9]
        constant = float(rng.choice([0.01, 0.3, 1.0, 0.9]))
        channels = int(rng.integers(1, 6))
        state = State.initial(channels if per_channel else None)
        if per_channel and i % 2:
            state = State(*(part[:0] for part in state[:2]), *state[2:])
        for batch in range(4):
            n = int(rng.integers(1, 400))
            x = rng.normal(size=(channels, n)) * np.exp(rng.uniform(-9, 3))
            x = [x, np.abs(x), -np.abs(x), x * 0, x, x][int(rng.integers(6))].astype(np.float32)
            if batch % 2:
                x = x.reshape(channels, n, 1)
            on, quant = rng.random() < 0.8 or not batch, rng.random() < 0.8 or not batch
            rest = (constant, low, high, 0, per_channel, symmetric)
            before = [part.copy() for part in state]
            actual = FUSED[form](x, state, *rest, observer_on=on, fake_quant_on=quant)
            y, mask, after = torch_fused(x, state, on, quant, rest)
            for part, copy in zip(state, before, strict=True):
                np.testing.assert_array_equal(part, copy)
            subject = f"fused fake_quantize {scheme}"
            ledger.equal(f"{subject} forward", actual.y, y)
            ledger.equal(f"{subject} mask", actual.mask, mask)
            for name in State._fields:
                ledger.equal(f"{subject} state", getattr(actual.state, name), getattr(after, name))
            state = actual.state


EDGES = [
    *[(0.0, 0.0), (-1e-44, 3e-44), (-1e-6, 1e-6), (0.0, 1e-7), (-1e-7, 0.0), (3.0, -2.0)],
    *[(3.0, 2.0), (-3e38, 3e38), (np.inf, -np.inf), (-np.inf, np.inf), (-3.0, np.inf)],
    *[(-np.inf, 2.0), (np.nan, np.nan), (np.nan, 3.0), (-2.0, np.nan), (2.0, 5.0), (-5.0, -2.0)],
]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", FUSED)
def test_fused_awkward_states(ledger: Ledger, form: str, symmetric: bool) -> None:
    x = np.float32([[0.3, 1.5, -9.0, 0.25], [np.nan, np.inf, -np.inf, 1e30]])
    ranges = [*RANGES, *WIDE[:3], (0, 1), (0, 2), (7, 7), (-20, -4), (20, 40), (-(2**31), 0)]
    for minimum, maximum in EDGES:
        for low, high in ranges:
            one = np.ones(1, np.float32)
            state = State(one * minimum, one * maximum, one, np.zeros(1, np.int32))
            for on in (False, True):
                batch = x[:1] if on else x
                rest = (0.1, low, high, -1, False, symmetric)
                actual = FUSED[form](batch, state, *rest, observer_on=on)
                y, mask, after = torch_fused(batch, state, on, True, rest)
                ledger.equal("fused fake_quantize edges", actual.y, y)
                ledger.equal("fused fake_quantize edges", actual.mask, mask)
                for part, other in zip(actual.state, after, strict=True):
                    ledger.equal("fused fake_quantize edges", part, other)


@pytest.mark.parametrize("form", FUSED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_without_its_observer_takes_every_float(
    ledger: Ledger, dtype: str, form: str
) -> None:
    rng = np.random.default_rng(2)
    x = placed("channels_last", rng.normal(size=(3, 4, 5, 6)).astype(DTYPES[dtype]))
    for per_channel in (False, True):
        size = 3 if per_channel else 1
        state = State(
            *(np.full(size, v, np.float32) for v in (-1.3, 2.1, 1)), np.zeros(size, "i4")
        )
        for quant in (False, True):
            rest = (0.1, -8, 7, 0, per_channel, False)
            switches = {"observer_on": False, "fake_quant_on": quant}
            actual = FUSED[form](x, state, *rest, **switches)
            y, mask, _ = torch_fused(x, state, False, quant, rest)
            ledger.equal("fused fake_quantize dtypes", actual.y, y)
            assert_same_strides(actual.y, y)
            assert_same_strides(actual.mask, mask)
            grad = np.full(x.shape, -np.inf, np.float32)
            same = backward(grad, actual.mask)
            assert quant or np.array_equal(same, grad)


# ---- what is refused

X = np.array([[0.3, 1.5, -9.0, 0.25]], np.float32)
FOUR, ZEROS, ONE = np.full(4, 0.3, np.float32), np.zeros(4, np.int32), np.ones(1, np.float32)
LIMITS = {"quant_min": 0, "quant_max": 7}
PT, PC = "aten::fake_quantize_per_tensor_affine", "aten::fake_quantize_per_channel_affine"
LPT, LPC = (f"aten::_fake_quantize_learnable_per_{w}_affine" for w in ("tensor", "channel"))
NUMBERS = {"scale": 0.5, "zero_point": 1} | LIMITS
ROWS = {"axis": 1} | LIMITS


@pytest.mark.parametrize(
    ("name", "operands", "attributes", "message"),
    [
        (PT, (X.astype(np.int32),), NUMBERS, "dtype must be one of float32, .* got int32"),
        (PT, (X,), NUMBERS | {"zero_point": 9}, r"zero_point must be in \[0, 7\], got 9"),
        (PT, (X,), NUMBERS | {"quant_min": 9}, "quant_min must be <= quant_max"),
        (f"{PT}.tensor_qparams", (X, ONE, ONE * 2**31), LIMITS, "zero_point must fit int32"),
        (f"{PT}.tensor_qparams", (X, FOUR, ONE), LIMITS, "scale must have one element"),
        (
            f"{PT}.tensor_qparams",
            (X, ONE, ONE * np.nan),
            LIMITS,
            "zero_point must fit int32, got nan",
        ),
        (f"{PT}.tensor_qparams", (X, ONE, ONE), LIMITS | {"quant_min": 9}, "quant_min must be"),
        (PC, (X.astype(np.int32), FOUR, ZEROS), ROWS, "dtype must be one of"),
        (PC, (X, FOUR.astype(np.float64), ZEROS), ROWS, "scale must be float32, got float64"),
        (PC, (X, FOUR, ZEROS.astype(np.int64)), ROWS, "zero_point must be int32, float32"),
        (PC, (X, FOUR, ZEROS + 9), ROWS, r"zero_point must be in \[0, 7\], got 9"),
        (PC, (X, FOUR, ZEROS), ROWS | {"axis": -1}, r"axis -1 is outside \[1, 4\]"),
        (PC, (X, FOUR, ZEROS), ROWS | {"axis": 2}, r"axis 2 is outside \[1, 4\]"),
        (PC, (X, FOUR[:3], ZEROS[:3]), ROWS, r"scale must be \[4\], got \[3\]"),
        (PC, (X, FOUR, ZEROS[:3]), ROWS, r"zero_point must be \[4\], got \[3\]"),
        (PC, (X, FOUR[None], ZEROS[None]), ROWS, r"scale must be \[4\], got \[1, 4\]"),
        (PC, (X, FOUR, ZEROS), ROWS | {"quant_min": 9}, "quant_min must be <= quant_max"),
        (PC, (X[:, :0], FOUR[:0], ZEROS[:0]), ROWS, "axis 1 must not be empty"),
        (f"{PC}_cachemask_backward", (X, ZEROS), {}, "mask must be bool, got int32"),
        (f"{PC}_cachemask_backward", (X, ZEROS[:3] == 0), {}, "one shape, got"),
        (LPT, (X, ONE, ONE * np.nan), LIMITS, "zero_point must not be NaN"),
        (LPT, (X, ONE[0:1].reshape(()), ONE), LIMITS, "scale must have rank 1"),
        (LPC, (X, FOUR, FOUR * np.nan), ROWS, "zero_point must not be NaN"),
        (f"{LPT}_backward", (X, X.astype("f8"), ONE, ONE), LIMITS, "float32 or bfloat16, got"),
        (f"{LPT}_backward", (X.astype("f8"), X, ONE, ONE), LIMITS, "grad must be float32, got"),
        (f"{LPT}_backward", (X, X, ONE, ONE * np.nan), LIMITS, "zero_point must not be NaN"),
        (f"{LPT}_backward", (X[:, :2], X, ONE, ONE), LIMITS, "must have one shape"),
        (f"{LPT}_backward", (X, X, ONE, ONE), LIMITS | {"quant_min": 1}, "must hold 0"),
        (f"{LPC}_backward", (X, X, FOUR, FOUR[:3]), ROWS, "zero_point must be"),
        (f"{LPC}_backward", (X, X, FOUR, ZEROS), ROWS, "zero_point must be float32, got int32"),
    ],
)
def test_what_torch_refuses_is_refused(
    name: str, operands: Any, attributes: Any, message: str
) -> None:
    with pytest.raises((RuntimeError, IndexError, NotImplementedError)):
        call_torch(name, operands, attributes)
    op = OPS[name]
    for fast in (False, True):
        with pytest.raises(VerifyError, match=message):
            _checked(op, fast, operands, attributes)


def _checked(op: Op, fast: bool, operands: Any, attributes: Any) -> Any:
    """Infer, then run: some checks need types, some values."""
    op.infer(*map(type_of, operands), **attributes)
    return op.bind(MACHINE, fast=fast)(*operands, **attributes)


@pytest.mark.parametrize(
    ("name", "operands", "attributes"),
    [
        (PC, (X, FOUR[:3], ZEROS[:3]), ROWS),
        (PC, (X, FOUR, ZEROS), ROWS | {"axis": 2}),
        (f"{PC}_cachemask_backward", (X, ZEROS[:3] == 0), {}),
        (f"{LPC}_backward", (X, X, FOUR, FOUR[:3]), ROWS),
        (f"{LPT}_backward", (X[:, :2], X, ONE, ONE), LIMITS),
        (f"{PT}_cachemask", (X > 0,), NUMBERS),
        (f"{PT}_cachemask", (X,), NUMBERS | {"quant_min": 9}),
    ],
)
def test_the_functions_that_modules_call_check_by_themselves(
    name: str, operands: Any, attributes: Any
) -> None:
    for fast in (False, True):
        with pytest.raises(VerifyError):
            OPS[name].bind(MACHINE, fast=fast)(*operands, **attributes)


INITIAL = State.initial()


@pytest.mark.parametrize(
    ("x", "state", "change", "message"),
    [
        (X.astype(np.float64), INITIAL, {}, "the observer needs float32, got float64"),
        (X[:0], INITIAL, {}, r"the observer needs elements, got \[0, 4\]"),
        (X, INITIAL, {"quant_min": 8}, "quant_min must be <= quant_max"),
        (X, INITIAL, {"quant_max": 2**33}, "the range must be int32"),
        (X, State.initial(4), {}, "running_min must have 1 elements, got 4"),
        (X, State.initial(3), {"per_channel": True}, "running_min must have 1 elements, got 3"),
        (X, State.initial(4), {"per_channel": True, "ch_axis": 1}, "needs ch_axis 0, got 1"),
        (X[0], State.initial(4), {"per_channel": True}, "needs rank 2 or more"),
        (X * np.nan, State.initial(1), {"per_channel": True}, "zero_point must be in"),
    ],
)
@pytest.mark.parametrize("form", FUSED)
def test_what_the_fused_op_refuses(
    form: str, x: Array, state: State, change: Any, message: str
) -> None:
    attributes = {"averaging_constant": 0.1, "ch_axis": 0} | LIMITS | change
    with pytest.raises(VerifyError, match=message):
        FUSED[form](x, state, **attributes)


def test_the_batch_may_be_symbolic() -> None:
    x = TensorType(float32, (Dim("N"), 4))
    assert OPS[PT].infer(x, **NUMBERS) == x
    scale, zero_point = TensorType(float32, (4,)), TensorType(int32, (4,))
    mask = TensorType(bool_, x.shape)
    assert OPS[f"{PC}_cachemask"].infer(x, scale, zero_point, **ROWS) == (x, mask)
    gradients = OPS[f"{LPC}_backward"].infer(x, x, scale, scale, **ROWS)
    assert gradients == (x, scale, scale)
    one = TensorType(int64, (1,))
    assert OPS[f"{PT}.tensor_qparams"].infer(x, one, one, **LIMITS) == x


def test_a_frozen_fake_quant_takes_float_zero_points(ledger: Ledger) -> None:
    rng = np.random.default_rng(6)
    x, scale, zero = channel_case(rng, np.float32, (3, 500), 0, (0, 15))
    state = {"scale": scale, "zero_point": zero.astype(np.float32)}
    module = Module("FakeQuantize", {"quant_min": 0, "quant_max": 15, "ch_axis": 0}, state)
    operands = (x, scale, zero.astype(np.float32))
    expected = call_torch(PC, operands, {"axis": 0, "quant_min": 0, "quant_max": 15})
    for fast in (False, True):
        actual = OPS["observer::fake_quantize"].bind(MACHINE, fast=fast)(x, module)
        ledger.equal("observer::fake_quantize, float zero points", actual, expected)


class Traced(torch.nn.Module):
    """Calls every form by its function."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([0.3, 0.7, 0.1]))
        self.register_buffer("zero_point", torch.tensor([1, 0, 3], dtype=torch.int32))
        self.register_buffer("one", torch.tensor([0.05]))

    def forward(self, x: Any) -> Any:
        x = torch.fake_quantize_per_tensor_affine(x, 0.011, 3, 0, 255)
        x = torch.fake_quantize_per_tensor_affine(x, self.one, self.one, 0, 255)
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, 1, 0, 7)


def test_traced_functions_are_imported() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    graph = from_fx(Traced(), (x,))
    assert [node.op for node in graph.nodes] == [PT, f"{PT}.tensor_qparams", PC]
    np.testing.assert_array_equal(graph(x), Traced()(torch.from_numpy(x)).numpy())
