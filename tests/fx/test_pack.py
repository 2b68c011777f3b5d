"""Packing weights: what torch's prepack operators keep, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import flows
import numpy as np
import pytest
import torch
from ledger import Ledger

from refquant.fx.pack import PREPACK, embedding_prepack
from refquant.importers.fx_torch import to_tensor
from refquant.importers.torch_capture import packed_parameters
from refquant.ir.errors import VerifyError
from refquant.ir.module import Module, Packed
from refquant.ir.program import Program
from refquant.ir.qtensor import QTensor
from refquant.ir.types import quint4x2
from refquant.program_diff import program_diff

CONV = {"stride": (1, 2), "padding": (0, 1), "dilation": (1, 1), "groups": 2}


def ours(value: Any) -> Any:
    return to_tensor(copy.deepcopy(value)) if isinstance(value, torch.Tensor) else value


def holding(packed: Packed) -> Program:
    made = Program(Module("torch.nn.Module", state={"packed": packed}))
    made.call("output", "output", (made.call("get_attr", "packed"),))
    return made


def by_tensor(*shape: int, dtype: torch.dtype = torch.qint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.quantize_per_tensor(torch.randn(shape, generator=generator), 0.03, 1, dtype)


def by_channel(axis: int, *shape: int) -> torch.Tensor:
    count = shape[axis]
    scales, zeros = torch.arange(1.0, count + 1).double() / 67, torch.arange(count)
    return torch.quantize_per_channel(
        by_tensor(*shape).dequantize(), scales, zeros, axis, torch.qint8
    )


def check(ledger: Ledger, name: str, *args: Any, **kwargs: Any) -> None:
    with flows.fbgemm():
        function = getattr(torch.ops.quantized, name)
        expected = packed_parameters(function(*args, **kwargs))
    named = {{"B": "bias"}.get(key, key): ours(value) for key, value in kwargs.items()}
    prepack = embedding_prepack if name.startswith("embedding") else PREPACK[name]
    diff = program_diff(holding(prepack(*map(ours, args), **named)), holding(expected))
    ledger.run("prepacked weight", not diff, str(diff))


def test_linear_as_torch(ledger: Ledger) -> None:
    with flows.fbgemm():
        bias = torch.arange(3.0)
        check(ledger, "linear_prepack", by_tensor(3, 5))
        check(ledger, "linear_prepack", by_tensor(3, 5), bias)
        check(ledger, "linear_prepack", by_channel(0, 3, 5), B=bias)
        # torch takes the parameters for rows, whatever their axis is
        check(ledger, "linear_prepack", by_channel(1, 3, 5), bias)
        check(ledger, "linear_prepack", by_channel(1, 3, 3), bias)


def test_float16_saturates_as_torch(ledger: Ledger) -> None:
    values = [0.0, -0.0, 1e-9, -6e-8, 65503.0, 65504.0, 65519.0, 65520.0, -7e4, 1e38, 3.00001]
    values += [np.inf, -np.inf, np.nan, 2.0**-24, 1.00048828125, 1.00146484375, -0.1]
    for count in (1, 7, len(values)):
        weight = torch.tensor([values[-count:]], dtype=torch.float32)
        check(ledger, "linear_prepack_fp16", weight)
        check(ledger, "linear_prepack_fp16", weight.half(), torch.ones(1))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_as_torch(rank: int, ledger: Ledger) -> None:
    ones, twos = [1] * rank, [2] * rank
    with flows.fbgemm():
        for weight in (by_tensor(6, 2, *(3,) * rank), by_channel(0, 6, 2, *(3,) * rank)):
            for bias in (None, torch.arange(6.0)):
                check(ledger, f"conv{rank}d_prepack", weight, bias, twos, ones, ones, 2)
        weight = by_tensor(6, 2, *(3,) * rank)
        name = f"conv_transpose{rank}d_prepack"
        check(ledger, name, weight, torch.arange(4.0), twos, ones, ones, ones, 2)
        check(ledger, name, weight, None, twos, ones, [0] * rank, twos, 1)


def test_one_dimension_takes_the_second_of_several_entries(ledger: Ledger) -> None:
    with flows.fbgemm():
        check(ledger, "conv1d_prepack", by_tensor(6, 2, 3), None, [4, 3], [1, 2, 9], [1], 1)


def test_tables_as_torch(ledger: Ledger) -> None:
    scales, zeros = torch.tensor([0.1, 0.0, 3.0]), torch.tensor([0.5, 1.25, -3.0])
    with flows.fbgemm():
        for dtype in (torch.quint8, torch.quint4x2):
            table = by_tensor(3, 4).dequantize()
            weight = torch.quantize_per_channel(table, scales, zeros, 0, dtype)
            check(ledger, "embedding_bag_prepack", weight)


REFUSED: dict[str, tuple[str, Any, str]] = {
    "quint8 weight": (
        "linear_prepack",
        lambda: (by_tensor(3, 4, dtype=torch.quint8), None),
        "the weight must be qint8, got quint8",
    ),
    "float weight": (
        "linear_prepack",
        lambda: (torch.ones(3, 4), None),
        "the weight must be qint8, got float32",
    ),
    "vector": ("linear_prepack", lambda: (by_tensor(3), None), "2 dimensions, got 1"),
    "bias": (
        "linear_prepack",
        lambda: (by_tensor(3, 4), torch.ones(4)),
        r"the bias must have shape \[3\], got \[4\]",
    ),
    "too few scales": (
        "linear_prepack",
        lambda: (by_channel(1, 5, 4), None),
        "5 rows need as many scales, got 4 along axis 1",
    ),
    "quantized for float16": (
        "linear_prepack_fp16",
        lambda: (by_tensor(3, 4), None),
        "the weight must be float, got qint8",
    ),
    "number of strides": (
        "conv2d_prepack",
        lambda: (by_tensor(6, 4, 3, 3), None, [1], [0, 0], [1, 1], 1),
        "stride must have 2 entries, got 1",
    ),
    "int stride": (
        "conv2d_prepack",
        lambda: (by_tensor(6, 4, 3, 3), None, 1, [0, 0], [1, 1], 1),
        "stride must be a tuple of 2 ints, got 1",
    ),
    "no stride": (
        "conv1d_prepack",
        lambda: (by_tensor(6, 4, 3), None, [], [0], [1], 1),
        "stride must have an entry, got none",
    ),
    "rank": (
        "conv2d_prepack",
        lambda: (by_tensor(6, 4, 3), None, [1, 1], [0, 0], [1, 1], 1),
        "4 dimensions, got 3",
    ),
    "groups": (
        "conv2d_prepack",
        lambda: (by_tensor(6, 4, 3, 3), None, [1, 1], [0, 0], [1, 1], 4),
        "4 groups do not divide 6 channels",
    ),
    "float groups": (
        "conv2d_prepack",
        lambda: (by_tensor(6, 4, 3, 3), None, [1, 1], [0, 0], [1, 1], 1.0),
        "groups must be an int, got 1.0",
    ),
    "axis": (
        "conv2d_prepack",
        lambda: (by_channel(1, 6, 4, 3, 3), None, [1, 1], [0, 0], [1, 1], 1),
        "the scales must be along axis 0, got 1",
    ),
    "transposed by channel": (
        "conv_transpose2d_prepack",
        lambda: (by_channel(0, 6, 4, 3, 3), None, [1, 1], [0, 0], [0, 0], [1, 1], 1),
        "the weight must be quantized per tensor",
    ),
    "transposed bias": (
        "conv_transpose2d_prepack",
        lambda: (by_tensor(6, 4, 3, 3), torch.ones(6), [1, 1], [0, 0], [0, 0], [1, 1], 2),
        r"the bias must have shape \[8\], got \[6\]",
    ),
    "integer table": (
        "embedding_bag_prepack",
        lambda: (by_channel(0, 3, 4),),
        "the weight must be quint8 or quint4x2, got qint8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_torch_refuses(name: str) -> None:
    op, make, message = REFUSED[name]
    with flows.fbgemm():
        args = make()
        with pytest.raises((RuntimeError, IndexError)):
            getattr(torch.ops.quantized, op)(*args)
    prepack = embedding_prepack if op.startswith("embedding") else PREPACK[op]
    with pytest.raises(VerifyError, match=message):
        prepack(*map(ours, args))


def test_rows_of_odd_length_are_refused_in_4_bits() -> None:
    scale = np.ones(2, np.float32)
    table = QTensor(np.zeros((2, 3), np.uint8), scale, scale, 0, quint4x2)
    with pytest.raises(VerifyError, match="rows of 3 4-bit values"):
        embedding_prepack(table)
