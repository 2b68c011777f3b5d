"""Every operator name of torch: what covers it, and that forms and accessors import."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Ledger
from oracle import assert_same, assert_same_strides, this_machine, to_torch, torch_as
from torch import nn

from refquant.importers import from_fx
from refquant.importers.fx_torch import to_tensor
from refquant.importers.torch_functions import FUNCTIONS
from refquant.importers.torch_operators import OPERATORS
from refquant.ir import UnsupportedError
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine
from refquant.ledger import oracle
from refquant.ledger.draw import SAMPLERS
from refquant.ledger.names import ACCESSORS, FORMS, NO_ARITHMETIC, NOT_COVERED

TABLES = (FORMS, ACCESSORS, NO_ARITHMETIC, NOT_COVERED)
LIVE = sorted(itertools.chain.from_iterable(oracle.names().values()))


def test_every_name_has_exactly_one_entry() -> None:
    for name in LIVE:
        places = [name in table for table in (SAMPLERS, *TABLES)]
        places[0] = places[0] or name.removesuffix(".default") in SAMPLERS
        assert sum(places) == 1, f"{name} stands in {sum(places)} places"


def test_no_entry_is_for_a_name_that_torch_does_not_have() -> None:
    live = set(LIVE)
    assert [name for table in TABLES for name in table if name not in live] == []
    assert [op for op in FORMS.values() if op not in OPS] == []


# ---- a small model for each name


class One(nn.Module):
    """A model that is a function of itself and one tensor."""

    def __init__(self, function: Callable[..., Any], **constants: Any) -> None:
        super().__init__()
        self.function = function
        for key, value in constants.items():
            setattr(self, key, value)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


class Two(One):
    """A model of two tensors."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:  # type: ignore[override]
        return self.function(self, x, y)


def operator(name: str) -> Any:
    namespace, _, op = name.partition("::")
    packet, _, overload = op.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def drawn(*shape: int, scale: float = 0.1, zero_point: int = 30, like: str = "u") -> torch.Tensor:
    """Return a quantized tensor, every integer of the range among its elements or nearly so."""
    rng = np.random.default_rng(sum(shape))
    low, high, dtype = (0, 256, np.uint8) if like == "u" else (-128, 128, np.int8)
    q = rng.integers(low, high, shape).astype(dtype)
    return to_torch(QTensor(q, scale, zero_point))  # type: ignore[no-any-return]


