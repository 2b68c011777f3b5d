"""The saturation report: proofs against brute force, counts against a naive loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

import refquant
from refquant import saturation_report
from refquant.cli import app
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.graph import Graph, Node, Value
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Target
from refquant.ir.types import QParams, TensorType, float32, qint8, quint8
from refquant.saturation import largest_activation, worst_pair

AVX2 = "fbgemm/avx2"
DIGITS = Path(refquant.__file__).parent / "data" / "digits_cnn.rq"


def graph_of(
    op: str,
    weight: QTensor,
    shape: tuple[int, ...],
    dtype: Any = quint8,
    **attributes: Any,
) -> Graph:
    qparams = QParams(1.0, 0) if dtype == quint8 else None
    x = Value("x", TensorType(dtype, shape, qparams))
    operands = (x.type, weight.type, None)
    y = Value("y", OPS[op].infer(*operands, **attributes))
    node = Node(op, (x, Value("weight", weight.type), None), attributes, (y,))
    return Graph([x], [node], (y,), parameters={"weight": weight})


def linear(weight: npt.ArrayLike, rows: int = 1) -> Graph:
    factor = QTensor(np.asarray(weight, np.int8), 1.0, 0, None, qint8)
    shape = (rows, factor.shape[1])
    return graph_of("quantized::linear", factor, shape, scale=1.0, zero_point=0)


def overshoots(x: npt.NDArray[Any], weight: npt.NDArray[Any]) -> int:
    """Count saturating pairs of rows by rows of a weight, one by one."""
    count = 0
    for row in x.astype(int).tolist():
        for factor in weight.astype(int).tolist():
            products = [a * w for a, w in zip(row, factor, strict=True)] + [0] * (len(row) % 2)
            sums = [products[i] + products[i + 1] for i in range(0, len(products), 2)]
            count += sum(s > 32767 or s < -32768 for s in sums)
    return count


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_is_tight(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(1, 7))
    weight = rng.integers(-128, 128, (3, depth)).astype(np.int8)
    layer = saturation_report(linear(weight), target=AVX2).layers[0]
    rows = rng.choice([0, layer.largest], (10_000, depth))
    pairs = np.pad(rows[:, None] * weight.astype(int), ((0, 0), (0, 0), (0, depth % 2)))
    sums = pairs[..., 0::2] + pairs[..., 1::2]
    assert sums.max() <= 32767
    assert sums.min() >= -32768
    assert layer.safe == (layer.largest == 255)
    if not layer.safe:
        worst = largest_plus_one(layer.largest, weight)
        assert overshoots(worst, weight) > 0
        assert layer.worst is not None
        first, second = layer.worst.weights
        a, b = layer.worst.activations
        assert a * first + b * second == layer.worst.sum
        assert not -32768 <= layer.worst.sum <= 32767
        held = weight[layer.worst.channel, 2 * layer.worst.number :][:2].tolist()
        assert [first, second][: len(held)] == held
        assert 2 ** (8 - layer.bits) - 1 <= layer.largest < 2 ** (9 - layer.bits) - 1


def largest_plus_one(largest: int, weight: npt.NDArray[np.int8]) -> npt.NDArray[Any]:
    """Return rows that hold one more than the bound where weights of one sign stand."""
    signs = [np.where(weight > 0, largest + 1, 0), np.where(weight < 0, largest + 1, 0)]
    return np.concatenate(signs)


def test_every_activation_of_one_pair() -> None:
    a, b = np.meshgrid(np.arange(256), np.arange(256))
    for first, second in ((127, 1), (127, 2), (-128, 0), (-128, -1), (100, -100), (64, 65)):
        sums = a * first + b * second
        matrix = np.int8([[[[first, second]]]])
        pair = worst_pair(matrix, 0, 255)
        assert abs(pair.sum) == np.abs(sums).max()
        within = [m for m in range(256) if _fits(sums[: m + 1, : m + 1])]
        assert largest_activation(matrix) == max(within)


def _fits(sums: npt.NDArray[Any]) -> bool:
    return bool(sums.max() <= 32767 and sums.min() >= -32768)


def test_a_safe_layer_has_the_same_bits_everywhere() -> None:
    rng = np.random.default_rng(1)
    weight = rng.integers(-64, 65, (8, 33)).astype(np.int8)
    graph = linear(weight, rows=50)
    x = QTensor(rng.choice([0, 255], (50, 33)).astype(np.uint8), 1.0, 0)
    report = saturation_report(graph, x, AVX2)
    assert report.safe
    assert report.saturated == ()
    results = [graph.run(x, target=Target.parse(t)).outputs.int_repr for t in (AVX2, "fbgemm")]
    np.testing.assert_array_equal(*results)


def test_counts_of_a_linear_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(2)
    weight = rng.integers(-128, 128, (5, 7)).astype(np.int8)
    x = rng.integers(0, 256, (9, 7)).astype(np.uint8)
    for target in (AVX2, "fbgemm/avx512", "onednn/avx512", "x86/avx2"):
        report = saturation_report(linear(weight, rows=9), QTensor(x, 1.0, 0), target)
        count = report.layers[0].count
        assert count is not None
        assert count.saturated == overshoots(x, weight) > 0
        assert (count.pairs, count.outputs) == (9 * 5 * 4, 45)
        hit = [overshoots(x[i : i + 1], weight[j : j + 1]) for i in range(9) for j in range(5)]
        assert count.affected == np.count_nonzero(hit)
        assert report.saturated == ("y",)
        assert "of 180 pairs" in str(report)


def image_case(
    inputs: int, groups: int, zero_point: int, seed: int = 3
) -> tuple[Graph, QTensor, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (2 * groups, inputs // groups, 3, 3)).astype(np.int8)
    x = QTensor(rng.integers(0, 256, (1, inputs, 4, 5)).astype(np.uint8), 1.0, zero_point)
    factor = QTensor(weight, 1.0, 0, None, qint8)
    ones = (1, 1)
    attributes: dict[str, Any] = {"stride": ones, "padding": ones, "dilation": ones}
    y = {"scale": 900.0, "zero_point": 100}
    operands = Value("x", type_of(x)), Value("weight", factor.type)
    result = OPS["quantized::conv2d"].infer(
        operands[0].type, operands[1].type, None, **attributes, groups=groups, **y
    )
    node = Node(
        "quantized::conv2d",
        (*operands, None),
        {**attributes, "groups": groups, **y},
        (Value("y", result),),
    )
    return Graph([operands[0]], [node], node.outputs, parameters={"weight": factor}), x, weight


@pytest.mark.parametrize(("target", "in_taps"), [(AVX2, False), ("onednn/avx512", True)])
def test_counts_of_a_convolution_are_those_of_a_loop(target: str, in_taps: bool) -> None:
    graph, x, weight = image_case(inputs=3, groups=1, zero_point=200)
    padded = np.pad(
        x.int_repr[0].astype(int), ((0, 0), (1, 1), (1, 1)), constant_values=0 if in_taps else 200
    )
    count = 0
    for row in range(4):
        for column in range(5):
            seen = padded[:, row : row + 3, column : column + 3]
            if in_taps:  # a fourth input of 0
                seen = np.pad(seen, ((0, 1), (0, 0), (0, 0)))
            taken = np.moveaxis(seen, 0, -1).reshape(1, -1)
            factor = np.pad(weight, ((0, 0), (0, int(in_taps)), (0, 0), (0, 0)))
            count += overshoots(taken, np.moveaxis(factor, 1, -1).reshape(2, -1))
    layer = saturation_report(graph, x, target).layers[0]
    assert layer.count is not None
    assert layer.count.saturated == count > 0
    assert layer.count.outputs == 40


def test_depthwise_layers_saturate_with_vnni_too() -> None:
    graph, x, _ = image_case(inputs=8, groups=8, zero_point=0)
    layer = saturation_report(graph, x, "fbgemm").layers[0]
    assert not layer.safe
    assert layer.count is not None
    assert layer.count.saturated > 0
    dense, feed, _ = image_case(inputs=8, groups=1, zero_point=0)
    report = saturation_report(dense, feed, "fbgemm")
    assert report.safe
    assert report.layers[0].count is not None
    assert report.layers[0].count.saturated == 0
    assert "exact sums" in str(report)


def test_a_dynamic_layer_with_reduce_range_is_safe() -> None:
    weight = QTensor(np.full((2, 6), -128, np.int8), 1.0, 0, None, qint8)
    x = np.linspace(-1, 2, 24, dtype=np.float32).reshape(4, 6)
    for reduce_range in (True, False):
        graph = graph_of(
            "quantized::linear_dynamic", weight, (4, 6), dtype=float32, reduce_range=reduce_range
        )
        report = saturation_report(graph, x, AVX2)
        assert report.safe is reduce_range
        assert bool(report.saturated) is not reduce_range


def test_relu_and_clamp_bound_the_activations() -> None:
    graph = linear([[127, 127]])
    x = Value("raw", TensorType(quint8, (1, 2), QParams(1.0, 0)))
    for op, attributes, bounds in (
        ("aten::relu", {}, (0, 255)),
        ("aten::clamp", {"min": 3.0, "max": 100.0}, (2, 101)),
        ("aten::hardtanh", {"min_val": 0.0, "max_val": 200.0}, (0, 201)),
        ("aten::relu6", {}, (0, 7)),
    ):
        before = Node(op, (x,), attributes, (graph.inputs[0],))
        bounded = Graph([x], [before, *graph.nodes], graph.outputs, parameters=graph.parameters)
        layer = saturation_report(bounded, target=AVX2).layers[0]
        assert (layer.low, layer.high) == bounds
        assert layer.safe is (bounds[1] <= layer.largest == 129)


def test_bad_input_is_one_line() -> None:
    graph = linear([[1, 2]])
    with pytest.raises(VerifyError, match="expected a Graph or a model that has one"):
        saturation_report(3)
    with pytest.raises(VerifyError, match=r"expected 1 inputs \(x\), got 2"):
        saturation_report(graph, [np.zeros(2), np.zeros(2)], AVX2)
    with pytest.raises(VerifyError, match="engine 'gpu' is not one of"):
        saturation_report(graph, target="gpu")
    with pytest.raises(VerifyError, match="parsed from text"):
        saturation_report(refquant.parse(str(graph)), target=AVX2)
    shifted = QTensor(np.ones((1, 1, 3, 3), np.int8), 1.0, 5, None, qint8)
    attributes = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    refused = graph_of(
        "quantized::conv2d", shifted, (1, 1, 4, 4), **attributes, scale=1.0, zero_point=0
    )
    with pytest.raises(UnsupportedError, match=r"node y .*: engine onednn needs weight zero"):
        saturation_report(refused, target="onednn/avx512")


def test_the_command_prints_the_report() -> None:
    result = CliRunner().invoke(app, ["saturation", str(DIGITS), "--engine", AVX2, "--json"])
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert report["target"] == "fbgemm/avx2/threads=1"
    assert report["layers"][0]["node"] == "stem_0"
    table = CliRunner().invoke(app, ["saturation", str(DIGITS), "--engine", "fbgemm"])
    assert table.stdout.count("exact sums") == 6
