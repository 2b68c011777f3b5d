"""Calling torch, the oracle, with refquant's operands and attributes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Engine, Isa, Target
from refquant.ir.types import DType, quint4x2
from refquant.kernels.layout import is_channels_last


def to_torch(value: Any) -> Any:
    """Turn an array, QTensor or DType into torch's, keeping strides."""
    if isinstance(value, QTensor):
        if value.axis is None:
            return _make_per_tensor(value)
        integers = torch.as_tensor(value.int_repr)
        made = torch._make_per_channel_quantized_tensor(
            integers,
            torch.as_tensor(np.asarray(value.scale)),
            torch.as_tensor(np.asarray(value.zero_point)),
            value.axis,
        )
        if is_channels_last(value.int_repr):  # making the tensor loses its memory format
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            made = made.contiguous(memory_format=formats[made.ndim])
        return made
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, DType):
        return getattr(torch, value.name)
    return value


def _make_per_tensor(value: QTensor) -> torch.Tensor:
    """Make the memory first: torch gives a made tensor a memory format of its own choice."""
    x = value.int_repr
    steps = [stride // x.itemsize for stride in x.strides]
    extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, steps, strict=True))
    memory = np.lib.stride_tricks.as_strided(x, (extent if x.size else 0,), (x.itemsize,))
    made = torch._make_per_tensor_quantized_tensor(
        torch.as_tensor(memory), float(value.scale), int(value.zero_point)
    )
    return made.as_strided(x.shape, steps)


def _integers(value: torch.Tensor) -> Any:
    """Return ``int_repr`` with the strides of ``value``, which ``int_repr`` itself may lose."""
    if value.dtype == torch.quint4x2 or value.qscheme() != torch.per_tensor_affine:
        return value.int_repr().numpy()
    extent = 1 + sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    memory = value.as_strided((extent if value.numel() else 0,), (1,)).int_repr().numpy()
    steps = [step * memory.itemsize for step in value.stride()]
    return np.lib.stride_tricks.as_strided(memory, tuple(value.shape), steps)


def from_torch(value: Any) -> Any:
    """Turn torch's result into arrays and QTensors."""
    if isinstance(value, tuple | list):
        return tuple(map(from_torch, value))
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if not value.is_quantized:
        return value.numpy()
    from refquant.ir.types import DTYPES

    dtype = DTYPES[str(value.dtype).removeprefix("torch.")]
    integers = _integers(value)
    if dtype == quint4x2:  # two values to a byte, the first one in the low half
        pairs = np.stack([integers & 15, integers >> 4], -1)
        integers = pairs.reshape(-1)[: value.numel()].reshape(value.shape)
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return QTensor(integers, value.q_scale(), value.q_zero_point(), None, dtype)
    return QTensor(
        integers,
        value.q_per_channel_scales().numpy(),
        value.q_per_channel_zero_points().numpy(),
        value.q_per_channel_axis(),
        dtype,
    )


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
