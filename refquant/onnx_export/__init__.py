"""Quantized graphs as ONNX files, with a contract of what a runtime will compute.

``docs/onnx_export.md`` has the rules; the contract that :func:`export_onnx` returns applies them
to each node.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from refquant.importers.onnx_file import code_of, schema_of
from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError
from refquant.ir.graph import Graph, Node
from refquant.ir.types import DType
from refquant.onnx_export.conversions import CONVERSIONS
from refquant.onnx_export.floats import EXACT_FLOATS, FLOATS, MOVEMENT, ROUNDED_ONCE
from refquant.onnx_export.quantized import QUANTIZED
from refquant.onnx_export.writer import OPSET, Contract, Promise, Writer, check

__all__ = ["Contract", "Promise", "export_onnx"]

Format = Literal["qdq", "qoperator"]
_MOVES = "elements are moved or compared, not computed"
_ONCE = "one rounding of IEEE arithmetic for each element"
_OWN = "the operator itself; its rounding is each runtime's own unless the standard fixes it"
_FUNCTION = "last bits of float sums and functions are each runtime's own"


def export_onnx(
    graph: Graph, path: str | os.PathLike[str] | None, format: Format = "qdq"
) -> Contract:
    """Write a graph as an ONNX model of opset 19.

    Parameters
    ----------
    graph : Graph
        Quantized, reference, fake-quantized or float; one of a symbolic batch keeps it open.
    path : path or None
        The file, written whole or not at all; with None only the contract is made.
    format : {"qdq", "qoperator"}
        Quantized operations between DequantizeLinear and QuantizeLinear, or as operators on
        integers. What onnxruntime alone has is in its domain ``com.microsoft``.

    Returns
    -------
    Contract
        For each node, whether an ONNX runtime reproduces its bits, and why or why not.

    Raises
    ------
    VerifyError
        If ``format`` is not one of the two.
    UnsupportedError
        Listing every node that has no form in ONNX.
    """
    model, contract = onnx_model(graph, format)
    if path is not None:
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            partial.write_bytes(model.SerializeToString())
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise VerifyError(f"{target}: {error.strerror or error}") from None
    return contract


def onnx_model(graph: Graph, format: Format = "qdq") -> tuple[Any, Contract]:
    """Return the ``onnx.ModelProto`` of a graph and its contract; see :func:`export_onnx`."""
    if format not in ("qdq", "qoperator"):
        raise VerifyError(f"export_onnx: format must be 'qdq' or 'qoperator', got {format!r}")
    writer = Writer(graph, qoperator=format == "qoperator")
    failures = []
    for node in graph.nodes:
        writer.begin()
        try:
            _write(writer, node)
        except RefquantError as error:
            failures.append(f"{node}: {error}")
            writer.pretend(node)
    if failures:
        count = len(failures)
        noun = "node has" if count == 1 else "nodes have"
        raise UnsupportedError(f"{count} {noun} no form in ONNX: {'; '.join(failures)}")
    model = writer.model()
    check(model)
    return model, Contract(writer.promises)


def _write(w: Writer, node: Node) -> None:
    kinds = [value.type for value in (*node.inputs, *node.outputs) if value is not None]
    quantized = any(kind.dtype.is_quantized for kind in kinds) or node.op in CONVERSIONS
    same = len({kind.qparams for kind in kinds if kind.dtype.is_quantized}) <= 1
    if node.op in MOVEMENT and (not quantized or same):
        _define(w, node, MOVEMENT[node.op](w, node), True, _MOVES)
    elif quantized and node.op in QUANTIZED:
        name, exact, why = QUANTIZED[node.op](w, node)
        _define(w, node, name, exact, why)
    elif not quantized and node.op in FLOATS:
        once = node.op in ROUNDED_ONCE
        why = _ONCE if once else _MOVES if node.op in EXACT_FLOATS else _FUNCTION
        _define(w, node, FLOATS[node.op](w, node), once or node.op in EXACT_FLOATS, why)
    elif node.op.startswith(("onnx::", "com.microsoft::")):
        _define(w, node, _as_it_is(w, node), node.op in EXACT_ONNX, _OWN)
    else:
        raise UnsupportedError(f"{node.op} of {', '.join(map(str, kinds[:2]))}")


def _as_it_is(w: Writer, node: Node) -> Sequence[str]:
    """Write an operator of ONNX under its own name."""
    domain, _, op = node.op.partition("::")
    schema = schema_of(op, "", OPSET) if domain == "onnx" else None
    unknown = schema is not None and not set(node.attributes) <= schema.attributes
    if (domain == "onnx" and schema is None) or unknown:
        raise UnsupportedError(f"{op} as opset {OPSET} has it")
    attributes = {key: _plain(value) for key, value in node.attributes.items()}
    if op in ("GRU", "LSTM", "RNN"):  # runtimes ask for what the standard leaves to shapes
        weight = node.inputs[2]
        assert weight is not None
        attributes["hidden_size"] = weight.type.shape[-1]
    inputs = [w.operand(value) for value in node.inputs]
    where = "" if domain == "onnx" else domain
    return w.add_all(op, inputs, len(node.outputs), domain=where, **attributes)


def _plain(value: Any) -> Any:
    if isinstance(value, DType):
        return code_of(value)
    return int(value) if isinstance(value, bool) else value


def _define(w: Writer, node: Node, names: str | Sequence[str], exact: bool, why: str) -> None:
    w.define(node, [names] if isinstance(names, str) else names, exact=exact, why=why)


# Operators whose results the standard fixes to the last bit.
EXACT_ONNX = frozenset(
    f"onnx::{name}"
    for name in (
        *("ConvInteger", "DequantizeLinear", "MatMulInteger", "MaxPool", "QuantizeLinear"),
        *("Mod", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "IsNaN"),
        *("IsInf", "OneHot", "GatherND", "ReverseSequence", "MatMul", "Hardmax"),
    )
)
