"""``aten::softmax`` and ``quantized::softmax``: exponentials that sum to 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import ONNX_ENGINES, TORCH_ENGINES, Engine, Isa, Target
from refquant.ir.types import DType, TensorType, float32, qint8, qint32, quint8
from refquant.kernels import checks, elementary, qnnpack_softmax, rounding
from refquant.kernels.onnx import mlas_softmax
from refquant.kernels.pointwise import run_mask
from refquant.kernels.softmax_loops import (
    byte_columns,
    byte_rows,
    exponentials,
    float_columns,
    float_rows,
)

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
LANES = {Isa.AVX512_VNNI: 16, Isa.AVX512: 16, Isa.AVX2: 8, Isa.DEFAULT: 8}


def _softmax(x: F32, dim: int, target: Target) -> F32:
    """Return torch's float32 softmax of a C-contiguous array."""
    dim %= max(x.ndim, 1)
    if x.ndim == 0 or x.size == 0:
        return np.ones_like(x)
    with np.errstate(invalid="ignore"):
        shifted = x - x.max(axis=dim, keepdims=True)
    if dim == x.ndim - 1:
        return _along_rows(shifted.reshape(-1, x.shape[dim]), target).reshape(x.shape)
    inner = int(np.prod(x.shape[dim + 1 :]))
    columns = shifted.reshape(-1, x.shape[dim], inner)
    in_vectors = _vectorised(len(columns), inner, target)[:, np.newaxis]
    e = np.where(in_vectors, elementary.exp_sleef(columns), elementary.exp_glibc(columns))
    total = np.add.accumulate(e, axis=1, dtype=np.float32)[:, -1:]
    return np.asarray(e / total, np.float32).reshape(x.shape)


