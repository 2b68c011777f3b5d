"""Samples of ``quantized_decomposed``: values at ties, and types drawn at random."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from refquant.ir.types import (
    DType,
    bfloat16,
    bool_,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
)
from refquant.kernels.decomposed import BOUNDS
from refquant.kernels.layout import channels_last
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw.floats import a_scale, hugging
from refquant.ledger.draw.tensors import Rng

TARGETS = [uint8, int8, uint16, int16, int32, float8_e5m2, float8_e4m3fn]
HALF = [float16, bfloat16]
ALL = [*TARGETS, *HALF, float32, float64, int64, bool_]


def range_of(dtype: DType) -> dict[str, Any]:
    """Return a dtype and its limits as attributes."""
    low, high = BOUNDS[dtype]
    return {"quant_min": low, "quant_max": high, "dtype": dtype}


def drawn_scales(rng: Rng, shape: Any, dtype: Any) -> Any:
    """Draw scales that a dtype holds as normal numbers."""
    return np.clip(a_scale(rng, shape), 1e-3, 1e2).astype(dtype)


def an_array(rng: Rng, dtype: DType, shape: Any, positive: bool = False) -> Any:
    """Draw values of a dtype, of all sizes."""
    if dtype == bool_:
        return rng.random(shape) < 0.5
    if dtype.is_floating_point:
        x = np.exp(rng.uniform(-4, 4, shape)) * (1 if positive else rng.choice([-1, 1], shape))
        return np.asarray(x).astype(np.float32).astype(dtype.storage)
    limits = np.iinfo(dtype.storage)
    bits = int(rng.choice([3, 6, 8, 12, 20, 40]))
    low = 1 if positive else max(limits.min, -(2**bits))
    return np.asarray(rng.integers(low, min(limits.max, 2**bits), shape)).astype(dtype.storage)


def placed(rng: Rng, x: Any) -> Any:
    """Return an array with other strides."""
    if x.ndim == 4 and rng.random() < 0.3:
        return channels_last(x)
    order = rng.permutation(x.ndim)
    x = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
    return np.repeat(x, 2, axis=0)[::2] if x.ndim and rng.random() < 0.3 else x


def a_call(rng: Rng, name: str, target: DType | None = None) -> Call:
    """Draw a call of one op; its types may be such that torch refuses it."""

    def dtype(*usual: DType) -> DType:
        pool = list(usual) if rng.random() < 0.7 else ALL
        return pool[int(rng.integers(len(pool)))]

    def one(*usual: DType, positive: bool = False) -> Any:
        return an_array(rng, dtype(*usual), [(), (1,), (1, 1)][int(rng.integers(3))], positive)

    shape = tuple(int(d) for d in rng.choice([1, 2, 3, 5, 17], int(rng.integers(1, 5))))
    target = target or TARGETS[int(rng.integers(7))]
    limits = range_of(target if rng.random() < 0.9 else TARGETS[int(rng.integers(2))])
    backward = name.startswith("dequantize")
    source = target if backward else dtype(float32, *HALF)
    if "group" in name or "token" in name:
        source = dtype(int8, uint8) if backward else dtype(float32, float64, *HALF)
    x = placed(rng, an_array(rng, source, shape))
    out: dict[str, Any] = {"out_dtype": dtype(float32, *HALF)} if backward else {}
    base, _, form = name.partition(".")
    if base.endswith("_per_tensor"):
        if not form:
            numbers = {"scale": float(a_scale(rng)), "zero_point": int(rng.integers(-9, 2**20))}
            return Call((x,), numbers | limits | out)
        operands = x, one(float32, float64, positive=True), one(int64, int32, float32)
        if form == "tensor":
            return Call(operands, limits | out)
        ends = np.array(limits["quant_min"]), np.array([limits["quant_max"]])
        return Call((*operands, *ends), {"dtype": limits["dtype"]} | out)
    if base in ("quantize_per_channel", "dequantize_per_channel", "fake_quant_per_channel"):
        axis = int(rng.integers(0 if "fake" in base else -len(shape), len(shape)))
        channels = shape[axis] if rng.random() < 0.9 else 1
        scales = an_array(rng, dtype(float32, float64, *HALF), channels, positive=True)
        zero_points = an_array(rng, dtype(int64, int32), channels)
        if "fake" in base:
            del limits["dtype"]
        return Call((x, scales, zero_points), {"axis": axis} | limits | out)
    if base == "convert_element_type":
        return Call((placed(rng, an_array(rng, dtype(float32), shape)),), {"dtype": dtype(int8)})
    if form == "tensor":
        return Call((x,), limits | {"eps": 2.0 ** -float(rng.integers(30))})
    if "choose" in base:
        return Call((x,), {"dtype": dtype(int8)})
    out = {"output_dtype": dtype(float32, *HALF)} if backward else {}
    each: tuple[int, ...] = (*shape[:-1], 1)
    if "group" in base:
        rows, count = int(rng.integers(1, 6)), int(rng.integers(1, 4))
        x = placed(rng, an_array(rng, source, (rows, count * 4)))
        each, out = (rows, count), {"group_size": 4} | out
    scales = an_array(rng, dtype(float32, float64, *HALF), each, positive=True)
    zero_points = an_array(rng, dtype(int64, int32, float32), each)
    return Call((x, scales, zero_points), limits | out)


def _integers(rng: Rng, dtype: DType, shape: Any) -> Any:
    """Return what a quantization to a dtype may have given."""
    low, high = BOUNDS[dtype]
    if dtype.is_floating_point:
        return rng.uniform(max(low, -400), min(high, 400), shape).astype(dtype.storage)
    return rng.integers(max(low, -(2**20)), min(high, 2**20) + 1, shape).astype(dtype.storage)


def _values(
    rng: Rng, op: str, dtype: DType, columns: int, scale: Any, zero_point: Any, source: DType
) -> Any:
    """Return rows to dequantize, or rows with values at ties to quantize."""
    if op.startswith("dequantize"):
        return _integers(rng, dtype, (*np.shape(scale)[:-1], columns))
    return hugging(rng, columns, scale, zero_point, BOUNDS[dtype], source.storage)


def _result_dtype(rng: Rng, op: str, key: str) -> dict[str, Any]:
    """Return the dtype of the result of a dequantization."""
    if not op.startswith("dequantize"):
        return {}
    return {key: (None, float32, *HALF)[int(rng.integers(4))]}


def per_tensor(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw one scale and zero point, given as numbers or as tensors."""
    op, _, form = cell.name.partition("::")[2].partition(".")
    low, high = BOUNDS[cell.dtype]
    scale = float(drawn_scales(rng, None, np.float64))
    zero_point = int(rng.integers(max(low, -300), min(high, 300) + 1))
    source = (float32, float32, *HALF)[int(rng.integers(4))]
    x = _values(rng, op, cell.dtype, size, scale, zero_point, source)
    limits = range_of(cell.dtype) | _result_dtype(rng, op, "out_dtype")
    if not form:
        return Call((x,), {"scale": scale, "zero_point": zero_point, **limits})
    tensors = np.array([scale]), np.array(zero_point)
    if form == "tensor":
        return Call((x, *tensors), limits)
    ends = np.array(limits.pop("quant_min")), np.array([limits.pop("quant_max")])
    return Call((x, *tensors, *ends), limits)


