"""If, Loop and Scan with conditions that are known while the model is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from refquant.importers.onnx_builder import Constant, OnnxBuilder, Operand
from refquant.importers.onnx_file import OnnxGraph
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.graph import Value


def _is_true(b: OnnxBuilder, condition: Operand) -> bool:
    return bool(b.array(condition, "the condition").reshape(()))


def _body(b: OnnxBuilder, name: str) -> OnnxGraph:
    found = b.get(name)
    if not isinstance(found, OnnxGraph):
        raise VerifyError(f"attribute {name!r}: expected a graph, got {type(found).__name__}")
    return found


def _if(b: OnnxBuilder, condition: Operand) -> list[Operand]:
    return b.run_subgraph(_body(b, "then_branch" if _is_true(b, condition) else "else_branch"))


def _loop(
    b: OnnxBuilder, count: Operand = None, condition: Operand = None, *carried: Operand
) -> list[Operand]:
    body = _body(b, "body")
    turns = None if count is None else int(b.array(count, "the number of turns"))
    state: list[Operand] = list(carried)
    rows: list[list[Operand]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    turn = 0
    # One that does not end is refused: the import counts the turns of all loops.
    while turns is None or turn < turns:
        if condition is not None and not _is_true(b, condition):
            break
        told = condition if condition is not None else Constant("condition", np.array(True))
        index = Constant("turn", np.array(turn, np.int64))
        condition, *results = b.run_subgraph(body, index, told, *state)
        if len(results) != len(carried) + len(rows):
            raise VerifyError(f"the body gives {len(results)} results")
        state = results[: len(carried)]
        for row, part in zip(rows, results[len(carried) :], strict=True):
            row.append(part)
        turn += 1
    return state + [_stacked(b, row, 0) for row in rows]


def _stacked(b: OnnxBuilder, parts: Sequence[Operand], axis: int) -> Operand:
    """Return the results of all turns side by side in a new dimension."""
    if not parts:
        raise UnsupportedError("a loop without turns whose results are collected")
    if all(isinstance(part, Constant) for part in parts):
        arrays = [b.array(part, "a result") for part in parts]
        return Constant(b.node.label, np.stack(arrays, axis))
    return b.step("aten::stack", *parts, dim=axis)


def _scan(b: OnnxBuilder, *operands: Operand) -> list[Operand]:
    if b.version >= 9:
        return _scanned(b, operands)
    lengths, *batches = operands
    if lengths is not None:
        raise UnsupportedError("a scan of sequences of different lengths")
    known = [x for x in batches if isinstance(x, Value | Constant)]
    if len(known) != len(batches) or len({x.type.shape[:1] for x in known}) != 1:
        raise VerifyError("the operands have different numbers of batches")
    (count,) = known[0].type.shape[:1]
    if not isinstance(count, int) or count < 1:
        raise UnsupportedError(f"a scan of {count} batches")
    each = [_scanned(b, [_part(b, x, 0, i) for x in batches]) for i in range(count)]
    return [_stacked(b, parts, 0) for parts in zip(*each, strict=True)]


def _scanned(b: OnnxBuilder, operands: Sequence[Operand]) -> list[Operand]:
    """Return the results for one batch; opset 8 calls the directions by another name."""
    body = _body(b, "body")
    scanned = b.get("num_scan_inputs")
    if not 1 <= scanned <= len(operands):
        raise VerifyError(f"num_scan_inputs {scanned} of {len(operands)} operands")
    carried = len(operands) - scanned
    inputs = operands[carried:]
    outputs = len(body.outputs) - carried
    axes = _axes(b.get("scan_input_axes"), scanned)
    directions = b.get("scan_input_directions") or b.get("directions")
    backwards = directions or (0,) * scanned
    result_axes = _axes(b.get("scan_output_axes"), outputs)
    result_backwards = b.get("scan_output_directions") or (0,) * outputs
    lengths = {
        x.type.shape[axis]
        for x, axis in zip(inputs, axes, strict=True)
        if isinstance(x, Value | Constant)
    }
    if len(lengths) != 1 or not isinstance(length := lengths.pop(), int):
        raise VerifyError("the scanned inputs have different or open lengths")
    state: list[Operand] = list(operands[:carried])
    rows: list[list[Operand]] = [[] for _ in range(outputs)]
    for turn in range(length):
        parts = [
            _part(b, x, axis, length - 1 - turn if back else turn)
            for x, axis, back in zip(inputs, axes, backwards, strict=True)
        ]
        results = b.run_subgraph(body, *state, *parts)
        state = results[:carried]
        for row, part in zip(rows, results[carried:], strict=True):
            row.append(part)
    stacks = zip(rows, result_axes, result_backwards, strict=True)
    return state + [_stacked(b, row[::-1] if back else row, axis) for row, axis, back in stacks]


def _axes(given: Sequence[int] | None, count: int) -> Sequence[int]:
    return (0,) * count if given is None else given


def _part(b: OnnxBuilder, x: Operand, axis: int, index: int) -> Operand:
    if isinstance(x, Constant):
        return Constant(x.name, np.take(x.data, index, axis))
    return b.step("aten::select", x, dim=axis, index=index)


def _map(b: OnnxBuilder, sequence: Operand, *others: Operand) -> list[Operand]:
    """Return what the body gives for each part of the sequences; tensors stay as they are."""
    body = _body(b, "body")
    if not isinstance(sequence, tuple):
        raise VerifyError("expected a sequence")
    if any(isinstance(x, tuple) and len(x) != len(sequence) for x in others):
        raise VerifyError("the sequences are of different lengths")
    turns = []
    for i, part in enumerate(sequence):
        rest = [x[i] if isinstance(x, tuple) else x for x in others]
        turns.append(b.run_subgraph(body, part, *rest))
    return [tuple(turn[k] for turn in turns) for k in range(len(body.outputs))]


CONTROL: dict[str, Callable[..., list[Operand]]] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
    "SequenceMap": _map,
}
