"""Recurrent layers and their functions beside onnxruntime, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx_oracle import model, run_ort, session

from refquant.importers import from_onnx
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import OPS
from refquant.ir.qtensor import type_of
from refquant.ir.target import Target
from refquant.kernels.onnx import mlas_functions, mlas_softmax, ort_lstm
from refquant.kernels.rounding import fma

F = np.float32
ORT = Target("ort")
FLOAT = TensorProto.FLOAT
DYNAMIC = "com.microsoft::DynamicQuantizeLSTM"
RNG = np.random.default_rng(11)
AWKWARD = np.float32(
    [0, -0.0, 1e-45, -1e-45, 1e-38, 9, -9, 18, -18, 88, -104, 3e38, np.inf, -np.inf, np.nan]
)


def normal(*shape: int, wide: float = 1.0) -> Any:
    return RNG.normal(0, wide, shape).astype(F)


def both(name: str, operands: Any, attributes: dict[str, Any]) -> Any:
    """Return the results of the kernel, which the reference must share."""
    op = OPS[name]
    slow, fast = (op.bind(ORT, fast=way)(*operands, **attributes) for way in (False, True))
    many = isinstance(slow, tuple)
    for one, other in zip(slow, fast, strict=True) if many else ((slow, fast),):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    return fast


# ---- functions


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh"])
def test_functions(name: str) -> None:
    x = np.concatenate([normal(70_000, wide=3), RNG.uniform(-25, 25, 70_001).astype(F), AWKWARD])
    y = run_ort(f"onnx::{name}", [x], {}, (FLOAT,))
    np.testing.assert_array_equal(both(f"aten::{name.lower()}", [x], {}), y)
    for part in range(1, 9):  # no tail is another function
        short = x[:part]
        np.testing.assert_array_equal(run_ort(f"onnx::{name}", [short], {}, (FLOAT,)), y[:part])
    near, found = x[:10_000], y[:10_000]
    library = np.tanh(near) if name == "Tanh" else F(1) / (F(1) + np.exp(-near))
    assert (library != found).sum() > 1000, "the C library's function is another one"


def test_polynomials_that_are_not_fused_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(10_000)
    y = run_ort("onnx::Tanh", [x], {}, (FLOAT,))
    np.testing.assert_array_equal(mlas_functions.tanh(x), y)
    monkeypatch.setattr(mlas_functions, "fma_of_arrays", lambda a, b, c: a * b + c)
    assert (mlas_functions.tanh(x) != y).any()


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 33, 48, 49, 100, 1000])
def test_softmax(width: int) -> None:
    for wide in (1, 60):
        x = normal(100, width, wide=wide)
        y = run_ort("onnx::Softmax", [x], {"axis": -1}, (FLOAT,))
        np.testing.assert_array_equal(both("aten::softmax", [x], {"dim": 1}), y)
        if width > 16 and wide == 1:
            e = mlas_softmax.exp(x - x.max(axis=1, keepdims=True))
            total = np.add.accumulate(e, axis=1, dtype=F)[:, -1:]
            assert (e * (F(1) / total) != y).any(), "a sum in order is another one"


def test_softmax_along_any_axis_and_of_awkward_rows() -> None:
    x = normal(3, 20, 5)
    for dim in (0, 1, 2, -2):
        y = run_ort("onnx::Softmax", [x], {"axis": dim}, (FLOAT,))
        np.testing.assert_array_equal(both("aten::softmax", [x], {"dim": dim}), y)
    rows = np.float32(
        [[1, -np.inf, 3], [-np.inf] * 3, [np.nan, 1, 2], [np.inf, 1, 1], [3e38, -3e38, 0]]
    )
    y = run_ort("onnx::Softmax", [rows], {"axis": 1}, (FLOAT,))
    np.testing.assert_array_equal(both("aten::softmax", [rows], {"dim": 1}), y)


# ---- layers


def drawn(time: int, batch: int, hidden: int, directions: int) -> tuple[Any, dict[str, Any]]:
    """Return B, lengths, states and peepholes, present or not, and attributes."""

    def perhaps(chance: float, *shape: int, wide: float = 1.0) -> Any:
        return normal(*shape, wide=wide) if RNG.random() < chance else None

    bias = perhaps(0.7, directions, 8 * hidden, wide=0.5)
    lengths = RNG.integers(0, time + 1, batch).astype(np.int32) if RNG.random() < 0.5 else None
    states = [perhaps(0.5, directions, batch, hidden) for _ in range(2)]
    more: dict[str, Any] = {}
    if RNG.random() < 0.3:
        more["clip"] = 0.7
    if RNG.random() < 0.3:
        more["input_forget"] = 1
    if RNG.random() < 0.3:
        more["activations"] = ("HardSigmoid", "Affine", "LeakyRelu") * directions
        more["activation_alpha"] = (0.3, 0.7, 0.2) * directions
        more["activation_beta"] = (0.4, 0.1) * directions
    return (bias, lengths, *states, perhaps(0.4, directions, 3 * hidden)), more


DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def floating(direction: str, hidden: int) -> tuple[Any, dict[str, Any]]:
    """Return operands of a layer of up to so many states, and attributes."""
    d = DIRECTIONS[direction]
    time, batch = int(RNG.integers(1, 9)), int(RNG.integers(1, 7))
    inputs, hidden = int(RNG.integers(1, 400)), int(RNG.integers(1, hidden))
    rest, more = drawn(time, batch, hidden, d)
    w, r = normal(d, 4 * hidden, inputs, wide=0.1), normal(d, 4 * hidden, hidden, wide=0.2)
    how = {"direction": direction, "hidden_size": hidden, **more}
    return [normal(time, batch, inputs), w, r, *rest], how


def complete(how: dict[str, Any]) -> dict[str, Any]:
    """Return attributes as the importer gives them."""
    absent = ("activations", "activation_alpha", "activation_beta", "clip")
    given = {**dict.fromkeys(absent), "input_forget": 0, "layout": 0, **how}
    del given["hidden_size"]
    return given


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_lstm(direction: str) -> None:
    for trial in range(12):
        o, how = floating(direction, 280 if trial == 0 else 40)
        expected = run_ort("onnx::LSTM", o, how, (FLOAT,) * 3, (1, 2))
        found = both("onnx::LSTM", o, complete(how))
        for one, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, wanted)


def weight(dtype: Any, *shape: int) -> Any:
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def dynamic(direction: str, dtype: Any, each: bool) -> tuple[Any, dict[str, Any]]:
    """Return operands and attributes."""
    d = DIRECTIONS[direction]
    time, batch = int(RNG.integers(1, 9)), int(RNG.integers(1, 7))
    inputs, hidden = (int(n) for n in RNG.integers(1, 40, 2))
    rest, more = drawn(time, batch, hidden, d)
    shape = (d, 4 * hidden) if each else (d,)
    scales = [RNG.uniform(0.001, 0.02, shape).astype(F) for _ in range(2)]
    zeros = [weight(dtype, *shape) for _ in range(2)]
    if each:  # onnxruntime wants one zero point
        zeros = [np.full(shape, 0 if dtype == np.int8 else 128, dtype) for _ in range(2)]
    w, r = weight(dtype, d, inputs, 4 * hidden), weight(dtype, d, hidden, 4 * hidden)
    o = [normal(time, batch, inputs), w, r, *rest, scales[0], zeros[0], scales[1], zeros[1]]
    return o, {"direction": direction, "hidden_size": hidden, **more}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("each", [False, True])
def test_dynamic_quantize_lstm(direction: str, dtype: Any, each: bool) -> None:
    op = OPS[DYNAMIC]
    for trial in range(8):
        o, how = dynamic(direction, dtype, each)
        constants = (1, 2, 8, 9, 10, 11) if trial % 3 else ()
        expected = run_ort(DYNAMIC, o, how, (FLOAT,) * 3, constants)
        for found, wanted in zip(both(DYNAMIC, o, how), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert op.pack is not None
        kept = [o[0], op.pack(o[1]), *o[2:]]
        for found, wanted in zip(op.bind(ORT, fast=True)(*kept, **how), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_wrong_steps_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused cell and a cell that is limited are other layers."""
    w, r = weight(np.int8, 1, 30, 160), weight(np.int8, 1, 40, 160)
    scale, zero = np.float32([0.004]), np.int8([0])
    o = [normal(8, 4, 30), w, r, normal(1, 320), *[None] * 4, scale, zero, scale, zero]
    how = {"direction": "forward", "hidden_size": 40, "clip": 1.0}
    expected = run_ort(DYNAMIC, o, how, (FLOAT,) * 3)
    right = OPS[DYNAMIC].reference(*o, **how)
    np.testing.assert_array_equal(right[0], expected[0])
    step = ort_lstm.step

    def fused(sums: Any, c: Any, gates: Any) -> Any:
        parts = zip(np.split(sums, 4, axis=1), np.split(gates.bias, 4), strict=True)
        i, _, f, g = (np.clip(x + bias, F(-1), F(1)) for x, bias in parts)
        of_gate, of_new, _ = gates.functions
        return step(sums, c, gates)[0], fma(c, of_gate(f), of_gate(i) * of_new(g))

    def limited(sums: Any, c: Any, gates: Any) -> Any:
        h, cell = step(sums, c, gates)
        return h, np.clip(cell, F(-0.5), F(0.5))

    for wrong in (fused, limited):
        monkeypatch.setattr(ort_lstm.layer, "__defaults__", (wrong,))
        found = OPS[DYNAMIC].reference(*o, **how)
        assert (found[2] != expected[2]).any()


