"""Samples of linear, convolution and transposed convolution, static and dynamic."""

from __future__ import annotations

from functools import partial

import numpy as np

from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine
from refquant.ir.types import DType, float32, qint8, quint8
from refquant.kernels.choose_qparams import choose_qparams
from refquant.kernels.layout import channels_last
from refquant.kernels.quantized_conv import Geometry
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw import weighted
from refquant.ledger.draw.tensors import Rng, real
from refquant.ledger.ties import at_tie

KINDS = {1: weighted.KINDS[:4], 2: weighted.KINDS, 3: weighted.KINDS}


def symmetric(rng: Rng, cell: Cell) -> bool:
    """Whether all weight zero points are 0, as oneDNN wants it; torch refuses others."""
    return cell.target.engine is Engine.ONEDNN or rng.random() < 0.5


def varied(rng: Rng, call: Call, dtype: DType) -> Call:
    """Move some zero points to an end, some results beyond every limit; then set the dtype."""
    x, *rest = call.operands
    attributes = dict(call.attributes)
    if rng.random() < 0.25:
        attributes["zero_point"] = int(rng.choice([0, 1, 127, 128, 254, 255]))
    if rng.random() < 0.03:
        attributes["scale"] *= 1e-8
    if dtype == qint8:
        x = QTensor((x.int_repr ^ 128).view(np.int8), x.scale, x.zero_point - 128, None, qint8)
        attributes["zero_point"] -= 128
    if x.int_repr.ndim > 3 and rng.random() < 0.5:
        x = x.with_int_repr(channels_last(x.int_repr))
    return Call((x, *rest), attributes)


