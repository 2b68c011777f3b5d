"""Times of single quantized operators beside onnxruntime, one thread, calls in turn.

``python benchmarks/onnx_operators.py [part of a name]`` prints a line for each operator and size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import refquant
from refquant.importers import from_onnx

F = np.float32
ZERO = np.uint8(128)
RNG = np.random.default_rng(0)
SECONDS, CALLS = 0.5, 400
FLOAT, BYTE, WORD = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT32


class Timed(NamedTuple):
    """An operator, what it is given (the first operand is no constant), and its results' types."""

    op: str
    operands: list[Any]
    results: tuple[int, ...]
    attributes: dict[str, Any] = {}  # noqa: RUF012


def u8(*shape: int) -> Any:
    """Return bytes."""
    return RNG.integers(0, 256, shape).astype(np.uint8)


def i8(*shape: int) -> Any:
    """Return signed bytes."""
    return RNG.integers(-127, 128, shape).astype(np.int8)


def real(*shape: int, wide: float = 1.0) -> Any:
    """Return normal values."""
    return RNG.normal(0, wide, shape).astype(F)


def products() -> Iterator[tuple[str, Timed]]:
    """Yield products and convolutions."""
    none = np.int8(0)
    for m, k, n in ((1, 768, 768), (1, 512, 2048), (32, 256, 256), (128, 768, 768)):
        size, w = f"{m}x{k}x{n}", i8(k, n)
        o = [real(m, k), w, F(0.01), none, real(n)]
        yield f"DynamicQuantizeMatMul {size}", Timed("DynamicQuantizeMatMul", o, (FLOAT,))
        yield f"MatMulInteger {size}", Timed("MatMulInteger", [u8(m, k), w, ZERO, none], (WORD,))
        bias = RNG.integers(-1000, 1000, n).astype(np.int32)
        o = [u8(m, k), F(0.02), ZERO, w, F(0.01), none, bias, F(0.5), ZERO]
        yield f"QGemm {size}", Timed("QGemm", o, (BYTE,))
    for c, o, length, k in ((64, 64, 56, 3), (256, 256, 14, 3), (64, 256, 56, 1)):
        operands = [u8(1, c, length, length), i8(o, c, k, k), ZERO]
        how = {"pads": [k // 2] * 4}
        yield (
            f"ConvInteger {c}x{o} {k}x{k} of {length}",
            Timed("ConvInteger", operands, (WORD,), how),
        )


def elements() -> Iterator[tuple[str, Timed]]:
    """Yield what is done to each element."""
    for shape in ((1, 768), (128, 768), (128, 3072), (1, 64, 56, 56)):
        x = real(*shape)
        results = (BYTE, FLOAT, BYTE)
        yield f"DynamicQuantizeLinear {shape}", Timed("DynamicQuantizeLinear", [x], results)
        yield f"QuantizeLinear {shape}", Timed("QuantizeLinear", [x, F(0.02), ZERO], (BYTE,))
    for name in ("Sigmoid", "Tanh"):
        yield f"{name} (128, 3072)", Timed(name, [real(128, 3072)], (FLOAT,))
    yield "Softmax (1536, 128)", Timed("Softmax", [real(1536, 128)], (FLOAT,), {"axis": -1})


def pools() -> Iterator[tuple[str, Timed]]:
    """Yield pools of bytes."""
    parameters = [F(0.02), ZERO, F(0.02), ZERO]
    how: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    o = [u8(1, 64, 56, 56), *parameters]
    yield "QLinearAveragePool 2x2", Timed("QLinearAveragePool", o, (BYTE,), how)
    o = [u8(1, 512, 7, 7), *parameters]
    yield "QLinearGlobalAveragePool 7x7", Timed("QLinearGlobalAveragePool", o, (BYTE,))
    how = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    yield "MaxPool 3x3", Timed("MaxPool", [u8(1, 64, 112, 112)], (BYTE,), how)


def layers() -> Iterator[tuple[str, Timed]]:
    """Yield recurrent layers and attention."""
    scale, zero = np.full(1, 0.002, F), np.zeros(1, np.int8)
    for time, batch, hidden in ((24, 1, 64), (24, 1, 256), (100, 1, 128), (24, 8, 512)):
        size, four = f"{time} steps, {batch} of {hidden}", 4 * hidden
        how = {"hidden_size": hidden}
        x, b = real(time, batch, hidden), real(1, 2 * four)
        w, r = i8(1, hidden, four), i8(1, hidden, four)
        o = [x, w, r, b, *[None] * 4, scale, zero, scale, zero]
        yield f"DynamicQuantizeLSTM {size}", Timed("DynamicQuantizeLSTM", o, (FLOAT,) * 3, how)
        w, r = real(1, four, hidden, wide=0.1), real(1, four, hidden, wide=0.1)
        yield f"LSTM {size}", Timed("LSTM", [x, w, r, b], (FLOAT,) * 3, how)
    o = [u8(1, 128, 768), i8(768, 2304), real(2304), F(0.01), F(1e-4), None, ZERO, np.int8(0)]
    yield "QAttention 128x768", Timed("QAttention", o, (FLOAT,) * 2, {"num_heads": 12})


MICROSOFT = ("DynamicQuantizeMatMul", "QGemm", "DynamicQuantizeLSTM", "QAttention")


def model(timed: Timed) -> onnx.ModelProto:
    """Return a model of one node, all of whose operands but the first are constants."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(timed.operands)]
    outputs = [f"y{i}" for i in range(len(timed.results))]
    domain = "com.microsoft" if timed.op in MICROSOFT or timed.op.startswith("QLinear") else ""
    node = helper.make_node(timed.op, names, outputs, domain=domain, **timed.attributes)
    x = np.asarray(timed.operands[0])
    code = helper.np_dtype_to_tensor_dtype(x.dtype)
    constants = [
        numpy_helper.from_array(np.asarray(x), name)
        for name, x in zip(names[1:], timed.operands[1:], strict=True)
        if name
    ]
    results = [
        helper.make_tensor_value_info(y, t, None)
        for y, t in zip(outputs, timed.results, strict=True)
    ]
    value = helper.make_tensor_value_info("x0", code, x.shape)
    graph = helper.make_graph([node], "one", [value], results, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def compare(timed: Timed) -> tuple[float, float]:
    """Return the median times of onnxruntime and of refquant in microseconds."""
    proto, x = model(timed), np.asarray(timed.operands[0])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    graph = from_onnx(proto, target="ort")
    for _ in range(2):
        graph(x)
    theirs: list[float] = []
    ours: list[float] = []
    start = perf_counter()
    while len(ours) < 5 or (perf_counter() - start < SECONDS and len(ours) < CALLS):
        begin = perf_counter()
        session.run(None, {"x0": x})
        middle = perf_counter()
        graph(x)
        theirs.append(middle - begin)
        ours.append(perf_counter() - middle)
    return float(np.median(theirs)) * 1e6, float(np.median(ours)) * 1e6


def main(part: str = "") -> None:
    """Print the times of all operators whose name has a part."""
    refquant.set_num_threads(1)
    for group in (products, elements, pools, layers):
        for name, timed in group():
            if part in name:
                theirs, ours = compare(timed)
                ratio = theirs / ours
                print(f"{name:40} {theirs:9.1f} us {ours:9.1f} us {ratio:6.2f}x", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
