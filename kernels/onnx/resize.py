"""``onnx::Resize``: interpolation along each dimension in turn."""

from __future__ import annotations

from math import ceil, floor
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, type_of
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, bool_
from refquant.kernels.checks import dimension
from refquant.kernels.onnx.operator import operator, plain

F64 = npt.NDArray[np.float64]
MODES = ("nearest", "linear", "cubic")
COORDINATES = (
    *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners"),
    *("asymmetric", "tf_crop_and_resize", "tf_half_pixel_for_nn"),
)
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


class _Taps(NamedTuple):
    """Where each result along a dimension comes from: positions with weights, or nowhere."""

    positions: npt.NDArray[np.int64]  # (results, taps), clipped to the data
    weights: F64
    outside: npt.NDArray[np.bool_]


def original(
    length: int,
    count: int,
    scale: float,
    transformation: str,
    roi: tuple[float, float],
    engine: Engine = Engine.ONNX,
) -> F64:
    """Return the place in the data, of ``length``, of each of ``count`` results.

    The standard's length of the result is ``scale * length``, which may have a fraction;
    onnxruntime takes the whole number and computes in float32.

    Examples
    --------
    >>> original(2, 4, 2.0, "half_pixel", (0.0, 1.0))
    array([-0.25,  0.25,  0.75,  1.25])
    """
    is_ort = engine is Engine.ORT
    real = np.float32 if is_ort else np.float64
    places = _original(
        np.arange(count, dtype=real), length, real(scale), transformation, roi, is_ort
    )
    return places.astype(np.float64)


def _original(
    at: Array,
    length: int,
    scale: Any,
    transformation: str,
    roi: tuple[float, float],
    whole: bool,
) -> Array:
    count, last = len(at), length - 1
    wanted = scale.dtype.type(count) if whole else scale * scale.dtype.type(length)
    places: Array
    match transformation:
        case "asymmetric":
            places = at / scale
        case "align_corners":
            places = np.zeros_like(at) if wanted == 1 else at * last / (wanted - 1)
        case "tf_crop_and_resize":
            start, end = map(type(scale), roi)
            if wanted == 1:
                places = np.full_like(at, (start + end) * last / 2)
            else:
                places = start * last + at * (end - start) * last / (wanted - 1)
        case "tf_half_pixel_for_nn":
            places = (at + 0.5) / scale
        case "pytorch_half_pixel" if count <= 1:
            places = np.zeros_like(at)
        case "half_pixel_symmetric":
            middle = length / 2 * (1 - count / (scale * length))
            places = middle + (at + 0.5) / scale - 0.5
        case _:
            places = (at + 0.5) / scale - 0.5
    return places


def _nearest(places: F64, mode: str) -> npt.NDArray[np.int64]:
    match mode:
        case "round_prefer_floor":
            found = np.ceil(places - 0.5)
        case "round_prefer_ceil":
            found = np.floor(places + 0.5)
        case "floor":
            found = np.floor(places)
        case _:
            found = np.ceil(places)
    return found.astype(np.int64)


def keys_kernel(distance: F64, a: float) -> F64:
    """Return Keys' kernel, whose parameter is ``a``.

    Examples
    --------
    >>> keys_kernel(np.array([0.0, 0.5, 1.5]), -0.75)
    array([ 1.     ,  0.59375, -0.09375])
    """
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _taps(
    length: int,
    places: F64,
    scale: float,
    mode: str,
    nearest_mode: str,
    cubic_coeff_a: float,
    antialias: bool,
    exclude_outside: bool,
) -> _Taps:
    if mode == "nearest":
        positions = _nearest(places, nearest_mode)[:, None]
        weights = np.ones(positions.shape)
    else:
        shrink = min(scale, 1.0) if antialias else 1.0
        reach = {"linear": 1, "cubic": 2}[mode] / shrink
        first = np.floor(places).astype(np.int64) + floor(-reach) + 1
        positions = first[:, None] + np.arange(2 * ceil(reach))
        distance = np.abs(positions - places[:, None]) * shrink
        weights = np.clip(1 - distance, 0, 1)
        if mode == "cubic":
            weights = keys_kernel(distance, cubic_coeff_a)
        if shrink < 1:
            weights /= weights.sum(1, keepdims=True)
    inside = (positions >= 0) & (positions < length)
    if exclude_outside:
        weights = np.where(inside, weights, 0.0)
        total = weights.sum(1, keepdims=True)
        weights /= np.where(total == 0, 1.0, total)
    outside = (places < 0) | (places > length - 1)
    return _Taps(np.clip(positions, 0, length - 1), weights, outside)


