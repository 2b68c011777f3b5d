"""``aten::quantize_per_tensor``: float32 to integers, one scale for the whole tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import ALL_ENGINES, Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.types import DType, QParams, TensorType, float32, qint8, qint32, quint8
from refquant.kernels import rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_suggested, memory_order, suggested
from refquant.kernels.rounding_jit import narrow_fused, quantize_before

F32 = npt.NDArray[np.float32]
ACCEPTED = (quint8, qint8, qint32)


def reference(x: F32, scale: float, zero_point: int, dtype: DType) -> QTensor:
    r"""Quantize ``x`` to the nearest of evenly spaced values.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(\mathrm{fma}(x, 1/s, z)), q_{min}, q_{max})

    The reciprocal is rounded to float32 once; the product and the zero point are added
    with a single rounding; ties go to even *after* the zero point is added, so an odd
    zero point flips them. For qint32 product and sum are rounded separately.

    Parameters
    ----------
    x : float32, any shape
        Real values.
    scale : float, > 0
        Real size of one step.
    zero_point : int
        The quantized value that stands for 0.0.
    dtype : DType
        quint8, qint8 or qint32.

    Returns
    -------
    QTensor, dense in the memory format that torch suggests for ``x``
        NaN and +inf give the largest value (qint32: NaN gives the smallest); -inf gives the
        smallest.

    Raises
    ------
    VerifyError
        If ``scale`` is not positive, ``zero_point`` is out of range, or ``x`` is not float32.

    Examples
    --------
    >>> reference(np.float32([0.5, 1.5, -9.0]), 1.0, 7, quint8).int_repr
    array([8, 8, 0], dtype=uint8)
    """
    if dtype == qint32:
        q = rounding.quantize_before(np.nan_to_num(x, nan=-np.inf), scale, zero_point, dtype)
    else:
        q = rounding.quantize_fused(x, scale, zero_point, dtype)
    return QTensor(suggested(q), scale, zero_point, None, dtype)


def infer(x: TensorType, scale: float, zero_point: int, dtype: DType) -> TensorType:
    """Check the attributes; the result has the shape of ``x``."""
    if x.dtype != float32:
        raise VerifyError(f"quantize_per_tensor: expected float32, got {x.dtype}")
    if dtype not in ACCEPTED:
        accepted = ", ".join(map(str, ACCEPTED))
        raise VerifyError(f"quantize_per_tensor: dtype must be one of {accepted}, got {dtype}")
    if not scale > 0:
        raise VerifyError(f"quantize_per_tensor: scale must be > 0, got {scale}")
    low, high = dtype.limits
    if not low <= zero_point <= high:
        raise VerifyError(
            f"quantize_per_tensor: zero_point must be in [{low}, {high}], got {zero_point}"
        )
    return TensorType(dtype, x.shape, QParams(float(scale), int(zero_point)))


@jit
def _fill_fused(
    x: F32, inverse: np.float32, zero_point: np.float32, low: np.float32, high: np.float32, q: Any
) -> None:
    for i in range(x.size):
        q[i] = narrow_fused(x[i], inverse, zero_point, low, high)


@jit
def _fill_before(x: F32, inverse: np.float32, zero_point: int, q: Any) -> None:
    for i in range(x.size):
        if x[i] == x[i]:
            q[i] = quantize_before(x[i], inverse, zero_point, -(2**31), 2**31 - 1)
        else:
            q[i] = -(2**31)


def kernel(x: F32, scale: float, zero_point: int, dtype: DType) -> QTensor:
    """Compute :func:`reference` in one compiled pass over the memory."""
    x = suggested(x)
    q = empty_suggested(x, dtype.storage)
    inverse = rounding.reciprocal(scale)
    if dtype == qint32:
        _fill_before(memory_order(x), inverse, zero_point, memory_order(q))
    else:
        z, low, high = map(np.float32, (zero_point, *dtype.limits))
        _fill_fused(memory_order(x), inverse, z, low, high, memory_order(q))
    return QTensor(q, scale, zero_point, None, dtype)


def _case(name: str, x: list[float], expected: list[int], why: str, dtype: DType = quint8) -> Case:
    attributes = {"scale": 1.0, "zero_point": 7, "dtype": dtype}
    return Case(name, (np.asarray(x, np.float32),), attributes, expected, why)


OPS = (
    Op(
        name="aten::quantize_per_tensor",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(ALL_ENGINES, kernel),
        source=("pytorch/FBGEMM/src/QuantUtilsAvx2.cc::QuantizeAvx2",),
        cases=(
            _case("ties", [0.5, 1.5, -0.5], [8, 8, 6], "even after the zero point is added"),
            _case("saturate", [-8.0, 249.0, 3e9, -3e9], [0, 255, 255, 0], "both ends"),
            _case("specials", [np.inf, -np.inf, np.nan], [255, 0, 255], "NaN goes to the top"),
            _case("qint32", [np.nan, 0.5], [-(2**31), 8], "NaN goes to the bottom", qint32),
            _case("empty", [], [], "no elements"),
        ),
    ),
)