def columns(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape whose memory lies in another order."""
    order = (*range(x.dim() - 2), x.dim() - 1, x.dim() - 2)
    q = to_tensor(x)
    assert isinstance(q, QTensor)
    moved = np.ascontiguousarray(q.int_repr.transpose(order)).transpose(order)
    return to_torch(q.with_int_repr(moved))  # type: ignore[no-any-return]


def compare(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    ledger: Ledger,
    name: str,
    engine: Engine = Engine.FBGEMM,
) -> None:
    target = replace(this_machine(), engine=engine)

    def fresh() -> tuple[torch.Tensor, ...]:
        return tuple(to_torch(to_tensor(x)) for x in inputs)

    with torch_as(target), torch.no_grad():
        graph = from_fx(model, fresh(), batch=None)
        arrays = [to_tensor(x) for x in fresh()]
        expected = oracle.from_torch(model(*fresh()))
    for executor in ("reference", "fast"):
        actual = graph.run(*arrays, target=target, executor=executor).outputs  # type: ignore[arg-type]
        parts = actual if isinstance(actual, tuple | list) else (actual,)
        wanted = expected if isinstance(expected, tuple) else (expected,)
        assert len(parts) == len(wanted)
        for one, other in zip(parts, wanted, strict=True):
            assert_same(one, other)
            assert_same_strides(one, other)
            plain = one.int_repr if isinstance(one, QTensor) else one
            known = other.int_repr if isinstance(other, QTensor) else other
            ledger.equal(f"names {name.partition('::')[0]}", plain, known)


Model = tuple[nn.Module, tuple[torch.Tensor, ...]]
MODELS: dict[str, Callable[[Any], list[Model]]] = {}
IMAGE, TABLE, VOLUME = (2, 3, 7, 9), (5, 70), (1, 3, 4, 5, 6)


def shows(*names: str) -> Callable[[Callable[[Any], list[Model]]], None]:
    """Register models that show some names."""

    def note(make: Callable[[Any], list[Model]]) -> None:
        for name in names:
            assert name not in MODELS, name
            MODELS[name] = make

    return note


def _forms(suffix: str) -> list[str]:
    return [name for name in FORMS if name.endswith(suffix)]


_SCALAR = ("add_scalar", "add_scalar_relu", "mul_scalar", "mul_scalar_relu")
_BINARY = ("add", "add_relu", "mul", "mul_relu")


@shows(*(f"quantized::{name}.Scalar" for name in _BINARY))
def _(op: Any) -> list[Model]:
    x = (drawn(*IMAGE),)
    return [(One(lambda m, x, c=c: op(x, c)), x) for c in (0.75, -9.3, 40.0)]  # type: ignore[misc]


@shows(*(f"quantized::{name}.Scalar2" for name in _BINARY))
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(-1.3, x)), (drawn(*TABLE),))]


@shows(*(f"quantized::{name}.Tensor" for name in _SCALAR))
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(x, torch.tensor(-1.35))), (drawn(*TABLE),))]


@shows(
    *(f"quantized::{name}.Scalar_out" for name in _BINARY),
    *(f"quantized::{name}_out" for name in _SCALAR),
)
def _(op: Any) -> list[Model]:
    outs = drawn(*IMAGE, scale=0.3), columns(drawn(*IMAGE, scale=0.3))

    def call(m: Any, x: torch.Tensor, out: torch.Tensor) -> Any:
        result = op(x, m.number, out)
        return result, out

    numbers = (0.75, -30.2)
    return [(Two(call, number=c), (drawn(*IMAGE), out)) for c in numbers for out in outs]


@shows(*(f"quantized::{name}_out.Tensor" for name in _SCALAR))
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor, out: torch.Tensor) -> Any:
        op(x, torch.tensor(0.35), out)
        return out

    return [(Two(call), (drawn(*TABLE), drawn(*TABLE, zero_point=3)))]


@shows(*(f"quantized::{name}_out" for name in _BINARY))
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor, out: torch.Tensor) -> Any:
        return op(x, m.other, out), out

    other = drawn(*IMAGE, scale=0.07, zero_point=101)
    outs = [drawn(*IMAGE, scale=s, zero_point=40) for s in (0.37, 2.1)]
    outs += [columns(out) for out in outs]
    return [(Two(call, other=other), (drawn(*IMAGE), out)) for out in outs]


@shows("quantized::cat_out", "quantized::cat_relu_out")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor, out: torch.Tensor) -> Any:
        op([x, m.other], 1, out)
        return out

    out = drawn(2, 6, 7, 9, scale=0.15)
    other = drawn(*IMAGE, scale=0.03, zero_point=99)
    return [(Two(call, other=other), (drawn(*IMAGE), o)) for o in (out, columns(out))]


@shows("quantized::clamp")
def _(op: Any) -> list[Model]:
    return [
        (One(lambda m, x: op(x, -1.15, 3.0)), (drawn(*IMAGE),)),
        (One(lambda m, x: op(x, None, 2.05)), (drawn(*TABLE),)),
    ]


@shows("quantized::relu6")
def _(op: Any) -> list[Model]:
    def in_place(m: Any, x: torch.Tensor) -> Any:
        op(x, True)
        return x

    return [
        (One(lambda m, x: op(x)), (drawn(*IMAGE),)),
        (One(in_place), (columns(drawn(*IMAGE)),)),
    ]


@shows("quantized::threshold")
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(x, 1.0, -0.25)), (drawn(*IMAGE),))]


@shows("quantized::max_pool1d", "aten::quantized_max_pool1d")
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(x, [3], [2], [1], [1], True)), (drawn(2, 5, 12),))]


@shows("quantized::max_pool2d", "aten::quantized_max_pool2d")
def _(op: Any) -> list[Model]:
    call = One(lambda m, x: op(x, [3, 2], [2, 1], [1, 0], [1, 2], False))
    return [(call, (drawn(*IMAGE),))]


@shows("aten::quantized_max_pool3d")
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(x, [2, 2, 2])), (drawn(*VOLUME),))]


# ---- packed parameters

_WEIGHTS = {0: (4, 6), 1: (4, 6, 3), 2: (4, 6, 3, 2), 3: (4, 6, 2, 3, 2)}
_INPUTS = {0: (5, 6), 1: (2, 6, 9), 2: (2, 6, 7, 8), 3: (2, 6, 4, 5, 5)}
_SQUARE = {1: (6, 6, 3), 2: (6, 6, 3, 3), 3: (6, 6, 3, 2, 2)}


def parameters(rank: int, square: bool = False) -> dict[str, nn.Parameter]:
    shape = _SQUARE[rank] if square else _WEIGHTS[rank]
    generator = torch.Generator().manual_seed(rank)
    weight = torch.randn(shape, generator=generator) * 0.4
    bias = torch.randn(6 if square else 4, generator=generator)
    return {"weight": nn.Parameter(weight), "bias": nn.Parameter(bias)}


def rank_in(name: str) -> int:
    found = next((rank for rank in (1, 2, 3) if f"{rank}d" in name), 0)
    return 2 if "::conv_" in name and not found else found


def prepacked(name: str, m: Any) -> Any:
    """Pack a model's parameters in its graph."""
    rank = rank_in(name)
    weight = torch.quantize_per_tensor(m.weight, 0.017, 0, torch.qint8)
    space = name.partition("::")[0]
    if not rank:
        if "fp16" in name:
            return operator(f"{space}::linear_prepack_fp16")(m.weight, m.bias)
        return operator(f"{space}::linear_prepack")(weight, m.bias)
    ones, twos = [1] * rank, [2] * rank
    if "conv_transpose" in name:
        call = operator(f"{space}::conv_transpose{rank}d_prepack")
        return call(weight, m.bias, twos, ones, ones, ones, 1)
    return operator(f"{space}::conv{rank}d_prepack")(weight, m.bias, twos, ones, ones, 1)


def applied(name: str, x: torch.Tensor, packed: Any) -> Any:
    rank = rank_in(name)
    if "fp16" in name:
        return torch.ops.quantized.linear_dynamic_fp16(x, packed)
    form = "_transpose" if "conv_transpose" in name else ""
    op = f"conv{form}{rank}d" if rank else "linear"
    return getattr(torch.ops.quantized, op)(x, packed, 0.09, 11)


def packing_models(name: str) -> list[Model]:
    rank = rank_in(name)
    transposed = "conv_transpose" in name
    constants = parameters(rank, square=transposed)
    x = drawn(*_INPUTS[rank])
    if "fp16" in name:
        x = x.dequantize()

    def packs(m: Any, x: torch.Tensor) -> Any:
        return applied(name, x, prepacked(name, m))

    def unpacks(m: Any, x: torch.Tensor) -> Any:
        weight, bias = operator(name)(prepacked(name, m))
        return weight, bias

    def looks(m: Any, x: torch.Tensor) -> Any:
        found = operator(name)(prepacked(name, m))
        if name.endswith("sizes"):
            return x.dequantize() + found[0][1] * found[2][0] + found[1][0]
        number = found if name.endswith(("_groups", "d_transpose")) else found[rank - 1]
        return x.dequantize() + number

    op = name.partition("::")[2]
    call = (
        packs if "prepack" in op else unpacks if op.endswith(("unpack", "unpack_fp16")) else looks
    )
    return [(One(call, **constants), (x,))]


PACKING = [
    name
    for name in ACCESSORS
    if not name.startswith(("aten::", "onednn::"))
    and not any(part in name for part in ("cell_params", "wrapped", "embedding"))
]


# ---- oneDNN: more models are in test_pt2e.py


_BYTES = torch.arange(0, 234, 13, dtype=torch.uint8).reshape(3, 6)
_SIGNED = torch.arange(-120, 120, 5, dtype=torch.int8).reshape(8, 6)


@shows("onednn::qlinear_prepack")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        given = (x, 0.1, 3, op(m.weight, None), torch.ones(1), torch.zeros(1, dtype=torch.int32))
        return torch.ops.onednn.qlinear_pointwise(*given, None, 9.0, 120, None, "none", [], "")

    return [(One(call, weight=_SIGNED), (_BYTES,))]


@shows("onednn::linear_prepack_fp16")
def _(op: Any) -> list[Model]:
    weight = _SIGNED / 7.0

    def inside(m: Any, x: torch.Tensor) -> Any:
        return torch.ops.onednn.linear_dynamic_fp16(x, op(m.weight, None), None)

    def held(m: Any, x: torch.Tensor) -> Any:
        return torch.ops.onednn.linear_relu_dynamic_fp16(x, m.packed, m.bias)

    x = _BYTES / 100.0
    constants = {"weight": weight, "packed": op(weight, None), "bias": torch.arange(8.0)}
    return [(One(call, **constants), (x,)) for call in (inside, held)]


@shows("onednn::qconv_prepack")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        scale, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
        packed = op(m.weight, scale, 0.1, 3, [1], [0], [1], 1, None)
        given = (x, 0.1, 3, packed, scale, zero, None, [1], [0], [1], 1)
        return torch.ops.onednn.qconv1d_pointwise(*given, 9.0, 120, None, "none", [], None)

    return [(One(call, weight=_SIGNED.reshape(4, 6, 2)), (_BYTES.reshape(1, 6, 3),))]


@shows("quantized::conv2d.new", "quantized::conv2d_relu.new")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        return op(x, prepacked("quantized::conv2d_prepack", m), 0.09, 11)

    return [(One(call, **parameters(2)), (drawn(*_INPUTS[2]),))]


@shows("quantized::conv3d.new", "quantized::conv3d_relu.new")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        return op(x, prepacked("quantized::conv3d_prepack", m), 0.09, 11)

    return [(One(call, **parameters(3)), (drawn(*_INPUTS[3]),))]


@shows(
    *(f"_quantized::{name}" for name in ("conv2d", "conv2d_relu", "linear", "linear_dynamic")),
    *(f"_quantized::conv_transpose{rank}d" for rank in (1, 2)),
)
def _(op: Any) -> list[Model]:
    name = str(op).replace(".default", "").replace(".", "::")
    rank, transposed = rank_in(name), "transpose" in name
    dynamic = "dynamic" in name

    def call(m: Any, x: torch.Tensor) -> Any:
        stem = name.replace("_relu", "").replace("_dynamic", "")
        packed = prepacked(f"{stem}_prepack", m)
        return op(x, packed, True) if dynamic else op(x, packed, 0.09, 11)

    x = drawn(*_INPUTS[rank])
    return [(One(call, **parameters(rank, transposed)), (x.dequantize() if dynamic else x,))]


@shows("_quantized::add")
def _(op: Any) -> list[Model]:
    call = Two(lambda m, x, y: op(x, y, 0.37, 5))
    return [(call, (drawn(*TABLE), drawn(*TABLE, scale=0.03)))]


@shows("_quantized::wrapped_quantized_linear")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        return op(x, m.sx, m.zx, m.weight, m.sw, m.zw, m.bias, m.sy, m.zy, 4)

    return [(One(call, **_WRAPPED, **parameters(0)), (drawn(*_INPUTS[0]).dequantize(),))]


@shows("_quantized::_wrapped_quantized_linear_prepacked", "_quantized::_wrapped_linear_prepack")
def _(op: Any) -> list[Model]:
    prepack = operator("_quantized::_wrapped_linear_prepack")
    linear = operator("_quantized::_wrapped_quantized_linear_prepacked")

    def call(m: Any, x: torch.Tensor) -> Any:
        packed = prepack(m.weight, m.sw, m.zw, m.bias)
        return linear(x, m.sx, m.zx, packed, m.sy, m.zy, 4)

    return [(One(call, **_WRAPPED, **parameters(0)), (drawn(*_INPUTS[0]).dequantize(),))]


@shows(
    "_quantized::wrapped_fbgemm_linear_fp16_weight",
    "_quantized::wrapped_fbgemm_pack_gemm_matrix_fp16",
)
def _(op: Any) -> list[Model]:
    prepack = operator("_quantized::wrapped_fbgemm_pack_gemm_matrix_fp16")
    linear = operator("_quantized::wrapped_fbgemm_linear_fp16_weight")

    def call(m: Any, x: torch.Tensor) -> Any:
        return linear(x, prepack(m.weight), m.bias, 4)

    return [(One(call, **parameters(0)), (drawn(*_INPUTS[0]).dequantize(),))]


_WRAPPED = {
    **{"sx": torch.tensor(0.1), "zx": torch.tensor(31), "sw": torch.tensor(0.013)},
    **{"zw": torch.tensor(0), "sy": torch.tensor(0.17), "zy": torch.tensor(99)},
}


# ---- ops of the registry that need packed parameters


@shows(
    *(f"quantized::conv{rank}d_dynamic" for rank in (1, 2, 3)),
    *(f"quantized::conv_transpose{rank}d_dynamic" for rank in (1, 2, 3)),
)
def _(op: Any) -> list[Model]:
    name = str(op).replace(".default", "").replace(".", "::")
    rank, transposed = rank_in(name), "transpose" in name

    def call(m: Any, x: torch.Tensor) -> Any:
        return op(x, prepacked(name.replace("_dynamic", "_prepack"), m), True)

    x = drawn(*_INPUTS[rank]).dequantize()
    return [(One(call, **parameters(rank, transposed)), (x,))]


@shows(
    *(f"quantized::linear_with_input_q_dq_qweight_dq{relu}_output_fp32" for relu in ("", "_relu"))
)
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        return op(x, 0.13, 41, prepacked("quantized::linear_prepack", m))

    return [(One(call, **parameters(0)), (drawn(*_INPUTS[0]).dequantize(),))]


def test_what_only_onednn_has(ledger: Ledger) -> None:
    def leaky(m: Any, x: torch.Tensor) -> Any:
        packed = prepacked("quantized::linear_prepack", m)
        return torch.ops.quantized.linear_leaky_relu(x, packed, 0.09, 11, 0.2)

    def tanh(m: Any, x: torch.Tensor) -> Any:
        packed = prepacked("quantized::linear_prepack", m)
        return torch.ops.quantized.linear_tanh(x, packed, 0.0078125, 128)

    def add(m: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        first, second = (prepacked("quantized::conv2d_prepack", m) for _ in range(2))
        result = torch.ops.quantized.conv2d_add(x, y, first, 0.09, 11)
        return torch.ops.quantized.conv2d_add_relu(x, result, second, 0.09, 11)

    def uses(m: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        packed = prepacked("quantized::conv2d_prepack", m)
        torch.ops.quantized.conv2d_add(x, y, packed, 0.09, 11)
        return y

    for call in (leaky, tanh):
        compare(One(call, **parameters(0)), (drawn(*_INPUTS[0]),), ledger, "onednn", _ONEDNN)
    inputs = drawn(*_INPUTS[2]), drawn(2, 4, 4, 5, scale=0.09, zero_point=11)
    compare(Two(add, **parameters(2)), inputs, ledger, "onednn", _ONEDNN)
    with pytest.raises(UnsupportedError, match="channels-last memory only"):
        from_fx(Two(uses, **parameters(2)), inputs)


_ONEDNN = Engine.ONEDNN


def test_every_quantized_op_of_the_registry_has_a_rule() -> None:
    names = [name.partition("::")[2] for name in OPS if name.startswith("quantized::")]
    known = {key.removeprefix("torch.ops.quantized.") for key in {**FUNCTIONS, **OPERATORS}}
    assert [name for name in names if name not in known] == []


# ---- recurrent cells and layers

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def product(inputs: int, outputs: int, seed: int, fp16: bool = False) -> Any:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * 0.3
    bias = torch.randn(outputs, generator=generator)
    if fp16:
        return torch.ops.quantized.linear_prepack_fp16(weight, bias)
    q = torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(q, bias)


@shows(*(f"quantized::quantized_{cell}_cell_dynamic" for cell in _GATES))
def _(op: Any) -> list[Model]:
    cell = next(cell for cell in _GATES if f"quantized_{cell}_cell" in str(op))
    hidden, inputs = 9, 6
    ih, hh = (product(n, hidden * _GATES[cell], seed=n) for n in (inputs, hidden))
    unused = torch.zeros(hidden * _GATES[cell])

    def call(m: Any, x: torch.Tensor, h: torch.Tensor) -> Any:
        state = [h, h * 0.5] if cell == "lstm" else h
        return op(x, state, ih, hh, unused, unused)

    x = torch.randn(5, inputs, generator=torch.Generator().manual_seed(0))
    h = torch.randn(5, hidden, generator=torch.Generator().manual_seed(1))
    return [(Two(call), (x, h))]


_LAYERS = {"lstm": torch.ops.aten.quantized_lstm, "gru": torch.ops.aten.quantized_gru}


def layers(name: str, mode: str, bidirectional: bool, depth: int, form: str) -> Model:
    """Return a model that makes parameters of cells and runs layers of them."""
    hidden, inputs, rows, steps = 9, 6, 3, 4
    directions = 2 if bidirectional else 1
    make = operator(name)
    held: dict[str, Any] = {}
    sizes = [inputs, *[hidden * directions] * (depth - 1)]
    for i, size in enumerate(size for size in sizes for _ in range(directions)):
        for j, part in enumerate((size, hidden)):
            generator = torch.Generator().manual_seed(2 * i + j)
            weight = torch.randn(hidden * _GATES[mode], part, generator=generator) * 0.3
            held[f"w{i}{j}"] = nn.Parameter(weight)
            held[f"b{i}{j}"] = nn.Parameter(torch.randn(len(weight), generator=generator))

    def params(m: Any, i: int) -> Any:
        weights = [getattr(m, f"w{i}{j}") for j in (0, 1)]
        biases = [getattr(m, f"b{i}{j}") for j in (0, 1)]
        if name.endswith("params"):
            return make(*weights, *biases)
        if name.endswith("fp16"):
            return make(*map(torch.ops.quantized.linear_prepack_fp16, weights, biases))
        q = [torch.quantize_per_tensor(w, 0.01, 0, torch.qint8) for w in weights]
        return make(*map(torch.ops.quantized.linear_prepack, q, biases), *biases, m.limited)

    def call(m: Any, x: torch.Tensor, h: torch.Tensor) -> Any:
        cells = [params(m, i) for i in range(depth * directions)]
        state = [h, h * 0.5] if mode == "lstm" else h
        common = (state, cells, True, depth, 0.0, False, bidirectional)
        if form == "packed":
            made = _LAYERS[mode].data(x, m.batch_sizes, *common)
        else:
            made = _LAYERS[mode].input(x, *common, form == "batch_first")
        return tuple(made[i] for i in range(3 if mode == "lstm" else 2))

    held["limited"] = depth > 1
    held["batch_sizes"] = torch.tensor([3, 3, 2, 1])
    shapes = {"packed": (9, inputs), "batch_first": (rows, steps, inputs)}
    x = torch.randn(shapes.get(form, (steps, rows, inputs)))
    return Two(call, **held), (x, torch.randn(depth * directions, rows, hidden))


@shows(*(f"quantized::make_quantized_cell_params{form}" for form in ("", "_dynamic", "_fp16")))
def _(op: Any) -> list[Model]:
    name = str(op).replace(".default", "").replace(".", "::")
    return [
        layers(name, mode, bidirectional, depth, form)
        for mode in ("lstm", "gru")
        for bidirectional, depth in ((False, 1), (True, 2))
        for form in ("steps", "batch_first", "packed")
    ]


# ---- aten


@shows(*(f"aten::{name}.Tensor" for name in ("eq", "ne", "lt", "le", "gt", "ge")))
def _(op: Any) -> list[Model]:
    call = Two(lambda m, x, y: op(x, y))
    return [(call, (drawn(2, 5), drawn(2, 5, zero_point=31))), (call, (drawn(3, 5),) * 2)]


@shows(*_forms(".Tensor_out"))
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        out = torch.empty(x.shape, dtype=torch.bool)
        op(x, y, out=out)
        return out

    return [(Two(call), (drawn(2, 5), drawn(2, 5, zero_point=31)))]


@shows(*(f"aten::{name}.Scalar_out" for name in ("eq", "ne", "lt", "le", "gt", "ge")))
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        out = torch.empty(x.shape, dtype=torch.bool)
        return op(x, 0.1, out=out), out

    return [(One(call), (drawn(*TABLE),))]


@shows("aten::dequantize.self")
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(x)), (drawn(*IMAGE),))]


