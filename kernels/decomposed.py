"""What the ``quantized_decomposed`` ops share: ranges of the quantized types, checks, one maker.

These ops keep quantized values in plain integer (or float8) tensors, as exported graphs do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import (
    DType,
    Shape,
    TensorType,
    bfloat16,
    element_count,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    format_shape,
    int8,
    int16,
    int32,
    uint8,
    uint16,
)
from refquant.kernels import eager
from refquant.kernels.checks import broadcast
from refquant.kernels.promotion import Number

SOURCE = ("pytorch/torch/ao/quantization/fx/_decomposed.py",)
FLOATS = (float32, float16, bfloat16)
BOUNDS = {
    **{d: (np.iinfo(d.storage).min, np.iinfo(d.storage).max) for d in (uint8, int8, uint16)},
    **{d: (np.iinfo(d.storage).min, np.iinfo(d.storage).max) for d in (int16, int32)},
    float8_e5m2: (-57344, 57344),
    float8_e4m3fn: (-448, 448),
}


def check_target(op: str, dtype: DType) -> None:
    """Check that a dtype can hold quantized values."""
    if dtype not in BOUNDS:
        names = ", ".join(map(str, BOUNDS))
        raise VerifyError(f"{op}: expected a plain integer dtype, got {dtype}; accepted: {names}")


def check_range(op: str, quant_min: Number, quant_max: Number, dtype: DType) -> None:
    """Check that a range is not empty and lies within its dtype."""
    check_target(op, dtype)
    low, high = BOUNDS[dtype]
    if not low <= quant_min <= quant_max <= high:
        raise VerifyError(f"{op}: range [{quant_min}, {quant_max}] does not fit {dtype}")


def check_input(op: str, x: TensorType, accepted: tuple[DType, ...]) -> None:
    """Check the dtype of the input."""
    if x.dtype not in accepted:
        raise VerifyError(f"{op}: expected {' or '.join(map(str, accepted))}, got {x.dtype}")


def check_operand(op: str, x: TensorType | None, operand: str) -> TensorType:
    """Check that an operand is there and is a plain tensor."""
    if not isinstance(x, TensorType) or x.dtype.is_quantized:
        raise VerifyError(f"{op}: {operand} must be a plain tensor, got {x}")
    return x


def check_one_element(op: str, **operands: TensorType | Number) -> None:
    """Check that operands are plain tensors of one element."""
    for operand, given in operands.items():
        checked = check_operand(op, given, operand)  # type: ignore[arg-type]
        check_plain(op, checked.dtype)
        if element_count(checked.shape) != 1:
            raise VerifyError(f"{op}: {operand} must have one element, got {given}")


def check_shape(op: str, shape: Shape, *parameters: TensorType) -> None:
    """Check that parameters broadcast to a shape without enlarging it."""
    if broadcast(op, shape, *(p.shape for p in parameters)) != shape:
        listed = " and ".join(format_shape(p.shape) for p in parameters)
        raise VerifyError(
            f"{op}: parameters of shape {listed} would enlarge {format_shape(shape)}"
        )


def check_plain(op: str, dtype: DType) -> None:
    """Check that a dtype is not quantized."""
    if dtype.is_quantized:
        raise VerifyError(f"{op}: expected a plain dtype, got {dtype}")


def check_count(op: str, wanted: object, what: str, **parameters: TensorType) -> None:
    """Check that parameters have one entry for each of something."""
    for operand, given in parameters.items():
        if element_count(given.shape) != wanted:
            got = format_shape(given.shape)
            raise VerifyError(f"{op}: expected {wanted} {operand}, one per {what}, got {got}")


def item(values: Array) -> Any:
    """Return the only element of a tensor as a Python number."""
    return values.reshape(-1)[0].item()


def quantized(
    x: Array, scales: Array, zero_points: Array, quant_min: int, quant_max: int, dtype: DType
) -> Array:
    """Return ``clamp(rint(x * (1 / scales) + zero_points))``, every op rounded."""
    real = eager.add(eager.mul(x, eager.reciprocal(scales)), zero_points)
    return eager.convert(eager.clamp(eager.rint(real), quant_min, quant_max), dtype)


def quantized_type(
    op: str, x: TensorType, scales: TensorType, zero_points: TensorType, dtype: DType
) -> TensorType:
    """Return the type of :func:`quantized`, or say which arithmetic torch lacks."""
    inverse = TensorType(eager.quotient_dtype(scales.dtype), scales.shape)
    product = eager.arithmetic_dtype(op, x, inverse)
    eager.arithmetic_dtype(op, TensorType(product, x.shape), zero_points)
    return TensorType(dtype, x.shape)


def dequantized(q: Array, scales: Array, zero_points: Array | None) -> Array:
    """Return ``(q - zero_points) * scales``, integers of the promoted type, then floats."""
    return eager.mul(q if zero_points is None else eager.sub(q, zero_points), scales)


def dequantized_type(
    op: str, q: TensorType, scales: TensorType, zero_points: TensorType | None, dtype: DType
) -> TensorType:
    """Return the type of :func:`dequantized` after a conversion, or refuse the arithmetic."""
    difference = q.dtype if zero_points is None else eager.difference_dtype(op, q, zero_points)
    eager.arithmetic_dtype(op, TensorType(difference, q.shape), scales)
    return TensorType(dtype, q.shape)


def decomposed_op(
    name: str,
    reference: Callable[..., Any],
    infer: Callable[..., Any],
    *cases: Case,
    kernel: Callable[..., Any] | None = None,
) -> Op:
    """Return an op of every engine; without a kernel its plain NumPy form is that."""
    return Op(
        name=f"quantized_decomposed::{name}",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel or reference),
        source=SOURCE,
        cases=cases,
    )
