"""ONNX's own node tests: every one gives the standard's result, or is refused with a reason."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from refquant.ir.errors import UnsupportedError
from refquant.onnx_backend import RefquantBackend

# Tests that are refused: pattern of the name, and a part of the reason that is given.
UNSUPPORTED = {
    r"adagrad|adam|momentum|nesterov_momentum": "training is not part of this importer",
    r"ai_onnx_ml_tree": "classical machine learning is not part",
    r"ai_onnx_ml_label_encoder": "element type string is not supported",
    r"bernoulli": "random numbers: nothing says which",
    r"image_decoder": "compressed images are not tensors",
    r"not_[234]d": "opset 1 is not supported",
    r"training_dropout(?!_zero_ratio)": "nothing says which elements",
    r"equal_string|regex_full_match|string|strnormalizer": "element type string is not supported",
    r"tfidfvectorizer": "text is not part of this importer",
}
QUANTIZATION = re.compile(r"test_(.*quantizelinear|qlinear|.*integer)")
# How many tests must pass.
LEAST = 1820


def _load() -> list[TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the formulas that make the expected results
        return sorted(load_model_tests(kind="node"), key=lambda case: case.name)


CASES = _load()


def reason_of(name: str) -> str | None:
    """Return why a test is refused; None if it must pass."""
    found = [why for pattern, why in UNSUPPORTED.items() if re.match(f"test_({pattern})", name)]
    return found[0] if found else None


def plain(value: Any) -> Any:
    """Return what a case holds as arrays."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def check(got: Any, want: Any, case: TestCase) -> None:
    """Assert that a result is the expected one: type, shape and elements."""
    if want is None or isinstance(want, list):
        assert type(got) is type(want)
        for one, other in zip(got or (), want or (), strict=True):
            check(one, other, case)
        return
    want = np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if want.dtype.kind not in "biu":  # NumPy knows no NaN of the types it does not have
        got, want = got.astype(np.float64), want.astype(np.float64)
    if want.dtype.kind != "f" or QUANTIZATION.match(case.name):
        np.testing.assert_array_equal(got, want)
    else:
        # The tolerance is the test's own, as its author set it.
        np.testing.assert_allclose(got, want, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_a_node_gives_the_result_of_the_standard(case: TestCase) -> None:
    refused = reason_of(case.name)
    for inputs, outputs in case.data_sets:
        if refused is not None:
            with pytest.raises(UnsupportedError, match=re.escape(refused)):
                RefquantBackend.run_model(case.model, list(inputs))
            continue
        results = RefquantBackend.run_model(case.model, list(inputs))
        for got, want in zip(results, outputs, strict=True):
            check(got, plain(want), case)


def test_few_tests_are_refused() -> None:
    assert sum(reason_of(case.name) is None for case in CASES) >= LEAST


def test_every_test_of_quantization_passes() -> None:
    named = [case.name for case in CASES if QUANTIZATION.match(case.name)]
    assert len(named) >= 45
    assert not any(map(reason_of, named))
