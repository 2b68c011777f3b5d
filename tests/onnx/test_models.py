"""Trained models that ship in packages of PyPI give what onnxruntime gives.

Float outputs agree within 1e-4 of the largest, integer tensors exactly.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from runtime import run

from refquant.importers import from_onnx

rng = np.random.default_rng(5)
RATE = np.array(16_000, np.int64)


class Model(NamedTuple):
    """A file in a package, what it is fed, and what the importer is told."""

    package: str
    file: str
    inputs: dict[str, Any]
    shapes: dict[str, Any] = {}  # noqa: RUF012
    constants: dict[str, Any] = {}  # noqa: RUF012

    @property
    def path(self) -> Path:
        spec = find_spec(self.package)
        assert spec is not None
        assert spec.submodule_search_locations
        return Path(spec.submodule_search_locations[0]) / self.file


def speech() -> Any:
    """Return a window of a voice-like wave: a pitch with overtones that swells."""
    time = np.arange(576) / 16_000
    wave = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 9))
    return (0.2 * np.linspace(0, 1, 576) * wave).astype(np.float32)[None]


def files(count: int) -> Any:
    """Return real files as magika sees them: 1,024 bytes of the beginning and of the end."""
    here = Path(__file__)
    chosen = [here, here.parents[2] / "pyproject.toml", here.parents[2] / "docs/performance.svg"]
    rows = []
    for path in chosen[:count]:
        data = path.read_bytes().strip()
        row = np.full(2048, 256, np.int32)  # 256 stands for no byte
        head, tail = data[:1024], data[-1024:]
        row[: len(head)] = list(head)
        row[2048 - len(tail) :] = list(tail)
        rows.append(row)
    return np.stack(rows)


STATE = np.zeros((2, 1, 128), np.float32)
WINDOW = {"input": speech(), "state": STATE}
ONE = {"input": (1, 576), "state": (2, 1, 128)}
CLASSIFIER = "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
MODELS = {
    "text direction": Model(
        "rapidocr_onnxruntime",
        CLASSIFIER,
        {"x": rng.standard_normal((2, 3, 48, 192)).astype(np.float32)},
        {"x": ("N", 3, 48, 192)},
    ),
    "text recognition": Model(
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_rec_infer.onnx",
        {"x": rng.standard_normal((1, 3, 48, 160)).astype(np.float32)},
        {"x": (1, 3, 48, 160)},
    ),
    "file types": Model("magika", "models/standard_v3_3/model.onnx", {"bytes": files(3)}),
    **{
        f"voice {name}": Model(
            "silero_vad", f"data/{name}.onnx", WINDOW | {"sr": RATE}, ONE, {"sr": RATE}
        )
        for name in ("silero_vad", "silero_vad_16k_op15", "silero_vad_op18_ifless")
    },
    "voice half": Model("silero_vad", "data/silero_vad_half.onnx", WINDOW, ONE),
    "voice openvino": Model("silero_vad", "data/silero_vad_openvino_16k.onnx", WINDOW),
    **{
        f"vowels {name}": Model(
            "text2tashkeel",
            f"models/{name}.int8.onnx",
            {key: rng.integers(1, 30, (1, 24))},
            {key: (1, 24)},
        )
        for name, key in (
            *(("rawi", "input"), ("rawi_v2", "input"), ("rawi_v3", "input")),
            *(("rawi_ensemble", "input"), ("bilstm", "input_ids")),
        )
    },
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_outputs(model: Model) -> None:
    graph = from_onnx(model.path, shapes=model.shapes, constants=model.constants, target="ort")
    fed = [model.inputs[value.name] for value in graph.inputs]
    result = graph(*fed)
    found = result if isinstance(result, tuple) else (result,)
    expected = run(model.path, model.inputs)
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        compare(got, wanted)


def compare(got: Any, wanted: Any) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, wanted)
        return
    # Layers such as norms are summed in another order than onnxruntime's.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_integer_tensors_on_the_way() -> None:
    """Every 8-bit and int32 value of a dynamically quantized model is onnxruntime's."""
    model = MODELS["vowels rawi"]
    proto = onnx.load(model.path)
    graph = from_onnx(model.path, shapes=model.shapes, target="ort")
    fed = [model.inputs[value.name] for value in graph.inputs]
    values = graph.run(*fed, record=True).values
    named = {name for node in proto.graph.node for name in node.output}
    integers = [name for name, x in values.items() if name in named and x.dtype.name in INTEGERS]
    assert integers
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in integers)
    expected = run(proto, model.inputs)
    for name, wanted in zip(integers, expected, strict=True):
        np.testing.assert_array_equal(values[name], wanted, err_msg=name)


INTEGERS = ("uint8", "int8", "int32")


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("vowels")])
def test_every_bit_of_a_dynamically_quantized_model(name: str) -> None:
    model = MODELS[name]
    graph = from_onnx(model.path, shapes=model.shapes, target="ort")
    result = graph(*(model.inputs[value.name] for value in graph.inputs))
    found = result if isinstance(result, tuple) else (result,)
    for one, wanted in zip(found, run(model.path, model.inputs), strict=True):
        np.testing.assert_array_equal(one, wanted)
