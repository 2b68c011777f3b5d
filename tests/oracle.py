"""Calling torch, the oracle, with refquant's operands and attributes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from refquant.importers import fx_torch
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Engine, Isa, Target
from refquant.ir.types import DType, QScheme


def to_torch(value: Any) -> Any:
    """Turn an array, QTensor, DType or QScheme into torch's, keeping strides."""
    if isinstance(value, QTensor | np.ndarray):
        return fx_torch.to_torch(value)
    if isinstance(value, DType):
        return getattr(torch, value.name)
    return getattr(torch, value.value) if isinstance(value, QScheme) else value


def from_torch(value: Any) -> Any:
    """Turn torch's result into arrays and QTensors."""
    if isinstance(value, tuple | list):
        return tuple(map(from_torch, value))
    return fx_torch.to_tensor(value) if isinstance(value, torch.Tensor) else value


def call_torch(name: str, operands: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    """Run ``namespace::op`` of torch: our attribute names are those of its schema."""
    namespace, op = name.split("::")
    packet, _, overload = op.partition(".")
    function = getattr(getattr(torch.ops, namespace), packet)
    if overload:
        function = getattr(function, overload)
    keywords = {key: to_torch(value) for key, value in attributes.items()}
    arguments = list(map(to_torch, operands))
    schema = _schema(function, len(operands), set(attributes))
    if str(schema[0].type).startswith("List[Tensor]"):
        return from_torch(function(arguments, **keywords))
    tensors = [x.name for x in schema if "Tensor" in str(x.type)][: len(operands)]
    if tensors == [x.name for x in schema[: len(operands)]]:
        return from_torch(function(*arguments, **keywords))
    return from_torch(function(**dict(zip(tensors, arguments, strict=True)), **keywords))


def _schema(function: Any, operands: int, attributes: set[str]) -> Any:
    """Return the arguments of the overload that takes these attributes, or of the first one."""
    if isinstance(function, torch._ops.OpOverload):
        return function._schema.arguments
    schemas = [getattr(function, name)._schema.arguments for name in function.overloads()]
    for schema in schemas:
        tensors = sum("Tensor" in str(x.type) for x in schema)
        if attributes <= {x.name for x in schema} and tensors >= operands:
            return schema
    return schemas[0]


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


def this_machine() -> Target:
    """Return the target whose bits the installed torch gives here, on one thread.

    Run the tests under ``ATEN_CPU_CAPABILITY=avx2`` or ``default`` to check the other targets.
    """
    isa = {"AVX512": Isa.AVX512_VNNI, "AVX2": Isa.AVX2, "DEFAULT": Isa.DEFAULT}
    return Target(Engine.FBGEMM, isa[torch.backends.cpu.get_cpu_capability()], 1)


@contextmanager
def torch_as(target: Target) -> Iterator[None]:
    """Let torch use the engine and the number of threads of a target."""
    engines = torch.backends.quantized
    before = torch.get_num_threads(), engines.engine
    torch.set_num_threads(target.threads)
    engines.engine = str(target.engine)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        engines.engine = before[1]


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