def reference(
    x: Array,
    sizes: tuple[int, ...],
    scales: tuple[float, ...],
    axes: tuple[int, ...],
    roi: tuple[float, ...] = (),
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: bool = False,
    extrapolation_value: float = 0.0,
    antialias: bool = False,
    target: Target = Target(),
) -> Array:
    """Return the tensor with other lengths, interpolated along each dimension in turn.

    ``nearest`` takes elements as they are. ``linear`` and ``cubic`` (Keys' kernel) weigh 2 and 4
    neighbours, with ``antialias`` as many more as the dimension shrinks; beyond the ends of the
    data stands its last element, or, with ``exclude_outside``, nothing: the other weights are
    made to add up to 1. Weights and sums are float64, the result is rounded once (integers:
    to the nearest, ties to even, and limited to their range). The standard says nothing of
    rounding: compare floats with 1e-6 relative to the largest element.

    Under ``ort`` the places are onnxruntime's: in float32, where ties fall otherwise, and from
    the whole length of the result.

    Parameters
    ----------
    x : tensor of numbers
        Not empty along ``axes``.
    sizes : tuple of int
        Lengths of the result along ``axes``.
    scales : tuple of float
        Scales along ``axes``, from which the places are computed.
    axes : tuple of int
        The dimensions.
    roi : tuple of float
        Starts, then ends along ``axes``; of ``tf_crop_and_resize``.
    mode : str
        ``nearest``, ``linear`` or ``cubic``.
    coordinate_transformation_mode : str
        Where a result lies in the data: ``half_pixel``, ``half_pixel_symmetric``,
        ``pytorch_half_pixel``, ``align_corners``, ``asymmetric``, ``tf_crop_and_resize`` or
        ``tf_half_pixel_for_nn``.
    nearest_mode : str
        ``round_prefer_floor``, ``round_prefer_ceil``, ``floor`` or ``ceil``.
    cubic_coeff_a : float
        The kernel's parameter.
    exclude_outside, antialias : bool
        See above.
    extrapolation_value : float
        What stands outside the data for ``tf_crop_and_resize``.

    Returns
    -------
    Tensor of the type of ``x``

    Raises
    ------
    VerifyError
        If numbers do not fit, or a word is unknown.

    Examples
    --------
    >>> reference(np.float32([1, 3]), (4,), (2.0,), (0,), mode="linear")
    array([1. , 1.5, 2.5, 3. ], dtype=float32)
    """
    with np.errstate(all="ignore"):
        return _resized(
            *(x, sizes, scales, axes, roi, mode, coordinate_transformation_mode, nearest_mode),
            *(cubic_coeff_a, exclude_outside, extrapolation_value, antialias, target),
        )


def _resized(
    x: Array,
    sizes: tuple[int, ...],
    scales: tuple[float, ...],
    axes: tuple[int, ...],
    roi: tuple[float, ...],
    mode: str,
    transformation: str,
    nearest_mode: str,
    cubic_coeff_a: float,
    exclude_outside: bool,
    extrapolation_value: float,
    antialias: bool,
    target: Target,
) -> Array:
    count = len(axes)
    made: Array = x if mode == "nearest" else x.astype(np.float64)
    crops = transformation == "tf_crop_and_resize"
    ends = list(zip(roi[:count], roi[count:], strict=True)) if crops else [(0.0, 1.0)] * count
    unchanged = (1.0, (0.0, 1.0))
    for axis, size, scale, end in zip(axes, sizes, scales, ends, strict=True):
        length = made.shape[axis]
        if (scale, end) == unchanged and size == length:
            continue
        places = original(length, size, scale, transformation, end, target.engine)
        taps = _taps(
            *(length, places, scale, mode, nearest_mode, cubic_coeff_a, antialias),
            exclude_outside,
        )
        made = _along(made, axis, taps, extrapolation_value if crops else None)
    return made if made is x else _rounded(made, x.dtype)


def _along(x: Array, axis: int, taps: _Taps, extrapolation: float | None) -> Array:
    """Return the weighted sums along a dimension."""
    shape = [1] * x.ndim
    shape[axis] = -1
    columns = taps.positions.T
    if len(columns) == 1:
        made: Array = np.take(x, columns[0], axis)
    else:
        terms = (
            np.take(x, at, axis) * w.reshape(shape)
            for at, w in zip(columns, taps.weights.T, strict=True)
        )
        made = sum(terms, start=np.zeros((), np.float64))
    if extrapolation is not None:
        made = np.where(taps.outside.reshape(shape), np.asarray(extrapolation, x.dtype), made)
    return made


