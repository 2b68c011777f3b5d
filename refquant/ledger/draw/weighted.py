"""Linear and convolution cases whose values before rounding lie within 3 ulp of k + 0.5.

Plain random data does not tell one order of roundings from another: almost no value comes near
a tie. Here the bias, the weight scale or the output scale is solved for, so that one output pixel
per channel hugs a tie.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Isa, Target
from refquant.ir.types import qint8, quint8
from refquant.kernels.accumulate import Sums, dot, dot_saturating, weight_zero_points
from refquant.kernels.choose_qparams import choose_qparams
from refquant.kernels.engines import is_small_group, leaves_gaps, resolve
from refquant.kernels.quantized_conv import Geometry, pixel_sums, plan
from refquant.kernels.quantized_conv_transpose import Geometry as Transposed
from refquant.kernels.requantize import saturates
from refquant.ledger.cell import Call

Array = npt.NDArray[Any]


def shifted(x: npt.ArrayLike, ulps: npt.ArrayLike) -> Array:
    """Move float32 numbers by a few units in the last place, away from zero if positive."""
    bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
    return np.asarray(bits + np.asarray(ulps), np.int32).view(np.float32)


def weight_tensor(
    rng: np.random.Generator, shape: tuple[int, ...], per_channel: bool, symmetric: bool
) -> QTensor:
    """Return int8 weights with random zero points; scales are set by :func:`hug`."""
    integers = rng.integers(-128, 128, shape).astype(np.int8)
    if not per_channel:
        return QTensor(
            integers, 1.0, 0 if symmetric else int(rng.integers(-128, 128)) or 1, None, qint8
        )
    zero = np.zeros(shape[0]) if symmetric else rng.integers(-128, 128, shape[0])
    return QTensor(integers, np.ones(shape[0]), zero.astype(np.int64), 0, qint8)


def hug(
    rng: np.random.Generator, x: QTensor, weight: QTensor, total: Array, with_bias: bool
) -> tuple[QTensor, Array | None, float, int]:
    """Choose scales, bias and zero point so that ``total`` (one sum a channel) rounds at ties.

    Returns the weight with its scales, the bias, the output's scale and zero point.
    """
    channels = total.size
    zero_point = int(rng.integers(40, 215))
    tie = rng.integers(-zero_point, 255 - zero_point, channels) + 0.5
    scale = float(np.exp(rng.uniform(-6, 2)))
    sums = np.where(total == 0, 1, total).astype(np.float64)
    per_channel = weight.axis is not None
    bias = None
    if with_bias:
        size = np.exp(rng.uniform(-1, 3, channels if per_channel else ())) * scale
        step = size / (float(x.scale) * np.abs(sums).max())
        bias = shifted(tie * scale - total * float(x.scale) * step, rng.integers(-3, 4, channels))
    elif per_channel:
        step = np.abs(tie * scale / (float(x.scale) * sums))
        step = shifted(step, rng.integers(-2, 3, channels)).astype(np.float64)
    else:
        step = np.exp(rng.uniform(-9, -2))
        scale = float(abs(sums[0] * float(x.scale) * step / tie[0]))
        scale = float(shifted(np.float32(scale), rng.integers(-2, 3)))
    step = step if per_channel else float(step)
    scaled = QTensor(weight.int_repr, step, weight.zero_point, weight.axis, qint8)
    return scaled, bias, scale, zero_point


def hug_integer(
    rng: np.random.Generator, x: QTensor, weight: QTensor, total: Array, with_bias: bool
) -> tuple[QTensor, Array | None, float, int]:
    """As :func:`hug` for qnnpack, whose bias becomes an integer; a part of these is tied too."""
    units = rng.integers(-5000, 5000, total.size) if with_bias else np.zeros(total.size, int)
    scaled, _, scale, zero_point = hug(rng, x, weight, total + units, False)
    if not with_bias:
        return scaled, None, scale, zero_point
    unit = np.asarray(scaled.scale, np.float64) * float(x.scale)
    bias = (units + rng.choice([0.0, 0.5], units.size)) * unit
    return scaled, shifted(bias, rng.integers(-1, 2, units.size)), scale, zero_point


HUGS = {"fbgemm": hug, "qnnpack": hug_integer, "onednn": hug, "x86": hug}
# Above this size a sample is made large on purpose.
_WIDE = 5000


def activation(rng: np.random.Generator, shape: tuple[int, ...], reduced: bool) -> QTensor:
    """Return a uint8 tensor, of 7 bits where ``reduced``."""
    integers = rng.integers(0, 128 if reduced else 256, shape).astype(np.uint8)
    zero_point = int(rng.integers(0, 128 if reduced else 256))
    if rng.random() < 0.25:  # libraries have other kernels for 0, of bytes with sign or without
        zero_point = int(rng.choice([0, 128]))
    return QTensor(integers, float(np.exp(rng.uniform(-6, 1))), zero_point)


def linear(
    rng: np.random.Generator,
    per_channel: bool,
    with_bias: bool,
    symmetric: bool = True,
    engine: str = "fbgemm",
    size: int = 0,
    isa: Isa = Isa.AVX512_VNNI,
) -> Call:
    """Draw a linear; about one output in each column lies at a tie."""
    rows = int(rng.choice([1, 2, 3, 4, 5, 11, 13, 30]))
    depth, channels = int(rng.integers(1, 90)), int(rng.integers(1, 100))
    if size > _WIDE:
        channels = int(rng.integers(size // 300, size // 40))
        rows, depth = max(1, size // channels), int(rng.choice([depth, depth, 300]))
    x = activation(rng, (rows, depth), reduced=rng.random() < 0.3)
    weight = weight_tensor(rng, (channels, depth), per_channel, symmetric)
    pixel = x.int_repr[rng.integers(rows), None, None]
    zero = weight_zero_points(weight, channels)
    multiply = dot_saturating if saturates(Target(Engine(engine), isa)) else dot
    total = multiply(pixel, int(x.zero_point), weight.int_repr[None], zero)[0]
    weight, bias, scale, zero_point = HUGS[engine](rng, x, weight, total, with_bias)
    return Call((x, weight, bias), {"scale": scale, "zero_point": zero_point})


KINDS = ("dense", "pointwise", "grouped", "few_in_groups", "depthwise", "fast", "nearly_fast")


def _shape(rng: np.random.Generator, kind: str, rank: int) -> tuple[tuple[int, ...], Geometry]:
    """Draw a weight shape and a geometry of one kind."""
    ones = (1,) * rank
    kernel = tuple(int(k) for k in rng.integers(1, 4, rank))
    if kind in ("fast", "nearly_fast"):
        groups = int(rng.choice([8, 16, 24, 64, 72]))
        size = int(rng.choice([3, 3, 5, 7] if rank == 2 else [3, 3, 3, 5]))
        first = (int(rng.choice([3, 5])),) if rank == 3 else ()
        kernel = (*first, *(size,) * (rank - len(first)))
        stride = tuple(int(s) for s in rng.integers(1, 3, rank))
        padding = tuple(k // 2 for k in kernel)
        dilation, outputs = ones, groups * int(rng.choice([1, 1, 2]))
        if kind == "nearly_fast":
            change = rng.integers(6)
            if change == 0:
                more = groups + int(rng.choice([1, 4]))
                groups, outputs = more, more * (outputs // groups)
            elif change == 1:
                padding = (*padding[:-1], padding[-1] + 1)
            elif change == 2:
                dilation = (*ones[:-1], 2)
            elif change == 3:
                stride = (*stride[:-1], 3)
            elif change == 4:
                outputs = groups * 3
            else:
                kernel, padding = (*kernel[:-1], 8 - size), (*padding[:-1], (8 - size) // 2)
        return (outputs, 1, *kernel), Geometry(kernel, stride, padding, dilation, groups)
    if kind == "groupwise":  # fbgemm has kernels of its own for these
        each = int(rng.choice([2, 4, 8, 16]))
        groups = int(rng.choice([8, 16, 24]))
        stride = (int(rng.integers(1, 3)),) * rank
        kernel = (3,) * rank
        return (each * groups, each, *kernel), Geometry(kernel, stride, ones, ones, groups)
    stride = tuple(int(s) for s in rng.integers(1, 4, rank))
    dilation = tuple(int(d) for d in rng.choice([1, 1, 2], rank))
    if kind == "pointwise":
        kernel = ones
    padding = tuple(int(rng.integers(0, k + 1)) for k in kernel)
    groups, inputs, outputs = {
        "dense": (1, int(rng.integers(1, 40)), int(rng.integers(1, 80))),
        "pointwise": (1, int(rng.integers(1, 80)), int(rng.integers(1, 80))),
        "grouped": tuple(int(v) for v in rng.integers((2, 1, 1), (6, 10, 40))),
        "few_in_groups": tuple(
            int(rng.choice(v)) for v in (range(2, 40), (4, 8, 12, 16), (1, 2, 3, 4, 8, 16))
        ),
        "depthwise": (int(rng.integers(2, 140)), 1, int(rng.integers(1, 6))),
    }[kind]
    geometry = Geometry(kernel, stride, padding, dilation, groups)
    return (outputs * groups, inputs, *kernel), geometry


def resolved(target: Target, symmetric: bool, groups: int) -> Target:
    """Return the target with the engine that x86 takes for a convolution."""
    zero = 0 if symmetric else 1
    weight = QTensor(np.zeros((1, 1, 1), np.int8), 1.0, zero, None, qint8)
    return resolve(target, weight, groups, transposed=False)


def convolution(
    rng: np.random.Generator,
    kind: str,
    rank: int,
    per_channel: bool,
    with_bias: bool,
    symmetric: bool = True,
    engine: str = "fbgemm",
    size: int = 0,
    isa: Isa = Isa.AVX512_VNNI,
) -> Call:
    """Draw a convolution; one output pixel in each channel lies at a tie."""
    shape, geometry = _shape(rng, kind, rank)
    target = resolved(Target(Engine(engine)), symmetric, geometry.groups)
    onednn = target.engine is Engine.ONEDNN
    if onednn and geometry.groups > 1 and shape[1] == 1:  # others are wrong
        shape = (geometry.groups, *shape[1:])
    spans = [(k - 1) * d + 1 for k, d in zip(geometry.kernel, geometry.dilation, strict=True)]
    least = [max(1, s - 2 * p) for s, p in zip(spans, geometry.padding, strict=True)]
    if "fast" in kind and rank == 3:  # with an output below the padding torch corrupts memory
        enough = [1 + s * p for s, p in zip(geometry.stride, geometry.padding, strict=True)]
        least = [max(pair) for pair in zip(least, enough, strict=True)]
    if onednn:  # an input that no output sees can end the process
        least[-1] = max(least[-1], geometry.stride[-1])
        inputs = shape[1] * geometry.groups
        if is_small_group(inputs, geometry.kernel, geometry.padding, 1, geometry.groups):
            least[-1] = max(least[-1], geometry.stride[-1] + 1)
    sizes, images = [n + int(rng.integers(0, 5)) for n in least], int(rng.choice([1, 3]))
    if size > _WIDE:
        edge = (size / shape[0] / images) ** (1 / rank)
        sizes = [int(n + s * edge) for n, s in zip(sizes, geometry.stride, strict=True)]
    inputs = shape[1] * geometry.groups
    x = activation(rng, (images, inputs, *sizes), reduced=rng.random() < 0.2)
    weight = weight_tensor(rng, shape, per_channel, symmetric)
    out = geometry.out(tuple(sizes))
    pixel = int(rng.integers(np.prod(out)))
    try:
        _, way = plan("conv", x, weight, geometry, Target(Engine(engine), isa))
    except UnsupportedError:
        way = Sums.EXACT
    total = pixel_sums(x, weight, geometry, way, 0, slice(pixel, pixel + 1))[0]
    weight, bias, scale, zero_point = HUGS[engine](rng, x, weight, total, with_bias)
    _, stride, padding, dilation, groups = geometry
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Call((x, weight, bias), {**attributes, "scale": scale, "zero_point": zero_point})


def _transposed_sums(x: QTensor, weight: QTensor, at: Any, geometry: Transposed) -> Array:
    """Return the sums of one output pixel by asking each tap which input it came from."""
    kernel, stride, padding, _, dilation = geometry
    inputs = x.int_repr[0].astype(np.int64) - int(x.zero_point)
    zero = np.reshape(weight.zero_point, (-1, *(1,) * len(kernel)))
    factor = weight.int_repr.astype(np.int64) - zero
    sums = np.zeros(weight.shape[:2], np.int64)
    for tap in np.ndindex(*kernel):
        axes = zip(at, tap, stride, padding, dilation, strict=True)
        from_start = [(o + p - k * d, s) for o, k, s, p, d in axes]
        index = tuple(distance // s for distance, s in from_start)
        hit = all(distance % s == 0 for distance, s in from_start)
        if hit and all(0 <= i < n for i, n in zip(index, x.shape[2:], strict=True)):
            sums += inputs[(slice(None), *index)][:, None] * factor[(..., *tap)]
    return sums


def transposed(
    rng: np.random.Generator,
    rank: int,
    with_bias: bool,
    symmetric: bool = True,
    engine: str = "fbgemm",
    size: int = 0,
    per_channel: bool = False,
) -> Call:
    """Draw a transposed convolution; one output pixel in each channel lies at a tie."""

    def draw(low: Any, high: Any) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(low, high, rank))

    kernel, stride, dilation = draw(1, 4), draw(1, 4), draw(1, 3)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = draw(0, [span + 1 for span in spans])
    sizes = tuple(2 * p + int(n) for p, n in zip(padding, draw(1, 5), strict=True))
    extra = tuple(int(rng.integers(0, max(sd))) for sd in zip(stride, dilation, strict=True))
    groups = int(rng.choice([1, 1, 2, 9]))
    inputs, each = int(rng.choice([1, 2, 5, 8])), int(rng.integers(1, 40 if groups == 1 else 5))
    if engine == "x86" and symmetric and rng.random() < 0.3 and not any(extra):
        symmetric = False  # for fbgemm; torch hands oneDNN such weights in a wrong order
    elif engine == "onednn" or (engine == "x86" and symmetric):
        extra, inputs = (0,) * rank, int(rng.choice([1, 2, 4, 5, 8, 16, 24]))
        each = inputs
        groups = int(rng.choice([1, 1, 2, 9, 120 if inputs == 1 else 3]))
    if per_channel:
        groups = 1
    geometry = Transposed(kernel, stride, padding, extra, dilation)
    if size > _WIDE:
        edge = (size / (groups * each)) ** (1 / rank)
        sizes = tuple(int(n + edge / s) for n, s in zip(sizes, stride, strict=True))
    x = activation(rng, (int(rng.choice([1, 2])), groups * inputs, *sizes), rng.random() < 0.2)
    weight = weight_tensor(rng, (groups * inputs, each, *kernel), False, symmetric)
    if per_channel:
        zero = np.zeros(each) if symmetric else rng.integers(-128, 128, each)
        weight = QTensor(weight.int_repr, np.ones(each), zero.astype(np.int64), 1, qint8)
    if engine in ("onednn", "x86") and leaves_gaps(kernel, stride, dilation):
        x = QTensor(x.int_repr, x.scale, 0)  # others depend on what was in memory
    at = [int(rng.integers(o)) for o in geometry.out(sizes)]
    sums = _transposed_sums(x, weight, at, geometry)
    total = sums.reshape(groups, inputs, each).sum(1).ravel()
    weight, bias, scale, zero_point = HUGS[engine](rng, x, weight, total, with_bias)
    attributes = {**geometry._asdict(), "groups": groups, "scale": scale, "zero_point": zero_point}
    del attributes["kernel"]
    return Call((x, weight, bias), attributes)


def dynamic(
    rng: np.random.Generator,
    per_channel: bool,
    with_bias: bool,
    reduce_range: bool,
    symmetric: bool = True,
    size: int = 0,
) -> Call:
    """Draw a dynamic linear; half of the inputs lie at ties of their quantization."""
    rows, depth, channels = (int(n) for n in rng.integers(1, (8, 90, 80)))
    if size > _WIDE:
        channels = int(rng.integers(size // 300, size // 40))
        rows = max(1, size // channels)
    x = rng.normal(size=(rows, depth)) * np.exp(rng.uniform(-12, 3))
    x = (np.abs(x) if rng.random() < 0.2 else x).astype(np.float32)
    low, high = x.min(), x.max()
    step, zero_point = choose_qparams(low, high, *quint8.limits, reduce_range)
    tied = (rng.integers(0, 256, x.shape) - zero_point + 0.5) * step
    tied = shifted(tied, rng.integers(-2, 3, x.shape))
    inner = (x != low) & (x != high) & (tied > low) & (tied < high) & (rng.random(x.shape) < 0.5)
    x = np.where(inner, tied, x)
    weight = weight_tensor(rng, (channels, depth), per_channel, symmetric)
    scale = np.exp(rng.uniform(-9, -2, channels))
    weight = QTensor(
        weight.int_repr,
        scale if per_channel else float(scale[0]),
        weight.zero_point,
        weight.axis,
        qint8,
    )
    bias = rng.normal(size=channels).astype(np.float32) if with_bias else None
    return Call((x, weight, bias), {"reduce_range": reduce_range})
