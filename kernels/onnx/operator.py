"""What the records of ONNX's operators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refquant.ir.errors import VerifyError
from refquant.ir.op import EVERY_ENGINE, Case, Op
from refquant.ir.types import TensorType, bool_


def operator(
    name: str, reference: Callable[..., Any], infer: Callable[..., Any], *cases: Case
) -> Op:
    """Return the record of an operator whose NumPy formula is fast enough to be the kernel."""
    return Op(
        name=f"onnx::{name}",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(EVERY_ENGINE, reference),
        source=(f"onnx/docs/Operators.md::{name}",),
        cases=cases,
    )


def is_integer(x: TensorType) -> bool:
    """Whether the elements are plain integers; bool is not one."""
    return x.dtype.name.startswith(("int", "uint"))


def plain(op: str, *operands: TensorType) -> None:
    """Check that no operand carries a scale: ONNX's own quantized tensors are integers."""
    for x in operands:
        if x.dtype.is_quantized:
            raise VerifyError(f"{op}: expected a tensor that is not quantized, got {x}")


def numeric(op: str, *operands: TensorType) -> None:
    """Check that operands are numbers of one type."""
    plain(op, *operands)
    first = operands[0].dtype
    for x in operands:
        if x.dtype == bool_ or x.dtype != first:
            raise VerifyError(f"{op}: expected numbers of type {first}, got {x}")


def floating(op: str, *operands: TensorType) -> None:
    """Check that operands are floats of one type."""
    first = operands[0].dtype
    for x in operands:
        if not x.dtype.is_floating_point or x.dtype != first:
            raise VerifyError(f"{op}: expected floats of one type, got {x}")


def index(op: str, x: TensorType) -> None:
    """Check that an operand holds positions."""
    if not is_integer(x):
        raise VerifyError(f"{op}: expected integer positions, got {x}")
