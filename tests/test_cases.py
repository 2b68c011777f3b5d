"""Every op against its hand-written cases, by reference and by kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refquant.ir.op import OPS, Case, Op
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType

CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}") for op in OPS.values() for case in op.cases
]


def bare(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(map(bare, result))
    return result.int_repr if isinstance(result, QTensor) else result


def check(result: Any, expected: Any) -> None:
    if isinstance(result, tuple):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            check(one, other)
    else:
        np.testing.assert_array_equal(bare(result), expected)


@pytest.mark.parametrize(("op", "case"), CASES)
def test_reference_and_kernels_give_the_written_result(op: Op, case: Case) -> None:
    for engine in case.engines or op.kernels:
        for fast in (False, True):
            function = op.bind(Target(engine), fast=fast)
            operands = case.operands
            if fast and op.pack is not None:
                weight = op.pack(operands[op.weight], **case.attributes)
                operands = (*operands[: op.weight], weight, *operands[op.weight + 1 :])
            check(function(*operands, **case.attributes), case.expected)


def fits(inferred: TensorType, actual: TensorType) -> bool:
    """Whether types agree; quantization parameters chosen from the data cannot be inferred."""
    if inferred.dtype.is_quantized and inferred.qparams is None:
        actual = TensorType(actual.dtype, actual.shape)
    return inferred == actual


@pytest.mark.parametrize(("op", "case"), CASES)
def test_the_inferred_type_is_the_type_of_the_result(op: Op, case: Case) -> None:
    types = [None if x is None else type_of(x) for x in case.operands]
    inferred = op.infer(*types, **case.attributes)
    engine = next(iter(op.kernels), Engine.FBGEMM)
    result = op.bind(Target(engine), fast=False)(*case.operands, **case.attributes)
    if isinstance(inferred, TensorType):
        assert fits(inferred, type_of(result))
    else:
        pairs = zip(inferred, result, strict=True)
        assert all(fits(one, type_of(part)) for one, part in pairs)


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in OPS.values()])
def test_an_op_is_complete(op: Op) -> None:
    assert op.cases, "an op needs a hand-written case"
    assert op.source, "an op names where torch computes it"
    assert len(op.doc) > 40, "the reference's docstring is the op's documentation"
    assert all(case.why for case in op.cases)
    assert set(op.kernels) <= set(Engine)
