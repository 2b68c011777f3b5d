"""Time quantized ONNX models against onnxruntime and onnx.reference, in turn in one process.

``python benchmarks/onnx_models.py [--write]``. onnxruntime quantizes the models and runs them with
its optimisation and one thread; without optimisation it gives the bits that are compared. With
``--write`` the table goes into ``docs/onnx.md``.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import nets
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from pairs import Pair, Row, measure, set_threads

from refquant.importers import from_onnx

PAGE = Path(__file__).parents[1] / "docs" / "onnx.md"
DIGITS = Path(__file__).parents[1] / "examples" / "data"
WANTED = {"onnxruntime": 0.8, "onnx.reference": 100.0}
START, END = "<!-- times of the models -->", "<!-- end of the times of the models -->"


class _Once(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feed: dict[str, Any]) -> None:
        self.feeds = iter([feed])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def session(path: Any, *, optimised: bool) -> Any:
    """Open a model in onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def against_onnxruntime(name: str, path: Path, x: Any) -> Pair:
    """Return a model on one input; its bits are compared with optimisation off."""
    graph = from_onnx(path, target="ort")
    fast, entry = session(path, optimised=True), graph.inputs[0].name
    plain = session(path, optimised=False).run(None, {entry: x})[0]
    same = np.array_equal(graph(x), plain)
    return Pair(
        name,
        lambda: graph(x),
        lambda: fast.run(None, {entry: x}),
        WANTED["onnxruntime"],
        "onnxruntime",
        exact=False,
        note="the same bits" if same else f"differs by {np.abs(graph(x) - plain).max():.2g}",
    )


def against_reference(name: str, model: Any, x: Any) -> Pair:
    """Return a model of standard operators on one input, under engine onnx."""
    graph = from_onnx(model)
    evaluator = ReferenceEvaluator(model)
    entry = graph.inputs[0].name
    theirs = evaluator.run(None, {entry: x})[0]
    same = np.array_equal(graph(x), theirs)
    return Pair(
        name,
        lambda: graph(x),
        lambda: evaluator.run(None, {entry: x}),
        WANTED["onnx.reference"],
        "onnx.reference",
        exact=False,
        note="the same bits" if same else f"{np.sum(graph(x) != theirs)} elements differ",
    )


def networks(folder: Path) -> Iterator[Pair]:
    """Yield networks of images that onnxruntime quantizes to integer operators."""
    for name, title in (("resnet18", "ResNet-18"), ("mobilenet_v2", "MobileNetV2")):
        x = torch.randn(1, 3, 224, 224)
        source, made = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
        torch.onnx.export(nets.float_net(name), (x,), str(source), dynamo=False)
        entry = onnx.load(source).graph.input[0].name
        quantize_static(
            source,
            made,
            _Once({entry: x.numpy()}),
            quant_format=QuantFormat.QOperator,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        yield against_onnxruntime(f"{title}, QOperator, u8s8 per channel", made, x.numpy())


def digits(folder: Path) -> Iterator[Pair]:
    """Yield a small network on a batch of digits, quantized to integers and dynamically."""
    data = np.load(DIGITS / "digits_data.npz")
    x = data["Xt"].astype(np.float32) / data["scale"]
    source = folder / "digits_cnn.onnx"
    source.write_bytes((DIGITS / source.name).read_bytes())
    made = folder / "static.onnx"
    calibrate = _Once({"x": x[:64]})
    quantize_static(source, made, calibrate, quant_format=QuantFormat.QOperator, per_channel=True)
    yield against_onnxruntime("digits cnn, QOperator, 450 images", made, x)
    made = folder / "dynamic.onnx"
    source = folder / "digits_mlp.onnx"
    source.write_bytes((DIGITS / source.name).read_bytes())
    quantize_dynamic(source, made)
    yield against_onnxruntime("digits mlp, dynamic, 450 images", made, x)


def chain(layers: int, channels: int, size: int) -> tuple[Any, Any]:
    """Return a model of QLinearConv alone, and its input."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {}
    nodes = []
    for i in range(layers):
        weight = rng.integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8)
        own = {
            f"w{i}": weight,
            f"ws{i}": rng.uniform(0.001, 0.01, channels).astype(np.float32),
            f"wz{i}": np.zeros(channels, np.int8),
            f"b{i}": rng.integers(-999, 999, channels).astype(np.int32),
        }
        constants |= own | {"s": np.float32(0.03), "z": np.uint8(110)}
        constants |= {f"ys{i}": np.float32(0.03 * channels**0.5 * 1.3)}
        scale = "s" if i == 0 else f"ys{i - 1}"
        names = [f"x{i}", scale, "z", f"w{i}", f"ws{i}", f"wz{i}", f"ys{i}", "z", f"b{i}"]
        nodes.append(helper.make_node("QLinearConv", names, [f"x{i + 1}"], pads=[1] * 4))
    shape = (1, channels, size, size)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(data), name) for name, data in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return model, rng.integers(0, 256, shape).astype(np.uint8)


def product(rows: int, depth: int, columns: int) -> tuple[Any, Any]:
    """Return a model of DynamicQuantizeLinear and MatMulInteger, and its input."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (depth, columns)).astype(np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["y"]),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (rows, depth))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return model, rng.standard_normal((rows, depth)).astype(np.float32)


def operators(folder: Path) -> Iterator[Pair]:
    """Yield models of standard operators, against both."""
    made = {
        "4 x QLinearConv 3x3, 64 channels at 28": chain(4, 64, 28),
        "4 x QLinearConv 3x3, 256 channels at 14": chain(4, 256, 14),
        "MatMulInteger 128 x 768 x 3072, dynamic": product(128, 768, 3072),
    }
    for index, (name, (model, x)) in enumerate(made.items()):
        path = folder / f"operators{index}.onnx"
        onnx.save(model, path)
        yield against_onnxruntime(name, path, x)
        yield against_reference(name, model, x)


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    text = io.StringIO()
    print("| model | other | refquant, ms | other, ms | ratio | wanted | bits |", file=text)
    print("|---|---|--:|--:|--:|--:|---|", file=text)
    for row in rows:
        pair = row.pair
        times = f"{row.ours * 1e3:.2f} | {row.theirs * 1e3:.2f} | {row.ratio:.2f}"
        print(
            f"| {pair.name} | {pair.other} | {times} | {pair.wanted:g} | {pair.note} |", file=text
        )
    return text.getvalue()


def write(text: str) -> None:
    """Put the table between its marks in the page."""
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n{text}\n{END}{after}")


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/onnx.md")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each pair")
    options = parser.parse_args()
    set_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        for pairs in (networks(folder), digits(folder), operators(folder)):
            for pair in pairs:
                least = 3 if pair.other == "onnx.reference" else 7
                rows.append(measure(pair, options.budget, least))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    if options.write:
        write(table(rows))


if __name__ == "__main__":
    main()
