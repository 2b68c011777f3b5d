"""Tables of embeddings, quantized row by row, and the bytes of a row as fbgemm lays them out.

A row of bytes holds the values, low bits first where several share a byte, then scale and bias:
float32 for 8-bit values, float16 for those of 4 and 2 bits. A real value is
``scale * q + bias``. A ``QTensor`` with float zero points stands for the same rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.qtensor import Array, QTensor
from refquant.ir.types import Size, TensorType, quint4x2, quint8, uint8
from refquant.kernels.checks import known_length
from refquant.kernels.rounding import half

BITS = {"byte": 8, "4bit": 4, "2bit": 2}
DTYPES = {8: quint8, 4: quint4x2}


def tail(bits: int) -> int:
    """Return how many bytes scale and bias take."""
    return 8 if bits == 8 else 4


def length_of(op: str, columns: Size, bits: int) -> int:
    """Return how many values a row of bytes holds.

    Raises
    ------
    VerifyError
        If it is too short.
    """
    values = known_length(op, columns, -1) - tail(bits)
    if values < 0:
        raise VerifyError(f"{op}: a row has at least {tail(bits)} bytes, got {columns}")
    return values * 8 // bits


def columns_of(op: str, values: Size, bits: int) -> int:
    """Return how many bytes a row of values takes.

    Raises
    ------
    VerifyError
        If it does not end with a byte.
    """
    count, each = known_length(op, values, -1), 8 // bits
    if count % each:
        raise VerifyError(f"{op}: the width must be a multiple of {each}, got {count}")
    return count // each + tail(bits)


def values(table: Array, bits: int) -> Array:
    """Return the quantized values of rows of bytes, one in a byte."""
    packed = table[..., : table.shape[-1] - tail(bits)]
    parts = [packed >> np.uint8(shift) & np.uint8((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*packed.shape[:-1], packed.shape[-1] * len(parts))


def scale_and_bias(table: Array, bits: int) -> tuple[Array, Array]:
    """Return the last two numbers of rows of bytes in float32."""
    kind: Any = np.float32 if bits == 8 else np.float16
    last = np.ascontiguousarray(table[..., table.shape[-1] - tail(bits) :])
    both = last.view(kind).astype(np.float32)
    return both[..., 0], both[..., 1]


def join(packed: Array, scale: Array, bias: Array, bits: int) -> Array:
    """Return rows of bytes from their packed values, scales and biases."""
    both = np.stack([scale, bias], -1).astype(np.float32)
    last = both if bits == 8 else half(both)
    return np.concatenate([packed, last.view(np.uint8)], -1)


def scale_and_bias_of(weight: QTensor, rows: Array) -> tuple[Array, Array]:
    """Return the last two numbers of rows that torch packs from a quantized table.

    The bias is the negative product of zero point and scale, in float32; for 4 bits both are
    rounded to float16.
    """
    scale = np.asarray(weight.scale)[rows].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        bias = np.asarray(weight.zero_point)[rows].astype(np.float32) * scale * np.float32(-1)
    if weight.dtype == quint4x2:
        return half(scale).astype(np.float32), half(bias).astype(np.float32)
    return scale, bias


def check_table(op: str, weight: TensorType, bits: int) -> int:
    """Check rows of bytes; return how many values each holds.

    Raises
    ------
    VerifyError
        If it is no matrix of bytes.
    """
    if weight.dtype != uint8 or weight.rank != 2:
        raise VerifyError(f"{op}: expected a uint8 weight of rank 2, got {weight}")
    return length_of(op, weight.shape[1], bits)


def check_weight(op: str, weight: TensorType, bits: tuple[int, ...] = (8, 4)) -> int:
    """Check a table quantized row by row with float zero points; return its width.

    Raises
    ------
    VerifyError
        If torch would not pack it, or would read beyond its rows.
    """
    dtypes = [DTYPES[n] for n in bits]
    if weight.dtype not in dtypes:
        accepted = " or ".join(map(str, dtypes))
        raise VerifyError(f"{op}: the weight must be {accepted}, got {weight.dtype}")
    qparams = weight.qparams
    floats = qparams is not None and (
        isinstance(qparams.zero_point, tuple)
        and all(isinstance(zero, float) for zero in qparams.zero_point)
    )
    if weight.rank != 2 or qparams is None or not floats or qparams.axis != 0:
        raise VerifyError(
            f"{op}: expected a matrix with a scale and a float zero point for each row, "
            f"got {weight.dtype} of rank {weight.rank}"
            + ("" if qparams is None or qparams.axis is None else f", axis {qparams.axis}")
            + ("" if floats else ", without float zero points")
        )
    width = known_length(op, weight.shape[1], 1)
    if weight.dtype == quint4x2 and width % 2:
        raise VerifyError(
            f"{op}: rows of {width} 4-bit values end within a byte, where torch reads beyond "
            "them; use an even embedding_dim"
        )
    return width
