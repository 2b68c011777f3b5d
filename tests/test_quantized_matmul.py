"""``quantized::matmul``: dequantized, multiplied in MKL's order, and quantized."""

from __future__ import annotations

from functools import cache
from typing import Any

import flows
import numpy as np
import pytest
import torch
from ledger import Ledger
from oracle import assert_same, call_torch, from_torch, this_machine, torch_as
from torch import nn

from refquant.importers import from_fx
from refquant.ir.errors import VerifyError
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.types import Dim, DType, QParams, TensorType, qint8, qint32, quint8
from refquant.ledger.draw import tensors as draw

pytestmark = pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
Array = Any
Rng = np.random.Generator
NAME = "quantized::matmul"


# Of K products that are 1, the one at ``first`` is made huge and that at ``second`` its opposite.
# Left over are those ones that are added to neither before the two meet.
LEFT_OVER = {  # shape, element, first, second
    ((16, 300, 16), (3, 5), 0, 149): 150,  # two chains of 150
    ((16, 300, 16), (3, 5), 0, 150): 0,
    ((5, 193, 40), (4, 39), 0, 95): 97,  # 96, 96 and 1
    ((5, 193, 40), (4, 39), 96, 191): 97,
    ((5, 193, 40), (4, 39), 0, 192): 0,
    ((4, 500, 12), (0, 0), 192, 383): 308,  # 192, 192 and 116
    ((3, 64, 7), (1, 0), 4, 7): 60,  # of every eight four aside
    ((3, 64, 7), (1, 0), 0, 4): 56,
    ((3, 64, 7), (1, 1), 0, 4): 59,
    ((2, 1000, 9), (1, 2), 12, 15): 996,
    ((2, 1000, 9), (1, 3), 12, 15): 984,
}


@cache
def order_is_known() -> bool:
    """Whether MKL adds up here as it does on the processors the order was found on."""
    found = []
    with torch_as(this_machine()):
        for ((rows, depth, columns), element, first, second), ones in LEFT_OVER.items():
            a, b = torch.ones(rows, depth), torch.ones(depth, columns)
            a[element[0], first], a[element[0], second] = 2.0**40, -(2.0**40)
            found.append(float(torch.matmul(a, b)[element]) == ones)
        # A fused product of 1 + 2**-12 with itself, less its rounded value, is not 0.
        a, b = torch.full((4, 2), 1 + 2.0**-12), torch.full((2, 12), 1 + 2.0**-12)
        a[:, 0], b[0] = -(1 + 2.0**-11), 1
        found.append(float(torch.matmul(a, b)[0, 0]) == 2.0**-24)
        found.append(float(torch.matmul(a[:3], b)[0, 0]) == 0)
    return all(found)


def at_a_tie(rng: Rng, a: Array, b: Array, dtype: DType, exact: bool) -> Any:
    """Return quantized operands and an output scale that puts one sum next to a tie."""
    powers = 2.0 ** rng.integers(-6, 2, 2) if exact else np.exp(rng.uniform(-6, 1, 2))
    zeros = rng.integers(*dtype.limits, 2)
    qa, qb = (
        QTensor(x, float(s), int(z), None, dtype)
        for x, s, z in zip((a, b), powers, zeros, strict=True)
    )
    sums = np.matmul(draw.real(qa), draw.real(qb))
    scale = draw.scale_at_tie(rng, sums, largest=1e9) if sums.size else 0.1
    return (qa, qb), {"scale": scale, "zero_point": int(rng.integers(*dtype.limits))}


def check(ledger: Ledger, subject: str, operands: Any, attributes: Any, promised: bool) -> None:
    """Compare with torch: equal bits, or a step where the sum is within its error of a tie."""
    with torch_as(this_machine()):
        expected = call_torch(NAME, operands, attributes)
    op = OPS[NAME]
    assert op.infer(*map(type_of, operands), **attributes) == type_of(expected)
    results = [op.bind(this_machine(), fast=fast)(*operands, **attributes) for fast in (0, 1)]
    assert_same(*results)
    actual = results[1].int_repr
    if promised:
        ledger.equal(subject, actual, expected.int_repr)
        return
    differs = actual != expected.int_repr
    assert np.abs(actual.astype(int) - expected.int_repr).max(initial=0) <= 1
    a, b = map(draw.real, operands)
    steps = np.matmul(a, b) / attributes["scale"] + attributes["zero_point"]
    error = (a.shape[-1] + 2) * 2.0**-24 * np.matmul(np.abs(a), np.abs(b)) / attributes["scale"]
    from_tie = np.abs(steps - np.floor(steps) - 0.5)
    near = (from_tie <= error + 2.0**-22 * np.abs(steps))[differs].all()
    ledger.run(f"{subject}, equal but for near ties", bool(near))


def integers(rng: Rng, dtype: DType, *shape: int) -> Array:
    low, high = dtype.limits
    return rng.integers(low, high + 1, shape).astype(dtype.storage)


