"""``aten::quantize_per_tensor_dynamic``: float32 to integers with a scale chosen from the data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import DType, TensorType, qint8, quint8
from refquant.kernels import checks, quantize_per_tensor, rounding
from refquant.kernels.choose_qparams import choose_qparams
from refquant.kernels.min_max import min_max, min_max_compiled

F32 = npt.NDArray[np.float32]
ACCEPTED = (quint8, qint8)


def qparams_of(
    x: F32,
    dtype: DType,
    reduce_range: bool,
    range_of: Callable[[F32], tuple[np.float32, np.float32]] = min_max,
) -> tuple[float, int]:
    """Return the scale and zero point of a tensor's own range; ``x`` must not be empty."""
    low, high = range_of(x)
    return choose_qparams(float(low), float(high), *dtype.limits, reduce_range)


def reference(x: F32, dtype: DType, reduce_range: bool) -> QTensor:
    r"""Quantize ``x`` with the scale and zero point that cover its own range.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(\mathrm{fma}(x, 1/s, z)), q_{min}, q_{max})

    with :math:`s, z` from ``choose_qparams(min(x), max(x))`` in float64, and the rounding of
    ``aten::quantize_per_tensor``. ``reduce_range`` halves the range from which scale and zero
    point are chosen, not the range of the clamp.

    Parameters
    ----------
    x : float32, any shape, not empty
        Real values, all finite.
    dtype : DType
        quint8 or qint8.
    reduce_range : bool
        Use 0..127 (qint8: -64..63), which keeps sums of two products within 16 bits.

    Returns
    -------
    QTensor, shape and strides of ``x``

    Raises
    ------
    VerifyError
        If ``x`` is empty, holds NaN or infinity, or is not float32.

    Examples
    --------
    >>> q = reference(np.float32([-1.0, 0.0, 4.0]), quint8, False)
    >>> q.int_repr, q.scale, q.zero_point
    (array([  0,  51, 255], dtype=uint8), 0.0196078431372549, 51)
    """
    _check_size(x)
    scale, zero_point = qparams_of(x, dtype, reduce_range)
    q = rounding.quantize_fused(x, scale, zero_point, dtype)
    return QTensor(q, scale, zero_point, None, dtype)


def _check_size(x: F32) -> None:
    if x.size == 0:
        raise VerifyError("quantize_per_tensor_dynamic: an empty tensor has no range")


def infer(x: TensorType, dtype: DType, reduce_range: bool) -> TensorType:
    """Check the attributes; the quantization parameters are known only when it runs."""
    checks.is_float32("quantize_per_tensor_dynamic", x)
    if dtype not in ACCEPTED:
        accepted = ", ".join(map(str, ACCEPTED))
        raise VerifyError(
            f"quantize_per_tensor_dynamic: dtype must be one of {accepted}, got {dtype}"
        )
    if 0 in x.shape:
        raise VerifyError("quantize_per_tensor_dynamic: an empty tensor has no range")
    return TensorType(dtype, x.shape, None)


def kernel(x: F32, dtype: DType, reduce_range: bool) -> QTensor:
    """Compute :func:`reference` in two compiled passes over the memory."""
    _check_size(x)
    scale, zero_point = qparams_of(x, dtype, reduce_range, min_max_compiled)
    return quantize_per_tensor.kernel(x, scale, zero_point, dtype)


def _case(
    name: str, x: list[float], dtype: DType, reduce_range: bool, expected: list[int], why: str
) -> Case:
    attributes = {"dtype": dtype, "reduce_range": reduce_range}
    return Case(name, (np.asarray(x, np.float32),), attributes, expected, why)


OPS = (
    Op(
        name="aten::quantize_per_tensor_dynamic",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/QTensor.cpp"
            "::quantize_per_tensor_dynamic",
        ),
        cases=(
            _case("zeros", [0, 0], quint8, False, [0, 0], "no range: scale 0.1, zero point 0"),
            _case("positive", [2, 255], quint8, False, [2, 255], "the range is stretched to 0"),
            _case("reduced", [-64, 63], qint8, True, [-64, 63], "7 bits"),
            _case("tiny", [-1e-9, 1e-9], quint8, False, [128, 128], "scale is at least 6.1e-5"),
        ),
    ),
)
