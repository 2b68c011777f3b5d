"""Quantized embeddings: packing, unpacking and adding up, as torch does."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import flows
import numpy as np
import pytest
import torch
from ledger import Ledger
from oracle import assert_same, call_torch, from_torch, packed_table
from torch import nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

from refquant.importers import from_fx
from refquant.ir import load
from refquant.ir.errors import VerifyError
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Engine, Target
from refquant.ir.types import Dim, TensorType, float32, int64, uint8
from refquant.ledger.draw.embeddings import (
    BITS,
    EXTREMES,
    bytes_of_rows,
    form_of,
    offsets_of,
    quantized_table,
    table,
    width_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
Array = Any


def bits_of(x: Array) -> Array:
    """Return the bits of floats, so that the sign of 0 counts; every NaN is one."""
    return np.where(np.isnan(x), np.float32(np.nan), x).astype(np.float32).view(np.uint32)


def check(ledger: Ledger, subject: str, name: str, *operands: Any, **attributes: Any) -> Array:
    """Compare torch with reference, kernel and inferred type."""
    op, (expected,) = OPS[name], flat(call_torch(name, operands, attributes))
    types = [None if v is None else type_of(v) for v in operands]
    inferred = op.infer(*types, **attributes)
    for fast in (False, True):
        actual = op.bind(Target(), fast=fast)(*operands, **attributes)
        assert inferred == type_of(actual)
        if expected.dtype == np.float32:
            ledger.equal(subject, bits_of(actual), bits_of(expected))
        else:
            ledger.equal(subject, actual, expected)
    return expected


def flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


# ---- tables


@pytest.mark.parametrize("form", BITS)
def test_tables_are_packed_as_torch_packs_them(form: str, ledger: Ledger) -> None:
    rng, bits = np.random.default_rng([BITS[form]]), BITS[form]
    name, subject = f"quantized::embedding_bag_{form}_prepack", f"embedding_bag_{form}_prepack"
    for kind in range(ledger.size(150, 8_000)):
        x = table(rng, int(rng.integers(1, 9)), width_of(rng, bits), bits, kind)
        if kind % 3 == 0:
            with np.errstate(over="ignore"):
                x = x.astype(np.float16)
        rows = check(ledger, subject, name, x)
        check(ledger, f"embedding_bag_{form}_unpack", name.replace("prepack", "unpack"), rows)
        with np.errstate(over="ignore", invalid="ignore"):
            ends = np.stack([x.min(1), x.max(1)], 1) * rng.uniform(-0.1, 1.2, (len(x), 2))
            ends = ends.astype(x.dtype)
        name_of_ends = f"{name}_with_rowwise_min_max"
        check(ledger, f"{subject}_with_rowwise_min_max", name_of_ends, x, ends)


def test_ranges_are_searched_as_torch_does(ledger: Ledger) -> None:
    rng, name = np.random.default_rng(17), "aten::choose_qparams_optimized"
    op = OPS[name]
    for kind in range(ledger.size(300, 20_000)):
        x = table(rng, 1, int(rng.choice([1, 2, 3, 4, 5, 8, 33, 64])), 2, kind)[0]
        n_bins, ratio = (200, 0.16) if kind % 2 else (int(rng.integers(1, 300)), rng.uniform(0, 1))
        given = {"numel": x.size, "n_bins": n_bins, "ratio": float(ratio)}
        given |= {"bit_width": int(rng.choice([2, 4, 8]))}
        try:
            actual = op.bind(Target(), fast=True)(x, **given)
        except VerifyError:
            assert np.ptp(x) / n_bins < np.spacing(np.abs(x).max())  # torch would never return
            continue
        expected = call_torch(name, (x,), given)
        ledger.equal(name, bits_of(np.stack(actual)), bits_of(np.stack(expected)))
        if kind % 5 == 0:
            actual = op.reference(x, **given)
            ledger.equal(name, bits_of(np.stack(actual)), bits_of(np.stack(expected)))


@pytest.mark.parametrize("form", ["4bit", "2bit"])
def test_tables_are_packed_with_searched_ranges(form: str, ledger: Ledger) -> None:
    rng, bits = np.random.default_rng(BITS[form]), BITS[form]
    name = f"quantized::embedding_bag_{form}_prepack"
    for kind in range(1, ledger.size(24, 2_000)):
        x = table(rng, 2, width_of(rng, bits), bits, kind)
        x = np.where(np.isfinite(x), x, 1).astype(np.float32)
        if kind % 3 == 0:
            x = np.clip(x, -6e4, 6e4).astype(np.float16)
        given: dict[str, Any] = {"optimized_qparams": True}
        if kind % 2:
            given |= {"nbins": int(rng.integers(5, 90)), "ratio": float(rng.uniform(0.05, 0.9))}
        try:
            OPS[name].bind(Target(), fast=True)(x, **given)
        except VerifyError:
            continue
        check(ledger, f"embedding_bag_{form}_prepack optimized", name, x, **given)


def test_the_last_step_of_a_search_is_torchs(ledger: Ledger) -> None:
    rng, name = np.random.default_rng(19), "aten::choose_qparams_optimized"
    for i in range(ledger.size(600, 20_000)):
        x = rng.normal(size=int(rng.choice([3, 4, 5, 8]))).astype(np.float32)
        given = {"numel": x.size, "n_bins": int(rng.integers(1, 12))}
        given |= {"ratio": float(rng.uniform(0.1, 1)), "bit_width": int(rng.integers(1, 3))}
        expected = call_torch(name, (x,), given)
        for fast in (False, True) if i % 5 == 0 else (True,):
            actual = OPS[name].bind(Target(), fast=fast)(x, **given)
            ledger.equal(name, bits_of(np.stack(actual)), bits_of(np.stack(expected)))


def test_a_search_that_would_not_end_is_refused() -> None:
    x = np.array([1, 1 + 4 * 2.0**-23], np.float32)
    op = OPS["aten::choose_qparams_optimized"]
    for function in (op.reference, op.kernels[Engine.FBGEMM]):
        with pytest.raises(VerifyError, match="torch hangs"):
            function(x, 2, 200, 0.16, 4)
    op = OPS["quantized::embedding_bag_4bit_prepack"]
    for function in (op.reference, op.kernels[Engine.FBGEMM]):
        with pytest.raises(VerifyError, match="torch hangs"):
            function(x[None], optimized_qparams=True)


def test_a_table_of_any_rank_is_packed_to_bytes(ledger: Ledger) -> None:
    rng = np.random.default_rng(3)
    name = "quantized::embedding_bag_byte_prepack"
    for shape in ((5,), (2, 3, 4), (0, 6), (3, 0), (2, 2, 2, 33)):
        x = rng.normal(size=shape).astype(np.float32)
        rows = check(ledger, "embedding_bag_byte_prepack", name, x)
        name_back = "quantized::embedding_bag_byte_unpack"
        check(ledger, "embedding_bag_byte_unpack", name_back, rows)
    transposed = rng.normal(size=(12, 8)).astype(np.float32).T
    for form in BITS:
        check(
            *(ledger, f"embedding_bag_{form}_prepack"),
            *(f"quantized::embedding_bag_{form}_prepack", transposed),
        )


# ---- bags


FLAGS = list(product((False, True), repeat=3))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "rows"])
def test_bags_are_torchs(is_packed: bool, bits: int, ledger: Ledger) -> None:
    if is_packed and bits == 2:
        assert "quantized::embedding_bag_2bit" not in OPS
        return
    rng, form = np.random.default_rng([bits, is_packed]), form_of(bits)
    name = f"quantized::embedding_bag_{form}" + ("" if is_packed else "_rowwise_offsets")
    for i in range(ledger.size(6, 300)):
        for last, weighted, pruned in FLAGS:
            rows, width = int(rng.integers(1, 12)), width_of(rng, bits)
            width *= 1 if bits < 8 or i % 2 else 2
            table = (quantized_table if is_packed else bytes_of_rows)(rng, rows, width, bits)
            count = int(rng.choice([0, 1, 5, 20, 60]))
            mapping = None
            if pruned:
                mapping = np.full(rows + 5, -1, np.int32)
                mapping[rng.permutation(rows + 5)[:rows]] = np.arange(rows)
                if i % 3 == 0:
                    mapping = np.zeros(1, np.int32)
            kept = rows if mapping is None or mapping.size == 1 else mapping.size
            indices = rng.integers(0, kept, count).astype(rng.choice([np.int32, np.int64]))
            offsets = offsets_of(rng, count, last).astype(rng.choice([np.int32, np.int64]))
            weights = rng.normal(size=count).astype(np.float32) if weighted else None
            if weighted and bits < 8 and i % 3 == 0:
                weights = weights.astype(np.float16)
            given = {"include_last_offset": last, "pruned_weights": pruned}
            given |= {"mode": i % 3, "scale_grad_by_freq": i % 2 > 0}
            subject = name.split("::")[1] + " weighted" * weighted + " pruned" * pruned
            check(ledger, subject, name, table, indices, offsets, weights, mapping, **given)


@pytest.mark.parametrize("form", ["byte", "4bit"])
def test_embeddings_are_torchs(form: str, ledger: Ledger) -> None:
    rng, bits = np.random.default_rng([BITS[form], 5]), BITS[form]
    name = f"quantized::embedding_{form}"
    for i in range(ledger.size(40, 2_000)):
        rows = int(rng.integers(1, 20))
        table = quantized_table(rng, rows, width_of(rng, bits), bits)
        if i % 5 == 0:
            table.scale[0], table.zero_point[0] = rng.choice(EXTREMES, 2)
        shape = [(7,), (3, 4), (0,), (2, 0), (1, 1)][i % 5]
        indices = rng.integers(0, rows, shape).astype([np.int64, np.int32][i % 2])
        check(ledger, f"embedding_{form}", name, table, indices)
        rows_of_bags = f"quantized::embedding_bag_{form}"
        if indices.size and indices.ndim == 2:
            check(ledger, f"embedding_bag_{form} fixed length", rows_of_bags, table, indices)


def test_what_torch_leaves_out(ledger: Ledger) -> None:
    rng = np.random.default_rng(11)
    table = bytes_of_rows(rng, 9, 24, 8)
    indices = rng.integers(0, 9, (4, 3))
    run = partial(check, ledger, "embedding_bag_byte left out")
    name = "quantized::embedding_bag_byte_rowwise_offsets"
    run(name, table, indices, include_last_offset=True)  # the last bag
    run(name, table, indices[:1], include_last_offset=True)
    ends = np.array([0, 2, 5])
    run(name, table, indices.reshape(-1), ends, include_last_offset=True)  # what follows
    run(name, table, indices[0, :0], ends[:0])
    for form in BITS:
        table = bytes_of_rows(rng, 9, 24, BITS[form])
        name = f"quantized::embedding_bag_{form}_rowwise_offsets"
        check(ledger, f"embedding_bag_{form} empty", name, table, indices[0, :0], ends * 0)


def test_every_engine_gives_the_same(ledger: Ledger) -> None:
    rng = np.random.default_rng(13)
    table = quantized_table(rng, 5, 16, 8)
    x = rng.normal(size=(3, 40)).astype(np.float32)
    before = torch.backends.quantized.engine
    try:
        for engine in ("x86", "qnnpack", "onednn"):
            torch.backends.quantized.engine = engine
            check(ledger, "embedding engines", "quantized::embedding_byte", table, np.arange(5))
            check(ledger, "embedding engines", "quantized::embedding_bag_2bit_prepack", x)
    finally:
        torch.backends.quantized.engine = before


def test_a_packed_table_is_unpacked_as_it_was() -> None:
    rng = np.random.default_rng(2)
    for bits in (8, 4):
        table = quantized_table(rng, 5, 6, bits)
        held = packed_table(table)  # what is unpacked shares its memory
        unpacked = torch.ops.quantized.embedding_bag_unpack(held)
        for name in ("prepack", "unpack"):
            op = OPS[f"quantized::embedding_bag_{name}"]
            assert_same(op.reference(table), table)
            assert op.infer(table.type) == table.type
        assert_same(from_torch(unpacked), table)


# ---- refused

ROWS = np.arange(6)
WEIGHTS = np.ones(6, np.float32)
MAP = np.array([0, 1, -1, 2, 3, 4, 0], np.int32)


def refusal(name: str, *operands: Any, message: str, **attributes: Any) -> Any:
    return pytest.param(name, operands, attributes, message, id=message)


def rows_of(bits: int) -> Array:
    return bytes_of_rows(np.random.default_rng(1), 5, 8, bits)


BAG = "embedding_bag_{}_rowwise_offsets"
REFUSED = [
    refusal(BAG.format("byte"), rows_of(8), ROWS, message="indices of rank 1 need offsets"),
    refusal(
        BAG.format("4bit"), rows_of(4), ROWS.astype(np.int16), ROWS[:1], message="int32 or int64"
    ),
    refusal(BAG.format("2bit"), rows_of(2), ROWS.reshape(1, 2, 3), message="rank 1 or 2"),
    refusal(
        BAG.format("byte"), rows_of(8), ROWS.reshape(2, 3), ROWS[:1], message="take no offsets"
    ),
    refusal(BAG.format("byte"), rows_of(8), ROWS[:0].reshape(2, 0), message="need a length"),
    refusal(
        *(BAG.format("4bit"), rows_of(4), ROWS.reshape(2, 3)),
        message="no include_last_offset",
        include_last_offset=True,
    ),
    refusal(
        *(BAG.format("byte"), rows_of(8), ROWS, ROWS[:0]),
        message="include_last_offset needs an offset",
        include_last_offset=True,
    ),
    refusal(
        *(BAG.format("byte"), rows_of(8), ROWS, ROWS[:1], WEIGHTS.astype(np.float16)),
        message="per_sample_weights must be float32, as many",
    ),
    refusal(
        *(BAG.format("4bit"), rows_of(4), ROWS, ROWS[:1], WEIGHTS.astype(np.float64)),
        message="per_sample_weights must be float32 or float16",
    ),
    refusal(
        *(BAG.format("byte"), rows_of(8), ROWS, ROWS[:1]),
        message="pruned_weights needs an int32 mapping, got None",
        pruned_weights=True,
    ),
    refusal(
        *(BAG.format("2bit"), rows_of(2), ROWS, ROWS[:1], None, MAP.astype(np.int64)),
        message=r"needs an int32 mapping, got int64\[7\]",
        pruned_weights=True,
    ),
    refusal(
        BAG.format("byte"), rows_of(8).astype(np.int8), ROWS[:2], ROWS[:1], message="uint8 weight"
    ),
    refusal(BAG.format("byte"), rows_of(8)[None], ROWS[:2], ROWS[:1], message="of rank 2, got"),
    refusal("embedding_bag_4bit_prepack", np.ones((2, 3), np.float32), message="a multiple of 2"),
    refusal("embedding_bag_2bit_prepack", np.ones((2, 6), np.float32), message="a multiple of 4"),
    refusal("embedding_bag_2bit_prepack", np.ones(8, np.float32), message="2 dimensions, got 1"),
    refusal(
        "embedding_bag_byte_prepack", np.ones((2, 8)), message="float32 or float16, got float"
    ),
    refusal(
        *("embedding_bag_byte_prepack_with_rowwise_min_max", np.ones((2, 8), np.float32)),
        *(np.ones((3, 2), np.float32),),
        message=r"rowwise_min_max must be float32\[2, 2\]",
    ),
    refusal("embedding_bag_byte_unpack", np.ones((2, 8), np.int32), message="a uint8 weight"),
    refusal("embedding_bag_byte_unpack", np.ones((2, 7), np.uint8), message="at least 8 bytes"),
]


@pytest.mark.parametrize(("name", "operands", "attributes", "message"), REFUSED)
def test_torch_refuses_it_too(
    name: str, operands: tuple[Any, ...], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        call_torch(f"quantized::{name}", operands, attributes)
    types = [None if v is None else type_of(v) for v in operands]
    with pytest.raises(VerifyError, match=message):
        OPS[f"quantized::{name}"].infer(*types, **attributes)


VALUES: dict[str, Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "index 5 is out of range for 5 rows": lambda bits: (
        (rows_of(bits), np.array([0, 5]), ROWS[:1]),
        {},
    ),
    "index -1 is out of range for 5 rows": lambda bits: (
        (rows_of(bits), np.array([-1, 4]), ROWS[:1]),
        {},
    ),
    "index 7 is out of range for 7 rows": lambda bits: (
        (rows_of(bits), np.array([7]), ROWS[:1], None, MAP),
        {"pruned_weights": True},
    ),
    "offsets must rise from 0": lambda bits: ((rows_of(bits), ROWS % 5, np.array([0, 3, 9])), {}),
}


@pytest.mark.parametrize("message", VALUES)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_values_out_of_range_are_refused(bits: int, message: str) -> None:
    operands, attributes = VALUES[message](bits)
    name = f"quantized::{BAG.format(form_of(bits))}"
    with pytest.raises(RuntimeError):
        call_torch(name, operands, attributes)
    for fast in (False, True):
        with pytest.raises(VerifyError, match=re.escape(message)):
            OPS[name].bind(Target(), fast=fast)(*operands, **attributes)


def test_offsets_whose_bags_torch_takes_from_elsewhere_are_refused() -> None:
    for bits, offsets in product((8, 4, 2), ([1, 2], [0, 3, 2])):
        op = OPS[f"quantized::{BAG.format(form_of(bits))}"]
        with pytest.raises(VerifyError, match="offsets must rise from 0"):
            op.reference(rows_of(bits), ROWS % 5, np.array(offsets))
    op = OPS[f"quantized::{BAG.format('4bit')}"]
    with pytest.raises(VerifyError, match="number of indices 6, the last one"):
        op.reference(rows_of(4), ROWS % 5, np.array([0, 5]), include_last_offset=True)


def test_weights_that_torch_would_read_beyond_are_refused() -> None:
    op = OPS[f"quantized::{BAG.format('byte')}"]
    types = map(type_of, (rows_of(8), ROWS, ROWS[:1], WEIGHTS[:5]))
    with pytest.raises(VerifyError, match="as many as indices"):
        op.infer(*types)


def test_tables_of_another_kind_are_refused() -> None:
    rng = np.random.default_rng(4)
    byte, narrow = quantized_table(rng, 3, 4, 8), quantized_table(rng, 3, 4, 4)
    rows = TensorType(int64, (2,))
    with pytest.raises(VerifyError, match="must be quint8, got quint4x2"):
        OPS["quantized::embedding_byte"].infer(narrow.type, rows)
    with pytest.raises(VerifyError, match="must be quint4x2, got quint8"):
        OPS["quantized::embedding_bag_4bit"].infer(byte.type, rows, rows)
    whole = QTensor(byte.int_repr, byte.scale, np.array([1, 2, 3]), 0)
    with pytest.raises(VerifyError, match="without float zero points"):
        OPS["quantized::embedding_bag_prepack"].infer(whole.type)
    columns = QTensor(byte.int_repr.T.copy(), byte.scale, byte.zero_point, 1)
    with pytest.raises(VerifyError, match="for each row, got quint8 of rank 2, axis 1"):
        OPS["quantized::embedding_bag_prepack"].infer(columns.type)
    with pytest.raises(VerifyError, match="pruned_weights needs a mapping"):
        OPS["quantized::embedding_byte"].infer(byte.type, rows, pruned_weights=True)


def test_the_number_of_bags_may_be_symbolic() -> None:
    n = Dim("N")
    table, rows = TensorType(uint8, (9, 20)), TensorType(int64, (n, 3))
    op = OPS[f"quantized::{BAG.format('byte')}"]
    assert op.infer(table, rows) == TensorType(float32, (n, 12))
    assert op.infer(table, TensorType(int64, (7,)), TensorType(int64, (n,))).shape == (n, 12)


# ---- models


class Lookup(nn.Module):
    """Embeddings and bags, with indices of one and two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.bags = nn.EmbeddingBag(20, 8, mode="sum")
        self.ends = nn.EmbeddingBag(20, 8, mode="sum", include_last_offset=True)

    def forward(self, i: torch.Tensor, o: torch.Tensor, w: torch.Tensor) -> Any:
        flat = i.flatten()
        words = self.words(i) + 1
        return (
            words,
            self.words(flat),
            self.bags(flat, o[:-1], w),
            self.ends(flat, o),
            self.bags(i),
        )


