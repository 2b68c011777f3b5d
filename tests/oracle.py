"""Assertions against torch, the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Target
from refquant.ledger.oracle import (
    call_torch,
    from_torch,
    packed_table,
    this_machine,
    to_torch,
    torch_as,
)

__all__ = ["call_torch", "from_torch", "packed_table", "this_machine", "to_torch", "torch_as"]


def assert_same(actual: Any, expected: Any) -> None:
    """Equal bits: values, dtype and shape, and for quantized tensors scale and zero point."""
    if isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
        return
    if isinstance(expected, QTensor):
        assert isinstance(actual, QTensor)
        np.testing.assert_array_equal(actual.scale, expected.scale)
        np.testing.assert_array_equal(actual.zero_point, expected.zero_point)
        assert actual.axis == expected.axis
        assert actual.dtype == expected.dtype
        assert_same(actual.int_repr, expected.int_repr)
        return
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def assert_same_strides(actual: Any, expected: Any) -> None:
    """Equal strides, in elements, of every dimension longer than one."""
    if isinstance(actual, QTensor) and isinstance(expected, QTensor):
        actual, expected = actual.int_repr, expected.int_repr
    if actual.size:
        long = [n > 1 for n in expected.shape]
        for x in (actual, expected):
            assert x.itemsize == expected.itemsize
        assert [s for s, keep in zip(actual.strides, long, strict=True) if keep] == [
            s for s, keep in zip(expected.strides, long, strict=True) if keep
        ]


def assert_matches_torch(
    name: str, operands: tuple[Any, ...], attributes: dict[str, Any], target: Target | None = None
) -> Any:
    """Reference, kernel and ``infer`` give what torch gives: bits, strides and type."""
    target = this_machine() if target is None else target
    op = OPS[name]
    with torch_as(target):
        expected = call_torch(name, operands, attributes)
    for fast in (False, True):
        actual = op.bind(target, fast=fast)(*operands, **attributes)
        assert_same(actual, expected)
        assert_same_strides(actual, expected)
    types = [None if x is None else type_of(x) for x in operands]
    assert op.infer(*types, **attributes) == type_of(actual)
    return expected