@shows("aten::dequantize.tensors")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        made = op([x, y])
        return made[0], made[1]

    return [(Two(call), (drawn(*TABLE), drawn(3)))]


@shows("aten::index.Tensor")
def _(op: Any) -> list[Model]:
    index = torch.tensor([2, 0, 2])
    return [(One(lambda m, x: op(x, [None, index])), (drawn(*IMAGE),))]


@shows("aten::mean.dim")
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(x, [2, 3], True)), (drawn(*IMAGE),))]


@shows("aten::std.correction")
def _(op: Any) -> list[Model]:
    return [
        (One(lambda m, x: op(x, [1], correction=2, keepdim=True)), (drawn(*IMAGE),)),
        (One(lambda m, x: op(x)), (drawn(*TABLE),)),
    ]


@shows("aten::squeeze.dim")
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(x, 1)), (drawn(3, 1, 4),))]


@shows("aten::squeeze.dims")
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(x, [0, 2])), (drawn(1, 3, 1),))]


def writes(op: Any, shape: tuple[int, ...], result: tuple[int, ...], *args: Any) -> list[Model]:
    """Return models that write to a tensor and return it; other parameters, other strides."""

    def call(m: Any, x: torch.Tensor, out: torch.Tensor) -> Any:
        return op(x, *args, out=out), out

    outs = [drawn(*result, scale=0.7, zero_point=3)]
    if len(result) > 1:
        outs.append(columns(outs[0]))
    return [(Two(call), (drawn(*shape), out)) for out in outs]


