"""Samples of quantized embeddings: packing, unpacking, looking up and adding up."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor
from refquant.ir.types import DType, quint4x2, quint8, uint8
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw.tensors import Rng

Array = Any
BITS = {"byte": 8, "4bit": 4, "2bit": 2}
EXTREMES = (0.0, -0.0, np.inf, -np.inf, np.nan, 7e4, -7e4, 3e38, -3e38, 1e-40, 6e-8, 4e9, 3e10)


def table(rng: Rng, rows: int, width: int, bits: int, kind: int) -> Array:
    """Return rows with values next to ties of their own quantization, or awkward ones."""
    x = (rng.normal(size=(rows, width)) * np.exp(rng.uniform(-9, 6))).astype(np.float32)
    if kind % 2:
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        start = low if bits == 8 else low.astype(np.float16).astype(np.float32)
        step = (high - start) / np.float32((1 << bits) - 1)
        step = step if bits == 8 else step.astype(np.float16).astype(np.float32)
        ties = start + (rng.integers(0, (1 << bits) - 1, x.shape) + np.float32(0.5)) * step
        ties = ties.astype(np.float32)
        ties = (ties.view(np.int32) + rng.integers(-3, 4, x.shape).astype(np.int32)).view(x.dtype)
        x = np.where((x != low) & (x != high) & (ties > low) & (ties < high), ties, x)
    if kind % 5 == 0 and width:
        x[rng.integers(rows)] = x[0, 0]
        x[rng.integers(rows)] = rng.choice([0.0, -0.0], width)
    if kind % 7 == 0:
        x = np.where(rng.random(x.shape) < 0.1, rng.choice(EXTREMES, x.shape), x)
    return x.astype(np.float32)


def width_of(rng: Rng, bits: int) -> int:
    """Return a row length around the vectors', of whole bytes."""
    each = 8 // bits
    return int(rng.choice([1, 2, 3, 5, 7, 8, 9, 16, 24, 31, 32, 33, 40, 64, 70, 128])) * each


def quantized_table(rng: Rng, rows: int, width: int, bits: int) -> QTensor:
    """Return a table with float parameters of every size for each row."""
    scale = np.exp(rng.uniform(-12, 4, rows)).astype(np.float32)
    zero = rng.uniform(-20, 1 << bits, rows).astype(np.float32)
    q = rng.integers(0, 1 << bits, (rows, width)).astype(np.uint8)
    return QTensor(q, scale, zero, 0, quint8 if bits == 8 else quint4x2)


def bytes_of_rows(rng: Rng, rows: int, width: int, bits: int) -> Array:
    """Return packed rows with their parameters at the end."""
    x = rng.normal(size=(rows, width)) * np.exp(rng.uniform(-6, 3, (rows, 1)))
    return OPS[f"quantized::embedding_bag_{form_of(bits)}_prepack"].reference(x.astype(np.float32))


def form_of(bits: int) -> str:
    """Return what torch calls a width."""
    return next(form for form, known in BITS.items() if known == bits)


def offsets_of(rng: Rng, count: int, last: bool) -> Array:
    """Return where bags start, some of them empty; with ``last`` also where the last one ends."""
    inner = np.sort(rng.integers(0, count + 1, int(rng.integers(0, 6))))
    return np.concatenate([[0], inner, [count] if last else []]).astype(np.int64)


def _form(cell: Cell) -> str:
    return next(form for form in BITS if form in cell.name)


