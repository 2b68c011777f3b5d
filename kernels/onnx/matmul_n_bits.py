"""``com.microsoft::MatMulNBits``: float32 rows times a weight of 2, 4 or 8 bits in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.types import TensorType, float32, format_shape, int32, uint8
from refquant.kernels.onnx import mlas_gemm
from refquant.kernels.onnx.kept import form, pack
from refquant.kernels.onnx.literals import f32, u8
from refquant.kernels.onnx.operands import Engines, dtype_in

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
_OP = "com.microsoft::MatMulNBits"


def reference(
    a: F32,
    b: Array,
    scales: F32,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: F32 | None = None,
    K: int = 0,  # noqa: N803
    N: int = 0,  # noqa: N803
    block_size: int = 0,
    bits: int = 4,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
    constant_weight: int = 1,
) -> F32:
    r"""Dequantize a weight of few bits and multiply by it in float32.

    The weight is ``f32((q - z) * s)``, with float zero points or ``g_idx``
    ``f32(f32(q * s) - f32(z * s))``.
    The bits of a block lie one after the other, the lowest first; without zero points they are
    half of the range.

    The order of the sums is that of onnxruntime (see ``mlas_gemm.py``): for a constant weight with
    4 bits and no float zero points one chain of multiply-adds along K, of a single row sixteen
    lanes, and the bias is added to the sum; otherwise chains in pieces that begin with the bias,
    of a single row eight lanes that do not fuse.

    Engines onnx and ort are the same: the operator is onnxruntime's own.

    Parameters
    ----------
    a : float32 (..., K)
        The rows; all leading axes are one.
    b : uint8 (N, ceil(K / block_size), block_size * bits / 8)
        The packed weight.
    scales : float32 (N, ceil(K / block_size)), or the same in one axis
        Of each block.
    zero_points : uint8, packed along the blocks, or float32 like ``scales``, or None
        Of each block.
    g_idx : int32 (K,) or None
        The block whose parameters a column has.
    bias : float32 (N,) or None
        Added to each row.
    K, N, block_size, bits : int
        Columns of a row, rows of the weight, length of a block, and bits of a value.
    accuracy_level : int
        What onnxruntime may do; 4, integer arithmetic, is not supported where it takes effect.
    weight_prepacked : int
        Must be 0.
    constant_weight : int
        Whether ``b`` is a constant of the model, which onnxruntime packs; not an attribute of
        ONNX's.

    Returns
    -------
    float32 array (..., N)

    Raises
    ------
    VerifyError
        If types or shapes do not fit.
    UnsupportedError
        With accuracy level 4; for 2 bits with ``g_idx``, whose result is not explained by any
        formula that was tried; and for 8 bits with ``g_idx`` or float zero points, which
        onnxruntime refuses.

    Examples
    --------
    >>> a, b = np.float32([[1, 2, 3, 4] * 4]), np.full((1, 1, 8), 0x98, np.uint8)
    >>> reference(a, b, np.float32([[0.5]]), K=16, N=1, block_size=16)
    array([[12.]], dtype=float32)
    """
    _check(zero_points, g_idx, bits, accuracy_level, weight_prepacked)
    w = dequantized(b, scales, zero_points, g_idx, K, N, block_size, bits)
    chained = _is_packed(bits, constant_weight, g_idx, zero_points)
    functions = mlas_gemm.reference, mlas_gemm.lane_products
    return _product(a, w, bias, chained, *functions)


def _is_float(zero_points: Array | None) -> bool:
    return zero_points is not None and zero_points.dtype != np.uint8


def _is_packed(bits: int, constant: int, g_idx: Array | None, zero_points: Array | None) -> bool:
    return bool(constant) and bits == 4 and g_idx is None and not _is_float(zero_points)


def _check(
    zero_points: Array | None, g_idx: Array | None, bits: int, level: int, prepacked: int
) -> None:
    unpacked = g_idx is not None or _is_float(zero_points)
    if prepacked or (level == 4 and not unpacked):
        raise UnsupportedError(
            f"{_OP}: accuracy_level 4 and weights in a layout of a machine are not supported, got "
            f"accuracy_level={level} and weight_prepacked={prepacked}"
        )
    if bits == 8 and unpacked:
        raise UnsupportedError(f"{_OP}: onnxruntime has no 8 bits with g_idx or float zero points")
    if bits == 2 and g_idx is not None:
        raise UnsupportedError(f"{_OP}: what onnxruntime does with g_idx and 2 bits is not known")


def unpacked(packed: Array, bits: int) -> Array:
    """Return the values along the last axis, the lowest bits first.

    Examples
    --------
    >>> unpacked(np.uint8([0x21, 0x43]), 4)
    array([1, 2, 3, 4], dtype=uint8)
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = np.asarray(packed)[..., None] >> shifts & np.uint8(2**bits - 1)
    return values.reshape(*packed.shape[:-1], -1)