SHAPES: dict[str, Any] = {
    "large": lambda rng: ((rng.integers(4, 40), rng.integers(12, 70)), ()),
    "few columns": lambda rng: ((rng.integers(1, 30), rng.integers(2, 12)), ()),
    "few rows": lambda rng: ((rng.integers(1, 4), rng.integers(2, 70)), ()),
    "batch": lambda rng: (rng.integers(1, 30, 2), (rng.integers(2, 6),)),
    "small batch": lambda rng: (rng.integers(1, 6, 2), (rng.integers(2, 4), 2)),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", [quint8, qint8], ids=str)
def test_products_at_ties(dtype: DType, kind: str, ledger: Ledger) -> None:
    rng = np.random.default_rng([len(kind), dtype.limits[1]])
    for i in range(ledger.size(60, 3_000)):
        (rows, columns), outer = SHAPES[kind](rng)
        depth = int(rng.choice([1, 2, 7, 8, 16, 33, 64, 100, 193, 256, 400, 700]))
        a, b = (
            integers(rng, dtype, *outer, rows, depth),
            integers(rng, dtype, *outer, depth, columns),
        )
        operands, attributes = at_a_tie(rng, a, b, dtype, exact=i % 4 == 0)
        promised = order_is_known() or i % 4 == 0
        check(ledger, f"quantized::matmul {dtype} {kind}", operands, attributes, promised)


def test_one_column_is_within_a_step(ledger: Ledger) -> None:
    rng = np.random.default_rng(5)
    for i in range(ledger.size(60, 3_000)):
        rows, depth = int(rng.integers(1, 40)), int(rng.choice([3, 8, 33, 100, 400]))
        a = integers(rng, quint8, rows, depth)
        b = integers(rng, quint8, depth, *(() if i % 2 else (1,)))
        operands, attributes = at_a_tie(rng, a, b, quint8, exact=i % 4 == 0)
        check(ledger, "quantized::matmul one column", operands, attributes, i % 4 == 0)


def test_every_combination_of_ranks(ledger: Ledger) -> None:
    rng = np.random.default_rng(6)
    shapes = [
        ((3, 5), (5, 2)),
        ((7,), (7, 13)),
        ((2, 3, 8), (8, 5)),
        ((2, 3, 64), (64, 20)),
        ((6, 20), (3, 20, 30)),
        ((9,), (3, 9, 30)),
        ((2, 1, 6, 20), (3, 20, 30)),
        ((0, 3), (3, 4)),
        ((2, 0, 3), (2, 3, 4)),
        ((4, 0), (0, 13)),
    ]
    for left, right in shapes:
        for dtype in (quint8, qint8):
            operands, attributes = at_a_tie(
                rng, integers(rng, dtype, *left), integers(rng, dtype, *right), dtype, exact=False
            )
            check(ledger, "quantized::matmul ranks", operands, attributes, order_is_known())


def test_strides_do_not_matter(ledger: Ledger) -> None:
    rng = np.random.default_rng(8)
    a, b = integers(rng, quint8, 2, 3, 16, 24), integers(rng, quint8, 2, 3, 20, 24)
    operands, attributes = at_a_tie(rng, a, b.swapaxes(-1, -2), quint8, exact=False)
    check(ledger, "quantized::matmul strides", operands, attributes, order_is_known())
    turned = integers(rng, quint8, 16, 2, 24, 3).transpose(1, 3, 0, 2)
    operands, attributes = at_a_tie(rng, turned, b.swapaxes(-1, -2), quint8, exact=False)
    check(ledger, "quantized::matmul strides", operands, attributes, order_is_known())


def test_refusals() -> None:
    op, parameters = OPS[NAME], QParams(0.5, 3)
    x = TensorType(quint8, (Dim("N"), 3, 4), parameters)
    y = TensorType(quint8, (4, 5), parameters)
    given: Any = {"scale": 0.5, "zero_point": 7}
    assert op.infer(x, y, **given) == TensorType(quint8, (Dim("N"), 3, 5), QParams(0.5, 7))
    other = TensorType(qint8, (4, 5), parameters)
    rows = TensorType(quint8, (4, 5), QParams((0.5,) * 5, (3,) * 5, 1))
    for left, right, message in (
        (x, other, "dtypes differ: quint8 and qint8"),
        (x, rows, "quantized per tensor"),
        (x, TensorType(qint32, (4, 5), parameters), "one of quint8, qint8, got qint32"),
        (x, TensorType(quint8, (5, 5), parameters), "inner length must be 4, got 5"),
    ):
        with pytest.raises(VerifyError, match=message):
            op.infer(left, right, **given)
    for change, message in (({"scale": 0.0}, "scale must be > 0"), ({"zero_point": 256}, "256")):
        with pytest.raises(VerifyError, match=message):
            op.infer(x, y, **given | change)


class Attention(nn.Module):
    """Scores and values of attention, both products of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = torch.matmul(self.q(x), self.k(x).transpose(-1, -2))
        return torch.matmul(scores, self.k(x))


def leaves(value: Any) -> Any:
    return value if isinstance(value, tuple | list) else (value,)


@pytest.mark.parametrize("executor", ["reference", "fast"])
def test_a_model_of_two_products(executor: Any, ledger: Ledger) -> None:
    torch.manual_seed(0)
    model = flows.convert(flows.prepare(Attention(), (2, 12, 16)))
    x = torch.randn(2, 12, 16)
    with flows.fbgemm():
        expected = from_torch(model(x))
    graph = from_fx(model, (x,))
    assert [node.op for node in graph.nodes].count(NAME) == 2
    (actual,) = leaves(graph.run(from_torch(x), executor=executor).outputs)
    if order_is_known():
        ledger.equal("a model with quantized::matmul", actual, expected)
    else:
        assert np.mean(actual != expected) < 0.05
