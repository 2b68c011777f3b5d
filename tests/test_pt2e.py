"""pt2e's operators of oneDNN: models that call them import and give torch's bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Ledger
from oracle import assert_same, assert_same_strides, this_machine
from torch import nn

from refquant.importers import from_fx
from refquant.importers.fx_torch import to_tensor
from refquant.ir import UnsupportedError, VerifyError
from refquant.ir.op import OPS
from refquant.ir.target import Isa, Target
from refquant.ir.types import TensorType, float32, int8, int32, uint8
from refquant.kernels import onednn_functions
from refquant.ledger import check
from refquant.ledger.cell import Cell
from refquant.ledger.known import is_expected

OPERATORS = torch.ops.onednn
VNNI = this_machine().isa in (Isa.AVX512_VNNI, Isa.DEFAULT)  # oneDNN's, not ATen's


class Model(nn.Module):
    """A model that is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], **constants: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return self.function(self, x, y)


def drawn(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    low, high = (0, 256) if dtype == torch.uint8 else (-128, 128)
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(low, high, shape, dtype=dtype, generator=generator)


def weights(*shape: int) -> dict[str, torch.Tensor]:
    return {
        "w": drawn(*shape, dtype=torch.int8),
        "scale": torch.linspace(0.002, 0.03, shape[0]),
        "zero": torch.zeros(shape[0], dtype=torch.int32),
        "bias": torch.linspace(-1, 1, shape[0]),
    }


def compare(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], ledger: Ledger, *, products: bool = True
) -> None:
    """Import and run a model; products are refused on machines without VNNI."""

    def fresh() -> tuple[torch.Tensor, ...]:
        return tuple(x.clone() for x in inputs)

    with torch.no_grad():
        graph = from_fx(model, fresh(), batch=None)
        expected = model(*fresh())
    expected = expected if isinstance(expected, tuple) else (expected,)
    for executor in ("reference", "fast"):
        arrays = [to_tensor(x) for x in fresh()]
        if products and not VNNI:
            with pytest.raises(UnsupportedError, match="isa"):
                graph.run(*arrays, target=this_machine(), executor=executor)  # type: ignore[arg-type]
            continue
        actual = graph.run(*arrays, target=this_machine(), executor=executor).outputs  # type: ignore[arg-type]
        for one, other in zip(actual, map(to_tensor, expected), strict=True):
            assert_same(one, other)
            assert_same_strides(one, other)
            ledger.equal(f"pt2e model {executor}", one, other)


