"""The digits networks that onnxruntime quantizes give its bits, in every way it quantizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quantized_digits import DATA, NETWORKS, WAYS, Way, images, quantized
from runtime import run

from refquant.importers import from_onnx

TEST = images()["Xt"]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_quantized_by_onnxruntime(way: Way, tmp_path: Path) -> None:
    model = quantized(way, tmp_path)
    graph = from_onnx(model, target="ort")
    (expected,) = run(model, TEST)
    np.testing.assert_array_equal(graph(TEST), expected)
    few = TEST[:20]
    np.testing.assert_array_equal(graph(few, executor="reference"), run(model, few)[0])
    np.testing.assert_array_equal(graph(TEST[:1]), run(model, TEST[:1])[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_the_float_networks(network: str) -> None:
    model = DATA / f"digits_{network}.onnx"
    (expected,) = run(model, TEST)
    # Under engine onnx float products are summed in NumPy's order.
    np.testing.assert_allclose(from_onnx(model)(TEST), expected, rtol=1e-4, atol=1e-5)


def test_the_specification_is_another_machine(tmp_path: Path) -> None:
    model = quantized(Way("cnn", "qoperator", "u8s8", True), tmp_path)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(from_onnx(model, target="onnx")(TEST), run(model, TEST)[0])
