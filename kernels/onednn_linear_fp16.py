"""``onednn::linear_dynamic_fp16``: float32 rows, a weight rounded to float16, by oneDNN."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES, Isa, Target
from refquant.ir.types import TensorType, float32
from refquant.kernels import checks
from refquant.kernels.jit import fma as fma_jit
from refquant.kernels.jit import jit
from refquant.kernels.post_ops import check_contiguous
from refquant.kernels.products import check_equal, check_rank, joined
from refquant.kernels.rounding import fma, half_saturated
from refquant.kernels.rounding_jit import half

F32 = npt.NDArray[np.float32]
_OP = "onednn linear_dynamic_fp16"
_LANES = 8  # of the kernel for vectors
_SHORT, _LONG = 512, 1024  # depth of the blocks that have a sum of their own
_ISAS = (Isa.AVX512_VNNI, Isa.AVX512, Isa.DEFAULT)  # the last says nothing of oneDNN


def _check(target: Target) -> None:
    if target.isa not in _ISAS:
        raise UnsupportedError(
            f"{_OP}: the order of summation is not known for isa {target.isa!s}; "
            f"it is for {', '.join(_ISAS)}"
        )


def _block(depth: int, is_vector: bool) -> int:
    return _LONG if is_vector or depth > _LONG else _SHORT


def reference(x: F32, w: F32, bias: F32 | None, target: Target = Target()) -> F32:
    r"""Return ``x @ w.T + bias`` with the weight rounded to float16.

    The weight is clamped to 65504 and -65504 first and rounds half to even. The products of a row
    and a column are added one by one in float32, :math:`a \leftarrow \mathrm{fma}(x_k, w_k, a)`
    from :math:`a = 0`. Each 512 of them, with a depth above 1024 each 1024, have a sum of their
    own, and these sums are added one after the other. The bias is added last.

    A single row or a single column is multiplied by another kernel: in blocks of 1024, product
    ``k`` goes to sum ``k % 8`` of eight, and these become
    ``((a0 + a4) + (a1 + a5)) + ((a2 + a6) + (a3 + a7))``.

    Parameters
    ----------
    x : float32 (..., K)
        Rows.
    w : float32 (N, K)
        Weight, as it was before ``onednn::linear_prepack_fp16``.
    bias : float32 (N,) or None
        Added to the result.

    Returns
    -------
    float32 (..., N), contiguous

    Raises
    ------
    VerifyError
        If types or lengths do not fit.
    UnsupportedError
        If ``target.isa`` is avx2, which has another order (default restricts ATen only), or for
        a bias with strides, which torch ignores.

    Notes
    -----
    The engine has no say.

    Examples
    --------
    >>> reference(np.float32([[1, 2]]), np.float32([[0.1, 1e6]]), np.float32([0.5]))
    array([[131008.6]], dtype=float32)
    """
    _check(target)
    check_contiguous(_OP, bias=bias)
    channels, depth = w.shape
    rows = x.reshape(-1, depth)
    factor = half_saturated(w)
    is_vector = 1 in (len(rows), channels)
    lanes = _LANES if is_vector else 1
    block = _block(depth, is_vector)
    total = np.zeros((len(rows), channels), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, depth, block):
            part = np.zeros((lanes, *total.shape), np.float32)
            for k in range(start, min(start + block, depth)):
                lane = part[(k - start) % lanes]
                lane[...] = fma(rows[:, k : k + 1], factor[:, k], lane)
            if is_vector:
                part = part[:4] + part[4:]
                part = (part[0::2] + part[1::2]).reshape(2, *total.shape)
                part = part[:1] + part[1:]
            total = total + part[0] if start else part[0]
        if bias is not None:
            total = total + bias
    return total.reshape(*x.shape[:-1], channels)


def reference_relu(x: F32, w: F32, bias: F32 | None, target: Target = Target()) -> F32:
    """Do :func:`reference`, then replace negative results by 0."""
    return np.maximum(reference(x, w, bias, target), np.float32(0))


def infer(x: TensorType, w: TensorType, bias: TensorType | None) -> TensorType:
    """Check the operands; the last size becomes that of the weight."""
    checks.is_float32(_OP, x)
    checks.is_float32(_OP, w, "weight")
    check_rank(_OP, x, 2)
    if w.rank != 2:
        raise VerifyError(f"{_OP}: the weight must have 2 dimensions, got {w.rank}")
    check_equal(_OP, "number of input features", x.shape[-1], w.shape[1])
    checks.vector(_OP, bias, w.shape[0], "bias")
    return TensorType(float32, joined(x.shape[:-1], w.shape[0]))


@jit
def _transpose(weight: F32, factor: F32) -> None:
    """Round the weight and turn its rows into columns."""
    limit = np.float32(65504)
    for n in range(weight.shape[0]):
        for k in range(weight.shape[1]):
            v = weight[n, k]
            v = v if v > -limit else -limit
            factor[k, n] = half(v if v < limit else limit)


@jit
def _multiply(rows: F32, factor: F32, block: int, y: F32) -> None:
    """Multiply, several rows and columns; each column is one lane of the compiler's vectors."""
    depth, channels = factor.shape
    part = np.empty(channels, np.float32)
    for m in range(rows.shape[0]):
        for start in range(0, depth, block):
            part[:] = np.float32(0)
            for k in range(start, min(start + block, depth)):
                v = rows[m, k]
                for n in range(channels):
                    part[n] = fma_jit(v, factor[k, n], part[n])
            for n in range(channels):
                y[m, n] = part[n] if start == 0 else np.float32(y[m, n] + part[n])


