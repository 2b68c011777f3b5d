"""Rules of operators on images, signals and matrices."""

from __future__ import annotations

from math import floor
from typing import Any

import numpy as np

from refquant.importers.onnx_builder import (
    Constant,
    Known,
    OnnxBuilder,
    Operand,
    Rule,
    check_size,
)
from refquant.importers.onnx_file import element_type
from refquant.importers.onnx_movement import known
from refquant.importers.onnx_reductions import position
from refquant.ir.errors import VerifyError
from refquant.ir.types import TensorType, float32, float64

_INTERPOLATIONS = {"bilinear": "linear", "bicubic": "cubic"}


def _resize(
    b: OnnxBuilder,
    x: Known,
    roi: Operand = None,
    scales: Operand = None,
    sizes: Operand = None,
) -> Known:
    if b.version == 10:  # whose only other operand is the scales
        return _simple(b, x, roi)
    names = (
        *("coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a"),
        "extrapolation_value",
    )
    options = {name: b.get(name) for name in names if b.get(name) is not None}
    options["exclude_outside"] = bool(b.get("exclude_outside", 0))
    options["antialias"] = bool(b.get("antialias", 0))
    return _resized(b, x, scales, sizes, roi, options)


def _resized(
    b: OnnxBuilder,
    x: Known,
    scales: Operand,
    sizes: Operand,
    roi: Operand,
    options: dict[str, Any],
) -> Known:
    """Add a resize; an empty tensor stands for one that is absent."""
    rank = x.type.rank
    axes = tuple(position(axis, rank) for axis in b.get("axes") or range(rank))
    factors = () if scales is None else tuple(map(float, b.array(scales, "the scales").ravel()))
    wanted = () if sizes is None else b.sizes(sizes, "the sizes")
    if bool(factors) == bool(wanted) or len(factors or wanted) != len(axes):
        raise VerifyError(f"expected {len(axes)} scales or sizes, got {factors} and {wanted}")
    crops = options.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    given = tuple(map(float, b.array(roi, "the roi").ravel())) if crops else ()
    if crops and len(given) != 2 * len(axes):
        raise VerifyError(f"expected a roi of {2 * len(axes)} numbers, got {len(given)}")
    ends = [(given[i], given[i + len(axes)]) if crops else (0.0, 1.0) for i in range(len(axes))]
    if factors:
        for scale in factors:
            if not (scale > 0 and np.isfinite(scale)):
                raise VerifyError(f"a scale must be positive, got {scale}")
        wanted = tuple(
            x.type.shape[axis]
            if (scale, end) == (1.0, (0.0, 1.0))
            else floor(
                known(x, axis) * (end[1] - end[0]) * scale if crops else known(x, axis) * scale
            )
            for axis, scale, end in zip(axes, factors, ends, strict=True)
        )
    else:
        wanted, factors = _kept_ratio(b, x, axes, wanted)
    changed = [
        i
        for i, axis in enumerate(axes)
        if (wanted[i], factors[i], ends[i]) != (x.type.shape[axis], 1.0, (0.0, 1.0))
    ]
    if not changed:
        return x
    mode = b.get("mode", "nearest")
    return b.emit(
        "onnx::Resize",
        x,
        sizes=tuple(wanted[i] for i in changed),
        scales=tuple(factors[i] for i in changed),
        axes=tuple(axes[i] for i in changed),
        roi=(*(ends[i][0] for i in changed), *(ends[i][1] for i in changed)) if crops else (),
        mode=_INTERPOLATIONS.get(mode, mode),
        **options,
    )