def per_channel(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw scales of float32 or float64 along the first or the last of two dimensions."""
    op = cell.name.partition("::")[2]
    low, high = BOUNDS[cell.dtype]
    rows = int(rng.integers(1, 40))
    scales = drawn_scales(rng, rows, (np.float32, np.float64)[int(rng.integers(2))])
    zero_points = rng.integers(max(low, -300), min(high, 300) + 1, rows)
    x = _values(
        *(rng, op, cell.dtype, max(1, size // rows), scales[:, None], zero_points[:, None]),
        float32,
    )
    axis = int(rng.integers(2))
    limits = {"axis": axis, **range_of(cell.dtype), **_result_dtype(rng, op, "out_dtype")}
    if op == "fake_quant_per_channel":
        del limits["dtype"]
    return Call((np.ascontiguousarray(x.T) if axis else x, scales, zero_points), limits)


def per_row(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a scale for each row, or for each of two groups in a row."""
    op = cell.name.partition("::")[2]
    low, high = BOUNDS[cell.dtype]
    rows = int(rng.integers(1, 40))
    length = max(size // rows // 8, 1) * 8
    source = (float32, float64, *HALF)[int(rng.integers(4))]
    scales = drawn_scales(rng, (rows, 1), source.storage if rng.random() < 0.5 else np.float32)
    zero_points = rng.integers(low, high + 1, (rows, 1))
    zero_points = zero_points.astype(str(rng.choice(["int32", "int64", "float32"])))
    x = _values(rng, op, cell.dtype, length, scales, zero_points, source)
    limits = range_of(cell.dtype)
    if op.startswith("dequantize"):
        limits["output_dtype"] = source
    if op.endswith("_token"):
        return Call((x, scales, zero_points), limits)
    groups = (np.repeat(v, 2, axis=1) for v in (scales, zero_points))
    with np.errstate(invalid="ignore"):
        x = np.where(np.isnan(x), x.dtype.type(0), x)
    return Call((x, *groups), {**limits, "group_size": length // 2})


def choose(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw ranges of which half make ``lo / scale`` a tie."""
    low, high = BOUNDS[cell.dtype]
    width = np.exp(rng.uniform(-9, 9))
    x = rng.normal(size=max(3, size // 50)) * width / 9
    part = (rng.integers(0, high - low) + 0.5) / (high - low)
    x[:2] = -part * width, (1 - part) * width
    source = (float32, float32, *HALF)[int(rng.integers(4))]
    with np.errstate(over="ignore"):
        x = x.astype(source.storage)
    return Call((x,), {**range_of(cell.dtype), "eps": 2.0 ** -float(rng.integers(60))})


def choose_per_token(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw rows whose ends differ a little, so that the errors of both ends nearly cancel."""
    rows = max(1, size // 7)
    x = rng.normal(size=(rows, 7)) * np.exp(rng.uniform(-9, 9, (rows, 1)))
    x[:, 0] = -x[:, 1] * (1 + rng.integers(-3, 4, rows) * 2.0**-8)
    source = (float32, float64, *HALF)[int(rng.integers(4))]
    with np.errstate(over="ignore"):
        return Call((x.astype(source.storage),), {"dtype": cell.dtype})


def convert(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw values of any type around the ends of integers."""
    source = ALL[int(rng.integers(len(ALL)))]
    x = an_array(rng, source, size)
    if source.is_floating_point:
        with np.errstate(over="ignore"):
            x = hugging(rng, size, 1, 0, (-500, 500), np.float32).astype(source.storage)
    return Call((x,), {"dtype": cell.dtype})


def _mixed(rng: Rng, cell: Cell, size: int, draw: Sampler) -> Call:
    """Draw values at ties, or sometimes types and shapes at random."""
    if rng.random() < 0.3:
        return a_call(rng, cell.name.partition("::")[2], cell.dtype)
    return draw(rng, cell, size)


_DRAWN: dict[Sampler, tuple[tuple[str, ...], tuple[DType, ...]]] = {
    per_tensor: (
        tuple(
            f"{op}_per_tensor{form}"
            for op in ("quantize", "dequantize")
            for form in ("", ".tensor", ".tensor2")
        ),
        tuple(TARGETS),
    ),
    per_channel: (
        ("quantize_per_channel", "dequantize_per_channel", "fake_quant_per_channel"),
        (uint8, int8, int16, int32),
    ),
    per_row: (
        tuple(
            f"{op}_per_{what}"
            for op in ("quantize", "dequantize")
            for what in ("token", "channel_group")
        ),
        (uint8, int8),
    ),
    choose: (("choose_qparams.tensor", "choose_qparams_symmetric.tensor"), (uint8, int8, int16)),
    choose_per_token: (
        (
            "choose_qparams_per_token",
            *("choose_qparams_per_token_asymmetric", "_choose_qparams_per_token_asymmetric_impl"),
        ),
        (int8,),
    ),
    convert: (("convert_element_type.no_fuse",), (uint8, int8, float16, bfloat16, float64)),
}
SAMPLERS: dict[str, Sampler] = {
    f"quantized_decomposed::{name}": draw if draw is convert else partial(_mixed, draw=draw)
    for draw, (names, _) in _DRAWN.items()
    for name in names
}
DTYPES: dict[str, tuple[DType, ...]] = {
    f"quantized_decomposed::{name}": dtypes for names, dtypes in _DRAWN.values() for name in names
}