def linear(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw rows and a weight; some inputs have leading axes."""
    per_channel, with_bias = rng.random(2) < 0.5
    call = weighted.linear(
        *(rng, per_channel, with_bias, symmetric(rng, cell), str(cell.target.engine), size),
        cell.target.isa,
    )
    (x, weight, bias), attributes = varied(rng, call, cell.dtype)
    if x.shape[0] % 2 == 0 and rng.random() < 0.3:
        x = x.with_int_repr(x.int_repr.reshape(2, -1, x.shape[1]))
    return Call((x, weight, bias), attributes)


def linear_dynamic(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw float rows, half of them at ties of their own quantization."""
    per_channel, with_bias, reduce_range = rng.random(3) < 0.5
    return weighted.dynamic(
        rng, per_channel, with_bias, bool(reduce_range), symmetric(rng, cell), size
    )


def convolution(rng: Rng, cell: Cell, size: int, rank: int) -> Call:
    """Draw a convolution of any kind, those with many groups among them."""
    engine = str(cell.target.engine)
    kinds = KINDS[rank] + (("groupwise",) if engine in ("fbgemm", "x86") else ())
    kind = str(rng.choice(kinds))
    per_channel, with_bias = rng.random(2) < 0.5
    call = weighted.convolution(
        *(rng, kind, rank, per_channel, with_bias, symmetric(rng, cell), engine, size),
        cell.target.isa,
    )
    return varied(rng, call, cell.dtype)


def transposed(rng: Rng, cell: Cell, size: int, rank: int) -> Call:
    """Draw a transposed convolution; under qnnpack some weights are quantized per channel."""
    engine = cell.target.engine
    per_channel = engine is Engine.QNNPACK and rng.random() < 0.4
    with_bias = rng.random() < 0.5
    call = weighted.transposed(
        rng, rank, with_bias, symmetric(rng, cell), str(engine), size, per_channel
    )
    return varied(rng, call, cell.dtype)


def convolution_add(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a convolution and what it adds to; the scale of that puts one result at a tie."""
    (x, weight, bias), attributes = convolution(rng, cell, size, 2)
    keys = ("stride", "padding", "dilation", "groups")
    stride, padding, dilation, groups = (attributes[key] for key in keys)
    out = Geometry(weight.shape[2:], stride, padding, dilation, groups).out(x.shape[2:])
    integers = rng.integers(0, 256, (x.shape[0], weight.shape[0], *out)).astype(np.uint8)
    if rng.random() < 0.5:
        integers = channels_last(integers)
    zero_point = int(rng.integers(0, 256))

    def make(scale: float) -> Call:
        other = QTensor(integers, scale, zero_point)
        return Call((x, weight, bias, other), attributes)

    start = attributes["scale"] * float(np.exp(rng.uniform(-2, 1)))
    return make(start) if cell.dtype == qint8 else at_tie(rng, cell, make, start)


def convolution_dynamic(rng: Rng, cell: Cell, size: int, rank: int) -> Call:
    """Draw a convolution of floats; the weight's scale puts one result at a tie."""
    draw = transposed if "transpose" in cell.name else convolution
    (feed, weight, bias), attributes = draw(rng, cell, size, rank)
    geometry = {k: v for k, v in attributes.items() if k not in ("scale", "zero_point")}
    geometry["reduce_range"] = bool(rng.random() < 0.5)
    x = (feed.int_repr - rng.uniform(0, 255)) * np.exp(rng.uniform(-8, 2))
    x = (x + rng.normal(size=x.shape) * x.std() / 100).astype(np.float32)
    if feed.zero_point == 0:
        x = np.abs(x)
    if bias is not None:
        bias = (rng.normal(size=bias.shape) * x.std() / 2).astype(np.float32)
    spread = np.exp(rng.uniform(-1, 1, np.shape(weight.scale)))
    start = float(np.exp(rng.uniform(-1, 1)) / (64 * np.sqrt(weight.int_repr[0].size)))

    def make(scale: float) -> Call:
        scales = scale * spread if weight.axis is not None else scale
        scaled = QTensor(weight.int_repr, scales, weight.zero_point, weight.axis, qint8)
        return Call((x, scaled, bias), geometry)

    return at_tie(rng, cell, make, start)


def linear_leaky_relu(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a linear and a slope; the slope puts one result at a tie, others are tied above."""
    operands, attributes = linear(rng, cell, size)

    def make(slope: float) -> Call:
        return Call(operands, {**attributes, "negative_slope": slope})

    return at_tie(rng, cell, make, float(rng.choice([0.01, 0.1, 0.3, 1.5])))


def linear_tanh(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a linear with results of a few units; the scale of the result puts one at a tie."""
    (x, weight, bias), attributes = linear(rng, cell, size)
    unit = float(x.scale) * np.sqrt(weight.shape[1]) * 5000 / np.exp(rng.uniform(-1, 2))
    step = np.exp(rng.uniform(-0.5, 0.5, np.shape(weight.scale))) / unit
    step = step if weight.axis is not None else float(step)
    weight = QTensor(weight.int_repr, step, weight.zero_point, weight.axis, qint8)
    if bias is not None:
        bias = rng.normal(size=bias.shape).astype(np.float32)
    start = float(rng.uniform(0.004, 0.02))
    return at_tie(rng, cell, lambda s: Call((x, weight, bias), {**attributes, "scale": s}), start)


def linear_q_dq(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw float rows and quantization parameters that put half of them at ties."""
    (x, weight, bias), _ = linear_dynamic(rng, cell, size)
    scale, zero_point = choose_qparams(float(x.min()), float(x.max()), 0, 255, False)
    scale *= float(rng.choice([1, 0.7]))  # some are clamped
    return Call((x, weight, bias), {"X_scale": scale, "X_zero_point": zero_point})


def linear_wrapped(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a linear whose operands are given as real numbers; one in each column is tied."""
    engine = str(cell.target.engine)
    drawn = weighted.linear(rng, False, True, symmetric(rng, cell), engine, size)
    x, weight, bias = drawn.operands
    scale, zero_point = drawn.attributes["scale"], drawn.attributes["zero_point"]
    operands: list[object] = []
    for tensor in (x, weight):
        operands += [real(tensor).astype(np.float32), np.array([tensor.scale], np.float32)]
        operands.append(np.array([tensor.zero_point], np.int32))
    operands += [bias, np.array([scale], np.float32), np.array([zero_point], np.int32)]
    return Call(tuple(operands), {"out_channel": weight.shape[0]})


LARGEST = 2_000_000  # elements of an operand


def linear_fp16(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw float rows and weights, some of them at ties of float16 or beyond its range."""
    depth = int(rng.choice([1, 7, 64, 511, 512, 513, 1100]))
    channels = int(rng.choice([1, 5, 31, 32, 33, 64, 95, 130]))
    rows = max(1, min(size // channels, LARGEST // depth))
    x = rng.normal(size=(rows, depth)).astype(np.float32)
    weight = (rng.normal(size=(channels, depth)) * np.exp(rng.uniform(-12, 3))).astype(np.float32)
    half = weight.astype(np.float16)
    tied = (half.astype(np.float32) + np.nextafter(half, np.float16(9)).astype(np.float32)) / 2
    weight = np.where(rng.random(weight.shape) < 0.3, tied, weight)
    if rng.random() < 0.1:
        weight[0, 0] = rng.choice([1e6, -7e4])
    wrapped = "wrapped" in cell.name
    bias = rng.normal(size=channels).astype(np.float32)
    if not wrapped and rng.random() < 0.5:
        return Call((x, weight, None), {})
    return Call((x, weight, bias), {"out_channel": channels} if wrapped else {})


def _both(stem: str, suffix: str = "") -> tuple[str, str]:
    return f"quantized::{stem}{suffix}", f"quantized::{stem}_relu{suffix}"


SAMPLERS: dict[str, Sampler] = {
    **dict.fromkeys(_both("linear"), linear),
    **dict.fromkeys(_both("linear", "_dynamic"), linear_dynamic),
    **dict.fromkeys(_both("linear", "_dynamic_fp16"), linear_fp16),
    "quantized::linear_dynamic_fp16_unpacked_weight": linear_fp16,
    "quantized::linear_leaky_relu": linear_leaky_relu,
    "quantized::linear_tanh": linear_tanh,
    "quantized::linear_with_input_q_dq_qweight_dq_output_fp32": linear_q_dq,
    "quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32": linear_q_dq,
    **dict.fromkeys(_both("conv2d_add"), convolution_add),
    "_quantized::linear": linear,
    "_quantized::wrapped_fbgemm_linear_fp16_weight": linear_fp16,
    "_quantized::wrapped_quantized_linear": linear_wrapped,
    "_quantized::_wrapped_quantized_linear_prepacked": linear_wrapped,
    "_quantized::linear_dynamic": linear_dynamic,
    **{f"_quantized::conv2d{relu}": partial(convolution, rank=2) for relu in ("", "_relu")},
    **{f"_quantized::conv_transpose{rank}d": partial(transposed, rank=rank) for rank in (1, 2)},
    **{
        name: partial(convolution, rank=rank)
        for rank in (1, 2, 3)
        for name in _both(f"conv{rank}d")
    },
    **{f"quantized::conv_transpose{rank}d": partial(transposed, rank=rank) for rank in (1, 2, 3)},
    **{
        f"quantized::{stem}{rank}d_dynamic": partial(convolution_dynamic, rank=rank)
        for stem in ("conv", "conv_transpose")
        for rank in (1, 2, 3)
    },
}
_FLOAT = ("dynamic", "fp16", "fp32", "weight", "wrapped_quantized_linear", "prepacked")
DTYPES: dict[str, tuple[DType, ...]] = {
    name: (float32,) if name.endswith(_FLOAT) else (quint8, qint8) for name in SAMPLERS
}