@shows("aten::adaptive_avg_pool3d.out")
def _(op: Any) -> list[Model]:
    return [
        *writes(op, VOLUME, (1, 3, 1, 1, 1), [1, 1, 1]),
        *writes(op, VOLUME, (1, 3, 2, 2, 3), [2, 2, 3]),
    ]


@shows("aten::cat.out")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor, out: torch.Tensor) -> Any:
        return op([x, x], 1, out=out), out

    out = drawn(2, 6, 7, 9, scale=0.35)
    return [(Two(call), (drawn(*IMAGE), o)) for o in (out, columns(out))]


@shows("aten::hardsigmoid.out")
def _(op: Any) -> list[Model]:
    return writes(op, IMAGE, IMAGE)


@shows("aten::hardtanh.out")
def _(op: Any) -> list[Model]:
    return writes(op, IMAGE, IMAGE, -1.05, 2.25)


@shows("aten::index_select.out")
def _(op: Any) -> list[Model]:
    return writes(op, IMAGE, (2, 2, 7, 9), 1, torch.tensor([2, 0]))


@shows("aten::max.unary_out", "aten::min.unary_out")
def _(op: Any) -> list[Model]:
    return writes(op, IMAGE, ())


@shows("aten::mean.out")
def _(op: Any) -> list[Model]:
    return writes(op, IMAGE, (2, 3), [2, 3])


