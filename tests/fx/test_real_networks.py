"""Trained networks on real images, and three ImageNet architectures: every stage is torch's."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import flows
import numpy as np
import pytest
import torch
from torch.ao.quantization import (
    QConfigMapping,
    default_dynamic_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    quantize_fx,
)

import refquant
from refquant import quantize_fx as ours_fx
from refquant.compare import graph_diff, run_diff
from refquant.importers import from_fx, from_torch_config

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import digits  # noqa: E402
import nets  # noqa: E402

FORMS = {
    "reference": ("convert_to_reference_fx",),
    "decomposed": ("_convert_to_reference_decomposed_fx",),
    "lowered": ("convert_fx",),
}


def same_at_every_stage(
    model: torch.nn.Module, mapping: Any, calibration: Any, qat: bool = False
) -> tuple[Any, Any]:
    """Prepare, calibrate by torch, convert in three forms; return both lowered models."""
    prepare = "prepare_qat_fx" if qat else "prepare_fx"
    with flows.fbgemm():
        theirs = getattr(quantize_fx, prepare)(copy.deepcopy(model), mapping, (calibration,))
        ours = getattr(ours_fx, prepare)(model, from_torch_config(mapping), (calibration,))
        assert not graph_diff(ours, theirs)
        theirs(calibration)
        ours.load_state_dict(theirs.state_dict())
        if qat:
            theirs.eval()
            ours.eval()
        assert not graph_diff(ours, theirs)
        for (name,) in FORMS.values():
            converted = getattr(ours_fx, name)(ours)
            expected = getattr(quantize_fx, name)(copy.deepcopy(theirs))
            difference = graph_diff(converted, expected)
            assert not difference, f"{name}: {difference}"
    return converted, expected


def bit_exact(ours: Any, theirs: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    with flows.fbgemm(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = run_diff(ours.graph, theirs, inputs)
    assert report.bit_exact, str(report)
    assert not report.unmatched


@pytest.mark.parametrize("name", ["cnn", "cnnr", "mlp"])
def test_digits(name: str) -> None:
    mapping = get_default_qconfig_mapping("fbgemm")
    made = same_at_every_stage(digits.trained(name), mapping, digits.images("X"))
    bit_exact(*made, (digits.images(),))


@pytest.mark.parametrize("name", ["cnnr", "mlp"])
def test_digits_in_training_mode(name: str) -> None:
    mapping = get_default_qat_qconfig_mapping("fbgemm")
    model = digits.trained(name).train()
    made = same_at_every_stage(model, mapping, digits.images("X"), qat=True)
    bit_exact(*made, (digits.images(),))


def test_the_recurrent_digits_network_dynamically() -> None:
    mapping = QConfigMapping().set_global(default_dynamic_qconfig)
    ours, theirs = same_at_every_stage(digits.trained("lstm"), mapping, digits.images("X"))
    images = digits.images()
    with flows.fbgemm():
        expected = theirs(images).numpy()
    np.testing.assert_array_equal(ours(images.numpy()), expected)
    assert (expected.argmax(1) == digits.labels()).mean() > 0.95


def test_the_recurrent_digits_network_statically() -> None:
    mapping = get_default_qconfig_mapping("fbgemm")
    ours, theirs = same_at_every_stage(digits.trained("lstm"), mapping, digits.images("X"))
    images = digits.images()
    with flows.fbgemm():
        expected = theirs(images).numpy()
    got = ours(images.numpy())
    # The LSTM stays float, whose sums torch leaves to MKL: one step of the output's scale.
    scale = theirs.o.scale
    assert np.abs(got - expected).max() <= 1.01 * scale
    assert (got == expected).mean() > 0.99


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_imagenet_architectures(name: str) -> None:
    mapping = get_default_qconfig_mapping("fbgemm")
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64)
    made = same_at_every_stage(nets.float_net(name, 64), mapping, images)
    bit_exact(*made, (images,))


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
import refquant
from refquant import quantize_fx
from refquant.ir.program import Program
import pickle
graph, images, test, labels = pickle.load(open(sys.argv[1], "rb"))
prepared = quantize_fx.prepare_fx(graph, refquant.get_default_qconfig_mapping("fbgemm"), None)
prepared(images)
converted = quantize_fx.convert_fx(prepared)
print((converted(test).argmax(1) == labels).mean())
"""


def test_from_float_to_int8_without_torch(tmp_path: Path) -> None:
    import pickle

    images, test = digits.images("X"), digits.images()
    model = digits.trained("cnn")
    graph = from_fx(model, (test,))
    graph._plans.clear()
    path = tmp_path / "graph.pickle"
    path.write_bytes(pickle.dumps((graph, images.numpy(), test.numpy(), digits.labels())))
    script = [sys.executable, "-c", WITHOUT_TORCH, str(path)]
    printed = subprocess.run(script, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    with flows.fbgemm():
        theirs = quantize_fx.prepare_fx(model, get_default_qconfig_mapping("fbgemm"), (test,))
        theirs(images)
        logits = quantize_fx.convert_fx(theirs)(test).numpy()
    expected = (logits.argmax(1) == digits.labels()).mean()
    assert abs(float(printed) - expected) <= 0.005
    assert refquant.__version__


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_a_model_that_torch_prepared_and_calibrated_is_converted(name: str) -> None:
    with flows.fbgemm():
        mapping = get_default_qconfig_mapping("fbgemm")
        theirs = quantize_fx.prepare_fx(digits.trained(name), mapping, (digits.images(),))
        theirs(digits.images("X"))
        imported = from_fx(theirs, (digits.images(),))
        for given in (theirs, imported):
            for (convert,) in FORMS.values():
                expected = getattr(quantize_fx, convert)(copy.deepcopy(theirs))
                assert not graph_diff(getattr(ours_fx, convert)(given), expected)
