"""``quantized::linear_dynamic_fp16``: float32 rows, a weight rounded to float16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES, Engine, Isa, Target
from refquant.ir.types import TensorType, float32
from refquant.kernels import checks, rounding
from refquant.kernels.float_product import accumulate
from refquant.kernels.jit import jit
from refquant.kernels.products import check_equal, check_rank, joined
from refquant.kernels.rounding_jit import half

F32 = npt.NDArray[np.float32]
COLUMNS, DEPTH = 32, 512  # of the blocks that fbgemm packs
ENGINES = (Engine.FBGEMM, Engine.X86)


def _check(target: Target) -> None:
    if target.isa is Isa.AVX2:  # default changes torch's own kernels, not fbgemm's
        raise UnsupportedError(
            f"linear_dynamic_fp16: the order of summation is known for avx512, got {target.isa!s}"
        )


def reference(x: F32, weight: F32, bias: F32 | None, target: Target = Target()) -> F32:
    r"""Return ``x @ weight.T + bias`` with the weight rounded to float16.

    The weight is clamped to 65504 and -65504 first, where NaN becomes -65504, and rounds half to
    even. The products of a row and a column are added one by one in float32,
    :math:`a \leftarrow \mathrm{fma}(x_k, w_k, a)` from :math:`a = 0`. In the last ``N % 32``
    columns each 512 of them have a sum of their own, and these sums are added. The bias is added
    last.

    Parameters
    ----------
    x : float32 (..., K), rank >= 2
        Rows.
    weight : float32 (N, K)
        One row per output; rounded where it is not yet.
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
        If ``target.isa`` is not avx512 or avx512_vnni: others add in another order.

    Notes
    -----
    Engines fbgemm and x86 are the same; others have the form with an unpacked weight only, and
    run fbgemm's.

    Examples
    --------
    >>> reference(np.float32([[1, 2]]), np.float32([[0.1, 1e6]]), np.float32([0.5]))
    array([[131008.6]], dtype=float32)
    """
    _check(target)
    channels, depth = weight.shape
    factor = rounding.half_saturated(weight)
    rows = x.reshape(-1, depth)
    total = np.zeros((len(rows), channels), np.float32)
    whole = channels // COLUMNS * COLUMNS
    part = np.zeros((len(rows), channels - whole), np.float32)
    for k in range(depth):
        column = rows[:, k : k + 1]
        total[:, :whole] = rounding.fma(column, factor[:whole, k], total[:, :whole])
        part = rounding.fma(column, factor[whole:, k], part)
        if (k + 1) % DEPTH == 0 or k == depth - 1:
            with np.errstate(invalid="ignore", over="ignore"):
                total[:, whole:] += part
            part = np.zeros_like(part)
    if bias is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            total += bias
    return total.reshape(*x.shape[:-1], channels)


def reference_relu(x: F32, weight: F32, bias: F32 | None, target: Target = Target()) -> F32:
    """Do :func:`reference`, then replace negative results by 0; a NaN stays."""
    return np.maximum(reference(x, weight, bias, target), np.float32(0))


def infer(x: TensorType, weight: TensorType, bias: TensorType | None) -> TensorType:
    """Check the operands; the last size becomes that of the weight."""
    op = "linear_dynamic_fp16"
    checks.is_float32(op, x)
    checks.is_float32(op, weight, "weight")
    check_rank(op, x, 2)
    if weight.rank != 2:
        raise VerifyError(f"{op}: the weight must have 2 dimensions, got {weight.rank}")
    check_equal(op, "number of input features", x.shape[-1], weight.shape[1])
    checks.vector(op, bias, weight.shape[0], "bias")
    return TensorType(float32, joined(x.shape[:-1], weight.shape[0]))


@jit
def _transpose(weight: F32, factor: F32) -> None:
    """Round the weight and turn its rows into columns, in blocks that fit the cache."""
    limit = np.float32(65504)
    for first in range(0, weight.shape[0], 64):
        for k in range(weight.shape[1]):
            for n in range(first, min(first + 64, weight.shape[0])):
                w = weight[n, k]
                w = w if w > -limit else -limit  # also NaN
                factor[k, n] = half(w if w < limit else limit)


@jit
def _multiply(rows: F32, factor: F32, y: F32) -> None:
    depth, channels = factor.shape
    whole = channels // COLUMNS * COLUMNS
    part = np.empty(channels - whole, np.float32)
    for m in range(rows.shape[0]):
        y[m, :] = np.float32(0)
        accumulate(rows[m], factor, 0, depth, 0, y[m, :whole])
        for start in range(0, depth, DEPTH):
            part[:] = np.float32(0)
            accumulate(rows[m], factor, start, min(start + DEPTH, depth), whole, part)
            for n in range(part.size):
                y[m, whole + n] = np.float32(y[m, whole + n] + part[n])


def kernel(x: F32, weight: F32, bias: F32 | None, target: Target = Target()) -> F32:
    """Compute :func:`reference` in compiled loops."""
    _check(target)
    channels, depth = weight.shape
    rows = np.ascontiguousarray(x.reshape(-1, depth))
    y = np.empty((len(rows), channels), np.float32)
    factor = np.empty((depth, channels), np.float32)
    _transpose(np.ascontiguousarray(weight), factor)
    _multiply(rows, factor, y)
    if bias is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            y += bias
    return y.reshape(*x.shape[:-1], channels)


def kernel_relu(x: F32, weight: F32, bias: F32 | None, target: Target = Target()) -> F32:
    """Compute :func:`reference_relu` in compiled loops."""
    y = kernel(x, weight, bias, target)
    return np.maximum(y, np.float32(0), out=y)


def reference_wrapped(
    x: F32, weight: F32, bias: F32, out_channel: int, target: Target = Target()
) -> F32:
    """Do :func:`reference`; ``out_channel`` is not read."""
    return reference(x, weight, bias, target)


def infer_wrapped(
    x: TensorType, weight: TensorType, bias: TensorType, out_channel: int
) -> TensorType:
    """Check the operands; the last size becomes that of the weight."""
    return infer(x, weight, bias)


def kernel_wrapped(
    x: F32, weight: F32, bias: F32, out_channel: int, target: Target = Target()
) -> F32:
    """Compute :func:`reference_wrapped` in compiled loops."""
    return kernel(x, weight, bias, target)


_X = np.array([[1, 2], [-3, 0]], np.float32)
_WEIGHT = np.array([[1, 1e6], [0.5, -1e6]], np.float32)
_BIAS = np.array([1, 2], np.float32)
_SATURATED = [[131010, -131005.5], [-2, 0.5]]
_TIES = np.array([[2049, 2051], [np.nan, 0]], np.float32)
_SOURCE = (
    "pytorch/aten/src/ATen/native/quantized/cpu/qlinear_dynamic.cpp"
    "::PackedLinearWeightFp16::apply_dynamic_impl",
    "FBGEMM/include/fbgemm/FbgemmFPCommon.h::cblas_gemm_compute",
)

OPS = (
    Op(
        name="quantized::linear_dynamic_fp16",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case("saturated", (_X, _WEIGHT, _BIAS), {}, _SATURATED, "1e6 becomes 65504"),
            Case("ties", (_X, _TIES, None), {}, [[6152, -65504], [-6144, 196512]], "NaN: -65504"),
            Case("no_rows", (_X[:0], _WEIGHT, _BIAS), {}, np.zeros((0, 2)), "empty batch"),
        ),
    ),
    Op(
        name="quantized::linear_dynamic_fp16_unpacked_weight",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=_SOURCE,
        cases=(Case("saturated", (_X, _WEIGHT, _BIAS), {}, _SATURATED, "rounded when it runs"),),
    ),
    Op(
        name="quantized::linear_relu_dynamic_fp16",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(ENGINES, kernel_relu),
        source=_SOURCE,
        cases=(Case("negative", (_X, _WEIGHT, _BIAS), {}, [[131010, 0], [0, 0.5]], "becomes 0"),),
    ),
    Op(
        name="_quantized::wrapped_fbgemm_linear_fp16_weight",
        reference=reference_wrapped,
        infer=infer_wrapped,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_wrapped),
        source=_SOURCE,
        cases=(
            Case(
                "saturated",
                (_X, _WEIGHT, _BIAS),
                {"out_channel": 2},
                _SATURATED,
                "packed without a class of its own, rounded alike",
            ),
        ),
    ),
)