@shows("aten::std.correction_out")
def _(op: Any) -> list[Model]:
    return writes(op, IMAGE, (2, 3), [2, 3])


@shows("aten::reflection_pad1d.out")
def _(op: Any) -> list[Model]:
    return writes(op, (2, 3, 5), (2, 3, 8), [1, 2])


@shows("aten::reflection_pad2d")
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(x, [1, 2, 0, 3])), (drawn(*IMAGE),))]


@shows("aten::reflection_pad2d.out")
def _(op: Any) -> list[Model]:
    return writes(op, IMAGE, (2, 3, 10, 12), [1, 2, 0, 3])


@shows("aten::_index_put_impl_")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        op(x, [torch.tensor([2, 0])], torch.tensor([[0.25], [1.35]]))
        return x

    return [(One(call), (drawn(*TABLE),))]


def in_place(op: Any, *args: Any, dense: bool = False, **options: Any) -> list[Model]:
    """Return models that change a copy, and their input; with other strides, too."""

    def copied(m: Any, x: torch.Tensor) -> Any:
        y = x.clone()
        op(y, *args, **options)
        return y, x

    def own(m: Any, x: torch.Tensor) -> Any:
        op(x, *args, **options)
        return x

    given = drawn(2, 3, 9, 15)
    inputs = (given,) if dense else (given, columns(given))
    return [(One(call), (x,)) for call in (copied, own) for x in inputs]


