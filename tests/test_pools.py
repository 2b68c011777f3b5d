"""Pools, means and resampling against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import (
    assert_matches_torch,
    assert_same_strides,
    call_torch,
    this_machine,
    torch_as,
)

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ir.types import (
    Dim,
    DType,
    QParams,
    TensorType,
    float32,
    qint8,
    qint32,
    quint8,
)
from refquant.kernels.float_sum import block, block_compiled, sum_dims
from refquant.ledger.draw.tensors import LAYOUTS, Rng, laid_out, quantized

DTYPES = [
    *(pytest.param(dtype, id=dtype.name) for dtype in (quint8, qint8, qint32)),
    pytest.param(float32, id="float32"),
]
RANKS = [pytest.param(rank, id=f"{rank}d") for rank in (1, 2, 3)]
TARGET = this_machine()


def operand(rng: Rng, shape: tuple[int, ...], dtype: DType, *, channels_last: bool) -> Any:
    """Return a tensor; sums of integers hit ties by themselves in windows of even size."""
    if dtype == float32:
        x: Any = rng.normal(size=shape).astype(np.float32)
    else:
        x = quantized(rng, shape, dtype)
    if not channels_last:
        return x
    array = x if dtype == float32 else x.int_repr
    array = np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    return array if dtype == float32 else x.with_int_repr(array)


def images(rng: Rng, rank: int, dtype: DType, longest: int) -> tuple[Any, tuple[int, ...]]:
    """Return a batch (now and then a single image) and its spatial size."""
    size = tuple(int(n) for n in rng.integers(1, longest + 1, rank))
    channels = int(rng.choice([1, 3, 8, 16, 19, 33]))
    batched = rank == 3 or bool(rng.integers(4))
    shape = (2, channels, *size) if batched else (channels, *size)
    return operand(rng, shape, dtype, channels_last=batched and bool(rng.integers(2))), size


def window(rng: Rng, size: tuple[int, ...]) -> dict[str, Any]:
    """Return a window that fits."""
    while True:
        kernel = [int(k) for k in rng.integers(1, 4, len(size))]
        padding = [int(rng.integers(0, k // 2 + 1)) for k in kernel]
        dilation = [int(d) for d in rng.integers(1, 3, len(size))]
        if all(
            n + 2 * p > d * (k - 1) and n >= k
            for n, p, k, d in zip(size, padding, kernel, dilation, strict=True)
        ):
            stride = [int(s) for s in rng.integers(1, 4, len(size))]
            return {
                **{"kernel_size": kernel, "stride": stride if rng.integers(4) else []},
                **{"padding": padding, "dilation": dilation},
                "ceil_mode": bool(rng.integers(2)),
            }


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sliding_windows(dtype: DType, rank: int) -> None:
    rng = np.random.default_rng(rank)
    for _ in range(60):
        x, size = images(rng, rank, dtype, 7)
        attributes = window(rng, size)
        assert_matches_torch(f"aten::max_pool{rank}d", (x,), attributes)
        del attributes["dilation"]
        attributes["count_include_pad"] = bool(rng.integers(2))
        if rank > 1 and rng.integers(4) == 0:
            attributes["divisor_override"] = int(rng.integers(1, 9))
        assert_matches_torch(f"aten::avg_pool{rank}d", (x,), attributes)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_adaptive_windows(dtype: DType, rank: int) -> None:
    rng = np.random.default_rng(10 + rank)
    for i in range(80):
        x, size = images(rng, rank, dtype, 7)
        output = [1] * rank if i % 4 == 0 else [int(rng.integers(1, n + 2)) for n in size]
        attributes = {"output_size": output}
        assert_matches_torch(f"aten::adaptive_avg_pool{rank}d", (x,), attributes)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_of_one_pixel_are_scrambled_as_in_torch(dtype: DType, rank: int) -> None:
    rng = np.random.default_rng(20 + rank)
    for channels in (1, 3, 17):
        x = operand(rng, (2, channels, *[1] * rank), dtype, channels_last=False)
        twice = {"kernel_size": [2] * rank, "stride": [1] * rank, "padding": [1] * rank}
        assert_matches_torch(f"aten::max_pool{rank}d", (x,), twice)
        if rank < 3 or dtype != float32:
            assert_matches_torch(f"aten::avg_pool{rank}d", (x,), twice)
        size = {"output_size": [2] * rank}
        assert_matches_torch(f"aten::adaptive_avg_pool{rank}d", (x,), size)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mean(dtype: DType, layout: str) -> None:
    rng = np.random.default_rng(30)
    for i in range(60):
        shape = ((2, 9, 4, 6), (3, 40), (2, 33, 5, 2), (2, 5, 3, 2, 4))[i % 4]
        x: Any = operand(rng, shape, dtype, channels_last=False)
        array = laid_out(x if dtype == float32 else x.int_repr, layout)
        x = array if dtype == float32 else x.with_int_repr(array)
        count = int(rng.integers(1, array.ndim + 1))
        dims: Any = sorted(rng.choice(array.ndim, count, replace=False).tolist())
        if i % 2:
            dims = list(range(array.ndim - count, array.ndim))
        if i % 10 == 0:
            dims = None
        keep = bool(rng.integers(2))
        assert_matches_torch("aten::mean", (x,), {"dim": dims, "keepdim": keep})


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_float_sums_are_added_in_torchs_order(threads: int) -> None:
    rng = np.random.default_rng(31)
    target = Target(threads=threads)
    shapes = [
        *(((300, 400), dims) for dims in ([0], [1], [0, 1])),
        *(((2, 33, 40, 50), dims) for dims in ([2, 3], [1], [0, 2], [1, 3])),
        *(((100_000,), [0]), ((4, 40_000), [1]), ((40_000, 7), [0]), ((40_000, 40), [0])),
        *((tuple(rng.integers(1, 40, 3).tolist()), [int(d)]) for d in rng.integers(0, 3, 60)),
    ]
    for i, (shape, dims) in enumerate(shapes):
        x = laid_out(rng.normal(size=shape).astype(np.float32), LAYOUTS[i % 4])
        with torch_as(target):
            expected = call_torch("aten::sum", (x,), {"dim": dims, "keepdim": True})
        for inner in (block, block_compiled):
            np.testing.assert_array_equal(sum_dims(x, dims, target, inner), expected)


# ------------------------------------------------------------------------------ resampling


def new_size(rng: Rng, size: tuple[int, ...]) -> dict[str, Any]:
    """Return a size, or factors: any, exactly 2, nearly 2, or so small that the size stays."""
    if rng.integers(2):
        return {"output_size": [int(n) for n in rng.integers(1, 14, len(size))]} | {
            "scale_factors": None
        }
    spans = ((1, 3.3), (1, 1.15), (2, 2.15), (2, 2))
    factors = [float(rng.uniform(*spans[int(rng.integers(4))])) for _ in size]
    return {"output_size": None, "scale_factors": factors}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [DTYPES[0], DTYPES[1], DTYPES[3]])
@pytest.mark.parametrize("rank", RANKS)
def test_nearest(rank: int, dtype: DType, channels_last: bool) -> None:
    if rank == 1 and dtype != float32:
        x = TensorType(dtype, (2, 3, 4), QParams(1.0, 0))
        with pytest.raises(UnsupportedError, match="no quantized form"):
            OPS["aten::upsample_nearest1d"].infer(x, [4], None)
        return
    rng = np.random.default_rng(40 + rank)
    for i in range(60):
        longest = 6 if i % 6 else 1
        size = tuple(int(n) for n in rng.integers(1, longest + 1, rank))
        images = 1 if rank == 3 else 2  # torch loses all volumes but the first, see below
        shape = (images, int(rng.choice([1, 3, 8, 13])), *size)
        x = operand(rng, shape, dtype, channels_last=channels_last)
        attributes = new_size(rng, size)
        for name in ("upsample_nearest", "_upsample_nearest_exact"):
            assert_matches_torch(f"aten::{name}{rank}d", (x,), attributes)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_bilinear(dtype: DType, channels_last: bool) -> None:
    rng = np.random.default_rng(44)
    for i in range(150):
        size = tuple(int(n) for n in rng.integers(1, 8 if i % 10 else 2, 2))
        shape = (2, int(rng.choice([1, 3, 8, 13, 16, 40])), *size)
        x = operand(rng, shape, dtype, channels_last=channels_last)
        attributes = {**new_size(rng, size), "align_corners": bool(i % 2)}
        assert_matches_torch("aten::upsample_bilinear2d", (x,), attributes)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("upsample_bilinear2d", 3e-6), ("upsample_bicubic2d", 5e-6)]
)
def test_float_interpolation_within_its_tolerance(name: str, tolerance: float) -> None:
    rng = np.random.default_rng(45)
    for i in range(60):
        size = tuple(int(n) for n in rng.integers(1, 8, 2)) if i % 6 else (30, 35)
        x = operand(rng, (2, int(rng.choice([3, 8])), *size), float32, channels_last=i % 4 > 1)
        attributes = {**new_size(rng, size), "align_corners": bool(i % 2)}
        if i % 6 == 0:
            attributes |= {"output_size": [110, 97], "scale_factors": None}
        expected = call_torch(f"aten::{name}", (x,), attributes)
        actual = OPS[f"aten::{name}"].reference(x, **attributes)
        assert_same_strides(actual, expected)
        difference = np.abs(actual.astype(np.float64) - expected).max()
        assert difference <= tolerance * np.abs(x).max()


def test_volumes_that_torch_leaves_uninitialised_are_refused() -> None:
    x = quantized(np.random.default_rng(46), (2, 3, 2, 2, 2), quint8, "channels_last")
    for fast in (False, True):
        run = OPS["aten::upsample_nearest3d"].bind(TARGET, fast=fast)
        with pytest.raises(UnsupportedError, match="uninitialised"):
            run(x, [2, 2, 2], None)


# ---------------------------------------------------------------------------------- checks

N = Dim("N")
U8 = TensorType(quint8, (N, 4, 6, 6), QParams(0.5, 7))
F = TensorType(float32, (N, 4, 6, 6))
HALF = {"kernel_size": [2, 2]}


@pytest.mark.parametrize(
    ("name", "x", "attributes", "expected"),
    [
        ("max_pool2d", U8, HALF, (N, 4, 3, 3)),
        ("max_pool2d", U8, {"kernel_size": 3, "stride": 2, "ceil_mode": True}, (N, 4, 3, 3)),
        ("max_pool1d", U8.with_shape((4 * N, 6, 6)), {"kernel_size": 2}, (4 * N, 6, 3)),
        ("avg_pool2d", U8, HALF, (N, 4, 3, 3)),
        ("adaptive_avg_pool2d", F, {"output_size": 1}, (N, 4, 1, 1)),
        ("mean", U8, {"dim": [-1, -2]}, (N, 4)),
        ("mean", U8, {"dim": 3, "keepdim": True}, (N, 4, 6, 1)),
        ("upsample_nearest2d", U8, {"output_size": [9, 9], "scale_factors": None}, (N, 4, 9, 9)),
        (
            "upsample_bilinear2d",
            F,
            {"output_size": None, "scale_factors": [1.5, 2.0], "align_corners": False},
            (N, 4, 9, 12),
        ),
    ],
)
def test_a_symbolic_batch_passes(
    name: str, x: TensorType, attributes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert OPS[f"aten::{name}"].infer(x, **attributes) == x.with_shape(expected)


@pytest.mark.parametrize(
    ("name", "x", "attributes", "message"),
    [
        ("max_pool2d", U8.with_shape((4, 6)), HALF, "expected rank 3 or 4"),
        ("max_pool2d", U8, {"kernel_size": [2, 2, 2]}, "kernel_size needs 2 entries"),
        ("max_pool2d", U8, {"kernel_size": [0, 2]}, "kernel_size must be >= 1"),
        ("max_pool2d", U8, {**HALF, "padding": 2}, "at most half of kernel_size 2, got 2"),
        ("max_pool2d", U8, {"kernel_size": [7, 7]}, "no window fits"),
        ("max_pool3d", U8, {"kernel_size": 2}, "needs rank 5"),
        ("max_pool1d", F.with_shape((2, 3, N)), {"kernel_size": 2}, "cannot slide along"),
        ("avg_pool2d", U8, {**HALF, "divisor_override": 0}, "must not be 0"),
        ("avg_pool2d", U8, {"kernel_size": [7, 7]}, "no window fits"),
        ("avg_pool3d", U8, {"kernel_size": 2}, "needs rank 5"),
        (
            "avg_pool3d",
            F.with_shape((1, 1, 2, 2, 2)),
            {"kernel_size": 3, "padding": 1},
            "is smaller than the window",
        ),
        ("adaptive_avg_pool2d", U8, {"output_size": [1, 1, 1]}, "output_size must be 2 lengths"),
        ("adaptive_avg_pool1d", F.with_shape((2, 3, N)), {"output_size": 1}, "cannot pool"),
        ("mean", U8, {"dim": [4]}, "dim 4 is outside"),
        ("mean", U8, {"dim": [1, -3]}, "given twice"),
        ("mean", U8, {"dim": None}, "symbolic length"),
        (
            "upsample_nearest2d",
            U8,
            {"output_size": None, "scale_factors": None},
            "exactly one of output_size and scale_factors",
        ),
        (
            "upsample_nearest2d",
            U8,
            {"output_size": [3], "scale_factors": None},
            "expected 2 lengths",
        ),
        (
            "upsample_bicubic2d",
            U8,
            {"output_size": [3, 3], "scale_factors": None, "align_corners": False},
            "must be float32",
        ),
        (
            "upsample_bilinear2d",
            F,
            {"output_size": None, "scale_factors": [0.1, 1.0], "align_corners": False},
            "must be >= 1",
        ),
    ],
)
def test_checks(name: str, x: TensorType, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        OPS[f"aten::{name}"].infer(x, **attributes)


def test_an_empty_batch() -> None:
    x = QTensor(np.zeros((0, 4, 6, 6), np.uint8), 0.5, 7, None, quint8)
    for name, attributes in (
        ("aten::max_pool2d", HALF),
        ("aten::avg_pool2d", HALF),
        ("aten::adaptive_avg_pool2d", {"output_size": [2, 2]}),
        ("aten::mean", {"dim": [2, 3]}),
    ):
        assert_matches_torch(name, (x,), attributes)
