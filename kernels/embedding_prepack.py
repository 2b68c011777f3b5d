"""``quantized::embedding_bag_*_prepack`` and ``_unpack``: tables to bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, float16, float32, quint8, uint8
from refquant.kernels import choose_qparams_optimized, rounding, rowwise
from refquant.kernels.jit import fma, jit
from refquant.kernels.rounding import half
from refquant.kernels.rowwise import BITS

_MAX = np.float32(np.finfo(np.float32).max)


def _least(rows: Array) -> tuple[Array, Array]:
    """Return minimum and maximum of each row as eight lanes find them.

    A lane takes a value unless what it has is better, so that it forgets what was before a NaN.
    """
    whole = rows.shape[1] // 8 * 8
    low, high = np.full((len(rows), 8), _MAX), np.full((len(rows), 8), -_MAX)
    for start in range(0, whole, 8):
        block = rows[:, start : start + 8]
        low, high = np.where(low < block, low, block), np.where(high > block, high, block)
    lowest, highest = np.full(len(rows), _MAX), np.full(len(rows), -_MAX)
    for column in range(8):
        lowest = np.where(low[:, column] < lowest, low[:, column], lowest)
        highest = np.where(high[:, column] > highest, high[:, column], highest)
    for column in range(whole, rows.shape[1]):
        lowest = np.where(rows[:, column] < lowest, rows[:, column], lowest)
        highest = np.where(rows[:, column] > highest, rows[:, column], highest)
    return lowest, highest


def parameters(low: Array, high: Array, bits: int) -> tuple[Array, Array, Array]:
    """Return scale, bias and the factor to quantize with, of rows with these ends."""
    one = np.float32(1)
    with np.errstate(all="ignore"):
        if bits == 8:
            span = high - low
            return span / np.float32(255), low, np.float32(255) / (span + np.float32(1e-8))
        bias = half(low).astype(np.float32)
        span = high - bias
        scale = np.where(span == 0, one, span / np.float32((1 << bits) - 1))
        scale = half(scale).astype(np.float32)
        scale = np.where(scale == 0, one, scale)
        factor = one / scale
        return (
            np.where(np.isinf(factor), one, scale),
            bias,
            np.where(np.isinf(factor), one, factor),
        )


def _quantize(rows: Array, bias: Array, factor: Array, bits: int, vectors: bool) -> Array:
    """Return packed values: the columns of whole vectors of 32 saturate, the others wrap."""
    most = (1 << bits) - 1
    with np.errstate(all="ignore"):
        real = np.rint((rows - bias[:, None]) * factor[:, None])
    saturated = np.where(real < 2.0**31, np.clip(real, 0, most), 0)
    whole = np.where(np.abs(real) < 2.0**63, real, 0).astype(np.int64).astype(np.int32)
    wrapped = whole & 255 if bits == 8 else np.clip(whole, 0, most)
    split = rows.shape[1] // 32 * 32 if vectors else 0
    q = np.where(np.arange(rows.shape[1]) < split, saturated, wrapped).astype(np.uint8)
    each = 8 // bits
    shifted = q.reshape(len(q), q.shape[1] // each, each) << np.arange(0, 8, bits).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(shifted, -1))


@jit
def _fill_least(rows: Any, low: Any, high: Any) -> None:
    for r in range(rows.shape[0]):
        row = rows[r]
        whole = row.size // 8 * 8
        lowest = np.float32(3.4028234663852886e38)
        highest = np.float32(-3.4028234663852886e38)
        for lane in range(8):
            smallest = np.float32(3.4028234663852886e38)
            largest = np.float32(-3.4028234663852886e38)
            for k in range(lane, whole, 8):
                smallest = smallest if smallest < row[k] else row[k]
                largest = largest if largest > row[k] else row[k]
            lowest = smallest if smallest < lowest else lowest
            highest = largest if largest > highest else highest
        for k in range(whole, row.size):
            lowest = row[k] if row[k] < lowest else lowest
            highest = row[k] if row[k] > highest else highest
        low[r], high[r] = lowest, highest


@jit
def _fill_quantized(rows: Any, bias: Any, factor: Any, bits: int, split: int, packed: Any) -> None:
    most = (1 << bits) - 1
    each = 8 // bits
    for r in range(rows.shape[0]):
        for column in range(packed.shape[1]):
            byte = 0
            for part in range(each):
                k = column * each + part
                x = np.rint(np.float32(np.float32(rows[r, k] - bias[r]) * factor[r]))
                q: Any = 0
                if k < split:
                    if x < np.float32(2147483648.0):
                        q = most if x > np.float32(most) else int(max(x, np.float32(0)))
                elif abs(x) < np.float32(9223372036854775808.0):
                    if bits == 8:
                        q = np.int64(x) & 255
                    else:  # the low half, as a signed number
                        wide = (np.int64(x) & 0xFFFFFFFF) ^ 0x80000000
                        q = min(max(wide - 0x80000000, 0), most)
                byte |= q << (bits * part)
            packed[r, column] = byte


@jit
def _fill_searched(
    rows: Any, n_bins: int, bins: np.float32, most: np.float32, low: Any, high: Any
) -> bool:
    for r in range(rows.shape[0]):
        low[r], high[r], ended = choose_qparams_optimized.search(rows[r], n_bins, bins, most)
        if not ended:
            return False
    return True


def _searched(rows: Array, bits: int, n_bins: int, ratio: float) -> Any:
    """Return minimum and maximum of each row after the search."""
    ends = [choose_qparams_optimized.reference(r, r.size, n_bins, ratio, bits) for r in rows]
    high, low = np.array(ends, np.float32).reshape(-1, 2).T
    return low, high


def _matrix(weight: Array) -> Array:
    rows = np.ascontiguousarray(weight, np.float32)
    return rows.reshape(prod(weight.shape[:-1]), weight.shape[-1])


def _pack(weight: Array, bits: int, low_high: Array | None, optimized: Any) -> Array:
    rows = _matrix(weight)
    if optimized is not None:
        low, high = _searched(rows, bits, *optimized)
    else:
        low, high = _least(rows) if low_high is None else low_high.astype(np.float32).T
    scale, bias, factor = parameters(low, high, bits)
    packed = _quantize(rows, bias, factor, bits, vectors=optimized is None)
    joined = rowwise.join(packed, scale, bias, bits)
    return joined.reshape(*weight.shape[:-1], joined.shape[-1])


def _pack_compiled(weight: Array, bits: int, low_high: Array | None, optimized: Any) -> Array:
    rows = _matrix(weight)
    low, high = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    if optimized is not None:
        bins = choose_qparams_optimized.remaining(*optimized)
        if not _fill_searched(rows, optimized[0], bins, np.float32((1 << bits) - 1), low, high):
            raise VerifyError(choose_qparams_optimized.ENDLESS.format(optimized[0]))
    elif low_high is not None:
        low[:], high[:] = low_high.T
    else:
        _fill_least(rows, low, high)
    scale, bias, factor = parameters(low, high, bits)
    packed = np.empty((len(rows), rows.shape[1] * bits // 8), np.uint8)
    split = rows.shape[1] // 32 * 32 if optimized is None else 0
    _fill_quantized(rows, bias, factor, bits, split, packed)
    joined = rowwise.join(packed, scale, bias, bits)
    return joined.reshape(*weight.shape[:-1], joined.shape[-1])


def byte_prepack(weight: Array) -> Array:
    r"""Quantize each row of a table to 8 bits and lay it out as fbgemm reads it.

    .. math:: s = (max - min) / 255, \quad
        q = \mathrm{rint}((x - min) \cdot 255 / (max - min + 10^{-8}))

    in float32, a rounding after every operation, ties to even. A row becomes its values, then
    :math:`s` and :math:`min` as float32. Quantized values beyond 0 and 255, which only NaN,
    infinities and given ranges make, saturate in whole vectors of 32 columns; in the other columns
    their low 8 bits are taken. A NaN becomes 0, and each of eight lanes that look for minimum and
    maximum forgets what was before it.

    Parameters
    ----------
    weight : float32 or float16 (..., K)
        The table; float16 is converted first.

    Returns
    -------
    uint8 (..., K + 8)

    Raises
    ------
    VerifyError
        If the type is another or there is no dimension.

    Notes
    -----
    Every engine gives the same.

    Examples
    --------
    >>> byte_prepack(np.float32([[0, 1, 2, 255]]))
    array([[  0,   1,   2, 255,   0,   0, 128,  63,   0,   0,   0,   0]],
          dtype=uint8)
    """
    return _pack(weight, 8, None, None)


def byte_prepack_min_max(weight: Array, rowwise_min_max: Array) -> Array:
    """Do :func:`byte_prepack` with the minimum and maximum of each row given.

    Parameters
    ----------
    weight : float32 or float16 (R, ..., K)
        The table.
    rowwise_min_max : of the weight's type, (R, 2)
        Ends of the range of each row.

    Returns
    -------
    uint8 (R, ..., K + 8)

    Raises
    ------
    VerifyError
        If types or shapes do not fit.
    """
    return _pack(weight, 8, rowwise_min_max, None)


_NARROW = r"""Quantize each row of a table to {bits} bits and lay it out as fbgemm reads it.

    .. math:: b = \mathrm{{half}}(min), \quad s = \mathrm{{half}}((max - b) / {most}), \quad
        q = \mathrm{{clip}}(\mathrm{{rint}}((x - b) \cdot 1/s), 0, {most})

    in float32, a rounding after every operation, ties to even; ``half`` rounds to float16. The
    scale is 1 where the range or the scale is 0, or 1/s infinite. A row becomes its values,
    {each} in a byte, the first one in the low bits, then :math:`s` and :math:`b` as float16.
    Values that do not fit 32 bits and NaN become 0 in whole vectors of 32 columns; in the other
    columns the low 32 bits count. NaN affects minimum and maximum as in
    ``embedding_bag_byte_prepack``.

    Parameters
    ----------
    weight : float32 or float16 (R, K)
        The table; float16 is converted first. K is a multiple of {each}.{given}
    optimized_qparams : bool
        Search the range of each row as ``aten::choose_qparams_optimized`` does.
    nbins, ratio : int, float
        Of the search.

    Returns
    -------
    uint8 (R, K / {each} + 4)

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Notes
    -----
    Every engine gives the same.
    """
_GIVEN = """
    rowwise_min_max : of the weight's type, (R, 2)
        Ends of the range of each row, not used with ``optimized_qparams``."""


def _narrow_prepack(bits: int, pack: Callable[..., Array]) -> Callable[..., Array]:
    def prepack(
        weight: Array, optimized_qparams: bool = False, nbins: int = 200, ratio: float = 0.16
    ) -> Array:
        return pack(weight, bits, None, (nbins, ratio) if optimized_qparams else None)

    prepack.__doc__ = _NARROW.format(bits=bits, most=(1 << bits) - 1, each=8 // bits, given="")
    return prepack


def _narrow_prepack_min_max(bits: int, pack: Callable[..., Array]) -> Callable[..., Array]:
    def prepack(
        weight: Array,
        rowwise_min_max: Array,
        optimized_qparams: bool = False,
        nbins: int = 200,
        ratio: float = 0.16,
    ) -> Array:
        optimized = (nbins, ratio) if optimized_qparams else None
        return pack(weight, bits, rowwise_min_max, optimized)

    prepack.__doc__ = _NARROW.format(bits=bits, most=(1 << bits) - 1, each=8 // bits, given=_GIVEN)
    return prepack


def _byte_kernel(weight: Array, rowwise_min_max: Array | None = None) -> Array:
    """Compute :func:`byte_prepack` in compiled loops."""
    return _pack_compiled(weight, 8, rowwise_min_max, None)


def _unpack(bits: int) -> Callable[..., Array]:
    def unpack(weight: Array) -> Array:
        scale, bias = rowwise.scale_and_bias(weight, bits)
        q = rowwise.values(weight, bits)
        return rounding.fma(q, scale[..., None], bias[..., None])

    unpack.__doc__ = f"""Return the real values of rows of {bits}-bit values: ``fma(q, s, b)``.

    Parameters
    ----------
    weight : uint8 ({"..." if bits == 8 else "R"}, bytes of a row)
        As ``embedding_bag_{"byte" if bits == 8 else f"{bits}bit"}_prepack`` makes it.

    Returns
    -------
    float32, with one value for each of the row

    Raises
    ------
    VerifyError
        If it is not uint8, or rows are too short to hold scale and bias.
    """
    return unpack


@jit
def _fill_unpacked(table: Any, bits: int, scale: Any, bias: Any, y: Any) -> None:
    each = 8 // bits
    mask = (1 << bits) - 1
    for r in range(y.shape[0]):
        for k in range(y.shape[1]):
            q = table[r, k // each] >> (bits * (k % each)) & mask
            y[r, k] = fma(np.float32(q), scale[r], bias[r])


def _unpack_kernel(bits: int) -> Callable[..., Array]:
    def unpack(weight: Array) -> Array:
        table = np.ascontiguousarray(weight.reshape(prod(weight.shape[:-1]), weight.shape[-1]))
        scale, bias = rowwise.scale_and_bias(table, bits)
        width = rowwise.length_of("unpack", table.shape[1], bits)
        y = np.empty((len(table), width), np.float32)
        _fill_unpacked(table, bits, scale, bias, y)
        return y.reshape(*weight.shape[:-1], width)

    return unpack


def prepack(weight: QTensor) -> QTensor:
    """Pack a table that is quantized row by row, with float zero points.

    What torch packs is opaque; it is unrolled here, so the result is the table itself, checked.
    Scale and bias of a packed row are the row's scale and the negative product of zero point and
    scale in float32; for 4 bits both are rounded to float16.

    Parameters
    ----------
    weight : QTensor, quint8 or quint4x2 (R, K)
        Quantized per channel along axis 0; for 4 bits K is even.

    Returns
    -------
    QTensor

    Raises
    ------
    VerifyError
        If the dtype is another, zero points are no floats, or rows end within a byte.

    Examples
    --------
    >>> table = QTensor(np.uint8([[0, 3]]), np.float32([0.5]), np.float32([1.25]), 0)
    >>> prepack(table) is table
    True
    """
    return weight


def unpack(weight: QTensor) -> QTensor:
    """Return the table that was packed by :func:`prepack`.

    Examples
    --------
    >>> table = QTensor(np.uint8([[0, 3]]), np.float32([0.5]), np.float32([1.25]), 0)
    >>> unpack(table) is table
    True
    """
    return weight


# ---- checks


def _check_float(op: str, weight: TensorType, bits: int) -> None:
    if weight.dtype not in (float32, float16):
        raise VerifyError(f"{op}: the weight must be float32 or float16, got {weight.dtype}")
    if weight.rank < 1 or (bits < 8 and weight.rank != 2):
        needed = "at least 1 dimension" if bits == 8 else "2 dimensions"
        raise VerifyError(f"{op}: the weight must have {needed}, got {weight.rank}")


def _infer_prepack(op: str, bits: int, ranged: bool) -> Callable[..., TensorType]:
    def infer(
        weight: TensorType,
        *rowwise_min_max: TensorType,
        optimized_qparams: bool = False,
        nbins: int = 200,
        ratio: float = 0.16,
    ) -> TensorType:
        _check_float(op, weight, bits)
        columns = rowwise.columns_of(op, weight.shape[-1], bits)
        if len(rowwise_min_max) != ranged:
            raise VerifyError(f"{op}: takes {1 + ranged} tensors, got {1 + len(rowwise_min_max)}")
        for given in rowwise_min_max:
            if given.dtype != weight.dtype or given.shape != (*weight.shape[:1], 2):
                expected = TensorType(weight.dtype, (*weight.shape[:1], 2))
                raise VerifyError(f"{op}: rowwise_min_max must be {expected}, got {given}")
            if weight.rank != 2:
                raise VerifyError(f"{op}: the weight must have 2 dimensions, got {weight.rank}")
        if optimized_qparams and (nbins < 1 or weight.shape[-1] == 0):
            raise VerifyError(
                f"{op}: the search needs nbins >= 1 and values, got {nbins} and {weight.shape[-1]}"
            )
        return TensorType(uint8, (*weight.shape[:-1], columns))

    return infer


def _infer_unpack(op: str, bits: int) -> Callable[..., TensorType]:
    def infer(weight: TensorType) -> TensorType:
        if weight.dtype != uint8 or weight.rank < 1 or (bits < 8 and weight.rank != 2):
            rank = "" if bits == 8 else " of rank 2"
            raise VerifyError(f"{op}: expected a uint8 weight{rank}, got {weight}")
        width = rowwise.length_of(op, weight.shape[-1], bits)
        return TensorType(float32, (*weight.shape[:-1], width))

    return infer


def infer_packed(weight: TensorType) -> TensorType:
    """Check the table, which is its own packed form."""
    rowwise.check_weight("embedding_bag_prepack", weight)
    return weight


# ---- records

_SOURCE = "pytorch/aten/src/ATen/native/quantized/cpu/qembeddingbag_{}.cpp"
_FBGEMM = "FBGEMM/src/QuantUtilsAvx2.cc::{}"
_X = np.array([[0, 1, 2.5, 255], [-1, -1, -1, -1]], np.float32)
_TAIL = [0, 0, 128, 63, 0, 0, 0, 0]
_BYTES = np.array([[0, 1, 2, 255, *_TAIL], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 191]], np.uint8)
_Y = np.array([[0, 1, 2.5, 15], [-1, -1, -1, -1]], np.float32)
_NIBBLES = np.array([[0x10, 0xF2, 0, 60, 0, 0], [0, 0, 0, 60, 0, 188]], np.uint8)
_Z = np.array([[0, 1, 2.5, 3], [-1, -1, -1, -1]], np.float32)
_PAIRS = np.array([[0b11100100, 0, 60, 0, 0], [0, 0, 60, 0, 188]], np.uint8)
_SHIFTED = {
    8: np.array([[1, 1, 1, 1, 0, 0, 128, 63, 0, 0, 128, 191]], np.uint8),
    4: np.array([[0x11, 0x11, 0, 60, 0, 188]], np.uint8),
    2: np.array([[0b01010101, 0, 60, 0, 188]], np.uint8),
}
_EXAMPLES = {8: (_X, _BYTES), 4: (_Y, _NIBBLES), 2: (_Z, _PAIRS)}


def _records(name: str, bits: int) -> tuple[Op, ...]:
    op = f"embedding_bag_{name}"
    x, packed = _EXAMPLES[bits]
    zeros, ends = np.zeros((1, 4), np.float32), np.array([[-1, (1 << bits) - 2]], np.float32)
    shifted = _SHIFTED[bits]
    ties = "2.5 goes to 2; a constant row is all 0"
    real = np.trunc(x)  # what the examples stand for
    return (
        Op(
            name=f"quantized::{op}_prepack",
            reference=byte_prepack if bits == 8 else _narrow_prepack(bits, _pack),
            infer=_infer_prepack(f"{op}_prepack", bits, False),
            kernels=dict.fromkeys(
                TORCH_ENGINES, _byte_kernel if bits == 8 else _narrow_prepack(bits, _pack_compiled)
            ),
            source=(
                _SOURCE.format("prepack"),
                _FBGEMM.format("FloatOrHalfToFused*BitRowwiseQuantizedSB*Avx2"),
            ),
            cases=(
                Case("ties", (x,), {}, packed, ties),
                Case("half", (x.astype(np.float16),), {}, packed, "float16 is converted"),
            ),
        ),
        Op(
            name=f"quantized::{op}_prepack_with_rowwise_min_max",
            reference=byte_prepack_min_max if bits == 8 else _narrow_prepack_min_max(bits, _pack),
            infer=_infer_prepack(f"{op}_prepack_with_rowwise_min_max", bits, True),
            kernels=dict.fromkeys(
                TORCH_ENGINES,
                _byte_kernel if bits == 8 else _narrow_prepack_min_max(bits, _pack_compiled),
            ),
            source=(_SOURCE.format("prepack"),),
            cases=(
                Case(
                    *("own", (x, np.stack([x.min(1), x.max(1)], 1)), {}, packed),
                    "the ends that it has",
                ),
                Case("wider", (zeros, ends), {}, shifted, "ends that the values do not reach"),
            ),
        ),
        Op(
            name=f"quantized::{op}_unpack",
            reference=_unpack(bits),
            infer=_infer_unpack(f"{op}_unpack", bits),
            kernels=dict.fromkeys(TORCH_ENGINES, _unpack_kernel(bits)),
            source=(_SOURCE.format("unpack"),),
            cases=(Case("rows", (packed,), {}, real, "what was packed, rounded"),),
        ),
    )


_TABLE = QTensor(
    np.array([[0, 3]], np.uint8),
    np.array([0.5], np.float32),
    np.array([1.25], np.float32),
    0,
    quint8,
)

OPS = (
    *(op for name, bits in BITS.items() for op in _records(name, bits)),
    Op(
        name="quantized::embedding_bag_prepack",
        reference=prepack,
        infer=infer_packed,
        kernels=dict.fromkeys(TORCH_ENGINES, prepack),
        source=(_SOURCE.format("prepack"),),
        cases=(Case("table", (_TABLE,), {}, [[0, 3]], "the bytes stay"),),
    ),
    Op(
        name="quantized::embedding_bag_unpack",
        reference=unpack,
        infer=infer_packed,
        kernels=dict.fromkeys(TORCH_ENGINES, unpack),
        source=(_SOURCE.format("unpack"),),
        cases=(Case("table", (_TABLE,), {}, [[0, 3]], "what was packed"),),
    ),
)
