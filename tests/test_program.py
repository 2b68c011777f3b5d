"""Programs: order, users, names as torch.fx numbers them, copies and pickles."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refquant.importers.torch_capture import capture
from refquant.ir.errors import VerifyError
from refquant.ir.module import Module
from refquant.ir.names import canonical, object_type
from refquant.ir.program import Call, Program
from refquant.program_diff import program_diff


class Net(nn.Module):
    """Names that number, slices, keyword arguments, a shared module."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = F.relu(self.lin(x), inplace=False)
        y = F.relu(self.lin(y[:, : x.size(1)]))
        return {"out": torch.cat([x, y], dim=1), "first": y[0]}


def chain(length: int) -> Program:
    program = Program(Module("root"))
    last = program.call("placeholder", "x")
    for _ in range(length):
        last = program.call("call_function", "torch.nn.functional.relu", (last,))
    program.call("output", "output", (last,))
    return program


def test_names_are_numbered_as_in_torch() -> None:
    graph = torch.fx.Graph()
    program = Program(Module("root"))
    taken = [
        "relu",
        "relu_1",
        "a.b",
        "3x",
        "relu",
        "sum",
        "x_5",
        "x",
        "x_5",
        "é",
        "lambda",
        "max_2",
    ]
    for name in taken * 3:
        expected = graph._graph_namespace.create_name(name, None)
        assert program.unique_name(name) == expected


def test_new_calls_are_named_after_what_they_call() -> None:
    program = Program(Module("root"))
    for kind, target, expected in (
        ("call_function", "torch.nn.functional.hardTanh", "hard_tanh"),
        (
            "call_function",
            "torch.ops.quantized_decomposed.quantize_per_tensor.default",
            "quantize_per_tensor_default",
        ),
        ("call_method", "__getitem__", "getitem"),
        ("call_module", "block.0.conv", "block_0_conv"),
        ("call_method", "dequantize", "dequantize"),
        ("call_method", "dequantize", "dequantize_1"),
    ):
        assert program.call(kind, target).name == expected
    with pytest.raises(VerifyError, match="a call is one of"):
        program.call("call", "relu")


def test_users_are_in_order_and_follow_replacements() -> None:
    program = Program(Module("root"))
    x = program.call("placeholder", "x")
    a, b, c = (program.call("call_method", name, (x,)) for name in "abc")
    assert list(x.users) == [a, b, c]
    a.args = (x, x)
    assert list(x.users) == [b, c, a]
    b.replace_all_uses_with(c)
    x.replace_all_uses_with(b)
    assert list(x.users) == []
    assert list(b.users) == [b, c, a]
    with pytest.raises(VerifyError, match="cannot be removed"):
        program.erase(b)


def test_calls_may_be_inserted_and_erased_during_a_pass() -> None:
    program = chain(6)
    seen = []
    for call in program:
        seen.append(call.name)
        if call.kind == "call_function":
            made = program.call("call_method", "neg", call.args, before=call)
            call.replace_all_uses_with(made)
            program.erase(call)
    assert len(seen) == 8
    assert [call.target for call in program][1:-1] == ["neg"] * 6
    for call in reversed(program):
        if call.kind == "call_method":
            call.replace_all_uses_with(call.args[0])
            program.erase(call)
    assert [call.kind for call in program] == ["placeholder", "output"]


def test_dead_calls_go_the_last_first() -> None:
    program = chain(2)
    (x, *_) = program
    dead = program.call("call_method", "size", (x,), after=x)
    program.call("call_method", "sum", (dead,), after=dead)
    kept = program.call("call_function", "torch._assert", (x,), after=x)
    program.eliminate_dead_code()
    assert [call.kind for call in program].count("call_method") == 0
    assert kept in list(program)


def test_copies_and_pickles_are_equal_and_their_own() -> None:
    program = capture(Net().eval())
    for made in (program.copy(), pickle.loads(pickle.dumps(program)), copy.deepcopy(program)):
        assert not program_diff(made, program)
        assert [list(map(str, c.users)) for c in made] == [
            list(map(str, c.users)) for c in program
        ]
        made.erase(made.output)
        assert program.output.kind == "output"
        assert made.unique_name("relu") == "relu_2"


def test_a_long_program_is_pickled_without_recursion() -> None:
    made = pickle.loads(pickle.dumps(chain(5000)))
    assert sum(1 for _ in made) == 5002


def test_only_what_is_called_is_kept() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Linear(2, 2)
            self.register_buffer("table", torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used[0](x) + self.table

    program = capture(Outer())
    program.keep_only_used()
    paths = {path for path, _ in program.root.named_modules()}
    assert paths == {"", "used", "used.0"}
    assert program.root.has("table")
    assert program.root.get("used").kind == "torch.nn.Module"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (nn.Linear, "torch.nn.Linear"),
        ("torch.nn.modules.linear.Linear", "torch.nn.Linear"),
        (torch.ao.nn.intrinsic.qat.ConvBn2d, "torch.ao.nn.intrinsic.qat.ConvBn2d"),
        (torch.ao.nn.quantized.Quantize, "torch.ao.nn.quantized.Quantize"),
        (torch.conv2d, "torch.nn.functional.conv2d"),
        ("torch.conv2d", "torch.nn.functional.conv2d"),
        (torch._C._nn.linear, "torch.nn.functional.linear"),
        (F.max_pool2d, "torch.nn.functional.max_pool2d"),
        (torch.flatten, "torch.flatten"),
        (getattr, "builtins.getattr"),
        (torch.ops.quantized.linear, "torch.ops.quantized.linear"),
        ("reshape", "reshape"),
        ("nnqr.Conv2d", "torch.ao.nn.quantized.reference.Conv2d"),
    ],
)
def test_object_types_have_one_name(given: object, expected: str) -> None:
    assert object_type(given) == expected
    assert canonical(expected) == expected


def test_what_is_no_object_type_is_refused() -> None:
    with pytest.raises(VerifyError, match="a class, a function or a name"):
        object_type(3)


def test_a_call_shows_as_its_name() -> None:
    call = chain(1).output
    assert isinstance(call, Call)
    assert repr(call) == "output"
    assert "relu = call_function torch.nn.functional.relu(x)" in str(chain(1))
