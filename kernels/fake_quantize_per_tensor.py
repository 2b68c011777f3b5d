"""``aten::fake_quantize_per_tensor_affine``: round to a quantized grid, but stay a float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import type_of
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, bfloat16, bool_, float16, float32, float64, format_shape
from refquant.kernels import rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_preserved, is_dense, memory_order
from refquant.kernels.pointwise import fill

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Pair = tuple[Array, Mask]

FLOATS = (float32, float64, float16, bfloat16)
# float32 holds every whole number up to here, so integers can be compared and subtracted in it.
EXACT = 2**24


def fake_quantize_per_tensor(
    x: Array, scale: float | np.float32, zero_point: int, quant_min: int, quant_max: int
) -> Pair:
    r"""Quantize and dequantize with one scale; also return which elements were in range.

    .. math:: r = \mathrm{rint}(x \cdot (1/s)) + z, \quad q = \mathrm{clamp}(r, q_{min}, q_{max}),
        \quad y = s \cdot (q - z)

    The reciprocal is rounded to float32 once. The product is rounded, then rounded to a whole
    number (ties to even), and the zero point is added *after* that, so ties differ from
    ``quantize_per_tensor`` where the zero point is odd. ``q - z`` is an exact integer, rounded to
    float32 before the product with the scale.

    float64 input is multiplied, rounded to whole numbers and clamped in float64; the result is
    still a float32 number. float16 and bfloat16 are computed in float32 and rounded to their
    type at the end.

    NaN gives ``quant_min`` and is out of range; infinities saturate. No scale is refused: 0 and
    denormals below 2**-128 have an infinite reciprocal, an infinite scale gives NaN, a negative
    one mirrors the grid.

    Parameters
    ----------
    x : float32, float64, float16 or bfloat16, any shape
        Real values.
    scale : float
        Real size of one step, rounded to float32.
    zero_point : int
        The quantized value that stands for 0.0. As an attribute of an op it must be in the range;
        computed at run time it may lie anywhere.
    quant_min, quant_max : int
        Range of the quantized values.

    Returns
    -------
    y : dtype, shape and, where dense, strides of ``x``
        Values on the quantized grid.
    mask : bool
        Where ``quant_min <= r <= quant_max``, compared as floats: the elements whose gradient
        passes.

    Raises
    ------
    VerifyError
        If ``x`` is not a float or ``quant_min > quant_max``.

    Examples
    --------
    >>> y, mask = fake_quantize_per_tensor(np.float32([0.3, -9.0, 0.25]), 0.5, 1, 0, 7)
    >>> y, mask
    (array([ 0.5, -0.5,  0. ], dtype=float32), array([ True, False,  True]))
    """
    check_float("fake_quantize_per_tensor_affine", type_of(x))
    check_range("fake_quantize_per_tensor_affine", quant_min, quant_max)
    y, mask = empty_preserved(x, x.dtype), empty_preserved(x, np.bool_)
    wide: type[np.floating[Any]] = np.float64 if x.dtype == np.float64 else np.float32
    s, inverse = _float32(scale), rounding.reciprocal(float(scale))

    def position(x: Array) -> Any:
        return wide(zero_point) + np.rint(x.astype(wide) * inverse.astype(wide))

    def inside(x: Array) -> Any:
        real = position(x)
        return (wide(quant_min) <= real) & (real <= wide(quant_max))

    def value(x: Array) -> Any:
        clamped = np.fmin(np.fmax(position(x).astype(np.float64), quant_min), quant_max)
        return (clamped.astype(np.int64) - zero_point).astype(np.float32) * s

    with np.errstate(over="ignore", invalid="ignore"):
        fill(mask, inside, x)
        fill(y, value, x)
    return y, mask


@jit
def _fill(
    x: Any,
    inverse: np.float32,
    scale: np.float32,
    zero: np.float32,
    low: np.float32,
    high: np.float32,
    y: Any,
    mask: Any,
) -> None:
    for i in range(x.size):
        real = zero + np.rint(x[i] * inverse)
        mask[i] = (low <= real) & (real <= high)
        q = real if real > low else low  # NaN is not above, as fmax wants
        q = q if q < high else high
        y[i] = np.float32(q - zero) * scale


def fake_quantize_per_tensor_compiled(
    x: Array, scale: float | np.float32, zero_point: int, quant_min: int, quant_max: int
) -> Pair:
    """Compute :func:`fake_quantize_per_tensor` in one compiled pass; wide ranges in NumPy."""
    check_float("fake_quantize_per_tensor_affine", type_of(x))
    check_range("fake_quantize_per_tensor_affine", quant_min, quant_max)
    if max(map(abs, (zero_point, quant_min, quant_max))) > EXACT:
        return fake_quantize_per_tensor(x, scale, zero_point, quant_min, quant_max)
    values = widened(x)
    y, mask = empty_preserved(values, values.dtype), empty_preserved(x, np.bool_)
    with np.errstate(invalid="ignore", over="ignore"):
        _fill(
            memory_order(values),
            rounding.reciprocal(float(scale)),
            np.float32(scale),
            np.float32(zero_point),
            np.float32(quant_min),
            np.float32(quant_max),
            memory_order(y),
            memory_order(mask),
        )
    return narrowed(y, x.dtype), mask


def _float32(scale: float | np.float32) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(scale)


def widened(x: Array) -> Array:
    """Return float32 or float64 with the strides of the result; a copy only where needed."""
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    if x.dtype == dtype and is_dense(x):
        return x
    copy = empty_preserved(x, dtype)
    copy[...] = x
    return copy


def narrowed(y: Array, dtype: npt.DTypeLike) -> Array:
    """Round to the type of the result; infinity where that overflows."""
    with np.errstate(over="ignore"):
        return y.astype(dtype, order="K", copy=False)


# ---- checks


def check_float(op: str, x: TensorType) -> None:
    """Check that a value is of a type that fake-quants accept."""
    if x.dtype not in FLOATS:
        names = ", ".join(map(str, FLOATS))
        raise VerifyError(f"{op}: dtype must be one of {names}, got {x.dtype}")


def check_range(op: str, quant_min: int, quant_max: int) -> None:
    """Check that the range of quantized values is not empty."""
    if quant_min > quant_max:
        raise VerifyError(
            f"{op}: quant_min must be <= quant_max, got quant_min {quant_min} and "
            f"quant_max {quant_max}"
        )


def check_zero_point(op: str, zero_point: int, quant_min: int, quant_max: int) -> None:
    """Check that the range holds the zero point."""
    check_range(op, quant_min, quant_max)
    if not quant_min <= zero_point <= quant_max:
        raise VerifyError(
            f"{op}: zero_point must be in [{quant_min}, {quant_max}], got {zero_point}"
        )


def one_number(op: str, value: Array, operand: str) -> Any:
    """Return the only element of a tensor."""
    if value.size != 1:
        raise VerifyError(f"{op}: {operand} must have one element, got {value.size}")
    return value.reshape(-1)[0]


def whole_number(op: str, value: Array, operand: str) -> int:
    """Return the only element of a tensor, truncated toward zero; it must be an int32."""
    number = one_number(op, value, operand)
    if not -(2.0**31) - 1 < number < 2.0**31:
        raise VerifyError(f"{op}: {operand} must fit int32, got {number}")
    return int(number)


def _infer(
    x: TensorType, scale: float, zero_point: int, quant_min: int, quant_max: int
) -> TensorType:
    op = "fake_quantize_per_tensor_affine"
    check_float(op, x)
    check_zero_point(op, zero_point, quant_min, quant_max)
    return x


def _infer_tensor_qparams(
    x: TensorType, scale: TensorType, zero_point: TensorType, quant_min: int, quant_max: int
) -> TensorType:
    op = "fake_quantize_per_tensor_affine"
    check_float(op, x)
    check_range(op, quant_min, quant_max)
    for operand, given in (("scale", scale), ("zero_point", zero_point)):
        if any(size != 1 for size in given.shape):
            got = format_shape(given.shape)
            raise VerifyError(f"{op}: {operand} must have one element, got {got}")
    return x


def _infer_switched(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    fake_quant_enabled: TensorType,
    quant_min: int,
    quant_max: int,
) -> tuple[TensorType, TensorType]:
    _infer_tensor_qparams(x, scale, zero_point, quant_min, quant_max)
    return x, TensorType(bool_, x.shape)


def _infer_cachemask(
    x: TensorType, scale: float, zero_point: int, quant_min: int, quant_max: int
) -> tuple[TensorType, TensorType]:
    return _infer(x, scale, zero_point, quant_min, quant_max), TensorType(bool_, x.shape)


# ---- forms


def reference(x: Array, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Array:
    """Return the first result of ``aten::fake_quantize_per_tensor_affine_cachemask``.

    Rounding, dtypes and special values are described there.

    Examples
    --------
    >>> reference(np.float32([0.3, -9.0, 0.25]), 0.5, 1, 0, 7)
    array([ 0.5, -0.5,  0. ], dtype=float32)
    """
    return fake_quantize_per_tensor(x, scale, zero_point, quant_min, quant_max)[0]


def kernel(x: Array, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Array:
    """Compute :func:`reference`, compiled."""
    return fake_quantize_per_tensor_compiled(x, scale, zero_point, quant_min, quant_max)[0]


def _with_tensors(function: Callable[..., Pair]) -> Callable[..., Array]:
    def tensor_qparams(
        x: Array, scale: Array, zero_point: Array, quant_min: int, quant_max: int
    ) -> Array:
        op = "fake_quantize_per_tensor_affine"
        z = whole_number(op, zero_point, "zero_point")
        return function(x, one_number(op, scale, "scale"), z, quant_min, quant_max)[0]

    tensor_qparams.__doc__ = """Fake-quantize with a scale and a zero point computed at run time.

    As ``aten::fake_quantize_per_tensor_affine``, but the zero point may lie outside the range. A
    float zero point is truncated toward zero.

    Parameters
    ----------
    x : float32, float64, float16 or bfloat16, any shape
        Real values.
    scale : tensor of one element
        Rounded to float32.
    zero_point : tensor of one element
        Integer or float.
    quant_min, quant_max : int
        Range of the quantized values.

    Returns
    -------
    dtype, shape and, where dense, strides of ``x``
        Values on the quantized grid.

    Raises
    ------
    VerifyError
        If ``scale`` or ``zero_point`` has not one element, the zero point does not fit int32, or
        the range is empty.
    """
    return tensor_qparams


def _switched(function: Callable[..., Pair]) -> Callable[..., Pair]:
    def cachemask_tensor_qparams(
        x: Array,
        scale: Array,
        zero_point: Array,
        fake_quant_enabled: Array,
        quant_min: int,
        quant_max: int,
    ) -> Pair:
        op = "fake_quantize_per_tensor_affine"
        check_range(op, quant_min, quant_max)
        if not whole_number(op, fake_quant_enabled, "fake_quant_enabled"):
            return unchanged(x)
        z = whole_number(op, zero_point, "zero_point")
        return function(x, one_number(op, scale, "scale"), z, quant_min, quant_max)

    cachemask_tensor_qparams.__doc__ = """Fake-quantize, or copy where that is switched off.

    As ``aten::fake_quantize_per_tensor_affine_cachemask``, but the zero point may lie outside the
    range. A float zero point is truncated toward zero. With ``fake_quant_enabled`` 0 (a fraction
    counts as 0) the results are a copy of ``x`` and a mask that is true everywhere.

    Parameters
    ----------
    x : float32, float64, float16 or bfloat16, any shape
        Real values.
    scale, zero_point, fake_quant_enabled : tensors of one element
        Computed at run time.
    quant_min, quant_max : int
        Range of the quantized values.

    Returns
    -------
    y : dtype, shape and, where dense, strides of ``x``
    mask : bool
    """
    return cachemask_tensor_qparams


def unchanged(x: Array) -> Pair:
    """Return a copy of ``x`` and a mask that is true everywhere."""
    y, mask = empty_preserved(x, x.dtype), empty_preserved(x, np.bool_)
    y[...], mask[...] = x, True
    return y, mask


def _case(name: str, x: list[float], expected: Any, why: str, **change: Any) -> Case:
    attributes = {"scale": 0.5, "zero_point": 1, "quant_min": 0, "quant_max": 7} | change
    return Case(name, (np.asarray(x, np.float32),), attributes, expected, why)


_RANGE = {"quant_min": 0, "quant_max": 7}
_HALF, _ONE = np.array([0.5], np.float32), np.array([1], np.int32)
_X = np.array([0.25, 0.75, -9.0], np.float32)
_SOURCE = (
    "pytorch/aten/src/ATen/native/quantized/FakeQuantPerTensorAffine.cpp",
    "pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::fake_quantize_tensor_cachemask_kernel",
)


def _op(
    form: str, slow: Callable[..., Any], fast: Callable[..., Any], infer: Any, *cases: Case
) -> Op:
    return Op(
        name=f"aten::{form}",
        reference=slow,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, fast),
        source=_SOURCE,
        cases=cases,
    )


OPS = (
    _op(
        "fake_quantize_per_tensor_affine",
        reference,
        kernel,
        _infer,
        _case("ties", [0.25, 0.75, -0.25], [0.0, 1.0, 0.0], "even before the zero point is added"),
        _case("specials", [np.nan, np.inf, -np.inf], [-0.5, 3.0, -0.5], "NaN goes to the bottom"),
        _case("scale 0", [0.0, 1.0, -1.0], [0.0, 0.0, 0.0], "the reciprocal is inf", scale=0.0),
        _case("scale inf", [0.0, 1.0], [np.nan, np.nan], "0 * inf", scale=np.inf),
        _case("negative", [-9.0, 9.0], [-3.0, 0.5], "mirrored", scale=-0.5),
        _case("wide", [2.0**31], [2.0**31], "beyond float32's integers", quant_max=2**33),
        _case("empty", [], [], "no elements"),
    ),
    _op(
        "fake_quantize_per_tensor_affine.tensor_qparams",
        _with_tensors(fake_quantize_per_tensor),
        _with_tensors(fake_quantize_per_tensor_compiled),
        _infer_tensor_qparams,
        Case("integer", (_X, _HALF, _ONE), _RANGE, [0.0, 1.0, -0.5], "qparams computed"),
        Case("float", (_X, _HALF, _HALF * 3.8), _RANGE, [0.0, 1.0, -0.5], "1.9 truncates to 1"),
    ),
    _op(
        "fake_quantize_per_tensor_affine_cachemask",
        fake_quantize_per_tensor,
        fake_quantize_per_tensor_compiled,
        _infer_cachemask,
        _case("mask", [3.2, 3.3, np.nan], ([3, 3, -0.5], [True, False, False]), "past the end"),
    ),
    _op(
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
        _switched(fake_quantize_per_tensor),
        _switched(fake_quantize_per_tensor_compiled),
        _infer_switched,
        Case(
            "on",
            (_X, _HALF, _ONE * 9, _ONE),
            _RANGE,
            ([-1, -1, -4.5], [False] * 3),
            "the zero point is not checked",
        ),
        Case("off", (_X, _HALF, _ONE, _ONE * 0), _RANGE, (_X, [True] * 3), "a copy"),
    ),
)