@jit
def _multiply_vector(rows: F32, factor: F32, block: int, y: F32) -> None:
    """Multiply where there is one row or one column."""
    depth, channels = factor.shape
    a = np.empty(8, np.float32)
    for m in range(rows.shape[0]):
        for n in range(channels):
            for start in range(0, depth, block):
                a[:] = np.float32(0)
                for k in range(start, min(start + block, depth)):
                    lane = (k - start) % 8
                    a[lane] = fma_jit(rows[m, k], factor[k, n], a[lane])
                low = np.float32(np.float32(a[0] + a[4]) + np.float32(a[1] + a[5]))
                high = np.float32(np.float32(a[2] + a[6]) + np.float32(a[3] + a[7]))
                part = np.float32(low + high)
                y[m, n] = part if start == 0 else np.float32(y[m, n] + part)


def kernel(x: F32, w: F32, bias: F32 | None, target: Target = Target()) -> F32:
    """Compute :func:`reference` in compiled loops."""
    _check(target)
    check_contiguous(_OP, bias=bias)
    channels, depth = w.shape
    rows = np.array(x.reshape(-1, depth), order="C")
    factor = np.empty((depth, channels), np.float32)
    _transpose(np.array(w, order="C"), factor)
    y = np.zeros((len(rows), channels), np.float32)
    is_vector = 1 in (len(rows), channels)
    loop: Any = _multiply_vector if is_vector else _multiply
    loop(rows, factor, _block(depth, is_vector), y)
    if bias is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            y += bias
    return y.reshape(*x.shape[:-1], channels)


def kernel_relu(x: F32, w: F32, bias: F32 | None, target: Target = Target()) -> F32:
    """Compute :func:`reference_relu` in compiled loops."""
    y = kernel(x, w, bias, target)
    return np.maximum(y, np.float32(0), out=y)


_X = np.array([[1, 2], [-3, 0]], np.float32)
_WEIGHT = np.array([[1, 1e6], [0.5, -1e6]], np.float32)
_BIAS = np.array([1, 2], np.float32)
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qlinear_dynamic.cpp"
    "::linear_dynamic_fp16_with_onednn_weight",
)

OPS = (
    Op(
        name="onednn::linear_dynamic_fp16",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case(
                "saturated",
                (_X, _WEIGHT, _BIAS),
                {},
                [[131010, -131005.5], [-2, 0.5]],
                "1e6 becomes 65504",
            ),
            Case("no_rows", (_X[:0], _WEIGHT, _BIAS), {}, np.zeros((0, 2)), "empty batch"),
        ),
    ),
    Op(
        name="onednn::linear_relu_dynamic_fp16",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_relu),
        source=_SOURCE,
        cases=(Case("negative", (_X, _WEIGHT, _BIAS), {}, [[131010, 0], [0, 0.5]], "becomes 0"),),
    ),
)