def _rounded(x: Array, dtype: np.dtype[Any]) -> Array:
    if x.dtype == dtype:
        return np.ascontiguousarray(x)
    with np.errstate(all="ignore"):
        if not type_of(np.empty(0, dtype)).dtype.is_floating_point:
            limits = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
            x = np.clip(np.rint(x), float(limits.min), float(limits.max))
        return np.ascontiguousarray(x).astype(dtype)


def infer(
    x: TensorType,
    sizes: tuple[int, ...],
    scales: tuple[float, ...],
    axes: tuple[int, ...],
    roi: tuple[float, ...] = (),
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: bool = False,
    extrapolation_value: float = 0.0,
    antialias: bool = False,
) -> TensorType:
    """Check numbers and words; replace the lengths."""
    plain("Resize", x)
    for what, word, known in (
        ("mode", mode, MODES),
        ("coordinate_transformation_mode", coordinate_transformation_mode, COORDINATES),
        ("nearest_mode", nearest_mode, NEAREST),
    ):
        if word not in known:
            raise VerifyError(f"Resize: {what} must be one of {', '.join(known)}, got {word!r}")
    if x.dtype == bool_ and mode != "nearest":
        raise VerifyError(f"Resize: {mode} interpolation of {x}")
    if antialias and mode == "nearest":
        raise VerifyError("Resize: antialias is for linear and cubic interpolation")
    places = [dimension("Resize", axis, x.rank) for axis in axes]
    if len(set(places)) != len(axes) or not len(axes) == len(sizes) == len(scales):
        raise VerifyError(f"Resize: axes {axes}, sizes {sizes}, scales {scales}")
    if coordinate_transformation_mode == "tf_crop_and_resize" and len(roi) != 2 * len(axes):
        raise VerifyError(f"Resize: roi needs {2 * len(axes)} entries, got {len(roi)}")
    shape = list(x.shape)
    for at, size, scale in zip(places, sizes, scales, strict=True):
        if not (scale > 0 and np.isfinite(scale)) or size < 0:
            raise VerifyError(f"Resize: scale {scale}, size {size}")
        length = shape[at]
        if (not isinstance(length, int) or not length) and (scale, size) != (1.0, length):
            raise VerifyError(f"Resize: dimension {at} of {x} is empty or symbolic")
        shape[at] = size
    return TensorType(x.dtype, tuple(shape))


_X = np.array([[1, 2, 3, 4]], np.float32)
_TWICE = {"sizes": (8,), "scales": (2.0,), "axes": (1,)}
_HALF = {"sizes": (2,), "scales": (0.5,), "axes": (1,)}

OPS = (
    operator(
        "Resize",
        reference,
        infer,
        Case("nearest", (_X,), _TWICE, [[1, 1, 2, 2, 3, 3, 4, 4]], "the middle of a pixel"),
        Case(
            "linear",
            (_X,),
            {**_TWICE, "mode": "linear"},
            [[1, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4]],
            "the ends stay",
        ),
        Case(
            "corners",
            (_X,),
            {**_HALF, "mode": "linear", "coordinate_transformation_mode": "align_corners"},
            [[1, 4]],
            "first on first, last on last",
        ),
        Case("cubic", (_X,), {**_HALF, "mode": "cubic"}, [[1.40625, 3.59375]], "4 neighbours"),
        Case(
            "antialias",
            (_X,),
            {**_HALF, "mode": "linear", "antialias": True},
            [[1.625, 3.375]],
            "all that share the pixel",
        ),
        Case(
            "outside",
            (_X,),
            {**_HALF, "mode": "cubic", "exclude_outside": True},
            np.array([[48 / 35, 127 / 35]], np.float32),
            "3 weights",
        ),
        Case(
            "integers",
            (np.array([0, 255], np.uint8),),
            {"sizes": (3,), "scales": (1.5,), "axes": (0,), "mode": "linear"},
            [0, 128, 255],
            "127.5 to even",
        ),
        Case(
            "crop",
            (_X,),
            {
                **{"sizes": (2,), "scales": (0.5,), "axes": (1,), "roi": (0.0, 2.0)},
                "coordinate_transformation_mode": "tf_crop_and_resize",
                "extrapolation_value": 9.0,
            },
            [[1, 9]],
            "outside",
        ),
    ),
)
