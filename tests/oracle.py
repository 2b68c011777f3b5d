"""Calling torch, the oracle, with refquant's operands and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from refquant.ir.qtensor import QTensor
from refquant.ir.types import DType


def to_torch(value: Any) -> Any:
    """Turn an array, QTensor or DType into torch's, keeping strides."""
    if isinstance(value, QTensor):
        integers = torch.as_tensor(value.int_repr)
        if value.axis is None:
            return torch._make_per_tensor_quantized_tensor(
                integers, float(value.scale), int(value.zero_point)
            )
        return torch._make_per_channel_quantized_tensor(
            integers,
            torch.as_tensor(np.asarray(value.scale, np.float64)),
            torch.as_tensor(np.asarray(value.zero_point, np.int64)),
            value.axis,
        )
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, DType):
        return getattr(torch, value.name)
    return value


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
    integers = value.int_repr().numpy()
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
    function = getattr(getattr(torch.ops, namespace), op)
    keywords = {key: to_torch(value) for key, value in attributes.items()}
    return from_torch(function(*map(to_torch, operands), **keywords))


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