@shows("aten::fill_.Scalar")
def _(op: Any) -> list[Model]:
    return [model for number in (0.25, -1.35, 99) for model in in_place(op, number, dense=True)]


@shows("aten::fill_.Tensor")
def _(op: Any) -> list[Model]:
    return in_place(op, torch.tensor(1.25), dense=True)


@shows("aten::gelu_")
def _(op: Any) -> list[Model]:
    return [*in_place(op), *in_place(op, approximate="tanh")]


@shows("aten::hardtanh_")
def _(op: Any) -> list[Model]:
    return in_place(op, -1.15, 1.25)


@shows("aten::leaky_relu_")
def _(op: Any) -> list[Model]:
    return [*in_place(op), *in_place(op, 0.5)]


@shows("aten::masked_fill_.Scalar")
def _(op: Any) -> list[Model]:
    return in_place(op, torch.arange(15) % 3 == 0, 0.35)


@shows("aten::masked_fill_.Tensor")
def _(op: Any) -> list[Model]:
    return in_place(op, torch.arange(15) % 3 == 0, torch.tensor(0.35))


@shows("aten::relu_")
def _(op: Any) -> list[Model]:
    return in_place(op)


@shows("aten::resize_")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        op(x, [2, 5])
        return x

    return [(One(call), (x,)) for x in (drawn(3, 4), columns(drawn(3, 4)))]