def dequantized(
    b: Array,
    scales: F32,
    zero_points: Array | None,
    g_idx: Array | None,
    depth: int,
    rows: int,
    block_size: int,
    bits: int,
) -> F32:
    """Return the weight (N, K)."""
    blocks = -(-depth // block_size)
    q = unpacked(b.reshape(rows, -1), bits)[:, :depth]
    block = np.arange(depth) // block_size if g_idx is None else np.asarray(g_idx)
    s = scales.reshape(rows, blocks)[:, block]
    if zero_points is None:
        z: Array = np.asarray(2 ** (bits - 1))
    elif _is_float(zero_points):
        z = zero_points.reshape(rows, blocks)[:, block]
        return np.asarray(q.astype(np.float32) * s - z * s, np.float32)
    else:
        z = unpacked(zero_points.reshape(rows, -1), bits)[:, block]
    if g_idx is not None:
        return np.asarray(q.astype(np.float32) * s - z.astype(np.float32) * s, np.float32)
    return np.asarray((q.astype(np.int32) - z).astype(np.float32) * s, np.float32)


def _product(
    a: F32,
    w: F32,
    bias: F32 | None,
    chained: bool,
    gemm: Callable[..., F32],
    lanes: Callable[..., F32],
) -> F32:
    rows = a.reshape(-1, a.shape[-1])
    if len(rows) == 1:
        if not chained:
            y = mlas_gemm.dot_products(rows[0], w, bias)
        else:
            y = lanes(rows[0], w)
            y = y if bias is None else y + bias
    elif chained:
        y = gemm(rows, w.T, max(rows.shape[1], 1))
        y = y if bias is None else y + bias
    else:
        piece = mlas_gemm.piece_of(len(w), rows.shape[1])
        start = None if bias is None else np.broadcast_to(bias, (len(rows), len(w)))
        y = gemm(rows, w.T, piece, start)
    return y.reshape(*a.shape[:-1], len(w))


def kernel(
    a: F32,
    b: Array,
    scales: F32,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: F32 | None = None,
    K: int = 0,  # noqa: N803
    N: int = 0,  # noqa: N803
    block_size: int = 0,
    bits: int = 4,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
    constant_weight: int = 1,
) -> F32:
    """Compute :func:`reference` in compiled loops; a constant weight is dequantized once."""
    _check(zero_points, g_idx, bits, accuracy_level, weight_prepacked)
    parameters = [None if x is None else x.tobytes() for x in (scales, zero_points, g_idx)]
    how = (K, N, block_size, bits)
    key = ("dequantized", *parameters, *how)
    w = form(b, key, lambda: dequantized(b, scales, zero_points, g_idx, *how))
    chained = _is_packed(bits, constant_weight, g_idx, zero_points)
    return _product(a, w, bias, chained, mlas_gemm.gemm, mlas_gemm.fast_lane_products)


def infer(
    a: TensorType,
    b: TensorType,
    scales: TensorType,
    zero_points: TensorType | None = None,
    g_idx: TensorType | None = None,
    bias: TensorType | None = None,
    K: int = 0,  # noqa: N803
    N: int = 0,  # noqa: N803
    block_size: int = 0,
    bits: int = 4,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
    constant_weight: int = 1,
) -> TensorType:
    """Check types, shapes and attributes."""
    if a.dtype != float32 and a.dtype.is_floating_point:
        raise UnsupportedError(f"{_OP}: a must be float32, got {a.dtype}")
    dtype_in(_OP, a, (float32,), "a")
    dtype_in(_OP, b, (uint8,), "b")
    dtype_in(_OP, scales, (float32,), "scales")
    if bits not in (2, 4, 8) or block_size < 16 or block_size & (block_size - 1):
        raise VerifyError(
            f"{_OP}: bits must be 2, 4 or 8 and block_size a power of two >= 16, got {bits} and "
            f"{block_size}"
        )
    if a.rank < 1 or a.shape[-1] != K:
        raise VerifyError(f"{_OP}: a must end in K = {K}, got {format_shape(a.shape)}")
    blocks = -(-K // block_size)
    _check_shape(b, "b", (N, blocks, block_size * bits // 8))
    _check_shape(scales, "scales", (N, blocks))
    if zero_points is not None:
        dtype_in(_OP, zero_points, (uint8, float32), "zero_points")
        whole = zero_points.dtype == uint8
        _check_shape(zero_points, "zero_points", (N, -(-blocks * bits // 8) if whole else blocks))
    for operand, length, dtype, name in (
        (g_idx, K, int32, "g_idx"),
        (bias, N, float32, "bias"),
    ):
        if operand is not None:
            dtype_in(_OP, operand, (dtype,), name)
            _check_shape(operand, name, (length,))
    return TensorType(float32, (*a.shape[:-1], N))


def _check_shape(x: TensorType, name: str, shape: tuple[int, ...]) -> None:
    if x.shape != shape and x.shape != (int(np.prod(shape)),):
        raise VerifyError(
            f"{_OP}: {name} must be {format_shape(shape)}, got {format_shape(x.shape)}"
        )


_F = np.float32
_A = f32([[1, 2, 3, 4] * 4, [1] * 16])
_B = u8([[[0x98] * 8], [[0x80] * 8]])
_S = f32([[0.5], [0.25]])
_HOW = {"K": 16, "N": 2, "block_size": 16}

OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        pack=pack,
        source=(
            "microsoft/onnxruntime/onnxruntime/contrib_ops/cpu/quantization/"
            "matmul_nbits.cc::MatMulNBits",
            "microsoft/onnxruntime/onnxruntime/core/mlas/lib/sqnbitgemm_m1_sym_kernel.h",
        ),
        cases=(
            Case("plain", (_A, _B, _S), _HOW, [[12, -32], [4, -16]], "8 is zero"),
            Case("one row", (_A[:1], _B, _S), _HOW, [[12, -32]], "lanes"),
            Case(
                "zero points",
                (_A, _B, _S, u8([[7], [0]])),
                _HOW,
                [[32, 48], [12, 16]],
                "of each block",
            ),
            Case(
                "float zero points",
                (_A, _B, _S, f32([[7.5], [0]]), None, f32([1, 2])),
                _HOW,
                [[23, 50], [9, 18]],
                "and a bias",
            ),
            Case(
                "columns",
                (_A, _B, _S, None, np.zeros(16, np.int32)),
                _HOW,
                [[12, -32], [4, -16]],
                "each names its block",
            ),
            Case(
                "8 bits",
                (_A, np.full((1, 1, 16), 129, np.uint8), _S[:1]),
                {**_HOW, "N": 1, "bits": 8},
                [[20], [8]],
                "128 is zero",
            ),
        ),
    ),
)