@pytest.mark.parametrize("bits", [8, 4])
def test_modules_are_bit_exact(bits: int, ledger: Ledger, tmp_path: Any) -> None:
    torch.manual_seed(bits)
    qconfig = quantization.float_qparams_weight_only_qconfig
    if bits == 4:
        qconfig = quantization.float_qparams_weight_only_qconfig_4bit
    mapping = quantization.QConfigMapping()
    for kind in (nn.Embedding, nn.EmbeddingBag):
        mapping.set_object_type(kind, qconfig)
    offsets = torch.tensor([0, 2, 2, 7, 12], dtype=torch.int64)
    inputs = torch.randint(0, 20, (3, 4)), offsets, torch.randn(12)
    with flows.fbgemm():
        prepared = quantize_fx.prepare_fx(Lookup().eval(), mapping, inputs)
        model = quantize_fx.convert_fx(prepared)
        expected = model(*inputs)
    graph = from_fx(model, inputs)
    form = form_of(bits)
    assert {f"quantized::embedding_{form}", f"quantized::embedding_bag_{form}"} <= {
        node.op for node in graph.nodes
    }
    graph.save(tmp_path / "net.rq")
    for net, executor in product((graph, load(tmp_path / "net.rq")), ("reference", "fast")):
        outputs = net.run(*map(from_torch, inputs), executor=executor).outputs
        for actual, wanted in zip(outputs, expected, strict=True):
            ledger.equal("models with embeddings", actual, from_torch(wanted))