def packed_inside(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Pack in the graph, then a linear with a float result, one with bytes, one that adds."""
    packed = OPERATORS.qlinear_prepack(m.w, None)
    given = (x, 0.1, 3, packed, m.scale, m.zero)
    real = OPERATORS.qlinear_pointwise(*given, None, 1.0, 0, torch.float32, "relu", [], "")
    q = OPERATORS.qlinear_pointwise.default(
        *given, m.bias, 0.4, 20, None, "hardtanh", [-3.0, 9.5], ""
    )
    sums = OPERATORS.qlinear_pointwise.binary(
        *(*given, y, m.bias, 0.4, 20, torch.uint8, 0.2, 7, "sum", 1.0, "relu", [], "")
    )
    return real, q, sums, y  # type: ignore[return-value]


def held(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Use a packed weight that the model holds, and an input's scale that is computed."""
    real = OPERATORS.qlinear_pointwise.tensor(
        *(x, y.max() * 0.01, torch.tensor(3), m.packed, m.scale, m.zero, m.bias),
        *(1.0, 0, torch.bfloat16, "swish", [], ""),
    )
    known = OPERATORS.qlinear_pointwise.tensor(
        *(x, m.step, m.shift, m.packed, m.scale, m.zero, m.bias),
        *(0.3, 11, None, "none", [], ""),
    )
    return real, known  # type: ignore[return-value]


def test_linear_models(ledger: Ledger) -> None:
    constants = weights(19, 33)
    x = drawn(5, 33)
    compare(Model(packed_inside, **constants), (x, drawn(5, 19)), ledger)
    packed = OPERATORS.qlinear_prepack(constants["w"], None)
    numbers = {"step": torch.tensor(0.1), "shift": torch.tensor(3)}
    model = Model(held, packed=packed, **numbers, **constants)
    compare(model, (x, torch.tensor([3.0, 9.0])), ledger)


_GEOMETRY = {
    rank: ([1] * (rank - 1) + [2], [1] * rank, [1] * rank, 2 if rank == 2 else 1)
    for rank in (1, 2, 3)
}


def convolves(rank: int, inside: bool, name: str) -> Callable[..., Any]:
    op = getattr(OPERATORS, name)

    def call(m: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        packed = m.packed
        if inside:
            packed = OPERATORS.qconv_prepack(m.w, m.scale, 0.1, 3, *_GEOMETRY[rank], None)
        given = (x, 0.1, 3, packed, m.scale, m.zero)
        rest = (*_GEOMETRY[rank], 0.4, 20, None)
        made = op(*given, m.bias, *rest, "none", [], None)
        if rank != 2:
            return made, made
        added = OPERATORS.qconv2d_pointwise.binary(
            *(*given, y, m.bias, *rest, 0.2, 7, "sum", 1.0, None, [], None)
        )
        return made, added, y

    return call


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution_models(rank: int, ledger: Ledger) -> None:
    groups = _GEOMETRY[rank][3]
    constants = weights(8, 6 // groups, *(3,) * rank)
    x = drawn(2, 6, *(7, 6, 9)[-rank:])
    packed = OPERATORS.qconv_prepack(
        constants["w"], constants["scale"], 0.1, 3, *_GEOMETRY[rank], None
    )
    out = drawn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    for name in ("qconv_pointwise", f"qconv{rank}d_pointwise"):
        for inside in (True, False):
            model = Model(convolves(rank, inside, name), packed=packed, **constants)
            compare(model, (x, out), ledger)


def elementwise(m: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    numbers = (0.1, 3, y, 0.2, 9)
    return (
        OPERATORS.qadd.tensor(x, *numbers, 0.25, 12, torch.uint8),
        OPERATORS.qadd_relu.tensor(x, *numbers, 1.0, 0, torch.float32),
        OPERATORS.qmul.tensor(x, *numbers, 3.0, 40, torch.uint8),
        OPERATORS.qbatch_norm2d(x, 0.1, 3, *m.parts.abs(), 1e-5, 0.05, 99, torch.uint8),
    )


def test_elementwise_models(ledger: Ledger) -> None:
    parts = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    model = Model(elementwise, parts=parts)
    compare(model, (drawn(2, 5, 3, 5), drawn(2, 5, 3, 5).flip(0)), ledger, products=False)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("onednn::qlinear_pointwise", uint8),
        ("onednn::qlinear_pointwise", int8),
        ("onednn::qlinear_pointwise.binary", int8),
        ("onednn::qconv_pointwise", uint8),
        ("onednn::qconv2d_pointwise.binary", uint8),
        ("onednn::qadd.tensor", uint8),
        ("onednn::qmul.tensor", uint8),
        ("onednn::qbatch_norm2d", uint8),
        ("onednn::linear_dynamic_fp16", float32),
    ],
)
def test_a_sweep_at_ties(name: str, dtype: Any, ledger: Ledger) -> None:
    products = any(part in name for part in ("qlinear", "qconv", "fp16"))
    cell = Cell(name, Target("onednn", this_machine().isa), dtype)
    outcome = check.run(cell, ledger.size(20_000, 1_000_000))
    if products and not VNNI:
        assert outcome.status == "missing"
    else:
        assert outcome.samples
        assert is_expected(cell, outcome), outcome


def test_the_exponential_is_that_of_swish(ledger: Ledger) -> None:
    """The bias alone makes the real value, so any float32 number can be tried."""
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    near = np.random.default_rng(1).normal(size=4096).astype(np.float32) * 30
    x = np.concatenate([x[np.abs(x) < 1e30], near, np.float32([0, -0.0, -87.34, -87.3, -200])])
    n = x.size
    packed = OPERATORS.qlinear_prepack(torch.zeros(n, 1, dtype=torch.int8), None)
    rows = torch.zeros(2, 1, dtype=torch.uint8)
    scale, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    output = (1.0, 0, torch.float32, "swish", [], "")
    y = OPERATORS.qlinear_pointwise(
        rows, 1.0, 0, packed, scale, zero, torch.from_numpy(x), *output
    )
    ledger.equal("onednn swish float32", onednn_functions.swish(x, ()), y[0].numpy())


def check_infer(name: str, operands: list[Any], attributes: dict[str, Any], match: str) -> None:
    with pytest.raises((VerifyError, UnsupportedError), match=match):
        OPS[name].infer(*operands, **attributes)


def test_bad_input() -> None:
    name = "onednn::qlinear_pointwise"
    case = OPS[name].cases[0]
    x, w = TensorType(uint8, (1, 2)), TensorType(int8, (2, 2))
    scale, zero = TensorType(float32, (1,)), TensorType(int32, (1,))
    good = [x, w, scale, zero, None]
    plain = dict(case.attributes)
    wrong = TensorType(float32, (1, 2))
    check_infer(name, [wrong, *good[1:]], plain, "input must be uint8, int8, got float32")
    check_infer(name, [TensorType(uint8, (1, 3)), *good[1:]], plain, "does not fit input")
    check_infer(name, [x, wrong, *good[2:]], plain, "weight must be int8")
    for key, value, match in (
        ("x_zero_point", -1, r"must be in \[0, 255\], got -1"),
        ("output_scale", 0.0, "output_scale must be > 0"),
        ("output_dtype", float32, "needs output_scale 1 and output_zero_point 0"),
        ("output_dtype", int32, "output_dtype must be one of"),
        ("post_op_name", "elu", "post op must be one of"),
        ("post_op_name", "hardtanh", "hardtanh takes 2 numbers"),
    ):
        check_infer(name, good, {**plain, key: value}, match)
    curved = {**plain, "post_op_name": "tanh", "output_dtype": float32}
    curved |= {"output_scale": 1.0, "output_zero_point": 0}
    check_infer(name, good, curved, "last bits of oneDNN's tanh are not reproduced")
    add = OPS["onednn::qadd.tensor"]
    numbers = dict(add.cases[0].attributes)
    check_infer(add.name, [x, w], numbers, "operands must be uint8")
    check_infer(add.name, [x, TensorType(uint8, (2,))], numbers, "must have one shape")
    check_infer(add.name, [x, x], {**numbers, "output_dtype": int8}, "output_dtype must be")
    parts = np.zeros((2, 4), np.uint8)
    with pytest.raises(UnsupportedError, match="dense with the same strides"):
        add.reference(parts, parts.reshape(4, 2).T, **numbers)


def test_other_machines_are_refused() -> None:
    op = OPS["onednn::qlinear_pointwise"]
    case = op.cases[0]
    for fast in (True, False):
        run = op.bind(Target("onednn", "avx2"), fast=fast)
        with pytest.raises(UnsupportedError, match="reproduced for isa avx512_vnni, got avx2"):
            run(*case.operands, **case.attributes)


def test_strides_that_torch_ignores_are_refused() -> None:
    for name in ("onednn::qlinear_pointwise", "onednn::linear_dynamic_fp16"):
        op = OPS[name]
        case = op.cases[0]
        *operands, _ = case.operands
        bias = np.zeros((2, 3), np.float32)[:, 0]
        for fast in (True, False):
            run = op.bind(Target("onednn"), fast=fast)
            with pytest.raises(UnsupportedError, match="as if it were contiguous"):
                run(*operands, bias, **case.attributes)
