"""The judge of programs: every single change of every call, module and constant is reported."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import flows
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refquant.compare import graph_diff
from refquant.fx.convert import make_observers_live
from refquant.importers.torch_capture import capture, capture_graph_module
from refquant.ir.errors import VerifyError
from refquant.ir.module import Module, Packed
from refquant.ir.packed_cell import PackedCell
from refquant.ir.program import Call, Program
from refquant.ir.qtensor import QTensor
from refquant.ir.types import DType, QScheme, float64, per_tensor_symmetric, qint8, qint32
from refquant.program_diff import ONE_SIDED, RANDOM_STATE, program_diff


class Net(nn.Module):
    """Fused and plain modules, functions, methods, shared observers, a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.relu, self.act = nn.ReLU(), nn.Hardswish()
        self.pool, self.linear = nn.MaxPool2d(2), nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        x = self.pool(self.act(self.relu(self.bn(self.conv(x)))))
        x = x.mean([2, 3])
        y = F.linear(self.act(x), self.weight, self.bias)
        z = torch.clamp(self.linear(y) + x, min=-1.0, max=float("inf"))
        return {"z": [z.reshape(-1, 4)[:, 1:3], torch.cat((y, y), dim=1)], "same": (x, None)}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.cell = nn.LSTM(4, 3), nn.GRUCell(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(self.lstm(x)[0][0])


SHAPE = (2, 3, 8, 8)


@cache
def torch_models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    net = Net().eval()
    prepared, qat = flows.prepare(net, SHAPE), flows.prepare_qat(net, SHAPE)
    return {
        "prepared": prepared,
        "prepared for training": qat,
        "lowered": flows.convert(prepared),
        "reference": flows.convert(prepared, "reference"),
        "decomposed": flows.convert(prepared, "decomposed"),
        "dynamic": flows.dynamic(net, SHAPE),
        "recurrent": flows.dynamic(Recurrent().eval(), (5, 2, 4)),
    }


NAMES = (
    *("prepared", "prepared for training", "lowered", "reference", "decomposed"),
    *("dynamic", "recurrent"),
)


def program(name: str) -> Program:
    with flows.fbgemm():
        return capture_graph_module(torch_models()[name])


# ---- single changes: each yields what it changed, and the changed copy

Change = tuple[str, Program]


def nth(program: Program, index: int) -> Call:
    return list(program)[index]


def changed_values(value: Any) -> Iterator[Any]:
    """Yield values next to a literal, an attribute or an array."""
    if isinstance(value, bool):
        yield from (not value, int(value), None)
    elif isinstance(value, int):
        yield from (value + 1, float(value), *((bool(value),) if value in (0, 1) else ()))
    elif isinstance(value, float):
        yield 0.0 if math.isnan(value) else math.nan
        if math.isfinite(value):
            yield from (math.nextafter(value, math.inf), -value)
    elif isinstance(value, str) and not isinstance(value, QScheme):
        yield f"{value}x"
    elif value is None:
        yield from (0, False)
    elif isinstance(value, DType):
        yield qint32 if value == qint8 else qint8
        yield value.name
    elif isinstance(value, QScheme):
        yield None if value == per_tensor_symmetric else per_tensor_symmetric
        yield value.value
    elif isinstance(value, Packed | PackedCell):
        for i, part in enumerate(value):
            for other in changed_values(part):
                yield type(value)(*value[:i], other, *value[i + 1 :])
    elif isinstance(value, tuple | list):
        yield list(value) if isinstance(value, tuple) else tuple(value)
        if value:
            yield value[:-1]
        for i, part in enumerate(value):
            for other in changed_values(part):
                yield type(value)((*value[:i], other, *value[i + 1 :]))
    elif isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            for other in changed_values(value[key]):
                yield {**value, key: other}
    elif isinstance(value, slice):
        yield slice(value.start, value.stop, 2)
        yield slice(value.start, 9, value.step)
    elif isinstance(value, QTensor):
        yield from (None, value.int_repr)
        yield from map(value.with_int_repr, changed_arrays(value.int_repr))
        for scale in (2 * np.asarray(value.scale), np.nextafter(value.scale, 0)):
            given = scale if value.axis is not None else float(scale)
            yield QTensor(value.int_repr, given, value.zero_point, value.axis, value.dtype)
        if value.axis is not None:
            yield QTensor(value.int_repr, value.scale, value.zero_point, 1, value.dtype)
        zero = np.asarray(value.zero_point) ^ 1
        given = zero if value.axis is not None else int(zero)
        yield QTensor(value.int_repr, value.scale, given, value.axis, value.dtype)
    elif isinstance(value, np.ndarray):
        yield None
        yield from changed_arrays(value)


def changed_arrays(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield arrays that differ in the last bit of the last element, or in shape."""
    if array.size:
        last = array.copy().reshape(-1)
        last.view(np.uint8)[-array.itemsize] ^= 1
        yield last.reshape(array.shape)
    yield array[None]
    if array.dtype == np.float32:
        yield array.astype(np.float64)


def arguments(program: Program) -> Iterator[Change]:
    """Change each literal, drop each argument, use another operand."""
    calls = list(program)
    for index, call in enumerate(calls):
        for i, argument in enumerate(call.args):
            for other in literals(argument, calls[:index], program):
                made = program.copy()
                mine = nth(made, index)
                same = dict(zip(calls, made, strict=True))
                given = translate(other, same)
                mine.args = (*mine.args[:i], given, *mine.args[i + 1 :])
                yield f"{call.name} argument {i} {other!r}", made
        for key, argument in call.kwargs.items():
            for other in literals(argument, calls[:index], program):
                made = program.copy()
                same = dict(zip(calls, made, strict=True))
                nth(made, index).kwargs = {
                    **nth(made, index).kwargs,
                    key: translate(other, same),
                }
                yield f"{call.name} argument {key} {other!r}", made
            made = program.copy()
            kept = dict(nth(made, index).kwargs)
            del kept[key]
            nth(made, index).kwargs = kept
            yield f"{call.name} without argument {key}", made
        if call.args:
            made = program.copy()
            nth(made, index).args = nth(made, index).args[:-1]
            yield f"{call.name} without its last argument", made
        if call.kind not in ("output", "get_attr"):
            made = program.copy()
            nth(made, index).args = (*nth(made, index).args, None)
            yield f"{call.name} with an argument more", made


def literals(value: Any, earlier: list[Call], program: Program) -> Iterator[Any]:
    """Yield arguments that differ in one place: a literal or an operand."""
    if isinstance(value, Call):
        computed = [call for call in earlier if call.kind != "get_attr"]
        yield from (call for call in computed[-3:] if call is not value)
        yield 1.5
    elif isinstance(value, tuple | list):
        yield value[:-1]
        yield list(value) if isinstance(value, tuple) else tuple(value)
        for i, part in enumerate(value):
            for other in literals(part, earlier, program):
                yield type(value)((*value[:i], other, *value[i + 1 :]))
    elif isinstance(value, dict):
        for key, part in value.items():
            for other in literals(part, earlier, program):
                yield {**value, key: other}
    else:
        yield from changed_values(value)


def translate(value: Any, same: dict[Call, Call]) -> Any:
    if isinstance(value, Call):
        return same[value]
    if isinstance(value, tuple | list):
        return type(value)(translate(part, same) for part in value)
    if isinstance(value, dict):
        return {key: translate(part, same) for key, part in value.items()}
    return value


def calls(program: Program) -> Iterator[Change]:
    """Drop, duplicate, rename, retarget and swap each call."""
    originals = list(program)
    for index, call in enumerate(originals):
        if call.kind not in ("output", "get_attr") and (call.inputs or not call.users):
            made = program.copy()
            mine = nth(made, index)
            for source in list(mine.inputs)[:1]:
                mine.replace_all_uses_with(source)
            if not mine.users:
                made.erase(mine)
                yield f"{call.name} dropped", made
        if call.kind != "output":
            made = program.copy()
            mine = nth(made, index)
            made.call(mine.kind, mine.target, mine.args, mine.kwargs, after=mine)
            yield f"{call.name} called twice", made
        if call.kind != "get_attr":
            made = program.copy()
            nth(made, index).name = f"{call.name}_9"
            yield f"{call.name} renamed", made
        if call.kind != "output" and not (call.kind == "get_attr" and not call.users):
            made = program.copy()
            nth(made, index).target = f"{call.target}_other"
            yield f"{call.name} with another target", made
        following = originals[index + 1] if index + 1 < len(originals) else None
        if following is None or following.kind in ("output", "get_attr"):
            continue
        if call.kind not in ("get_attr", "placeholder") and call not in following.inputs:
            made = program.copy()
            swap(made, nth(made, index))
            yield f"{call.name} swapped with the next", made


def swap(program: Program, call: Call) -> None:
    calls = list(program)
    at = calls.index(call)
    second, before = calls[at + 1], calls[at - 1] if at else program._end
    before._next, second._previous = second, before
    call._next, second._next = second._next, call
    call._previous = second
    call._next._previous = call


def modules(program: Program) -> Iterator[Change]:
    """Change class, role, mode, attributes, arrays and parts of each module that is called."""
    for path in dict.fromkeys(call.target for call in program if call.kind == "call_module"):
        for place, module in list(program.root.get(path).named_modules(path)):
            for where, change in module_changes(module):
                made = program.copy()
                change(made.root.get(place))
                yield f"{place} {where}", made


def module_changes(module: Module) -> Iterator[tuple[str, Callable[[Module], None]]]:
    yield "class", lambda m: setattr(m, "kind", f"{m.kind}2")
    yield "role", lambda m: setattr(m, "role", f"{m.role}2")
    if not module.role:
        yield "training", lambda m: setattr(m, "training", not m.training)
    yield "with an attribute more", lambda m: m.config.update(extra=1)
    yield "with an array more", lambda m: m.state.update(extra=None)
    yield "with a part more", lambda m: m.parts.update(extra=Module("torch.nn.ReLU"))
    for name in ("config", "state", "parts"):
        for key, value in getattr(module, name).items():
            if name != "parts" and key not in RANDOM_STATE.get(module.kind, ()):
                for other in changed_values(value):
                    yield (
                        f"{key} {other!r}",
                        lambda m, n=name, k=key, v=other: getattr(m, n).update({k: v}),
                    )
            if key not in ONE_SIDED:
                yield f"without {key}", lambda m, n=name, k=key: getattr(m, n).pop(k)


def sharing(program: Program) -> Iterator[Change]:
    """Let each call of a module have an instance of its own, and two equal ones be one."""
    called: dict[int, Call] = {}
    indices = {call: index for index, call in enumerate(program)}
    for call, module in program.owners():
        if id(module) in called:
            made = program.copy()
            made.root.parts["own"] = made.root.get(call.target).copy()
            nth(made, indices[call]).target = "own"
            yield f"{call.name} not shared", made
        called.setdefault(id(module), call)
    for call, _ in program.owners():
        made = program.copy()
        made.root.parts["twin"] = made.root.get(call.target).copy()
        made.call("call_module", "twin", (nth(made, 0),), after=nth(made, indices[call]))
        shared = made.copy()
        twin = next(c for c in shared if c.target == "twin")
        twin.target = call.target
        assert program_diff(made, shared), f"{call.name}: shared with its twin"
        assert program_diff(shared, made), f"{call.name}: shared with its twin"


def constants(program: Program) -> Iterator[Change]:
    """Change each constant that a call reads."""
    for path in dict.fromkeys(call.target for call in program if call.kind == "get_attr"):
        for other in changed_values(program.root.get(path)):
            if other is not None:
                made = program.copy()
                parent, _, name = path.rpartition(".")
                made.root.get(parent).state[name] = other
                yield f"{path} changed", made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [arguments, calls, modules, sharing, constants])
def test_every_change_is_reported(name: str, kind: Callable[[Program], Iterator[Change]]) -> None:
    original = program(name)
    count = 0
    for what, changed in kind(original):
        count += 1
        assert program_diff(changed, original), f"{what} was not reported"
        assert program_diff(original, changed), f"{what} was not reported in torch's"
    assert count or kind in (sharing, constants)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_equal(name: str) -> None:
    original = program(name)
    assert not program_diff(original, original.copy())
    with flows.fbgemm():
        again = capture_graph_module(copy.deepcopy(torch_models()[name]))
    diff = program_diff(original, again)
    assert not diff, str(diff)


@pytest.mark.parametrize("name", ["prepared", "prepared for training"])
def test_live_observers_are_compared_like_records(name: str) -> None:
    original = program(name)
    live = original.copy()
    make_observers_live(live)
    assert not program_diff(live, original)
    found = [m for _, m in live.root.named_modules() if not isinstance(m, Module)]
    assert found
    for observer in found:
        attributes = {**observer.config, **observer.state}
        for key, value in attributes.items():
            for other in changed_values(value) if key not in ONE_SIDED else ():
                setattr(observer, key, other)
                assert program_diff(live, original), f"{key} {other!r} was not reported"
            setattr(observer, key, value)
    assert not program_diff(live, original)


@pytest.mark.parametrize("name", ["prepared", "prepared for training"])
def test_sharing_of_live_observers_is_compared(name: str) -> None:
    original = program(name)
    live = original.copy()
    make_observers_live(live)
    called: set[int] = set()
    count = 0
    for call, module in list(live.owners()):
        if id(module) in called and not isinstance(module, Module):
            live.root.parts[call.target] = copy.deepcopy(module)
            assert program_diff(live, original), f"{call.name}: not shared"
            live.root.parts[call.target] = module
            count += 1
        called.add(id(module))
    assert count
    assert not program_diff(live, original)


def test_constants_may_move_and_have_other_names() -> None:
    original = program("reference")
    moved = original.copy()
    for call in list(moved):
        if call.kind == "get_attr":
            value = moved.root.get(call.target)
            moved.root.state[f"other_{call.target}"] = value
            made = moved.call("get_attr", f"other_{call.target}", after=nth(moved, 0))
            call.replace_all_uses_with(made)
            moved.erase(call)
    assert not program_diff(original, moved)


def test_other_names_are_a_difference_of_their_own() -> None:
    original = program("lowered")
    renamed = original.copy()
    nth(renamed, 4).name = "other"
    (row,) = program_diff(renamed, original).differences
    assert row.differences == (f"name: other against {nth(original, 4).name}",)


def test_nan_equals_nan_and_zero_differs_from_minus_zero() -> None:
    def one(value: float) -> Program:
        made = Program(Module("torch.nn.Module", state={"c": np.float32([value])}))
        made.call("output", "output", ((made.call("get_attr", "c"), value),))
        return made

    assert not program_diff(one(math.nan), one(math.nan))
    assert len(program_diff(one(0.0), one(-0.0)).differences[0].differences) == 2


def test_what_the_constructor_alone_reads_may_be_absent() -> None:
    original = program("prepared")
    bare = original.copy()
    for _, module in bare.root.named_modules():
        for key in ONE_SIDED:
            module.config.pop(key, None)
    assert not program_diff(bare, original)


def test_graph_diff_takes_programs_and_what_has_one() -> None:
    class Model:
        program = program("lowered")

    model = torch_models()["lowered"]
    with flows.fbgemm():
        assert not graph_diff(Model.program, model)
        assert not graph_diff(Model(), model)
        assert not graph_diff(Model(), Model())
        assert graph_diff(Model(), torch_models()["reference"])
        float_model = Net().eval()
        assert not graph_diff(capture(float_model), float_model)
    with pytest.raises(VerifyError, match="got int"):
        graph_diff(3, model)


def test_the_table_shows_both_sides() -> None:
    diff = program_diff(program("lowered"), program("reference"))
    text = str(diff)
    assert "only in ours" in text
    assert "torch.ao.nn.quantized.reference.Linear" in text
    assert diff.as_dict()["equal"] is False


def test_float64_attributes_keep_their_type() -> None:
    one = Program(Module("torch.nn.Module"))
    one.call("output", "output", ((float64, 1),))
    other = Program(Module("torch.nn.Module"))
    other.call("output", "output", ((float64, True),))
    assert program_diff(one, other).differences[0].differences == (
        "argument 0[1]: 1 against True",
    )
