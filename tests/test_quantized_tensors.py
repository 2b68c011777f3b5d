"""What torch does with quantized tensors that is neither arithmetic nor a layer."""

from __future__ import annotations

from typing import Any

import flows
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ledger import Ledger
from oracle import (
    assert_matches_torch,
    assert_same,
    assert_same_strides,
    call_torch,
    from_torch,
    this_machine,
    to_torch,
    torch_as,
)
from torch import nn

from refquant.importers import from_fx
from refquant.ir.errors import VerifyError
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.types import DType, QParams, TensorType, bool_, float32, qint8, qint32, quint8
from refquant.ledger.draw import tensors as draw

pytestmark = pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
Array = Any
Rng = np.random.Generator
DTYPES = [quint8, qint8, qint32]
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


def few(rng: Rng, shape: tuple[int, ...], dtype: DType, layout: str = "contiguous") -> QTensor:
    """Return few different integers around the zero point, so that many are equal."""
    middle = int(rng.integers(-100, 100)) if dtype == qint32 else int(rng.integers(10, 100))
    x = (middle + rng.integers(-4, 5, shape)).astype(dtype.storage)
    scale = float(rng.choice([0.5, 0.1, 3.7e-4]))
    return QTensor(draw.laid_out(x, layout), scale, middle, None, dtype)


def bare(x: Any) -> Array:
    return x.int_repr if isinstance(x, QTensor) else x


def matches(
    ledger: Ledger, subject: str, name: str, operands: tuple[Any, ...], **attributes: Any
) -> None:
    """Compare one result, its strides and its type with torch's, and count."""
    expected = assert_matches_torch(name, operands, attributes)
    actual = OPS[name].bind(this_machine(), fast=True)(*operands, **attributes)
    ledger.equal(subject, bare(actual), bare(expected))


def pairs_match(ledger: Ledger, subject: str, name: str, x: Any, given: dict[str, Any]) -> None:
    """Compare two results."""
    with torch_as(this_machine()):
        expected = call_torch(name, (x,), given)
    actual = OPS[name].reference(x, **given)
    assert_same(actual, expected)
    for one, other in zip(actual, expected, strict=True):
        assert_same_strides(one, other)
        ledger.equal(subject, bare(one), bare(other))
    assert OPS[name].infer(type_of(x), **given) == (*map(type_of, expected),)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_are_of_real_values(name: str, dtype: DType, ledger: Ledger) -> None:
    rng = np.random.default_rng([COMPARISONS.index(name), dtype.limits[1]])
    for i in range(ledger.size(8, 400)):
        x = few(rng, (3, 4, 2, 5), dtype, draw.LAYOUTS[i % 4])
        y = few(rng, x.shape[-1:] if i % 3 == 0 else x.shape, dtype)
        real = draw.real(x).astype(np.float32)
        others = (y, real, np.asarray(real.flat[0]), (real * 3).astype(np.int64))
        for other in others:
            matches(ledger, f"{name} {dtype}", f"aten::{name}", (x, other))
        number = float(real.flat[i % real.size])
        for given in (number, np.nextafter(number, 9.0), 1, -2):
            with torch_as(this_machine()):
                expected = call_torch(f"aten::{name}.Scalar", (x,), {"other": given})
            op = OPS[f"aten::{name}.Scalar"]
            actual = op.reference(x, other=given)
            ledger.equal(f"{name}.Scalar {dtype}", actual, expected)
            assert op.infer(x.type, other=given) == TensorType(bool_, x.shape)


def test_a_plain_tensor_is_compared_with_a_quantized_one(ledger: Ledger) -> None:
    rng = np.random.default_rng(4)
    x = few(rng, (5, 6), quint8)
    real = draw.real(x).astype(np.float32)
    for name in COMPARISONS:
        matches(ledger, f"{name} quint8", f"aten::{name}", (real, x))


def plain(rng: Rng, shape: tuple[int, ...], layout: str) -> Array:
    x = rng.integers(-3, 4, shape).astype(np.float32)
    return draw.laid_out(np.where(rng.random(shape) < 0.1, np.nan, x).astype(np.float32), layout)