def _kept_ratio(
    b: OnnxBuilder, x: Known, axes: tuple[int, ...], wanted: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    """Return the lengths that a policy makes of those that are wanted, and the scales."""
    policy = b.get("keep_aspect_ratio_policy", "stretch")
    if policy not in ("stretch", "not_larger", "not_smaller"):
        raise VerifyError(f"keep_aspect_ratio_policy {policy!r} is not known")
    same = [size == x.type.shape[axis] for size, axis in zip(wanted, axes, strict=True)]
    scales = [
        1.0 if is_same else size / known(x, axis) if known(x, axis) else 0.0
        for is_same, size, axis in zip(same, wanted, axes, strict=True)
    ]
    if policy == "stretch":
        return wanted, tuple(scales)
    scale = (min if policy == "not_larger" else max)(scales)
    kept = tuple(floor(scale * known(x, axis) + 0.5) for axis in axes)
    return kept, (scale,) * len(axes)


def _upsample(b: OnnxBuilder, x: Known, scales: Operand = None) -> Known:
    return _simple(b, x, b.constant(b.get("scales"), np.float32) if scales is None else scales)


def _simple(b: OnnxBuilder, x: Known, scales: Operand) -> Known:
    """Add what old opsets do: the element before is the nearest, the one after of less data."""
    factors = b.array(scales, "the scales").ravel()
    for nearest, kept in (("floor", factors >= 1), ("ceil", factors < 1)):
        if kept.any():
            part = b.constant(np.where(kept, factors, 1), np.float32)
            options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": nearest}
            x = _resized(b, x, part, None, None, options)
    return x


def _grid_sample(b: OnnxBuilder, x: Known, grid: Known) -> Known:
    mode = b.get("mode", "linear")
    return b.emit(
        "onnx::GridSample",
        x,
        grid,
        mode=_INTERPOLATIONS.get(mode, mode),
        padding_mode=b.get("padding_mode", "zeros"),
        align_corners=bool(b.get("align_corners", 0)),
    )


def _col2im(b: OnnxBuilder, x: Known, image: Known, block: Known) -> Known:
    shape = b.integers(image, "the image's shape")
    rank = len(shape)
    check_size(TensorType(x.type.dtype, shape))
    return b.emit(
        "onnx::Col2Im",
        x,
        image_shape=shape,
        block_shape=b.integers(block, "the block's shape"),
        dilations=b.get("dilations") or (1,) * rank,
        pads=b.get("pads") or (0,) * (2 * rank),
        strides=b.get("strides") or (1,) * rank,
    )


def _dft(b: OnnxBuilder, x: Known, length: Operand = None, axis: Operand = None) -> Known:
    at = b.get("axis", 1) if b.version < 20 else -2
    if axis is not None:
        (at,) = b.integers(axis, "the axis")
    at = position(at, x.type.rank)
    inverse, onesided = (bool(b.get(name, 0)) for name in ("inverse", "onesided"))
    if length is not None:
        (count,) = b.integers(length, "the length")
    else:
        own = known(x, at)
        count = 2 * (own - 1) if inverse and onesided else own
    return b.emit("onnx::DFT", x, axis=at, length=count, inverse=inverse, onesided=onesided)


def _stft(
    b: OnnxBuilder, x: Known, step: Known, window: Operand = None, length: Operand = None
) -> Known:
    (width,) = b.integers(step, "the step")
    if length is not None:
        (count,) = b.integers(length, "the length of a frame")
    elif isinstance(window, tuple) or window is None:
        count = known(x, 1)
    else:
        count = known(window, 0)
    if window is None:
        check_size(TensorType(x.type.dtype, (max(count, 0),)))
        window = b.constant(np.ones(max(count, 0), x.type.dtype.storage))
    onesided = bool(b.get("onesided", 1)) and x.type.shape[-1] == 1
    sides = {"frame_step": width, "frame_length": count, "onesided": onesided}
    return b.emit("onnx::STFT", x, window, **sides)


def _mel_weights(b: OnnxBuilder, *operands: Known) -> Constant:
    """Return triangles over the bins of a spectrum, at equal distances of the mel scale."""
    numbers = [b.array(x, "a number").reshape(-1)[0] for x in operands]
    bands, length, rate = map(int, numbers[:3])
    low, high = map(float, numbers[3:])
    if bands < 0 or length < 1 or rate < 1 or not 0 <= low <= high:
        raise VerifyError(
            f"{bands} bands from {low} to {high} Hz of {length} samples at {rate} Hz"
        )
    dtype = element_type(b.get("output_datatype", 1), "the result")
    bins = length // 2 + 1
    check_size(TensorType(float64, (bins, bands)))
    ends = 2595 * np.log10(1 + np.array([low, high]) / 700)
    # The standard's step leaves one more band at the upper end.
    mel = ends[0] + np.arange(bands + 2) * (ends[1] - ends[0]) / (bands + 2)
    edges = ((length + 1) * 700 * (10 ** (mel / 2595) - 1) // rate).astype(np.int64)
    weights = np.zeros((bins, bands))
    at = np.arange(bins)
    for band in range(bands):
        left, middle, right = edges[band : band + 3]
        rising, falling = (at >= left) & (at <= middle), (at >= middle) & (at < right)
        if middle > left:
            weights[rising, band] = (at[rising] - left) / (middle - left)
        else:
            weights[at == middle, band] = 1
        if right > middle:
            weights[falling, band] = (right - at[falling]) / (right - middle)
    return b.constant(weights.astype(dtype.storage))


def _einsum(b: OnnxBuilder, *operands: Known) -> Known:
    """Add a sum of products; an ellipsis becomes letters that are not used."""
    equation = b.get("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise VerifyError(f"{len(operands)} operands for {equation!r}")
    unused = [chr(c) for c in range(ord("A"), ord("z")) if chr(c).isalpha()]
    unused = [letter for letter in unused if letter not in equation]
    extra = [x.type.rank - len(t.replace(".", "")) for t, x in zip(terms, operands, strict=True)]
    most = max((n for t, n in zip(terms, extra, strict=True) if "..." in t), default=0)
    if most > len(unused) or any(n < 0 for n in extra):
        raise VerifyError(f"{equation!r} does not fit the ranks of its operands")
    dots = "".join(unused[:most])
    written = [
        t.replace("...", dots[most - n :] if n else "") for t, n in zip(terms, extra, strict=True)
    ]
    if not arrow:
        letters = left.replace(".", "").replace(",", "")
        right = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    full = f"{','.join(written)}->{right.replace('...', dots)}"
    dtype = operands[0].type.dtype
    if not dtype.is_floating_point or dtype.storage.itemsize >= 4:
        return b.emit("aten::einsum", *operands, equation=full)
    wide = [b.cast(x, float32) for x in operands]
    return b.cast(b.emit("aten::einsum", *wide, equation=full), dtype)


SIGNALS: dict[str, Rule] = {
    "Col2Im": _col2im,
    "DFT": _dft,
    "Det": lambda b, x: b.emit("onnx::Det", x),
    "Einsum": _einsum,
    "GridSample": _grid_sample,
    "MelWeightMatrix": _mel_weights,
    "Resize": _resize,
    "STFT": _stft,
    "Upsample": _upsample,
}