def test_what_onnxruntime_refuses() -> None:
    op = OPS[DYNAMIC]
    o, how = dynamic("bidirectional", np.int8, each=True)

    def types(operands: Any) -> Any:
        return [None if x is None else type_of(x) for x in operands]

    op.infer(*types(o), **how)
    zeros = [*o[:9], np.zeros(2, np.int8), *o[10:]]
    with pytest.raises(UnsupportedError, match="W_zero_point"):
        op.infer(*types(zeros), **how)
    o[9] = o[9] + np.int8(1)
    with pytest.raises(VerifyError, match="W_zero_point must be the same"):
        op.reference(*o, **how)
    with pytest.raises(Exception, match="zero point must be zero"):
        run_ort(DYNAMIC, o, how, (FLOAT,) * 3)
    with pytest.raises(VerifyError, match="expected 6 activations"):
        op.reference(*o, **{**how, "activations": ("Tanh",)})


def test_a_model_of_it() -> None:
    o, how = dynamic("reverse", np.uint8, each=True)
    o[3:8] = [None] * 5
    how = {"direction": "reverse", "hidden_size": how["hidden_size"]}
    proto = model(DYNAMIC, o, how, (FLOAT,) * 3, (1, 2, 8, 9, 10, 11))
    expected = session(proto).run(None, {"x0": o[0]})
    graph = from_onnx(proto, target="ort", shapes={"x0": o[0].shape})
    for found, wanted in zip(graph(o[0]), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


ARITHMETIC = ("Relu", "Affine", "LeakyRelu", "ThresholdedRelu", "HardSigmoid", "Softsign")


@pytest.mark.parametrize("name", [*ARITHMETIC, "Elu", "ScaledTanh", "Softplus"])
@pytest.mark.parametrize("numbers", [True, False])
def test_activations(name: str, numbers: bool) -> None:
    """Those of plain arithmetic have every bit; the others are the C library's."""
    w, r = normal(1, 80, 9, wide=0.3), normal(1, 80, 20, wide=0.3)
    o = [normal(6, 3, 9), w, r, normal(1, 160)]
    how: dict[str, Any] = {"hidden_size": 20, "activations": ("Sigmoid", name, "Tanh")}
    if numbers and name not in ("Relu", "Softsign", "Softplus"):
        how["activation_alpha"] = (0.3,)
        if name in ("Affine", "ScaledTanh", "HardSigmoid"):
            how["activation_beta"] = (0.4,)
    expected = run_ort("onnx::LSTM", o, how, (FLOAT,) * 3, (1, 2))
    given = {"activation_alpha": None, "activation_beta": None, "direction": "forward", **how}
    for found, wanted in zip(both("onnx::LSTM", o, complete(given)), expected, strict=True):
        if name in ARITHMETIC:
            np.testing.assert_array_equal(found, wanted)
        else:  # onnxruntime calls its C library's exponential, whose last bit is not ours
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