@pytest.mark.parametrize("dtype", [*DTYPES, float32], ids=str)
def test_sorting_keeps_the_order_of_equal_elements(dtype: DType, ledger: Ledger) -> None:
    rng = np.random.default_rng([dtype.storage.itemsize, len(dtype.name)])
    for i in range(ledger.size(24, 1_000)):
        shape = [(7,), (3, 40), (2, 3, 4, 5)][i % 3]
        layout = ("contiguous", "channels_last")[i // 3 % 2]
        make = plain if dtype == float32 else (lambda *a: few(a[0], a[1], dtype, a[2]))
        x = make(rng, shape, layout)
        given = {"stable": True, "dim": int(rng.integers(-len(shape), len(shape)))}
        given |= {"descending": i % 2 > 0}
        pairs_match(ledger, f"sort.stable {dtype}", "aten::sort.stable", x, given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_extremes_are_torchs(dtype: DType, ledger: Ledger) -> None:
    rng = np.random.default_rng(dtype.limits[1])
    for i in range(ledger.size(24, 1_000)):
        x = few(rng, (3, 4, 2, 5), dtype, draw.LAYOUTS[i % 4])
        if i % 5 == 0:
            x = draw.quantized(rng, (2, 3, 6), dtype)
        if i % 7 == 0:  # the ends, of which the negatives do not fit
            ends = rng.choice(dtype.limits, x.shape).astype(dtype.storage)
            x = x.with_int_repr(ends)
        for name in ("max", "min"):
            expected = assert_matches_torch(f"aten::{name}", (x,), {})
            ledger.equal(
                f"{name} {dtype}", bare(OPS[f"aten::{name}"].reference(x)), bare(expected)
            )
            given: dict[str, Any] = {"dim": i % x.int_repr.ndim, "keepdim": i % 2 > 0}
            pairs_match(ledger, f"{name}.dim {dtype}", f"aten::{name}.dim", x, given)
        # Which of several equal elements torch's topk takes is not defined.
        given = {"k": int(rng.integers(0, 3)), "dim": i % x.int_repr.ndim, "largest": i % 3 > 0}
        given["k"] = min(given["k"], x.shape[given["dim"]])
        values, at = OPS["aten::topk"].reference(x, **given)
        wanted, _ = call_torch("aten::topk", (x,), given)
        assert_same_strides(values, wanted)
        ledger.equal(f"topk {dtype}", values.int_repr, wanted.int_repr)
        chosen = np.take_along_axis(x.int_repr, at, given["dim"])
        np.testing.assert_array_equal(chosen, wanted.int_repr)
        types = OPS["aten::topk"].infer(x.type, **given)
        assert types == (values.type, type_of(at))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_standard_deviation_is_torchs(dtype: DType, ledger: Ledger) -> None:
    rng = np.random.default_rng(dtype.limits[1])
    dims = [None, (), (-1,), (1, 2), (0,), (1,), (0, 2), (0, 1, 2)]
    for i in range(ledger.size(160, 8_000)):
        length = int(rng.choice([1, 2, 3, 8, 50]))  # of two, half of the deviations are ties
        x = draw.quantized(rng, (4, int(rng.integers(1, 4)), length), dtype)
        if i % 5 == 0:
            x = draw.quantized(rng, (2, 3, 4, 6), dtype, draw.LAYOUTS[i % 4])
        if x.int_repr.ndim == 4 and dims[i % 8] in (None, ()) and i % 4 == 1:
            continue
        given = {"dim": dims[i % len(dims)], "correction": int(rng.choice([0, 1, 1, 2]))}
        given["keepdim"] = i % 3 == 0
        with torch_as(this_machine()):
            expected = call_torch("aten::std.correction", (x,), given)
        actual = OPS["aten::std"].reference(x, **given)
        ledger.equal(f"std {dtype}", actual.int_repr, expected.int_repr)
        assert OPS["aten::std"].infer(x.type, **given) == expected.type


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moved_elements_are_torchs(dtype: DType, ledger: Ledger) -> None:
    rng = np.random.default_rng(dtype.limits[1])
    for i in range(ledger.size(8, 400)):
        x = draw.quantized(rng, (2, 3, 5, 6), dtype, ("contiguous", "channels_last")[i % 2])
        mask = rng.random(x.shape[-1:] if i % 2 else x.shape) < 0.4
        tie = float(draw.moved((3.5 - x.zero_point) * x.scale, int(rng.integers(-3, 4))))
        calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
            ("aten::int_repr", (x,), {}),
            ("aten::flip", (x,), {"dims": (1, -1)}),
            ("aten::index_select", (x, np.array([1, 0, 1])), {"dim": 1}),
            ("aten::pad", (x,), {"pad": (2, 1, 1, 3), "mode": "reflect"}),
            ("aten::pad", (x,), {"pad": (2, 1), "mode": "constant", "value": tie}),
            ("aten::masked_fill.Scalar", (x, mask), {"value": tie}),
            ("aten::masked_fill.Scalar", (x, mask), {"value": 1e30}),
        ]
        for name, operands, attributes in calls:
            matches(ledger, f"{name.split('::')[1]} {dtype}", name, operands, **attributes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_replaced_elements_are_torchs(dtype: DType, ledger: Ledger) -> None:
    rng, name = np.random.default_rng(dtype.limits[1]), "aten::index_put"
    for i in range(ledger.size(40, 2_000)):
        x = draw.quantized(rng, (4, 3, 5), dtype, ("contiguous", "permuted")[i % 2])
        length = x.shape[-1]
        indices = [
            (np.array([2, 0]),),
            (None, np.array([1, -1, 1])),
            (np.array([[1], [2]]), np.array([0, 2])),
            (rng.random(x.shape) < 0.5,),
        ][i % 4]
        chosen = x.int_repr[tuple(slice(None) if n is None else n for n in indices)].shape
        ties = rng.integers(-20, 20, chosen if i % 3 or len(chosen) == 1 else (length,)) + 0.5
        values = ((ties - x.zero_point) * x.scale).astype(np.float32)
        moved = values.view(np.int32) + rng.integers(-2, 3, values.shape).astype(np.int32)
        values = moved.view(np.float32)
        if i % 4 == 1 and values.shape == chosen:
            values = values[:, :1]  # which of two values an element gets is not defined
        parts = [None if n is None else torch.from_numpy(n) for n in indices]
        wanted = from_torch(torch.ops.aten.index_put(to_torch(x), parts, to_torch(values)))
        actual = OPS[name].reference(x, values, *indices)
        ledger.equal(f"index_put {dtype}", actual.int_repr, wanted.int_repr)
        types = [None if n is None else type_of(n) for n in indices]
        assert OPS[name].infer(x.type, type_of(values), *types) == wanted.type


@pytest.mark.parametrize("padding", [0, 1, 2], ids=["zeros", "border", "reflection"])
def test_a_grid_of_places_is_torchs(padding: int, ledger: Ledger) -> None:
    rng = np.random.default_rng(padding)
    for i in range(ledger.size(30, 2_000)):
        height, width = (int(n) for n in rng.integers(1, 7, 2))
        x = draw.quantized(rng, (2, 3, height, width), quint8, draw.LAYOUTS[i % 2])
        grid = rng.uniform(-1.6, 1.6, (2, 4, 5, 2))
        if i % 3:  # quarters of pixels, where sums are ties
            steps = rng.integers(-8, 4 * max(height, width) + 8, grid.shape) / 4
            grid = (2 * steps + 1) / np.array([width, height]) - 1
            if i % 3 == 2:
                grid = 2 * steps / np.maximum(np.array([width, height]) - 1, 1) - 1
        given = {"interpolation_mode": 0, "padding_mode": padding, "align_corners": i % 3 == 2}
        operands = x, grid.astype(np.float32)
        matches(ledger, "grid_sampler_2d quint8", "aten::grid_sampler_2d", operands, **given)


def test_refusals() -> None:
    rows = TensorType(quint8, (2, 3), QParams((0.5, 1.0), (0, 0), 0))
    for name, attributes in (
        ("max", {}),
        ("sort.stable", {"stable": True}),
        ("topk", {"k": 1}),
        ("max.dim", {"dim": 1}),
        ("std", {}),
        ("eq.Scalar", {"other": 1.0}),
    ):
        if name != "eq.Scalar":
            with pytest.raises(VerifyError, match="per tensor"):
                OPS[f"aten::{name}"].infer(rows, **attributes)
    with pytest.raises(VerifyError, match="dim 2 is outside a value of rank 2"):
        OPS["aten::std"].infer(TensorType(quint8, (2, 3), QParams(0.5, 0)), dim=(2,))
    with pytest.raises(VerifyError, match="is empty"):
        OPS["aten::max"].infer(TensorType(float32, (2, 0)))
    with pytest.raises(VerifyError, match="bool tensors have no order"):
        OPS["aten::sort.stable"].infer(TensorType(bool_, (2,)))
    with pytest.raises(VerifyError, match="one of quint8, qint8, qint32, got float32"):
        OPS["aten::int_repr"].infer(TensorType(float32, (2,)))
    with pytest.raises(VerifyError, match="not quantized"):
        OPS["aten::logical_and"].infer(*(TensorType(quint8, (2,), QParams(0.5, 0)),) * 2)


class Everything(nn.Module):
    """Calls on a quantized tensor, as functions, methods and operators."""

    def forward(self, x: torch.Tensor, grid: torch.Tensor) -> Any:
        q = torch.ops.quantized
        x = torch.quantize_per_tensor(x, 0.1, 60, torch.quint8)
        values, indices = torch.sort(x, dim=1, stable=True)
        return (
            *(values, indices, x.max(), torch.min(x), x.max(2)[0], x.topk(2)[0]),
            *(x.std(3), torch.std(x, (1, 2), keepdim=True), x.int_repr(), x > 0.3, x == values),
            *(q.clamp(x, -0.25, 0.4), q.relu6(x), q.threshold(x, 0.05, 1.0)),
            *(q.max_pool2d(x, [2, 2], [], [0, 0], [1, 1], False), x.flip(1)),
            *(q.max_pool1d(x[0], [3], [2], [1], [1], True), F.pad(x, (1, 1, 2, 0), "reflect")),
            F.hardtanh(x, -0.15, 0.35),
            F.grid_sample(x, grid, padding_mode="border", align_corners=False),
        )


@pytest.mark.parametrize("executor", ["reference", "fast"])
def test_a_model_of_calls(executor: Any, ledger: Ledger) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    grid = torch.rand(2, 4, 5, 2, generator=torch.Generator().manual_seed(2)) * 3 - 1.5
    with flows.fbgemm():
        expected = Everything()(x, grid)
    graph = from_fx(Everything(), (x, grid))
    outputs = graph.run(
        from_torch(x), from_torch(grid), executor=executor, target=this_machine()
    ).outputs
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_same(actual, from_torch(wanted))
        ledger.equal(
            "a model of calls on quantized tensors", bare(actual), bare(from_torch(wanted))
        )
