"""The vectors recorded from torch; no torch needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden import Vector, load

from refquant import observer
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ops import function

VECTORS, FACTS = load()
TARGET = Target("fbgemm", {"AVX512": "avx512_vnni", "AVX2": "avx2"}[FACTS["capability"]])


def parts(result: Any) -> list[Any]:
    if isinstance(result, tuple):
        return [part for one in result for part in parts(one)]
    if isinstance(result, QTensor):
        return [result.int_repr, np.asarray(result.scale), np.asarray(result.zero_point)]
    return [np.asarray(result)]


def run(vector: Vector, executor: str) -> tuple[Any, ...]:
    if "::" in vector.name:
        result = function(vector.name)(
            *vector.operands, **vector.attributes, target=TARGET, executor=executor
        )
        return result if isinstance(result, tuple) else (result,)
    made = getattr(observer, vector.name)(**vector.attributes, target=TARGET)
    for batch in vector.operands:
        made(batch)
    state = made.state_dict()
    return (*made.calculate_qparams(), *(state[key] for key in sorted(state)))


@pytest.mark.parametrize("executor", ["fast", "reference"])
@pytest.mark.parametrize("name", sorted({vector.name for vector in VECTORS}))
def test_recorded_vectors(name: str, executor: str) -> None:
    chosen = [vector for vector in VECTORS if vector.name == name]
    assert chosen
    for vector in chosen:
        actual = parts(run(vector, executor))
        for one, other in zip(actual, parts(vector.expected), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            np.testing.assert_array_equal(one, other)


def test_the_vectors_are_many_and_their_machine_is_known() -> None:
    assert len(VECTORS) >= 70
    assert FACTS["torch"].startswith("2.13.0")
    assert FACTS["threads"] == 1
