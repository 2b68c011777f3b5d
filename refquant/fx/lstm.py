"""The quantizable LSTM: its result is a tuple of quantized tensors, dequantized one by one."""

from __future__ import annotations

from typing import Any

from refquant.fx.attributes import Attributes
from refquant.fx.node_qconfigs import QConfigAny
from refquant.fx.quant_type import is_static
from refquant.ir.module import Module
from refquant.ir.program import Call, Program

DEQUANT_STUB = "torch.ao.quantization.stubs.DeQuantStub"
QUANTIZABLE_LSTM = "torch.ao.nn.quantizable.LSTM"
QUANTIZABLE_ATTENTION = "torch.ao.nn.quantizable.MultiheadAttention"
_GETITEM, _TUPLE = "operator.getitem", "builtins.tuple"


def is_custom_lstm(module: Any, qconfig: QConfigAny) -> bool:
    """Whether a custom module is a float LSTM that is to be quantized statically."""
    kind = getattr(module, "kind", "")
    return kind == "torch.nn.LSTM" and qconfig is not None and is_static(qconfig)


def insert_dequant_stubs(program: Program, call: Call, attributes: Attributes) -> Call:
    """Take ``(output, (hidden, cell))`` apart, dequantize, and put it together again."""

    def item(of: Call, index: int, after: Call) -> Call:
        return program.call("call_function", _GETITEM, (of, index), after=after)

    def stub(of: Call) -> Call:
        name = attributes.add("dequant_stub_", Module(DEQUANT_STUB, training=True))
        return program.call("call_module", name, (of,), after=of)

    def together(parts: list[Call], after: Call) -> Call:
        return program.call("call_function", _TUPLE, (parts,), after=after)

    output = item(call, 0, call)
    output_dq = stub(output)
    hidden = item(call, 1, output_dq)
    hidden0 = item(hidden, 0, hidden)
    hidden0_dq = stub(hidden0)
    hidden1 = item(hidden, 1, hidden0_dq)
    hidden1_dq = stub(hidden1)
    hidden_dq = together([hidden0_dq, hidden1_dq], hidden1_dq)
    result = together([output_dq, hidden_dq], hidden_dq)
    for user in list(call.users):
        if user is not output and user is not hidden:
            user.replace_input(call, result)
    _shortcut(program)
    return result


def _shortcut(program: Program) -> None:
    """Where tuples are built and then indexed apart again, use the element itself."""
    found: list[list[Call]] = []
    seen: set[tuple[Call, tuple[int, ...]]] = set()

    def follow(call: Call, indices: list[int], path: list[Call]) -> None:
        if not indices and path:
            found.append(list(path))
            path.clear()
        state = (call, tuple(indices))
        if state in seen:
            return
        seen.add(state)
        for user in call.users:
            if user.target == _TUPLE and user.kind == "call_function":
                for i, part in enumerate(user.args[0]):
                    if part is call:
                        indices.append(i)
                        path.append(user)
                        follow(user, indices, path)
            elif user.target == _GETITEM and indices and user.args[1] == indices[-1]:
                indices.pop()
                path.append(user)
                follow(user, indices, path)

    for call in list(program):
        follow(call, [], [])
    for path in found:
        first, last = path[0], path[-1]
        element = first.args[0][last.args[1]]
        for user in list(last.users):
            user.replace_input(last, element)


def lstm_behind(call: Call, program: Program) -> Call | None:
    """Return the quantizable LSTM that a value was taken out of, or None."""
    for path in _PATHS:
        found: Any = call
        for step, kind in enumerate(path):
            if not _is(found, kind, program):
                break
            if step < len(path) - 1:
                found = found.args[0][0] if kind == "tuple" else found.args[0]
        else:
            return found  # type: ignore[no-any-return]
    return None


_PATHS = (
    ("stub", "item", "lstm"),
    ("tuple", "stub", "item", "item", "lstm"),
    ("stub", "item", "item", "lstm"),
    ("tuple", "stub", "item", "lstm"),
)


def _is(call: Any, kind: str, program: Program) -> bool:
    if not isinstance(call, Call):
        return False
    if kind in ("item", "tuple"):
        return call.target == (_GETITEM if kind == "item" else _TUPLE)
    if call.kind != "call_module":
        return False
    wanted = DEQUANT_STUB if kind == "stub" else QUANTIZABLE_LSTM
    return bool(getattr(program.root.get(call.target), "kind", "") == wanted)