@shows("aten::set_.source_Storage_storage_offset")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        op(x, y.untyped_storage(), 2, [2, 3], [1, 3])
        return x

    return [(Two(call), (drawn(7), drawn(13)))]


@shows("aten::_adaptive_avg_pool2d")
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x, s=s: op(x, s)), (drawn(*IMAGE),)) for s in ([1, 1], [2, 4])]  # type: ignore[misc]


@shows("aten::_prelu_kernel")
def _(op: Any) -> list[Model]:
    weight = drawn(1, 3, 1, 1, scale=0.01)
    return [(One(lambda m, x: op(x, m.slopes), slopes=weight), (drawn(*IMAGE),))]


@shows("aten::_reshape_alias")
def _(op: Any) -> list[Model]:
    return [(One(lambda m, x: op(x, [6, 2], [2, 1])), (drawn(3, 4),))]


@shows("aten::quantized_batch_norm")
def _(op: Any) -> list[Model]:
    numbers = torch.tensor([[0.5, 2.0, -1.0], [0.1, 0.2, 0.3], [1.0, -1.0, 0.0], [1.0, 4.0, 0.1]])

    def call(m: Any, x: torch.Tensor) -> Any:
        return op(x, *m.numbers, 1e-5, 0.13, 21)

    return [(One(call, numbers=tuple(numbers)), (drawn(*IMAGE),))]


@shows("aten::empty.memory_format")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        out = op(x.size(), dtype=torch.bool)
        torch.ops.aten.eq.Scalar_out(x, 0.1, out=out)
        return out

    return [(One(call), (drawn(*TABLE),))]


