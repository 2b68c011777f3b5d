"""Operands and attributes of a node against what the standard says of its operator."""

from __future__ import annotations

from collections.abc import Sequence

from refquant.importers.onnx_builder import Constant, Operand
from refquant.importers.onnx_file import OnnxNode, Schema
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.graph import Value
from refquant.ir.types import TensorType


def check_node(
    node: OnnxNode, schema: Schema | None, opset: int, operands: Sequence[Operand]
) -> None:
    """Check operands and attributes against what the standard says of the operator."""
    if schema is None:
        if node.domain in ("", "ai.onnx"):
            raise UnsupportedError(f"no operator {node.op} in opset {opset}")
        return
    if schema.deprecated:
        raise UnsupportedError(f"{node.op} is no longer part of opset {opset}")
    least, most = schema.inputs
    if not least <= len(operands) <= most:
        raise VerifyError(f"{len(operands)} operands, expected {least} to {most}")
    if len(node.outputs) > schema.outputs[1]:
        raise VerifyError(f"{len(node.outputs)} results, expected up to {schema.outputs[1]}")
    for i, (name, single) in enumerate(zip(node.inputs, schema.single, strict=False)):
        if single and not name:
            raise VerifyError(f"operand {i} is missing")
    for name in schema.required:
        if node.attributes.get(name) is None:
            raise VerifyError(f"attribute {name!r} is missing")
    for name, default in schema.defaults.items():
        value = node.attributes[name]
        if type(value) is not type(default):
            expected, got = type(default).__name__, type(value).__name__
            raise VerifyError(f"attribute {name!r}: expected {expected}, got {got}")
    for i, operand in enumerate(operands):
        kind = operand_type(operand)
        accepted = schema.types[min(i, len(schema.types) - 1)]
        if kind is not None and schema.types and f"tensor({onnx_name(kind)})" not in accepted:
            some = ", ".join(sorted(accepted))
            raise VerifyError(f"operand {i} is {kind}, expected {some}")


_SPELLED = {
    "float32": "float",
    "float64": "double",
    "float8_e4m3fn": "float8e4m3fn",
    "float8_e4m3fnuz": "float8e4m3fnuz",
    "float8_e5m2": "float8e5m2",
    "float8_e5m2fnuz": "float8e5m2fnuz",
    "float8_e8m0fnu": "float8e8m0",
    "float6_e2m3fn": "float6e2m3",
    "float6_e3m2fn": "float6e3m2",
    "float4_e2m1fn": "float4e2m1",
}


def onnx_name(kind: TensorType) -> str:
    """Return an element type as ONNX's schemas spell it."""
    return _SPELLED.get(kind.dtype.name, kind.dtype.name)


def operand_type(operand: Operand) -> TensorType | None:
    """Return the type of a tensor; None for a sequence and for what is absent."""
    return operand.type if isinstance(operand, Value | Constant) else None
