"""``quantized::embedding_*`` and ``embedding_bag_*``: rows of a quantized table, added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import (
    Size,
    TensorType,
    element_count,
    float16,
    float32,
    int32,
    int64,
    quint4x2,
    quint8,
)
from refquant.kernels import rounding, rowwise
from refquant.kernels.jit import fma, jit
from refquant.kernels.rowwise import BITS

Table = Array | QTensor


class _Bags(NamedTuple):
    """What is added up: rows in order, their weights, and where each bag begins and ends."""

    rows: Array
    weights: Array | None
    starts: Array
    ends: Array


def _in_range(op: str, index: Array, length: int) -> None:
    if index.size and not (index.min() >= 0 and index.max() < length):
        bad = int(index.min()) if index.min() < 0 else int(index.max())
        raise VerifyError(f"{op}: index {bad} is out of range for {length} rows")


def _bounds(op: str, indices: Array, offsets: Array | None, last: bool, bits: int) -> Array:
    """Return where the bags begin, and the end of the last one."""
    if offsets is None:
        offsets = np.arange(0, indices.size, indices.shape[1])
    bounds = offsets.astype(np.int64)
    if not last:
        bounds = np.append(bounds, indices.size)
    if len(bounds) > 1 or last:
        rising = bool((np.diff(bounds) >= 0).all())
        whole = bounds[-1] == indices.size or (bits == 8 and bounds[-1] < indices.size)
        if bounds[0] != 0 or not rising or not whole:
            raise VerifyError(
                f"{op}: offsets must rise from 0 to at most the number of indices "
                f"{indices.size}{'' if bits == 8 or not last else ', the last one'}, "
                f"got {offsets.tolist()[:8]}"
            )
    return bounds


def _bags(
    op: str,
    count: int,
    bits: int,
    indices: Array,
    offsets: Array | None,
    weights: Array | None,
    mapping: Array | None,
    pruned: bool,
    last: bool,
) -> _Bags:
    """Check what only the values tell, and take out the rows that were pruned."""
    bounds = _bounds(op, indices, offsets, last, bits)
    rows = indices.reshape(-1)[: bounds[-1]].astype(np.int64)
    if weights is not None:
        weights = weights.reshape(-1)[: len(rows)].astype(np.float32)
    if pruned:
        assert mapping is not None
        if not (mapping.size == 1 and mapping.reshape(-1)[0] == 0):  # torch's sign for "all kept"
            _in_range(op, rows, mapping.size)
            rows = mapping.reshape(-1)[rows].astype(np.int64)
            kept = rows != -1
            bounds = np.append(0, np.cumsum(kept))[bounds]
            rows = rows[kept]
            weights = None if weights is None else weights[kept]
    _in_range(op, rows, count)
    return _Bags(rows, weights, bounds[:-1], bounds[1:])


def _parts(weight: Table, bits: int, rows: Array) -> tuple[Array, Array, Array]:
    """Return values, scales and biases of rows."""
    if isinstance(weight, QTensor):
        return weight.int_repr[rows], *rowwise.scale_and_bias_of(weight, rows)
    table = weight[rows]
    return rowwise.values(table, bits), *rowwise.scale_and_bias(table, bits)


def _width(weight: Table, bits: int) -> int:
    if isinstance(weight, QTensor):
        return weight.shape[1]
    return rowwise.length_of("embedding_bag", weight.shape[1], bits)


def _sum(weight: Table, bits: int, bags: _Bags) -> Array:
    """Add the first row of every bag, then the second, and so on."""
    values, scale, bias = _parts(weight, bits, bags.rows)
    if bags.weights is not None:
        scale, bias = bags.weights * scale, bags.weights * bias
    y = np.zeros((len(bags.starts), values.shape[1]), np.float32)
    for step in range(int((bags.ends - bags.starts).max(initial=0))):
        longer = bags.starts + step < bags.ends
        at = bags.starts[longer] + step
        with np.errstate(invalid="ignore"):
            y[longer] = rounding.fma(values[at], scale[at, None], y[longer] + bias[at, None])
    return y


@jit
def _fill(
    table: Any, bits: int, rows: Any, scale: Any, bias: Any, starts: Any, ends: Any, y: Any
) -> None:
    each = 8 // bits
    mask = (1 << bits) - 1
    for bag in range(y.shape[0]):
        total = y[bag]
        for k in range(total.size):
            total[k] = np.float32(0)
        for i in range(starts[bag], ends[bag]):
            row, s, b = table[rows[i]], scale[i], bias[i]
            if each == 1:
                for k in range(total.size):
                    total[k] = fma(np.float32(row[k]), s, np.float32(total[k] + b))
            else:
                for k in range(total.size):
                    q = row[k // each] >> (bits * (k % each)) & mask
                    total[k] = fma(np.float32(q), s, np.float32(total[k] + b))


def _sum_compiled(weight: Table, bits: int, bags: _Bags) -> Array:
    """Add bag by bag, reading values out of the table as they are needed."""
    if isinstance(weight, QTensor):
        table, stored = weight.int_repr, 8
        scale, bias = rowwise.scale_and_bias_of(weight, bags.rows)
    else:
        table, stored = weight, bits
        scale, bias = rowwise.scale_and_bias(weight[bags.rows], bits)
    if bags.weights is not None:
        scale, bias = scale * bags.weights, bias * bags.weights
    y = np.empty((len(bags.starts), _width(weight, bits)), np.float32)
    table = np.ascontiguousarray(table)
    scale, bias = np.ascontiguousarray(scale), np.ascontiguousarray(bias)
    _fill(table, stored, bags.rows, scale, bias, bags.starts, bags.ends, y)
    return y


def _bag_function(op: str, bits: int, add: Callable[..., Array]) -> Callable[..., Array]:
    def embedding_bag(
        weight: Table,
        indices: Array,
        offsets: Array | None = None,
        per_sample_weights: Array | None = None,
        compressed_indices_mapping: Array | None = None,
        scale_grad_by_freq: bool = False,
        mode: int = 0,
        pruned_weights: bool = False,
        include_last_offset: bool = False,
    ) -> Array:
        bags = _bags(
            *(op, weight.shape[0], bits, indices, offsets, per_sample_weights),
            *(compressed_indices_mapping, pruned_weights, include_last_offset),
        )
        return add(weight, bits, bags)

    return embedding_bag


_WEIGHT = {
    "packed": "QTensor, {dtype} (R, K)\n        Quantized per row with float zero points.",
    "rows": "uint8 (R, bytes of a row)\n        As ``quantized::embedding_bag_{name}_prepack``"
    " makes it.",
}
_BAG = r"""Add up rows of a table of {bits}-bit values, bag by bag.

    .. math:: y \leftarrow \mathrm{{fma}}(q, w s, y + w b)

    for each row of a bag in order, from :math:`y = 0`; :math:`s` and :math:`b` are the scale and
    bias of the row, in float32{half}. The products with the row's weight :math:`w` are rounded;
    without weights there are none. An empty bag is 0. Every ``mode`` is a sum.

    Parameters
    ----------
    weight : {weight}
    indices : int32 or int64, (n,) or (bags, length)
        Row numbers. With two dimensions each row is a bag.
    offsets : int32 or int64 (bags,), only with indices of one dimension
        Where each bag begins; rising from 0.
    per_sample_weights : {weights}, as many as indices, optional
        Factor of each row.
    compressed_indices_mapping : int32, only with ``pruned_weights``
        The row in the table for each index, or -1 for one that was pruned and counts as 0. The
        single entry 0 stands for no mapping.
    scale_grad_by_freq, mode
        Not used, as in torch.
    pruned_weights : bool
        Whether indices go through the mapping.
    include_last_offset : bool
        Whether the last offset is the end of the last bag{shorter}.

    Returns
    -------
    float32 (bags, K)

    Raises
    ------
    VerifyError
        If types or lengths do not fit, offsets do not rise, or an index is out of range.

    Notes
    -----
    Every engine gives the same.
    """
_SHORTER = (
    "; it may be below the number of\n        indices. With indices of two dimensions torch leaves"
    " the last bag out"
)


def _embedding_function(op: str, add: Callable[..., Array]) -> Callable[..., Array]:
    def embedding(weight: QTensor, indices: Array, pruned_weights: bool = False) -> Array:
        rows = indices.reshape(-1).astype(np.int64)
        _in_range(op, rows, weight.shape[0])
        each = np.arange(rows.size)
        y = add(weight, 8, _Bags(rows, None, each, each + 1))
        return y.reshape(*indices.shape, weight.shape[1])

    return embedding


_EMBEDDING = r"""Look up rows of a table of {bits}-bit values: ``fma(q, s, b)``.

    Scale and bias of a row are its scale and the negative product of its zero point and scale, in
    float32{half}.

    Parameters
    ----------
    weight : QTensor, {dtype} (R, K)
        Quantized per row with float zero points.
    indices : int32 or int64, one or two dimensions
        Row numbers.
    pruned_weights : bool
        Must be False: there is no mapping.

    Returns
    -------
    float32 (..., K)

    Raises
    ------
    VerifyError
        If types do not fit, or an index is out of range.

    Notes
    -----
    Every engine gives the same.
    """


# ---- checks


def _check_indices(op: str, indices: TensorType) -> None:
    if indices.dtype not in (int32, int64) or indices.rank not in (1, 2):
        raise VerifyError(f"{op}: indices must be int32 or int64 of rank 1 or 2, got {indices}")


def _infer_bag(op: str, bits: int, packed: bool) -> Callable[..., TensorType]:
    def infer(
        weight: TensorType,
        indices: TensorType,
        offsets: TensorType | None = None,
        per_sample_weights: TensorType | None = None,
        compressed_indices_mapping: TensorType | None = None,
        scale_grad_by_freq: bool = False,
        mode: int = 0,
        pruned_weights: bool = False,
        include_last_offset: bool = False,
    ) -> TensorType:
        if packed:
            width = rowwise.check_weight(op, weight, (bits,))
        else:
            width = rowwise.check_table(op, weight, bits)
        _check_indices(op, indices)
        bags: Size
        if indices.rank == 2:
            if offsets is not None:
                raise VerifyError(f"{op}: indices of rank 2 take no offsets, got {offsets}")
            if indices.shape[1] == 0 or (include_last_offset and bits < 8):
                raise VerifyError(
                    f"{op}: indices of rank 2 need a length"
                    f"{'' if bits == 8 else ' and no include_last_offset'}, got {indices}"
                )
            bags = indices.shape[0]
        else:
            if offsets is None:
                raise VerifyError(f"{op}: indices of rank 1 need offsets")
            if offsets.dtype not in (int32, int64) or offsets.rank != 1:
                raise VerifyError(f"{op}: offsets must be int32 or int64 of rank 1, got {offsets}")
            bags = offsets.shape[0]
        if include_last_offset:
            if bags == 0:
                raise VerifyError(f"{op}: include_last_offset needs an offset, got none")
            bags = bags - 1
        floats = (float32,) if bits == 8 else (float32, float16)
        given = per_sample_weights
        if given is not None and (
            given.dtype not in floats or element_count(given.shape) != element_count(indices.shape)
        ):
            accepted = " or ".join(map(str, floats))
            raise VerifyError(
                f"{op}: per_sample_weights must be {accepted}, as many as indices, got {given}"
            )
        if pruned_weights and (
            compressed_indices_mapping is None or compressed_indices_mapping.dtype != int32
        ):
            got = compressed_indices_mapping
            raise VerifyError(f"{op}: pruned_weights needs an int32 mapping, got {got}")
        return TensorType(float32, (bags, width))

    return infer


def _infer_embedding(op: str, bits: int) -> Callable[..., TensorType]:
    def infer(weight: TensorType, indices: TensorType, pruned_weights: bool = False) -> TensorType:
        width = rowwise.check_weight(op, weight, (bits,))
        _check_indices(op, indices)
        if pruned_weights:
            raise VerifyError(f"{op}: pruned_weights needs a mapping, which it does not take")
        return TensorType(float32, (*indices.shape, width))

    return infer


# ---- records

_SOURCE = (
    "pytorch/aten/src/ATen/native/quantized/cpu/qembeddingbag.cpp",
    "FBGEMM/src/EmbeddingSpMDM*.cc",
)


def _table(bits: int, packed: bool) -> Table:
    """Return two rows: 0, 1, 2, 3 times 0.5 plus 1, and minus 3, 2, 1, 0."""
    q = np.array([[0, 1, 2, 3], [0, 1, 2, 3]], np.uint8)
    scale, zero = np.array([0.5, 1], np.float32), np.array([-2, 3], np.float32)
    if packed:
        return QTensor(q, scale, zero, 0, quint8 if bits == 8 else quint4x2)
    shifts = np.arange(0, 8, bits).astype(np.uint8)
    parts = q.reshape(2, 4 * bits // 8, 8 // bits) << shifts
    return rowwise.join(np.bitwise_or.reduce(parts, -1), scale, -zero * scale, bits)


_FIRST, _SECOND = np.array([1, 1.5, 2, 2.5]), np.array([-3.0, -2, -1, 0])
_ROWS = np.array([0, 1, 1], np.int64)


def _bag(name: str, bits: int, packed: bool) -> Op:
    op = f"quantized::embedding_bag_{name}" + ("" if packed else "_rowwise_offsets")
    reference = _bag_function(op, bits, _sum)
    reference.__doc__ = _BAG.format(
        bits=bits,
        half="" if bits == 8 or not packed else ",\n    each rounded to float16",
        weight=_WEIGHT["packed" if packed else "rows"].format(
            name=name, dtype=rowwise.DTYPES.get(bits, "")
        ),
        weights="float32" if bits == 8 else "float32 or float16",
        shorter=_SHORTER if bits == 8 else "",
    )
    table, both = _table(bits, packed), _FIRST + _SECOND
    offsets, ends = np.array([0, 0, 2]), np.array([0, 2, 3])
    weights, mapping = np.array([2, 3, 4], np.float32), np.array([1, -1], np.int32)
    last = {"include_last_offset": True}
    cases = (
        Case(
            "empty", (table, _ROWS, offsets), {}, [0 * both, both, _SECOND], "a bag of none is 0"
        ),
        Case("fixed", (table, np.array([[0, 1]])), {}, [both], "two dimensions: one length"),
        Case("last", (table, _ROWS, ends), last, [both, _SECOND], "the end of the last bag"),
        Case(
            *("weighted", (table, _ROWS, ends, weights), last),
            *([2 * _FIRST + 3 * _SECOND, 4 * _SECOND], "each row by its factor"),
        ),
        Case(
            *("pruned", (table, _ROWS, offsets, None, mapping), {"pruned_weights": True}),
            *([0 * both, _SECOND, 0 * both], "-1 is left out"),
        ),
        Case(
            "not_pruned",
            (table, _ROWS, offsets, None, np.array([0], np.int32)),
            {"pruned_weights": True},
            [0 * both, both, _SECOND],
            "a mapping of a single 0 is none",
        ),
        Case("mean", (table, _ROWS, offsets), {"mode": 1}, [0 * both, both, _SECOND], "is a sum"),
    )
    return Op(
        name=op,
        reference=reference,
        infer=_infer_bag(op, bits, packed),
        kernels=dict.fromkeys(TORCH_ENGINES, _bag_function(op, bits, _sum_compiled)),
        source=_SOURCE,
        cases=cases,
    )


def _embedding(name: str, bits: int) -> Op:
    op = f"quantized::embedding_{name}"
    reference = _embedding_function(op, _sum)
    reference.__doc__ = _EMBEDDING.format(
        bits=bits,
        dtype=rowwise.DTYPES[bits],
        half="" if bits == 8 else ", each rounded to float16",
    )
    table = _table(bits, True)
    return Op(
        name=op,
        reference=reference,
        infer=_infer_embedding(op, bits),
        kernels=dict.fromkeys(TORCH_ENGINES, _embedding_function(op, _sum_compiled)),
        source=_SOURCE,
        cases=(
            Case("matrix", (table, _ROWS[:2, None]), {}, [[_FIRST], [_SECOND]], "any two dims"),
            Case("none", (table, _ROWS[:0]), {}, np.zeros((0, 4)), "no rows"),
        ),
    )


OPS = (
    *(_embedding(name, BITS[name]) for name in ("byte", "4bit")),
    *(_bag(name, BITS[name], True) for name in ("byte", "4bit")),
    *(_bag(name, bits, False) for name, bits in BITS.items()),
)
