"""Linear and convolution: NumPy formula == compiled tile == torch's engine, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tile_digest
import torch
from llvmlite.binding import get_host_cpu_features
from oracle import (
    assert_same,
    assert_same_strides,
    call_torch,
    torch_as,
)

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import OPS, Case
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Target
from refquant.ir.types import Dim, DType, QParams, TensorType, float32, qint8, quint8
from refquant.kernels.choose_qparams import choose_qparams
from refquant.kernels.layout import channels_last
from refquant.kernels.packing import Layout, PackedWeight
from refquant.ledger.draw import weighted as ties

Array = npt.NDArray[Any]
pytestmark = pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
FLAGS = list(product((False, True), repeat=3))


def check(
    name: str, operands: tuple[Any, ...], attributes: dict[str, Any], engine: str = "fbgemm"
) -> None:
    op, target = OPS[name], Target(engine)
    with torch_as(target):
        expected = call_torch(name, operands, attributes)
    inferred = op.infer(*(None if v is None else type_of(v) for v in operands), **attributes)
    assert inferred == type_of(expected)
    packed = op.pack(operands[1], **attributes)
    plain = [getattr(weight, "int_repr", weight) for weight in (packed, operands[1])]
    np.testing.assert_array_equal(*plain)
    x, _, *others = operands
    for function, weight in (
        (op.bind(target, fast=False), operands[1]),
        (op.bind(target, fast=True), operands[1]),
        (op.bind(target, fast=True), packed),
    ):
        for _ in range(1 + (weight is packed)):  # the second time with cached tables
            actual = function(x, weight, *others, **attributes)
            assert_same(actual, expected)
            assert_same_strides(actual, expected)


@pytest.mark.parametrize(("per_channel", "with_bias", "relu"), FLAGS)
def test_linear_at_ties(per_channel: bool, with_bias: bool, relu: bool) -> None:
    rng = np.random.default_rng([per_channel, with_bias, relu])
    for i in range(60):
        operands, attributes = ties.linear(rng, per_channel, with_bias, symmetric=i % 3 > 0)
        check(f"quantized::linear{'_relu' * relu}", operands, attributes)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ties.KINDS)
def test_convolution_at_ties(kind: str, rank: int) -> None:
    if rank == 1 and kind in ("fast", "nearly_fast"):
        kind = "depthwise"
    rng = np.random.default_rng([rank, ties.KINDS.index(kind)])
    for i, (per_channel, with_bias, relu) in enumerate(FLAGS * (4 - rank)):
        operands, attributes = ties.convolution(
            rng, kind, rank, per_channel, with_bias, symmetric=i % 3 > 0
        )
        if i % 2 and rank > 1:
            x = operands[0]
            operands = (x.with_int_repr(channels_last(x.int_repr)), *operands[1:])
        check(f"quantized::conv{rank}d{'_relu' * relu}", operands, attributes)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("with_bias", [False, True])
def test_transposed_convolution_at_ties(rank: int, with_bias: bool) -> None:
    rng = np.random.default_rng([rank, with_bias])
    for i in range(40):
        operands, attributes = ties.transposed(rng, rank, with_bias, symmetric=i % 3 > 0)
        check(f"quantized::conv_transpose{rank}d", operands, attributes)


@pytest.mark.parametrize(("per_channel", "with_bias", "relu"), FLAGS)
def test_dynamic_linear_at_ties(per_channel: bool, with_bias: bool, relu: bool) -> None:
    rng = np.random.default_rng([per_channel, with_bias, relu])
    name = f"quantized::linear{'_relu' * relu}_dynamic"
    for i in range(40):
        operands, attributes = ties.dynamic(rng, per_channel, with_bias, i % 2 > 0, i % 3 > 0)
        check(name, operands, attributes)


@pytest.mark.parametrize(("per_channel", "with_bias", "relu"), FLAGS)
def test_qnnpack_at_ties(per_channel: bool, with_bias: bool, relu: bool) -> None:
    rng = np.random.default_rng([7, per_channel, with_bias, relu])
    suffix = "_relu" * relu
    for i in range(30):
        operands, attributes = ties.linear(
            rng, per_channel, with_bias, symmetric=i % 3 > 0, engine="qnnpack"
        )
        check(f"quantized::linear{suffix}", operands, attributes, "qnnpack")
        operands, attributes = ties.dynamic(rng, per_channel, with_bias, i % 2 > 0, i % 3 > 0)
        check(f"quantized::linear{suffix}_dynamic", operands, attributes, "qnnpack")
    for rank, kind in product((1, 2, 3), ties.KINDS):
        if rank == 1 and kind in ("fast", "nearly_fast"):
            continue
        operands, attributes = ties.convolution(
            rng, kind, rank, per_channel, with_bias, symmetric=True, engine="qnnpack"
        )
        check(f"quantized::conv{rank}d{suffix}", operands, attributes, "qnnpack")


@pytest.mark.parametrize("rank", [1, 2])
def test_transposed_convolution_of_qnnpack_at_ties(rank: int) -> None:
    rng = np.random.default_rng([8, rank])
    for i in range(20):
        operands, attributes = ties.transposed(
            rng, rank, i % 2 > 0, symmetric=i % 3 > 0, engine="qnnpack"
        )
        check(f"quantized::conv_transpose{rank}d", operands, attributes, "qnnpack")


@pytest.mark.parametrize("dtype", [quint8, qint8], ids=str)
@pytest.mark.parametrize("reduce_range", [False, True])
def test_quantize_dynamic_at_ties(dtype: DType, reduce_range: bool) -> None:
    rng = np.random.default_rng([dtype.limits[1], reduce_range])
    attributes = {"dtype": dtype, "reduce_range": reduce_range}
    op = OPS["aten::quantize_per_tensor_dynamic"]
    for _ in range(60):
        (x, _, _), _ = ties.dynamic(rng, False, False, reduce_range)
        expected = call_torch(op.name, (x,), attributes)
        for fast in (False, True):
            assert_same(op.bind(Target(), fast=fast)(x, **attributes), expected)


def test_choose_qparams_at_half_integer_zero_points() -> None:
    rng = np.random.default_rng(5)
    for i in range(2000):
        low = -np.float32(np.exp(rng.uniform(-14, 3)))
        high = np.float32(np.exp(rng.uniform(-14, 3)))
        if i % 2:
            tie = rng.integers(0, 254) + 0.5
            high = np.float32(-low * (255 - tie) / tie)
        if i % 5 == 0:
            low, high = (np.float32(0), high) if i % 2 else (low, np.float32(0))
        reduce_range = i % 3 == 0
        scale, zero_point = torch._choose_qparams_per_tensor(
            torch.tensor([low, high]), reduce_range
        )
        expected = float(scale), int(zero_point)
        assert choose_qparams(low, high, 0, 255, reduce_range) == expected


WEIGHTED = [
    pytest.param(op.name, case, id=f"{op.name}-{case.name}")
    for op in OPS.values()
    if op.pack is not None and not op.name.startswith(("onnx::", "com.microsoft::"))
    for case in op.cases
]


@pytest.mark.parametrize(("name", "case"), WEIGHTED)
def test_hand_written_cases_are_torchs(name: str, case: Case) -> None:
    for engine in case.engines or OPS[name].kernels:
        check(name, case.operands, dict(case.attributes), engine)


def test_any_strides_and_read_only_inputs() -> None:
    rng = np.random.default_rng(11)
    (x, weight, bias), attributes = ties.linear(rng, False, True)
    rows = np.repeat(np.repeat(x.int_repr, 2, 0), 2, 1)[::2, ::2]
    cube = np.stack([rows.T, rows.T], 1).T  # (rows, 2, K) with K not innermost
    for view in (rows, rows.copy("F"), cube):
        check("quantized::linear", (x.with_int_repr(view), weight, bias), attributes)
    for kind in ("dense", "pointwise", "depthwise"):
        (x, weight, bias), attributes = ties.convolution(rng, kind, 2, False, True)
        turned = x.int_repr.transpose(3, 0, 2, 1).copy().transpose(1, 3, 2, 0)
        fixed = channels_last(x.int_repr).copy(order="K")
        fixed.flags.writeable = False
        for view in (turned, fixed):
            tensor = QTensor(view, x.scale, x.zero_point)
            op = OPS["quantized::conv2d"]
            expected = op.reference(x, weight, bias, **attributes)
            actual = op.kernels["fbgemm"](tensor, weight, bias, **attributes)
            assert_same(actual, expected)


def test_sums_wrap_to_32_bits() -> None:
    x = QTensor(np.full((2, 70_001), 255, np.uint8), 0.5, 0)
    weight = QTensor(np.full((3, 70_001), 127, np.int8), 0.5, 0, None, qint8)
    check("quantized::linear", (x, weight, None), {"scale": 1e7, "zero_point": 100})


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_an_empty_batch(rank: int) -> None:
    rng = np.random.default_rng(rank)
    for name, (operands, attributes) in (
        (f"quantized::conv{rank}d", ties.convolution(rng, "dense", rank, True, True)),
        (f"quantized::conv_transpose{rank}d", ties.transposed(rng, rank, True)),
    ):
        x = operands[0]
        empty = QTensor(x.int_repr[:0], x.scale, x.zero_point)
        check(name, (empty, *operands[1:]), attributes)


def test_a_large_batch_goes_through_one_offset_table() -> None:
    rng = np.random.default_rng(13)
    weight = QTensor(rng.integers(-128, 128, (5, 3, 3, 3)).astype(np.int8), 0.01, 0, None, qint8)
    attributes = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    for images in (6, 7, 40):  # 1024 pixels each, 4096 rows a table
        x = ties.activation(rng, (images, 3, 32, 32), reduced=False)
        check(
            "quantized::conv2d", (x, weight, None), {**attributes, "scale": 1.0, "zero_point": 9}
        )
    rows = ties.activation(rng, (9001, 7), reduced=False)
    matrix = QTensor(weight.int_repr.reshape(-1)[:21].reshape(3, 7), 0.01, 3, None, qint8)
    check("quantized::linear", (rows, matrix, None), {"scale": 0.5, "zero_point": 9})


def test_a_weight_packed_for_another_geometry_is_packed_again() -> None:
    rng = np.random.default_rng(17)
    (x, weight, bias), attributes = ties.convolution(rng, "fast", 2, True, True)
    op = OPS["quantized::conv2d"]
    other = PackedWeight.of(weight, Layout(groups=attributes["groups"]))
    expected = op.reference(x, weight, bias, **attributes)
    assert_same(op.kernels["fbgemm"](x, other, bias, **attributes), expected)


def test_changed_scales_and_biases_are_noticed() -> None:
    rng = np.random.default_rng(19)
    (x, weight, bias), attributes = ties.linear(rng, True, True)
    op = OPS["quantized::linear"]
    packed = op.pack(weight, **attributes)
    for change in range(4):
        expected = op.reference(x, weight, bias, **attributes)
        assert_same(op.kernels["fbgemm"](x, packed, bias, **attributes), expected)
        if change == 0:
            bias += np.float32(attributes["scale"] * 3)
        elif change == 1:
            x = QTensor(x.int_repr, float(x.scale) * 1.5, 255 - int(x.zero_point))
        else:
            attributes["scale"] *= 1.5


def test_a_packed_weight_holds_the_bytes_once() -> None:
    weight = QTensor(np.ones((64, 64, 3, 3), np.int8), 1.0, 0, None, qint8)
    attributes = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    packed = OPS["quantized::conv2d"].pack(weight, **attributes)
    arrays = [value for value in vars(packed).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) < 1.02 * weight.int_repr.nbytes
    assert all(array.base is None or array.base.nbytes == array.nbytes for array in arrays)
    assert packed.type == weight.type


FEATURES = {
    "generic": "",
    "avx2": "avx2",
    "avx512": "avx512bw",
    "avxvnni": "avx512vl",
    "avx512vnni": "avx512vnni",
}
HOST = get_host_cpu_features()


@pytest.mark.parametrize("isa", [k for k, v in FEATURES.items() if not v or HOST.get(v)])
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    assert digest_of({"REFQUANT_ISA": isa}) == tile_digest.digest()


def test_the_numpy_twin_of_the_tile_gives_the_same_bits() -> None:
    assert digest_of({"NUMBA_DISABLE_JIT": "1"}) == tile_digest.digest()


def digest_of(environment: dict[str, str]) -> str:
    root = Path(tile_digest.__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), **environment}
    command = [sys.executable, tile_digest.__file__]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return run.stdout.strip()


ONES = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
OUT = {"scale": 1.0, "zero_point": 0}
CONV = {**ONES, **OUT}
TRANSPOSED = {**CONV, "output_padding": (0, 0)}


@pytest.mark.parametrize(
    ("name", "x", "weight", "bias", "attributes", "message"),
    [
        ("linear", (2, 3), (4, 5), None, {}, r"does not end in the 5 columns"),
        ("linear", (3,), (4, 3), None, {}, r"input must have rank >= 2"),
        ("linear", (2, 3), (4, 3, 1), None, {}, r"weight must have rank 2"),
        ("linear", (2, 3), (4, 3), (3,), {}, r"bias must be \[4\]"),
        ("linear", (2, 3), (4, 3), None, {"scale": 0.0}, r"scale must be > 0"),
        ("linear", (2, 3), (4, 3), None, {"zero_point": 256}, r"zero_point must be in"),
        ("conv2d", (1, 3, 5), (4, 3, 1, 1), None, CONV, r"input must have rank 4"),
        ("conv2d", (1, 3, 5, 5), (4, 2, 1, 1), None, CONV, r"needs 2 input channels, got 3"),
        ("conv2d", (1, 3, 5, 5), (4, 3, 1, 1), None, {**CONV, "groups": 3}, r"groups must divide"),
        ("conv2d", (1, 3, 5, 5), (4, 3, 6, 1), None, CONV, r"output size must be >= 1"),
        ("conv2d", (1, 3, 5, 5), (4, 3, 1, 1), None, {**CONV, "stride": (0, 1)}, r"stride must"),
        ("conv2d", (1, 3, 5, 5), (4, 3, 1, 1), None, {**CONV, "padding": (1,)}, r"padding must"),
        ("conv_transpose2d", (1, 3, 5, 5), (4, 3, 1, 1), None, TRANSPOSED, r"needs 4 input"),
    ],
)
def test_infer_refuses(
    name: str, x: Any, weight: Any, bias: Any, attributes: dict[str, Any], message: str
) -> None:
    feed = TensorType(quint8, x, QParams(1.0, 0))
    factor = TensorType(qint8, weight, QParams(1.0, 0))
    addend = None if bias is None else TensorType(float32, bias)
    rest = {**OUT, **attributes}
    with pytest.raises(VerifyError, match=message):
        OPS[f"quantized::{name}"].infer(feed, factor, addend, **rest)


def test_infer_keeps_a_symbolic_batch() -> None:
    feed = TensorType(quint8, (Dim("N"), 3, 5, 5), QParams(1.0, 0))
    factor = TensorType(qint8, (4, 3, 3, 3), QParams(1.0, 0))
    inferred = OPS["quantized::conv2d"].infer(feed, factor, None, **CONV)
    assert inferred.shape == (Dim("N"), 4, 3, 3)
    with pytest.raises(VerifyError, match="weight must be qint8"):
        OPS["quantized::conv2d"].infer(feed, feed, None, **CONV)
    with pytest.raises(VerifyError, match="dtype must be one of quint8"):
        OPS["quantized::conv2d"].infer(factor, factor, None, **CONV)


def test_where_torch_corrupts_memory_is_refused() -> None:
    factor = QTensor(np.zeros((8, 1, 5, 5, 5), np.int8), 1.0, 0, None, qint8)
    ones, twos = (1, 1, 1), (2, 2, 2)
    attributes = {"stride": ones, "padding": twos, "dilation": ones, "groups": 8, **OUT}
    conv = OPS["quantized::conv3d"].bind(Target(), fast=True)
    for sizes in ((1, 9, 9), (9, 1, 9)):  # found with the C library's checking allocator
        feed = QTensor(np.zeros((1, 8, *sizes), np.uint8), 1.0, 0)
        with pytest.raises(UnsupportedError, match="torch's depthwise kernel corrupts memory"):
            conv(feed, factor, None, **attributes)
    feed = QTensor(np.zeros((1, 8, 9, 9, 1), np.uint8), 1.0, 0)
    assert conv(feed, factor, None, **attributes).shape == (1, 8, 9, 9, 1)
