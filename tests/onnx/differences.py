"""Count where engines part on samples that hug ties, and write the table of the page.

``python tests/onnx/differences.py`` rewrites the part of ``docs/onnx_numerics.md`` between the
markers. Engines of torch are refquant's own, which equal torch; onnxruntime and ``onnx.reference``
are run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import test_attention
import test_recurrent
from onnx import TensorProto
from onnx_oracle import run_ort, run_reference

from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ir.types import qint8, quint8

PAGE = Path(__file__).parents[2] / "docs" / "onnx_numerics.md"
BEGIN, END = "<!-- differences -->", "<!-- end of differences -->"
F = np.float32
TORCH = ("fbgemm", "qnnpack", "onednn")
U8 = (TensorProto.UINT8,)
RNG = np.random.default_rng(2024)
COUNT = 120_000


def near(zero: int, *shape: int, reach: int = 4) -> Any:
    """Return uint8 near a zero point."""
    return np.clip(zero + RNG.integers(-reach, reach + 1, shape), 0, 255).astype(np.uint8)


def tied(unit: float) -> Any:
    """Return a scale with which some small multiples of a unit lie next to k + 0.5."""
    scale = F(unit * RNG.integers(1, 24) / (RNG.integers(0, 12) + 0.5))
    return np.nextafter(scale, F(scale * RNG.choice([0.5, 1, 2])), dtype=F)


def real(low: float = 0.01, high: float = 0.1) -> Any:
    return F(RNG.uniform(low, high))


def torch(name: str, *operands: Any, **attributes: Any) -> dict[str, Callable[[], Any]]:
    """Return what runs torch's operator on each of its engines."""

    def on(engine: str) -> Callable[[], Any]:
        return lambda: OPS[name].bind(Target(engine), fast=True)(*operands, **attributes).int_repr

    return {engine: on(engine) for engine in TORCH}


def quantize() -> Any:
    scale, zero = real(), int(RNG.integers(256))
    k = RNG.integers(-zero - 9, 264 - zero, 6000)
    x = np.nextafter((k + 0.5).astype(F) * scale, F(RNG.choice([-1e9, 1e9])), dtype=F)
    x = np.where(RNG.random(6000) < 0.5, x, (k + 0.5).astype(F) * scale)
    how = {"scale": float(scale), "zero_point": zero, "dtype": quint8}
    return (x, scale, np.uint8(zero)), {}, torch("aten::quantize_per_tensor", x, **how)


def linear() -> Any:
    za, zy = (int(z) for z in RNG.integers(0, 256, 2))
    depth = int(RNG.integers(1, 9))
    a = near(za, 60, depth)
    b = RNG.integers(-4, 5, (depth, 100)).astype(np.int8)
    sa, sb = real(), real()
    sy = tied(float(sa) * float(sb))
    o = (a, sa, np.uint8(za), b, sb, np.int8(0), sy, np.uint8(zy))
    weight = QTensor(np.ascontiguousarray(b.T), float(sb), 0, None, qint8)
    x = QTensor(a, float(sa), za)
    how = {"scale": float(sy), "zero_point": zy}
    return o, {}, torch("quantized::linear", x, weight, None, **how)


def convolution() -> Any:
    za, zy = (int(z) for z in RNG.integers(0, 256, 2))
    x, w = near(za, 1, 3, 15, 15), RNG.integers(-4, 5, (32, 3, 3, 3)).astype(np.int8)
    sx, sw = real(), RNG.uniform(0.01, 0.1, 32).astype(F)
    sy = tied(float(sx) * float(sw[0]))
    o = (x, sx, np.uint8(za), w, sw, np.zeros(32, np.int8), sy, np.uint8(zy))
    weight = QTensor(w, sw.astype(np.float64), np.zeros(32, np.int64), 0, qint8)
    window: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    how = {**window, "scale": float(sy), "zero_point": zy}
    torchs = torch("quantized::conv2d", QTensor(x, float(sx), za), weight, None, **how)
    return o, {"pads": (1, 1, 1, 1)}, torchs


def pair(name: str, wide: int) -> Callable[[], Any]:
    def draw() -> Any:
        za, zb, zc = (int(z) for z in RNG.integers(0, 256, 3))
        a, b = RNG.integers(0, 256, (2, 6000)).astype(np.uint8)
        sa, sb, sc = (F(2.0 ** RNG.integers(-6, 0) * RNG.integers(1, 32) / 16) for _ in range(3))
        sc = F(sc * wide)
        o = (a, sa, np.uint8(za), b, sb, np.uint8(zb), sc, np.uint8(zc))
        operands = QTensor(a, float(sa), za), QTensor(b, float(sb), zb)
        return o, {}, torch(name, *operands, scale=float(sc), zero_point=zc)

    return draw


def average() -> Any:
    zx = int(RNG.integers(256))
    x, sx = near(zx, 2, 8, 20, 20), real()
    o = (x, sx, np.uint8(zx), sx, np.uint8(zx))
    how: dict[str, Any] = {"kernel_size": (2, 2), "stride": (1, 1), "padding": (0, 0)}
    torchs = torch("aten::avg_pool2d", QTensor(x, float(sx), zx), **how)
    return o, {"kernel_shape": (2, 2)}, torchs