@lru_cache(maxsize=64)
def _vectorised(outer: int, inner: int, target: Target) -> npt.NDArray[np.bool_]:
    """Return which columns torch computes in vectors; threads split them without a grain."""
    if target.isa is Isa.DEFAULT:
        return np.zeros((outer, inner), np.bool_)
    share = -(-outer * inner // target.threads)
    return run_mask(outer * inner, inner, share, LANES[target.isa]).reshape(outer, inner)


def _along_rows(shifted: F32, target: Target) -> F32:
    """Add exponentials lane by lane, then the lanes by halves; multiply by the reciprocal."""
    lanes, length = LANES[target.isa], shifted.shape[1]
    plain = target.isa is Isa.DEFAULT
    e = (elementary.exp_glibc if plain else elementary.exp_sleef)(shifted)
    if length < lanes:
        total = np.add.accumulate(e, axis=1, dtype=np.float32)[:, -1]
    else:
        whole = length // lanes * lanes
        blocks = e[:, :whole].reshape(len(e), -1, lanes)
        sums = np.add.accumulate(blocks, axis=1, dtype=np.float32)[:, -1]
        sums[:, : length - whole] += e[:, whole:]
        if plain:
            total = np.add.accumulate(sums, axis=1, dtype=np.float32)[:, -1]
        else:
            while sums.shape[1] > 1:
                half = sums.shape[1] // 2
                sums = sums[:, :half] + sums[:, half:]
            total = sums[:, 0]
    return np.asarray(e * (np.float32(1) / total)[:, np.newaxis], np.float32)


def reference(
    qx: QTensor,
    dim: int,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    r"""Return the softmax of a quantized tensor.

    The dequantized values go through ``aten::softmax``; the result is quantized like
    ``aten::quantize_per_tensor`` does it.

    Under qnnpack quint8 to scale 1 / 256 and zero point 0 is integer arithmetic:
    :math:`y = \min(255, \lfloor (256 t + \lfloor S / 2 \rfloor) / S \rfloor)`, where
    :math:`t = rint(f e^{s (x - \max x)})` with the input's scale *s*,
    :math:`f = \min(2^{23} - 1, (2^{32} - 1) / n)` in float64, and *S* sums the *n* values.

    Parameters
    ----------
    qx : QTensor, quint8, qint8 or qint32
        Quantized per tensor.
    dim : int
        Dimension along which the result sums to 1.
    output_scale : float, > 0
        Scale of the result.
    output_zero_point : int
        Zero point of the result.

    Returns
    -------
    QTensor
        C-contiguous; the exception of qnnpack has the input's memory format, or ``dim`` innermost.

    Raises
    ------
    VerifyError
        If the input is not quantized per tensor, or a parameter or ``dim`` is out of range.
    UnsupportedError
        If ``dim`` is innermost in memory where torch's qnnpack scrambles the result.

    Examples
    --------
    >>> reference(QTensor(np.uint8([[5, 5], [9, 1]]), 1.0, 5), 1, 1 / 256, 0).int_repr
    array([[128, 128],
           [255,   0]], dtype=uint8)
    """
    if qnnpack_softmax.applies(qx, output_scale, output_zero_point, target):
        return qnnpack_softmax.reference(qx, dim)
    x = np.ascontiguousarray(qx.int_repr).reshape(qx.shape)
    real = rounding.dequantize_plain(x, float(qx.scale), int(qx.zero_point))
    y = _softmax(real, dim, target)
    q = rounding.quantize_whole(y, output_scale, output_zero_point, qx.dtype)
    return QTensor(q, output_scale, output_zero_point, None, qx.dtype)


def reference_float(
    self: F32, dim: int, dtype: DType | None = None, target: Target = Target()
) -> F32:
    r"""Return the softmax.

    .. math:: y_i = e_i / \sum_j e_j, \quad e_i = \exp(x_i - \max_j x_j)

    Along the last dimension: SLEEF's exp; sums of 16 lanes (AVX2: 8), the rest of the row added
    to the first lanes, then the lanes added by halves; the result is :math:`e_i \cdot (1 / S)`.
    Rows shorter than a vector are added one by one.

    Along other dimensions: added one by one, and :math:`e_i / S` divides. Columns that fill
    vectors of 16 (8) use SLEEF's exp, the others glibc's ``expf``; each thread starts its vectors
    anew.

    Without vector instructions: ``expf`` and 8 lanes added one by one. Every step is rounded to
    float32. Engine ort: onnxruntime's along any dimension, see ``mlas_softmax.py``.

    Parameters
    ----------
    self : float32, any shape
        Values.
    dim : int
        Dimension along which the result sums to 1.
    dtype : DType, optional
        float32 or None.

    Returns
    -------
    float32 array
        C-contiguous.

    Raises
    ------
    VerifyError
        If the value is not float32 or ``dim`` is out of range.

    Examples
    --------
    >>> reference_float(np.float32([0, 0]), 0)
    array([0.5, 0.5], dtype=float32)
    """
    if target.engine is Engine.ORT:
        return _of_ort(self, dim, mlas_softmax.reference)
    return _softmax(np.ascontiguousarray(self).reshape(self.shape), dim, target)


def _of_ort(x: F32, dim: int, rows: Callable[[F32], F32]) -> F32:
    if x.ndim == 0 or x.size == 0:
        return np.ones_like(x)
    last = np.moveaxis(x, dim, -1)
    y = rows(last.reshape(-1, last.shape[-1])).reshape(last.shape)
    return np.ascontiguousarray(np.moveaxis(y, -1, dim))


def infer(qx: TensorType, dim: int, output_scale: float, output_zero_point: int) -> TensorType:
    """Check the operand, the dimension and the output parameters."""
    checks.per_tensor("quantized::softmax", qx)
    checks.dimension("quantized::softmax", dim, qx.rank)
    qparams = checks.output_qparams(
        "quantized::softmax", qx.dtype, output_scale, output_zero_point
    )
    return TensorType(qx.dtype, qx.shape, qparams)


def infer_float(self: TensorType, dim: int, dtype: DType | None = None) -> TensorType:
    """Check the operand and the dimension."""
    checks.is_float32("aten::softmax", self)
    checks.dimension("aten::softmax", dim, self.rank)
    if dtype not in (None, float32):
        raise VerifyError(f"aten::softmax: dtype must be float32 or None, got {dtype}")
    return self


def _compiled(x: F32, dim: int, target: Target) -> F32:
    dim %= max(x.ndim, 1)
    if x.ndim == 0 or x.size == 0:
        return np.ones_like(x)
    y = np.empty_like(x)
    if dim == x.ndim - 1:
        rows = (-1, x.shape[dim])
        plain = target.isa is Isa.DEFAULT
        float_rows(x.reshape(rows), LANES[target.isa], plain, y.reshape(rows))
    else:
        inner = int(np.prod(x.shape[dim + 1 :]))
        columns = x.reshape(-1, x.shape[dim], inner)
        in_vectors = _vectorised(len(columns), inner, target)
        float_columns(columns, in_vectors, y.reshape(columns.shape))
    return y


def _kernel_8bit(qx: QTensor, dim: int, scale: float, zero_point: int, target: Target) -> QTensor:
    """Compute :func:`reference` of bytes by tables of exponentials."""
    dtype = qx.dtype
    x = np.ascontiguousarray(qx.int_repr).reshape(qx.shape)
    y = np.empty(x.shape, x.dtype)
    flip = 128 if dtype.limits[0] < 0 else 0
    tables: tuple[Any, ...] = (flip, *exponentials(float(qx.scale), int(qx.zero_point), dtype))
    rounded: tuple[Any, ...] = (
        rounding.reciprocal(scale),
        *map(np.float32, (zero_point, *dtype.limits)),
    )
    if dim == x.ndim - 1:
        rows = (-1, x.shape[dim])
        how = (LANES[target.isa], target.isa is Isa.DEFAULT)
        byte_rows(*(x.view(np.uint8).reshape(rows), *tables, *how, *rounded, y.reshape(rows)))
    else:
        inner = prod(x.shape[dim + 1 :])
        columns = x.view(np.uint8).reshape(-1, x.shape[dim], inner)
        in_vectors = _vectorised(len(columns), inner, target)
        byte_columns(*(columns, *tables, in_vectors, *rounded, y.reshape(columns.shape)))
    return QTensor.unchecked(y, scale, zero_point, dtype)


def kernel(
    qx: QTensor,
    dim: int,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference` with compiled loops for the softmax."""
    if qnnpack_softmax.applies(qx, output_scale, output_zero_point, target):
        return qnnpack_softmax.kernel(qx, dim)
    ordinary = rounding.is_ordinary(float(qx.scale), output_scale)
    if qx.dtype != qint32 and qx.int_repr.ndim and qx.int_repr.size and ordinary:
        axis = dim % qx.int_repr.ndim
        return _kernel_8bit(qx, axis, output_scale, output_zero_point, target)
    x = np.ascontiguousarray(qx.int_repr).reshape(qx.shape)
    real = rounding.dequantize_plain(x, float(qx.scale), int(qx.zero_point))
    y = _compiled(real, dim, target)
    q = rounding.quantize_whole(y, output_scale, output_zero_point, qx.dtype)
    return QTensor(q, output_scale, output_zero_point, None, qx.dtype)


def kernel_float(
    self: F32, dim: int, dtype: DType | None = None, target: Target = Target()
) -> F32:
    """Compute :func:`reference_float` with compiled loops."""
    if target.engine is Engine.ORT:
        return _of_ort(self, dim, mlas_softmax.kernel)
    return _compiled(np.ascontiguousarray(self).reshape(self.shape), dim, target)


OPS = (
    Op(
        name="quantized::softmax",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qsoftmax.cpp::qsoftmax",
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qnnpack/src/u8lut32norm/scalar.c",
        ),
        cases=(
            Case(
                *("rows", (QTensor(np.array([[5, 5], [9, 1]], np.uint8), 1.0, 5, None, quint8),)),
                {"dim": 1, "output_scale": 2.0**-8, "output_zero_point": 0},
                *([[128, 128], [255, 0]], "each row sums to 1"),
            ),
            Case(
                *("columns", (QTensor(np.array([[5, 9], [5, 1]], np.int8), 1.0, 5, None, qint8),)),
                {"dim": 0, "output_scale": 2.0**-8, "output_zero_point": -128},
                *([[0, 127], [0, -128]], "each column sums to 1"),
            ),
            Case(
                *("halves", (QTensor(np.zeros((1, 512), np.uint8), 1.0, 5, None, quint8),)),
                {"dim": 1, "output_scale": 2.0**-8, "output_zero_point": 0},
                np.zeros((1, 512), np.uint8),
                "half a step is rounded to even",
                (Engine.FBGEMM, Engine.ONEDNN, Engine.X86),
            ),
            Case(
                *("halves_of_qnnpack", (QTensor(np.zeros((1, 512), np.uint8), 1.0, 5),)),
                {"dim": 1, "output_scale": 2.0**-8, "output_zero_point": 0},
                np.ones((1, 512), np.uint8),
                "half a step is rounded up",
                (Engine.QNNPACK,),
            ),
        ),
    ),
    Op(
        name="aten::softmax",
        reference=reference_float,
        infer=infer_float,
        kernels=dict.fromkeys((*TORCH_ENGINES, *ONNX_ENGINES), kernel_float),
        source=("pytorch/pytorch/aten/src/ATen/native/cpu/SoftMaxKernel.cpp::vec_host_softmax",),
        cases=(
            Case(
                *("equal", (np.zeros((1, 4), np.float32),), {"dim": -1}),
                *(np.full((1, 4), 0.25), "four equal parts"),
            ),
            Case(
                *("infinite", (np.array([-np.inf, 0], np.float32),), {"dim": 0}),
                *([0, 1], "minus infinity gets nothing"),
            ),
        ),
    ),
)
