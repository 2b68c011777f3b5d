"""Quantize and dequantize against torch: ties and awkward values, every dtype and layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ledger import Ledger
from oracle import (
    assert_same_strides,
    from_torch,
    this_machine,
    to_torch,
    torch_as,
)
from values import chunks

from refquant.importers import from_fx
from refquant.ir import OPS, QTensor, Target, VerifyError
from refquant.ir.qtensor import type_of
from refquant.ir.types import (
    Dim,
    TensorType,
    float32,
    float64,
    int8,
    qint8,
    qint32,
    quint4x2,
    quint8,
)
from refquant.kernels.choose_qparams import choose_qparams
from refquant.kernels.layout import channels_last, is_channels_last
from refquant.ledger.draw.floats import AWKWARD, FAR, a_scale, a_zero_point, hugging
from refquant.ops import function

Array = Any
PER_TENSOR = [quint8, qint8, qint32, quint4x2]
INTEGER = [quint8, qint8, qint32]
FLOAT = [quint8, qint8, quint4x2]
MACHINE = this_machine()
QUANTIZE = {
    "tensor": "aten::quantize_per_tensor",
    "channel": "aten::quantize_per_channel",
    "dynamic": "aten::quantize_per_tensor_dynamic",
}


def same(ledger: Ledger, subject: str, actual: Any, expected: Any) -> None:
    """Compare integers, scale, zero point and strides; 4 bits also as torch packs them."""
    theirs = from_torch(expected)
    assert (actual.dtype, actual.axis) == (theirs.dtype, theirs.axis)
    np.testing.assert_array_equal(actual.scale, theirs.scale)
    np.testing.assert_array_equal(actual.zero_point, theirs.zero_point)
    if actual.dtype == quint4x2:
        ledger.equal(subject, actual.packed(), expected.int_repr().numpy())
        assert actual.shape == theirs.shape
    else:
        ledger.equal(subject, actual.int_repr, theirs.int_repr)
        assert_same_strides(actual, theirs)


def compare(
    ledger: Ledger,
    form: str,
    dtype: Any,
    x: Array,
    *arguments: Any,
    reference: bool = True,
    note: str = "",
) -> None:
    """Quantize, then dequantize, by torch and by us."""
    theirs = getattr(torch, QUANTIZE[form].removeprefix("aten::"))
    last = (arguments[-1],) if form == "dynamic" else ()
    middle = arguments[: len(arguments) - len(last)]
    with torch_as(MACHINE):
        expected = theirs(to_torch(x), *map(to_torch, middle), to_torch(dtype), *last)
        back = expected.dequantize().numpy()
    what = f"quantize_per_{form}" if form != "dynamic" else "quantize_per_tensor_dynamic"
    backwards = "dequantize per channel" if form == "channel" else "dequantize per tensor"
    for fast in (False, True) if reference else (True,):
        op = OPS[QUANTIZE[form]]
        q = op.bind(MACHINE, fast=fast)(x, *middle, dtype, *last)
        if not (dtype == quint4x2 and form == "tensor" and is_channels_last(x)):
            same(ledger, f"{what} {dtype}{note}", q, expected)  # else torch's int_repr raises
        actual = OPS["aten::dequantize"].bind(MACHINE, fast=fast)(q)
        ledger.equal(f"{backwards} {dtype}{note}", actual, back)
        assert_same_strides(actual, back)
        inferred = op.infer(type_of(x), *middle, dtype, *last)
        assert form == "dynamic" or repr(inferred) == repr(type_of(q))  # NaN is not equal


@pytest.mark.parametrize("dtype", PER_TENSOR, ids=str)
def test_per_tensor(ledger: Ledger, dtype: Any) -> None:
    for rng, n, reference in chunks(ledger):
        scale, zero_point = float(a_scale(rng)), int(a_zero_point(rng, dtype.limits))
        x = hugging(rng, n, scale, zero_point, dtype.limits)
        compare(ledger, "tensor", dtype, x, scale, zero_point, reference=reference)


@pytest.mark.parametrize("dtype", INTEGER, ids=str)
def test_dequantize_of_all_integers(ledger: Ledger, dtype: Any) -> None:
    kind = dtype.storage
    low, high = dtype.limits
    ends = np.array([low, low + 1, -1 if low < 0 else 0, 0, 1, high - 1, high], kind)
    for rng, n, reference in chunks(ledger):
        integers = rng.integers(low, high + 1, (1, n)).astype(kind)
        at = rng.integers(0, n, n // 9)
        integers[:, at] = rng.choice(ends, at.size)
        for axis in (None, 0):
            size = None if axis is None else 1
            scale, zero_point = a_scale(rng, size), a_zero_point(rng, (low, high), size)
            if axis is None:
                scale, zero_point = float(scale), int(zero_point)
            q = QTensor(integers, scale, zero_point, axis, dtype)
            subject = f"dequantize per {'tensor' if axis is None else 'channel'} {dtype}"
            expected = from_torch(to_torch(q).dequantize())
            for fast in (False, True) if reference else (True,):
                actual = OPS["aten::dequantize"].bind(MACHINE, fast=fast)(q)
                ledger.equal(subject, actual, expected)


def channel_shapes(rng: np.random.Generator, n: int) -> tuple[Array, tuple[int, int], int]:
    """Return a function that lays out rows of channels, what it takes, and the channel axis."""
    channels = int(rng.choice([1, 3, 8, 70] if n < 10_000 else [10, 100, 1000]))
    inner = int(rng.choice([1, 2, 9, 40] if n < 10_000 else [1, 7, 100]))
    outer = max(n // channels // inner, 1)
    form = int(rng.integers(5))

    def place(rows: Array) -> Array:
        x = np.moveaxis(rows.reshape(channels, outer, inner), 0, 1)
        if form == 0:
            return np.ascontiguousarray(rows)  # axis 0
        if form == 1:
            return np.ascontiguousarray(rows.T)  # the last axis
        if form == 2:
            return channels_last(np.ascontiguousarray(x)[..., None])
        return np.ascontiguousarray(x) if form == 3 else x

    return place, (channels, outer * inner), 0 if form == 0 else 1


@pytest.mark.parametrize("dtype", INTEGER, ids=str)
def test_per_channel(ledger: Ledger, dtype: Any) -> None:
    for rng, n, reference in chunks(ledger):
        place, (channels, length), axis = channel_shapes(rng, n)
        scales, zero_points = a_scale(rng, channels), a_zero_point(rng, dtype.limits, channels)
        if rng.random() < 0.3:
            scales = scales.astype(np.float32).astype(np.float64)
        x = hugging(rng, length, scales[:, None], zero_points[:, None], dtype.limits)
        parameters = scales, zero_points.astype(np.int64), axis
        compare(ledger, "channel", dtype, place(x), *parameters, reference=reference)


@pytest.mark.parametrize("dtype", FLOAT, ids=str)
def test_per_channel_with_float_zero_points(ledger: Ledger, dtype: Any) -> None:
    for rng, n, reference in chunks(ledger):
        place, (channels, length), axis = channel_shapes(rng, n)
        low, high = dtype.limits
        scales = a_scale(rng, channels).astype(np.float32)
        zero_points = rng.uniform(low - 5, high + 5, channels).astype(np.float32)
        zero_points = np.where(rng.random(channels) < 0.3, np.rint(zero_points), zero_points)
        x = hugging(rng, length, scales[:, None], zero_points[:, None], dtype.limits)
        compare(
            *(ledger, "channel", dtype, place(x), scales, zero_points, axis),
            reference=reference,
            note=", float zero points",
        )


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("dtype", [quint8, qint8], ids=str)
def test_dynamic(ledger: Ledger, dtype: Any, reduce_range: bool) -> None:
    for rng, n, reference in chunks(ledger):
        ends = np.float32(np.sort(rng.normal(size=2) * np.exp(rng.uniform(-13, 5))))
        step, zero_point = choose_qparams(*map(float, ends), *dtype.limits, reduce_range)
        x = hugging(rng, n, step, zero_point, dtype.limits)
        x = np.clip(np.nan_to_num(x), *ends)
        x[rng.integers(0, n, 2)] = ends
        note = ", reduce_range" if reduce_range else ""
        compare(ledger, "dynamic", dtype, x, reduce_range, reference=reference, note=note)


# ---- awkward parameters

SCALES = [0.0, -0.0, 1e-45, 1e-39, 1e-38, 3e38, 1e39, 1e-60, -1e-45, -0.5, np.inf, -np.inf, np.nan]
VALUES = np.concatenate([AWKWARD, FAR, -FAR, [0.5, 1.5, 2.5, -0.5, 7.5, 200.0]])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", PER_TENSOR, ids=str)
def test_no_scale_is_refused(ledger: Ledger, dtype: Any, scale: float) -> None:
    x = VALUES.astype(np.float32)
    for zero_point in (0, 3, dtype.limits[1]):
        compare(ledger, "tensor", dtype, x, scale, zero_point, note=", awkward scales")
        if dtype in INTEGER:
            parameters = np.array([scale, 0.1]), np.array([zero_point, 0]), 0
            rows = np.stack([x, x])
            compare(ledger, "channel", dtype, rows, *parameters, note=", awkward scales")
    if dtype in FLOAT:
        with np.errstate(over="ignore"):
            scales = np.array([scale] * 7).astype(np.float32)
        zeros = np.float32([3, np.nan, np.inf, -np.inf, 2.5e9, -1e-3, 1e20])
        rows = np.stack([x] * 7)
        compare(ledger, "channel", dtype, rows, scales, zeros, 0, note=", awkward scales")
        compare(ledger, "channel", dtype, rows.T, scales, zeros, 1, note=", awkward scales")


# ---- layouts and shapes

LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "channels_last": channels_last,
    "transposed": lambda x: np.ascontiguousarray(x.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0),
    "strided": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "gaps, channels last": lambda x: np.repeat(channels_last(x), 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", PER_TENSOR, ids=str)
def test_results_have_torchs_strides(ledger: Ledger, dtype: Any, layout: str) -> None:
    rng = np.random.default_rng(2)
    x = LAYOUTS[layout](hugging(rng, 840, 0.1, 3, dtype.limits).reshape(2, 3, 4, 35))
    compare(ledger, "tensor", dtype, x, 0.1, 3, note=", layouts")
    for axis in range(4):
        channels = x.shape[axis]
        scales = np.linspace(0.05, 0.2, channels)
        if dtype in INTEGER and (axis < 2 or not is_channels_last(x)):  # else torch raises
            zero_points = np.arange(channels)
            compare(*(ledger, "channel", dtype, x, scales, zero_points, axis), note=", layouts")
        if dtype in FLOAT:
            parameters = np.float32(scales), np.linspace(0, 9, channels, dtype=np.float32)
            note = ", float zero points, layouts"
            compare(ledger, "channel", dtype, x, *parameters, axis, note=note)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 0, 3), (1, 1), (2, 1, 2, 1, 3)])
@pytest.mark.parametrize("dtype", PER_TENSOR, ids=str)
def test_shapes(ledger: Ledger, dtype: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    compare(ledger, "tensor", dtype, np.asarray(x), 0.3, 1, note=", shapes")
    for axis, channels in enumerate(shape):
        if channels and dtype in INTEGER:
            parameters = np.full(channels, 0.3), np.ones(channels, np.int64)
            compare(ledger, "channel", dtype, x, *parameters, axis, note=", shapes")


@pytest.mark.parametrize("dtype", PER_TENSOR, ids=str)
def test_two_threads_change_nothing(ledger: Ledger, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    x = hugging(rng, 70_003, 0.07, 5, dtype.limits)
    target = Target(MACHINE.engine, MACHINE.isa, 2)
    with torch_as(target):
        expected = torch.quantize_per_tensor(to_torch(x), 0.07, 5, to_torch(dtype))
        back = expected.dequantize().numpy()
    q = OPS[QUANTIZE["tensor"]].bind(target, fast=True)(x, 0.07, 5, dtype)
    same(ledger, f"quantize_per_tensor {dtype}", q, expected)
    actual = OPS["aten::dequantize"].bind(target, fast=True)(q)
    ledger.equal(f"dequantize per tensor {dtype}", actual, back)


# ---- other forms, and what is refused


@pytest.mark.parametrize("dtype", PER_TENSOR, ids=str)
def test_qparams_computed_at_run_time(ledger: Ledger, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    x = hugging(rng, 1000, 0.1, 3, dtype.limits)
    name = "aten::quantize_per_tensor.tensor_qparams"
    subject = f"quantize_per_tensor {dtype}, tensor qparams"
    scales = [np.array(0.1), np.float32([0.1]), np.array([[2]]), np.array(0.1, np.float16)]
    zeros = [np.array(3), np.float32([3.9]), np.array([[3]], np.int8), np.array(0.7)]
    for scale, zero_point in zip(scales, zeros, strict=True):
        expected = torch.quantize_per_tensor(*map(to_torch, (x, scale, zero_point, dtype)))
        listed = [np.repeat(v.reshape(-1), 2) for v in (scale, zero_point)]
        several = torch.quantize_per_tensor([to_torch(x)] * 2, *map(to_torch, (*listed, dtype)))
        for fast in (False, True):
            q = OPS[name].bind(MACHINE, fast=fast)(x, scale, zero_point, dtype)
            same(ledger, subject, q, expected)
            form = OPS["aten::quantize_per_tensor.tensors"].bind(MACHINE, fast=fast)
            attributes = {"scales": listed[0], "zero_points": listed[1], "dtype": dtype}
            for one, other in zip(form(x, x, **attributes), several, strict=True):
                same(ledger, subject, one, other)
        types = map(type_of, (x, scale, zero_point))
        assert OPS[name].infer(*types, dtype) == TensorType(dtype, x.shape)
    public = function("aten::quantize_per_tensor.tensors")
    assert (
        len(public(x, x, scales=np.array([0.1] * 2), zero_points=np.arange(2), dtype=dtype)) == 2
    )


X = np.zeros((2, 3), np.float32)
TENSOR, CHANNEL, DYNAMIC = QUANTIZE.values()
LIST = "aten::quantize_per_tensor.tensors"


@pytest.mark.parametrize(
    ("name", "operands", "attributes", "message"),
    [
        (TENSOR, (X,), (1.0, 256, quint8), r"zero_point must be in \[0, 255\], got 256"),
        (TENSOR, (X,), (1.0, -1, quint4x2), r"zero_point must be in \[0, 15\], got -1"),
        (TENSOR, (X,), (1.0, 2**31, qint32), "zero_point must be in .*got 2147483648"),
        (TENSOR, (X.astype(np.float64),), (1.0, 0, quint8), "expected float32, got float64"),
        (TENSOR, (X,), (1.0, 0, int8), "dtype must be one of quint8, .*quint4x2, got int8"),
        (CHANNEL, (X,), (np.ones(2), np.ones(2, int), 1, quint8), r"scales must be \[3\]"),
        (CHANNEL, (X,), (np.ones(2), np.ones(3, int), 0, quint8), r"zero_points must be \[2\]"),
        (CHANNEL, (X,), (np.ones(2), np.array([0, 256]), 0, quint8), r"zero_point must be in"),
        (CHANNEL, (X,), (np.ones(2), np.ones(2, int), 2, quint8), r"axis 2 is outside"),
        (CHANNEL, (X,), (np.ones(3), np.ones(3, int), -1, quint8), r"axis -1 is outside"),
        (CHANNEL, (X,), (np.ones(2), np.ones(2, int), 0, quint4x2), "dtype must be one of"),
        (DYNAMIC, (X[:0],), (quint8, False), "an empty tensor has no range"),
        (DYNAMIC, (X + np.inf,), (quint8, False), "no quantization range for"),
    ],
)
def test_what_torch_refuses_is_refused(
    name: str, operands: Any, attributes: Any, message: str
) -> None:
    packet = getattr(torch, name.removeprefix("aten::"))
    with pytest.raises((RuntimeError, IndexError)):
        packet(*map(to_torch, (*operands, *attributes)))
    with pytest.raises(VerifyError, match=message):
        function(name)(*operands, *attributes)


def test_tensor_qparams_that_do_not_fit_are_refused() -> None:
    quantize = function("aten::quantize_per_tensor.tensor_qparams")
    one, two, big = np.ones(1), np.ones(2), np.array([1e10])
    for scale, zero_point, message in (
        (two, one, r"scale must have one element, got \[2\]"),
        (one, two, r"zero_point must have one element, got \[2\]"),
        (one, one * 256, r"zero_point must be in \[0, 255\], got 256"),
        (one, big, "zero_point must fit int32, got 10000000000.0"),
    ):
        with pytest.raises(RuntimeError):
            torch.quantize_per_tensor(*map(to_torch, (X, scale, zero_point, quint8)))
        with pytest.raises(VerifyError, match=message):
            quantize(X, scale, zero_point, quint8)
    with pytest.raises(VerifyError, match=r"scales must be a vector of at least 2 entries"):
        function(LIST)(X, X, scales=one, zero_points=one, dtype=quint8)


def test_float_zero_points_with_qint32_are_refused() -> None:
    """Torch dies of an illegal instruction."""
    with pytest.raises(VerifyError, match="dtype must be one of quint8, qint8, quint4x2"):
        function(CHANNEL)(X, np.ones(2), np.ones(2, np.float32), 0, qint32)


def test_types_hold_a_symbolic_batch() -> None:
    x = TensorType(float32, (Dim("N"), 3))
    assert OPS[TENSOR].infer(x, 0.5, 1, quint8).shape == x.shape
    scales = TensorType(float64, (3,))
    assert OPS[CHANNEL].infer(x, scales, scales, 1, quint8) == TensorType(quint8, x.shape)


class Steps(torch.nn.Module):
    """Quantize with a scale that is not positive, and dequantize."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.quantize_per_tensor(x, self.scale, 3, torch.quint8).dequantize()


@pytest.mark.parametrize("scale", [0.0, -0.5, float("inf")])
def test_a_network_with_an_awkward_scale(scale: float) -> None:
    x = VALUES.astype(np.float32)
    graph = from_fx(Steps(scale), (x,))
    graph.verify()
    np.testing.assert_array_equal(graph(x), Steps(scale)(to_torch(x)).numpy())
