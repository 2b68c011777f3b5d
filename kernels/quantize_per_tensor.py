"""``aten::quantize_per_tensor``: float32 to integers, one scale for the whole tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import (
    DType,
    QParams,
    TensorType,
    element_count,
    float32,
    format_shape,
    qint8,
    qint32,
    quint4x2,
    quint8,
)
from refquant.kernels import rounding
from refquant.kernels.fake_quantize_per_tensor import one_number, whole_number
from refquant.kernels.jit import jit
from refquant.kernels.layout import flat, suggested
from refquant.kernels.rounding_jit import narrow_fused, nibble_after, wide_before

F32 = npt.NDArray[np.float32]
ACCEPTED = (quint8, qint8, qint32, quint4x2)


def reference(x: F32, scale: float, zero_point: int, dtype: DType) -> QTensor:
    r"""Quantize ``x`` to the nearest of evenly spaced values.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(\mathrm{fma}(x, 1/s, z)), q_{min}, q_{max})

    The reciprocal is rounded to float32 once; the product and the zero point are added
    with a single rounding; ties go to even *after* the zero point is added, so an odd
    zero point flips them. For qint32 product and sum are rounded separately. For quint4x2 the
    zero point is added after the product is rounded to a whole number.

    Parameters
    ----------
    x : float32, any shape
        Real values.
    scale : float
        Real size of one step, rounded to float32. None is refused: below 2**-128 the reciprocal
        is infinite (quint4x2: that of 0 counts as 1), an infinite scale has the reciprocal 0,
        and a negative one mirrors the grid.
    zero_point : int
        The quantized value that stands for 0.0.
    dtype : DType
        quint8, qint8, qint32 or quint4x2.

    Returns
    -------
    QTensor, dense in the memory format that torch suggests for ``x``
        NaN and +inf give the largest value (qint32: NaN gives the smallest); -inf gives the
        smallest. For quint4x2 values beyond int64 give 0, infinities and NaN too.

    Raises
    ------
    VerifyError
        If ``zero_point`` is out of range, ``x`` is not float32 or the dtype is not accepted.

    Examples
    --------
    >>> reference(np.float32([0.5, 1.5, -9.0]), 1.0, 7, quint8).int_repr
    array([8, 8, 0], dtype=uint8)
    """
    if dtype == qint32:
        with np.errstate(over="ignore", invalid="ignore"):
            real = np.rint(x * rounding.reciprocal(scale) + np.float32(zero_point))
            q = rounding.saturate_int32(real, dtype)
    elif dtype == quint4x2:
        with np.errstate(over="ignore", invalid="ignore"):
            real = np.rint(np.rint(x * _inverse(scale, dtype)) + np.float32(zero_point))
            q = rounding.saturate_int64(real, dtype)
    else:
        q = rounding.quantize_fused(x, scale, zero_point, dtype)
    return QTensor(suggested(np.asarray(q)), scale, zero_point, None, dtype)


def _inverse(scale: float, dtype: DType) -> np.float32:
    inverse = rounding.reciprocal(scale)
    if dtype == quint4x2 and np.isinf(inverse) and np.float32(scale) == 0:
        return np.float32(1)
    return inverse


def infer(x: TensorType, scale: float, zero_point: int, dtype: DType) -> TensorType:
    """Check the attributes; the result has the shape of ``x``."""
    _check(x, dtype)
    _check_zero_point(zero_point, dtype)
    return TensorType(dtype, x.shape, QParams(float(scale), int(zero_point)))


def _check(x: TensorType, dtype: DType) -> None:
    if x.dtype != float32:
        raise VerifyError(f"quantize_per_tensor: expected float32, got {x.dtype}")
    if dtype not in ACCEPTED:
        accepted = ", ".join(map(str, ACCEPTED))
        raise VerifyError(f"quantize_per_tensor: dtype must be one of {accepted}, got {dtype}")


def _check_zero_point(zero_point: int, dtype: DType) -> None:
    low, high = dtype.limits
    if not low <= zero_point <= high:
        raise VerifyError(
            f"quantize_per_tensor: zero_point must be in [{low}, {high}], got {zero_point}"
        )


@jit
def _fill_fused(x: F32, inverse: float, zero_point: int, low: int, high: int, q: Any) -> None:
    m, z = np.float32(inverse), np.float32(zero_point)
    least, most = np.float32(low), np.float32(high)
    for i in range(x.size):
        q[i] = narrow_fused(x[i], m, z, least, most)


@jit
def _fill_before(x: F32, inverse: np.float32, zero_point: np.float32, q: Any) -> None:
    for i in range(x.size):
        q[i] = wide_before(x[i], inverse, zero_point)


@jit
def _fill_nibbles(x: F32, inverse: np.float32, zero_point: np.float32, q: Any) -> None:
    for i in range(x.size):
        q[i] = nibble_after(x[i], inverse, zero_point)


def kernel(x: F32, scale: float, zero_point: int, dtype: DType) -> QTensor:
    """Compute :func:`reference` in one compiled pass over the memory."""
    values, into, q = flat(x, dtype.storage)
    inverse = _inverse(scale, dtype)
    if dtype == qint32:
        _fill_before(values, inverse, np.float32(zero_point), into)
    elif dtype == quint4x2:
        _fill_nibbles(values, inverse, np.float32(zero_point), into)
    else:
        _fill_fused(values, float(inverse), zero_point, *dtype.limits, into)
    _check_zero_point(zero_point, dtype)
    return QTensor.unchecked(q, scale, zero_point, dtype)


# ---- other forms


def _with_tensors(quantize: Callable[..., QTensor]) -> Callable[..., QTensor]:
    def tensor_qparams(x: F32, scale: Array, zero_point: Array, dtype: DType) -> QTensor:
        s, z = _numbers(scale, zero_point, dtype)
        return quantize(x, s, z, dtype)

    tensor_qparams.__doc__ = """Quantize with a scale and a zero point computed at run time.

    As ``aten::quantize_per_tensor``. A float zero point is truncated toward zero.

    Parameters
    ----------
    x : float32, any shape
        Real values.
    scale, zero_point : tensors of one element
        Of any type.
    dtype : DType
        quint8, qint8, qint32 or quint4x2.

    Returns
    -------
    QTensor

    Raises
    ------
    VerifyError
        If a tensor has not one element or the zero point is out of range.
    """
    return tensor_qparams


def _numbers(scale: Array, zero_point: Array, dtype: DType) -> tuple[float, int]:
    z = whole_number("quantize_per_tensor", zero_point, "zero_point")
    _check_zero_point(z, dtype)
    return float(one_number("quantize_per_tensor", scale, "scale")), z


def _infer_tensor_qparams(
    x: TensorType, scale: TensorType, zero_point: TensorType, dtype: DType
) -> TensorType:
    _check(x, dtype)
    for operand, given in (("scale", scale), ("zero_point", zero_point)):
        if element_count(given.shape) != 1:
            got = format_shape(given.shape)
            raise VerifyError(f"quantize_per_tensor: {operand} must have one element, got {got}")
    return TensorType(dtype, x.shape)


def _listed(quantize: Callable[..., QTensor]) -> Callable[..., tuple[QTensor, ...]]:
    def tensors(
        *tensors: F32, scales: npt.ArrayLike, zero_points: npt.ArrayLike, dtype: DType
    ) -> tuple[QTensor, ...]:
        pairs = zip(np.asarray(scales), np.asarray(zero_points), strict=False)
        numbers = [_numbers(s, z, dtype) for s, z in pairs]
        return tuple(quantize(x, *pair, dtype) for x, pair in zip(tensors, numbers, strict=False))

    tensors.__doc__ = """Quantize several tensors, each with its own scale and zero point.

    As ``aten::quantize_per_tensor``. A float zero point is truncated toward zero.

    Parameters
    ----------
    *tensors : float32
        Real values.
    scales, zero_points : arrays
        At least one entry for each tensor.
    dtype : DType
        quint8, qint8, qint32 or quint4x2.

    Returns
    -------
    tuple of QTensor

    Raises
    ------
    VerifyError
        If there are fewer entries than tensors or a zero point is out of range.
    """
    return tensors


def _infer_listed(
    *tensors: TensorType,
    scales: TensorType | npt.ArrayLike,
    zero_points: TensorType | npt.ArrayLike,
    dtype: DType,
) -> tuple[TensorType, ...]:
    for x in tensors:
        _check(x, dtype)
    for operand, given in (("scales", scales), ("zero_points", zero_points)):
        shape = given.shape if isinstance(given, TensorType) else np.shape(given)
        if len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < len(tensors):
            raise VerifyError(
                f"quantize_per_tensor: {operand} must be a vector of at least {len(tensors)} "
                f"entries, got {format_shape(shape)}"
            )
    if isinstance(scales, TensorType) or isinstance(zero_points, TensorType):
        return tuple(TensorType(dtype, x.shape) for x in tensors)
    pairs = zip(np.asarray(scales), np.asarray(zero_points), strict=False)
    numbers = [_numbers(s, z, dtype) for s, z in pairs]
    return tuple(infer(x, *pair, dtype) for x, pair in zip(tensors, numbers, strict=False))


def _op(
    form: str, slow: Callable[..., Any], fast: Callable[..., Any], infer: Any, *cases: Case
) -> Op:
    return Op(
        name=f"aten::quantize_per_tensor{form}",
        reference=slow,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, fast),
        source=("pytorch/FBGEMM/src/QuantUtilsAvx2.cc::QuantizeAvx2",),
        cases=cases,
    )


def _case(
    name: str,
    x: list[float],
    expected: list[int],
    why: str,
    dtype: DType = quint8,
    scale: float = 1.0,
) -> Case:
    attributes = {"scale": scale, "zero_point": 7, "dtype": dtype}
    return Case(name, (np.asarray(x, np.float32),), attributes, expected, why)


_X = np.array([0.5, 1.5], np.float32)
_BOTTOM, _TOP = -(2**31), 2**31 - 1

OPS = (
    _op(
        "",
        reference,
        kernel,
        infer,
        _case("ties", [0.5, 1.5, -0.5], [8, 8, 6], "even after the zero point is added"),
        _case("saturate", [-8.0, 249.0, 3e9, -3e9], [0, 255, 255, 0], "both ends"),
        _case("specials", [np.inf, -np.inf, np.nan], [255, 0, 255], "NaN goes to the top"),
        _case("qint32", [np.nan, 0.5, np.inf], [_BOTTOM, 8, _TOP], "NaN to the bottom", qint32),
        _case("quint4x2", [0.5, 1.5, np.inf, 9e9], [7, 9, 0, 15], "zero point after", quint4x2),
        _case("scale 0", [0.0, 1.0, -1.0], [255, 255, 0], "0 * inf is NaN", scale=0.0),
        _case("scale 0, quint4x2", [0.0, 1.0], [7, 8], "0 counts as 1", quint4x2, scale=0.0),
        _case("scale inf", [5.0, np.inf], [7, 255], "the reciprocal is 0", scale=1e39),
        _case("mirrored", [1.0, np.nan], [5, _BOTTOM], "a negative scale", qint32, scale=-0.5),
        _case("empty", [], [], "no elements"),
    ),
    _op(
        ".tensor_qparams",
        _with_tensors(reference),
        _with_tensors(kernel),
        _infer_tensor_qparams,
        Case(
            "float",
            (_X, np.array([1.0]), np.array(7.9)),
            {"dtype": quint8},
            [8, 8],
            "7.9 truncates to 7",
        ),
    ),
    _op(
        ".tensors",
        _listed(reference),
        _listed(kernel),
        _infer_listed,
        Case(
            "two",
            (_X, _X),
            {
                "scales": np.array([1.0, 0.5]),
                "zero_points": np.array([7, 0]),
                "dtype": quint8,
            },
            ([8, 8], [1, 3]),
            "each its own",
        ),
    ),
)