def prepack(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw rows at ties of their own quantization; some ranges are searched or given."""
    bits = BITS[_form(cell)]
    width = width_of(rng, bits)
    searched = bits < 8 and rng.random() < 0.3
    rows = 2 if searched else max(1, size // width)
    x = table(rng, rows, width, bits, int(rng.integers(1, 36)))
    attributes: dict[str, Any] = {}
    if searched:
        x = np.where(np.isfinite(x), x, 1).astype(np.float32)
        attributes = {"optimized_qparams": True, "nbins": int(rng.integers(5, 90))}
        attributes["ratio"] = float(rng.uniform(0.05, 0.9))
    with np.errstate(over="ignore"):
        x = x.astype(np.float16) if rng.random() < 0.3 else x
    if not cell.name.endswith("min_max"):
        return Call((x,), attributes)
    with np.errstate(over="ignore", invalid="ignore"):
        ends = np.stack([x.min(1), x.max(1)], 1) * rng.uniform(-0.1, 1.2, (len(x), 2))
        return Call((x, ends.astype(x.dtype)), attributes)


def unpack(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw packed rows."""
    bits = BITS[_form(cell)]
    width = width_of(rng, bits)
    return Call((bytes_of_rows(rng, max(1, size // width), width, bits),), {})


def packed_table(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a table to pack."""
    bits = 8 if cell.dtype == quint8 else 4
    width = width_of(rng, bits)
    return Call((quantized_table(rng, max(1, size // width), width, bits),), {})


def embedding(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw indices of any shape; now and then a scale and a zero point are not finite."""
    bits = BITS[_form(cell)]
    rows, width = int(rng.integers(1, 40)), width_of(rng, bits)
    weight = quantized_table(rng, rows, width, bits)
    if rng.random() < 0.2:
        scale, zero_point = np.asarray(weight.scale), np.asarray(weight.zero_point)
        scale[0], zero_point[0] = rng.choice(EXTREMES, 2)
    count = max(1, size // width)
    indices = rng.integers(0, rows, (count,) if rng.random() < 0.5 else (1, count))
    return Call((weight, indices.astype(str(rng.choice(["int32", "int64"])))), {})


def bag(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw bags with and without weights, pruned rows and a last offset."""
    bits = BITS[_form(cell)]
    rows, width = int(rng.integers(1, 40)), width_of(rng, bits)
    packed = not cell.name.endswith("_rowwise_offsets")
    weight = (quantized_table if packed else bytes_of_rows)(rng, rows, width, bits)
    last, weighted, pruned = (bool(b) for b in rng.integers(0, 2, 3))
    count = int(rng.choice([0, 1, 5, 20, 60])) if size < 1000 else 3 * size // width
    mapping = None
    if pruned:
        mapping = np.full(rows + 5, -1, np.int32)
        mapping[rng.permutation(rows + 5)[:rows]] = np.arange(rows)
        if rng.random() < 0.3:
            mapping = np.zeros(1, np.int32)
    kept = rows if mapping is None or mapping.size == 1 else mapping.size
    indices = rng.integers(0, kept, count).astype(str(rng.choice(["int32", "int64"])))
    inner = np.sort(rng.integers(0, count + 1, max(1, size // width)))
    offsets = np.concatenate([[0], inner, [count] if last else []])
    offsets = offsets.astype(str(rng.choice(["int32", "int64"])))
    weights = rng.normal(size=count).astype(np.float32) if weighted else None
    if weights is not None and bits < 8 and rng.random() < 0.3:
        weights = weights.astype(np.float16)
    attributes: dict[str, Any] = {"include_last_offset": last, "pruned_weights": pruned}
    attributes |= {"mode": int(rng.integers(3)), "scale_grad_by_freq": bool(rng.integers(2))}
    return Call((weight, indices, offsets, weights, mapping), attributes)


_BAG = "quantized::embedding_bag_{}"
SAMPLERS: dict[str, Sampler] = {
    **{f"{_BAG.format(form)}_prepack": prepack for form in BITS},
    **{f"{_BAG.format(form)}_prepack_with_rowwise_min_max": prepack for form in BITS},
    **{f"{_BAG.format(form)}_unpack": unpack for form in BITS},
    **{f"{_BAG.format(form)}_rowwise_offsets": bag for form in BITS},
    **{_BAG.format(form): bag for form in ("byte", "4bit")},
    **{f"quantized::embedding_{form}": embedding for form in ("byte", "4bit")},
    "quantized::embedding_bag_unpack": packed_table,
}
DTYPES: dict[str, tuple[DType, ...]] = {
    name: (
        (quint8, quint4x2)
        if name == "quantized::embedding_bag_unpack"
        else (uint8,)
        if "prepack" in name or "unpack" in name or "rowwise" in name
        else (quint8,)
        if "byte" in name
        else (quint4x2,)
    )
    for name in SAMPLERS
}
