"""Quantized attention and means beside onnxruntime."""

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
from refquant.kernels.onnx import qattention

F = np.float32
ORT = Target("ort")
FLOAT = TensorProto.FLOAT
ATTENTION, MEAN = "com.microsoft::QAttention", "com.microsoft::QLinearReduceMean"
RNG = np.random.default_rng(12)


def weight(dtype: Any, *shape: int) -> Any:
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def masks(batch: int, time: int, total: int) -> list[Any]:
    """Return a mask of every kind."""
    ends, begins = (
        RNG.integers(total // 2, total + 1, batch),
        RNG.integers(0, total // 2 + 1, batch),
    )
    drawn = [
        RNG.integers(0, total + 1, batch),
        np.concatenate([ends, begins]),
        RNG.integers(0, 2, (batch, total)),
        RNG.integers(0, 2, (batch, time, total)),
        np.ones((batch, 1)),
    ]
    return [None, *(x.astype(np.int32) for x in drawn)]


def attention(time: int, head: int, kind: int) -> tuple[Any, dict[str, Any]]:
    """Return operands, with a mask of a kind, and attributes."""
    batch, inputs, heads = (int(n) for n in RNG.integers(1, (4, 80, 4)))
    dtype, columns = RNG.choice([np.uint8, np.int8]), 3 * heads * head
    each = RNG.random() < 0.5
    # Projections near 1 in size: softmax of large scores hides their last bits.
    wide = 1 / (100 * np.sqrt(inputs))
    scales = RNG.uniform(0.5 * wide, wide, (columns,) if each else ()).astype(F)
    zeros = weight(dtype, *((columns,) if each and RNG.random() < 0.5 else ()))
    before = int(RNG.integers(1, 6)) if RNG.random() < 0.4 else 0
    past = RNG.normal(0, 1, (2, batch, heads, before, head)).astype(F) if before else None
    how: dict[str, Any] = {"num_heads": heads, "unidirectional": int(RNG.random() < 0.4)}
    if RNG.random() < 0.3:
        how["scale"] = float(RNG.choice([0.3, 1.0]))
    if RNG.random() < 0.3:
        how["mask_filter_value"] = -5.0
    x, w = weight(np.uint8, batch, time, inputs), weight(dtype, inputs, columns)
    bias, mask = RNG.normal(0, 0.5, columns).astype(F), masks(batch, time, time + before)[kind]
    return [x, w, bias, F(0.01), scales, mask, weight(np.uint8), zeros, past], how


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("time", [1, 2, 17, 150])
def test_attention(kind: int, time: int) -> None:
    op = OPS[ATTENTION]
    for trial in range(4):
        o, how = attention(time, int(RNG.choice([1, 4, 7, 16, 64, 150])), kind)
        expected = run_ort(ATTENTION, o, how, (FLOAT,) * 2, (1,) if trial % 2 else ())
        for fast in (False, True):
            for found, wanted in zip(op.bind(ORT, fast=fast)(*o, **how), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)
        inferred = op.infer(*(None if x is None else type_of(x) for x in o), **how)
        assert isinstance(inferred, tuple)
        assert [x.shape for x in inferred] == [x.shape for x in expected]


def test_wrong_masks_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    o, how = attention(40, 16, 2)
    how |= {"unidirectional": 1, "scale": 0.3}
    expected = run_ort(ATTENTION, o, how, (FLOAT,) * 2)[0]
    np.testing.assert_array_equal(qattention.reference(*o, **how)[0], expected)
    wrong = qattention.reference(*o, **{**how, "unidirectional": 0})[0]
    assert (wrong != expected).any()
    scores = qattention._scores

    def rounded_first(q: Any, key: Any, alpha: Any, gemm: Any) -> Any:
        return scores(q * alpha, key, F(1), gemm)

    monkeypatch.setattr(qattention, "_scores", rounded_first)
    assert (qattention.reference(*o, **how)[0] != expected).any()


def test_a_model_with_attention() -> None:
    o, how = attention(6, 8, 0)
    o[8] = None
    proto = model(ATTENTION, o, how, (FLOAT,) * 2, (1, 2, 3, 4, 6, 7))
    graph = from_onnx(proto, target="ort", shapes={"x0": o[0].shape})
    for found, wanted in zip(graph(o[0]), session(proto).run(None, {"x0": o[0]}), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_bad_attention() -> None:
    o, how = attention(6, 8, 0)
    types = [None if x is None else type_of(x) for x in o]
    op = OPS[ATTENTION]
    with pytest.raises(UnsupportedError, match="do_rotary"):
        op.infer(*types, **how, do_rotary=1)
    with pytest.raises(VerifyError, match="are not 3 times 5 heads"):
        op.infer(*types, num_heads=5)
    types[5] = type_of(np.zeros((7, 7, 7), np.int32))
    with pytest.raises(VerifyError, match="mask_index must be"):
        op.infer(*types, **how)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_reduce_mean(dtype: Any) -> None:
    """No oracle has it: reference and kernel agree, and with exact sums the formula is plain."""
    op = OPS[MEAN]
    code = TensorProto.UINT8 if dtype == np.uint8 else TensorProto.INT8
    for axes, keep in (((1,), 1), ((0, -1), 0), ((), 0), ((2, 1, 0), 1)):
        x, zx, zy = weight(dtype, 4, 5, 6), weight(dtype), weight(dtype)
        o = (x, F(0.5), zx, F(0.25), zy)
        how = {"axes": axes, "keepdims": keep}
        slow, fast = (op.bind(ORT, fast=way)(*o, **how) for way in (False, True))
        np.testing.assert_array_equal(slow, fast)
        real = (x.astype(F) - F(zx)) * F(0.5)
        mean = real.mean(axis=axes or None, keepdims=bool(keep))
        limits = np.iinfo(dtype)
        wanted = np.clip(np.rint(F(mean) / F(0.25)) + int(zy), limits.min, limits.max)
        np.testing.assert_array_equal(slow, wanted)
        scales = (x, F(0.0371), zx, F(0.0123), zy)
        slow, fast = (op.bind(ORT, fast=way)(*scales, **how) for way in (False, True))
        np.testing.assert_array_equal(slow, fast)
    with pytest.raises(Exception, match="Could not find an implementation"):
        run_ort(MEAN, o, {"axes": (0,), "keepdims": 1}, (code,))
    with pytest.raises(VerifyError, match="axes"):
        op.infer(*map(type_of, o), axes=(0, 0))