class Functions(nn.Module):
    """The operators themselves, with tables packed before and in the model."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(9, 8)
        scale, zero = torch.rand(9) / 50 + 0.01, torch.rand(9) * 200
        table = torch.quantize_per_channel(weight, scale, zero, 0, torch.quint8)
        self.register_buffer("weight", weight)
        self.packed = torch.ops.quantized.embedding_bag_prepack(table)
        self.register_buffer("map", torch.tensor([0, -1, 1, 2, 3, 4, 5, 6, 7, 8, -1]).int())

    def forward(self, i: torch.Tensor, o: torch.Tensor) -> Any:
        q = torch.ops.quantized
        rows = q.embedding_bag_4bit_prepack(self.weight, True)
        narrow = q.embedding_bag_2bit_prepack(self.weight)
        packed = q.embedding_bag_prepack(q.embedding_bag_unpack(self.packed))
        return (
            q.embedding_byte(self.packed, i),
            q.embedding_bag_byte(packed, i, o, pruned_weights=False),
            q.embedding_bag_byte(self.packed, i, o, False, 0, True, None, self.map),
            q.embedding_bag_4bit_rowwise_offsets(rows, i, o),
            q.embedding_bag_2bit_rowwise_offsets(narrow, i, o, include_last_offset=True),
            q.embedding_bag_4bit_unpack(rows),
        )


def test_functions_are_bit_exact(ledger: Ledger) -> None:
    torch.manual_seed(3)
    model = Functions()
    inputs = torch.tensor([0, 3, 8, 8, 1]), torch.tensor([0, 1, 5])
    expected = model(*inputs)
    graph = from_fx(model, inputs)
    for executor in ("reference", "fast"):
        outputs = graph.run(*map(from_torch, inputs), executor=executor).outputs
        for actual, wanted in zip(outputs, expected, strict=True):
            ledger.equal("functions of embeddings", actual, from_torch(wanted))
