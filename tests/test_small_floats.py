"""Functions of bfloat16 and float16, and quotients of the lowest integers, against torch."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from refquant.ir.op import OPS
from refquant.ir.qtensor import type_of

AWKWARD = np.array(
    [0, 1, -2.5, 3.3, 100, -0.0, np.inf, -np.inf, np.nan, 0.5, 1e-3, 6e-8, 6e4], np.float32
)
TYPES = [
    pytest.param(np.dtype(ml_dtypes.bfloat16), torch.bfloat16, id="bfloat16"),
    pytest.param(np.dtype(np.float16), torch.float16, id="float16"),
]
UNARY = (
    *("neg", "abs", "sign", "square", "floor", "ceil", "trunc", "round", "reciprocal", "rsqrt"),
    *("sqrt", "exp", "log", "log1p", "expm1", "sin", "cos", "erf"),
)


@pytest.mark.parametrize(("dtype", "kind"), TYPES)
@pytest.mark.parametrize("name", UNARY)
def test_a_function_of_a_small_float_is_torchs(name: str, dtype: Any, kind: Any) -> None:
    is_seen = np.abs(AWKWARD) != np.float32(6e-8)  # torch's polynomial of erf gives 0 there
    with np.errstate(over="ignore"):
        x = (AWKWARD[is_seen] if name == "erf" else AWKWARD).astype(dtype)
    op = OPS[f"aten::{name}"]
    expected = getattr(torch, name)(torch.tensor(x.astype(np.float32)).to(kind)).float().numpy()
    actual = op.reference(x)
    assert type_of(actual) == op.infer(type_of(x))
    np.testing.assert_array_equal(actual.astype(np.float32), expected)


@pytest.mark.parametrize(("dtype", "kind"), TYPES)
def test_sums_of_small_floats_are_rounded_once(dtype: Any, kind: Any) -> None:
    x = np.random.default_rng(0).integers(-8, 9, (4, 300)).astype(dtype)
    given = torch.tensor(x.astype(np.float32)).to(kind)
    for name, expected in (("sum", given.sum(1)), ("cumsum", given.cumsum(1))):
        attributes: dict[str, Any] = {"dim": (1,) if name == "sum" else 1}
        actual = OPS[f"aten::{name}"].reference(x, **attributes)
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual.astype(np.float32), expected.float().numpy())


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_a_quotient_of_the_lowest_integer_goes_to_zero(dtype: Any) -> None:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    x = np.array([low, high, low, 5, -5, 7, 0], dtype)
    y = np.array([2, -2, 3, -3, 3, low, low], dtype)
    expected = torch.div(torch.tensor(x), torch.tensor(y), rounding_mode="trunc").numpy()
    actual = OPS["aten::div"].reference(x, y, rounding_mode="trunc")
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == dtype