def makes_memory(make: Callable[[Any, torch.Tensor], torch.Tensor]) -> list[Model]:
    """Return models that write a sum to memory they made."""

    def call(m: Any, x: torch.Tensor) -> Any:
        out = make(m, x)
        torch.ops.quantized.add_out(x, x, out)
        return out

    last = drawn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    return [(One(call), (x,)) for x in (drawn(*IMAGE), last)]


@shows("aten::empty_like")
def _(op: Any) -> list[Model]:
    return makes_memory(lambda m, x: op(x))


@shows("aten::empty_quantized")
def _(op: Any) -> list[Model]:
    return makes_memory(lambda m, x: op(x.size(), x))


@shows("aten::_empty_affine_quantized")
def _(op: Any) -> list[Model]:
    return makes_memory(lambda m, x: op(x.size(), scale=0.3, zero_point=7, dtype=torch.quint8))


@shows("aten::_empty_per_channel_affine_quantized")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        scales, zero_points = m.scales, m.zero_points
        made = op(x.size(), scales=scales, zero_points=zero_points, axis=0, dtype=torch.qint8)
        return x.dequantize() + torch.ops.aten.q_per_channel_axis(made)

    constants = {"scales": torch.tensor([0.5, 0.25]), "zero_points": torch.tensor([0, 3])}
    return [(One(call, **constants), (drawn(2, 3),))]


@shows("quantized::embedding_bag_prepack")
def _(op: Any) -> list[Model]:
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(10, 16, generator=generator)
    scales, zero_points = torch.rand(10, generator=generator) * 0.03, torch.full((10,), 99.0)
    packed = torch.quantize_per_channel(table, scales, zero_points, 0, torch.quint8)
    weight = nn.Parameter(packed, requires_grad=False)

    def call(m: Any, x: torch.Tensor) -> Any:
        return torch.ops.quantized.embedding_byte(op(m.weight), x)

    return [(One(call, weight=weight), (torch.tensor([3, 0, 9, 3]),))]


@shows("aten::q_scale")
def _(op: Any) -> list[Model]:
    call = One(lambda m, x: torch.quantize_per_tensor(m.real, op(x), 3, torch.quint8))
    call.real = torch.arange(9.0)
    return [(call, (drawn(3),))]


@shows("aten::q_zero_point")
def _(op: Any) -> list[Model]:
    call = One(lambda m, x: torch.quantize_per_tensor(m.real, 0.5, op(x), torch.quint8))
    call.real = torch.arange(9.0)
    return [(call, (drawn(3),))]


def per_channel() -> torch.Tensor:
    scales, zero_points = torch.tensor([0.5, 0.25]), torch.tensor([0, 3])
    return torch.quantize_per_channel(
        torch.arange(6.0).reshape(2, 3), scales, zero_points, 0, torch.qint8
    )


@shows("aten::q_per_channel_scales", "aten::q_per_channel_zero_points")
def _(op: Any) -> list[Model]:
    packed = nn.Parameter(per_channel(), requires_grad=False)
    return [(One(lambda m, x: op(m.packed), packed=packed), (drawn(3),))]


@shows("aten::q_per_channel_axis")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        return x.sum(op(m.packed))

    packed = nn.Parameter(per_channel(), requires_grad=False)
    return [(One(call, packed=packed), (torch.ones(2, 3),))]


@shows("aten::qscheme")
def _(op: Any) -> list[Model]:
    def call(m: Any, x: torch.Tensor) -> Any:
        return x.dequantize() if op(x) is not None else x

    return [(One(call), (drawn(3),))]


@pytest.mark.parametrize("name", [*MODELS, *PACKING])
def test_a_model_that_calls_it_imports_and_gives_the_bits(name: str, ledger: Ledger) -> None:
    models = MODELS[name](operator(name)) if name in MODELS else packing_models(name)
    for model, inputs in models:
        compare(model, inputs, ledger, name)


def test_every_form_and_accessor_is_shown() -> None:
    shown = {*MODELS, *PACKING}
    missing = [name for name in (*FORMS, *ACCESSORS) if name not in shown]
    assert missing == []


def test_memory_that_was_not_written_is_not_read() -> None:
    def reads(m: Any, x: torch.Tensor) -> Any:
        return torch.empty(x.shape) + x

    def returns(m: Any, x: torch.Tensor) -> Any:
        return torch.empty_like(x)

    for call, said in ((reads, "reads"), (returns, "returns")):
        with pytest.raises(UnsupportedError, match=f"{said}.*not defined"):
            from_fx(One(call), (torch.ones(2, 5),))