def whole_map() -> Any:
    zx = int(RNG.integers(256))
    x, sx = near(zx, 64, 90, 2, 2), real()
    o = (x, sx, np.uint8(zx), sx, np.uint8(zx))
    torchs = torch("aten::adaptive_avg_pool2d", QTensor(x, float(sx), zx), output_size=(1, 1))
    return o, {}, torchs


DRAWN: dict[str, Callable[[], Any]] = {
    "onnx::QuantizeLinear": quantize,
    "onnx::QLinearMatMul": linear,
    "onnx::QLinearConv": convolution,
    "com.microsoft::QLinearAdd": pair("quantized::add", 1),
    "com.microsoft::QLinearMul": pair("quantized::mul", 64),
    "com.microsoft::QLinearAveragePool": average,
    "com.microsoft::QLinearGlobalAveragePool": whole_map,
}


def row(name: str, draw: Callable[[], Any]) -> list[str]:
    """Return the counts of an operator."""
    op = OPS[name]
    specified = name.startswith("onnx::")
    total = 0
    counts = dict.fromkeys(("onnxruntime", "onnx.reference", "onnx", *TORCH), 0)
    while total < COUNT:
        operands, attributes, torchs = draw()
        ort, spec = (
            op.bind(Target(engine), fast=True)(*operands, **attributes)
            for engine in ("ort", "onnx")
        )
        total += ort.size
        others = {"onnxruntime": run_ort(name, operands, attributes, U8), "onnx": spec}
        others |= {engine: run() for engine, run in torchs.items()}
        for key, other in others.items():
            counts[key] += int((np.asarray(other) != ort).sum())
        if specified:
            counts["onnx.reference"] += int(
                (run_reference(name, operands, attributes, U8) != spec).sum()
            )
    short = name.split("::")[1]
    reference = str(counts["onnx.reference"]) if specified else "none"
    onnx = str(counts["onnx"]) if specified else "the same"
    first = [f"`{short}`", str(total), str(counts["onnxruntime"]), reference, onnx]
    return first + [str(counts[engine]) for engine in TORCH]


def table() -> str:
    """Return the table."""
    head = [
        *("operator", "elements", "ort, onnxruntime", "onnx, onnx.reference", "ort, onnx"),
        *(f"ort, {engine}" for engine in TORCH),
    ]
    rows = [row(name, draw) for name, draw in DRAWN.items()]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ---- layers of float results, in which a single last bit would spread


def function(name: str) -> Callable[[], Any]:
    return lambda: (f"onnx::{name}", [test_recurrent.normal(5000, wide=3)], {}, {})


def softmax() -> Any:
    x = test_recurrent.normal(40, int(RNG.integers(1, 300)), wide=5)
    return "onnx::Softmax", [x], {"axis": 1}, {"dim": 1}


def lstm() -> Any:
    operands, how = test_recurrent.floating(str(RNG.choice(list(test_recurrent.DIRECTIONS))), 100)
    return "onnx::LSTM", operands, how, test_recurrent.complete(how)


def dynamic_lstm() -> Any:
    direction = str(RNG.choice(list(test_recurrent.DIRECTIONS)))
    dtype = RNG.choice([np.uint8, np.int8])
    operands, how = test_recurrent.dynamic(direction, dtype, each=RNG.random() < 0.5)
    return test_recurrent.DYNAMIC, operands, how, how


def attention() -> Any:
    time, head = int(RNG.integers(1, 60)), int(RNG.integers(1, 80))
    operands, how = test_attention.attention(time, head, int(RNG.integers(6)))
    return test_attention.ATTENTION, operands, how, how


LAYERS: dict[str, Callable[[], Any]] = {
    "aten::sigmoid": function("Sigmoid"),
    "aten::tanh": function("Tanh"),
    "aten::softmax": softmax,
    "onnx::LSTM": lstm,
    test_recurrent.DYNAMIC: dynamic_lstm,
    test_attention.ATTENTION: attention,
}
RESULTS = {"onnx::LSTM": 3, test_recurrent.DYNAMIC: 3, test_attention.ATTENTION: 2}


def layer_row(name: str, draw: Callable[[], Any]) -> list[str]:
    """Return the counts of a layer."""
    total = differing = 0
    while total < COUNT:
        theirs, operands, attributes, ours = draw()
        count = RESULTS.get(name, 1)
        expected = run_ort(theirs, operands, attributes, (TensorProto.FLOAT,) * count, (1, 2))
        found = OPS[name].bind(Target("ort"), fast=True)(*operands, **ours)
        pairs = zip(found, expected, strict=True) if count > 1 else ((found, expected),)
        for one, other in pairs:
            total += one.size
            differing += int((one != other).sum())
    return [f"`{name.split('::')[1]}`", str(total), str(differing)]


def layers() -> str:
    """Return the table of layers."""
    head = ["layer", "elements", "ort, onnxruntime"]
    lines = [head, ["---", "---:", "---:"], *(layer_row(*item) for item in LAYERS.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Write the table into the page and print it."""
    found = f"{table()}\n\n{layers()}"
    print(found)
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{found}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
