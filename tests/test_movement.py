"""Ops that move data or reduce it, and float arithmetic: torch's values, types and strides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same, assert_same_strides, from_torch, this_machine, to_torch

from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.types import DTYPES, Dim, TensorType, float64, int32
from refquant.kernels.layout import is_channels_last

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def channels_last(x: Any) -> Any:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def codes(*shape: int) -> QTensor:
    return QTensor(RNG.integers(0, 256, shape, np.uint8), 0.25, 3)


X, Y = normal(2, 3, 4), normal(2, 3, 4)
IMAGE = normal(2, 8, 4, 6)
CODES_LAST = QTensor(channels_last(codes(2, 8, 4, 6).int_repr), 0.25, 3)
LOOSE = channels_last(IMAGE)[:, ::2]
QUINT8 = {"scale": 0.1, "zero_point": 3, "dtype": DTYPES["quint8"]}
TIES = np.array([0.5, 1.5, -0.5, -1.5, 2.5, 0.0, -0.0], np.float32)
INTS = RNG.integers(-9, 9, (2, 3, 4))
POSITIVE = np.abs(X) + 0.1
MASK = X > 0
ROWS = np.array([[1, 0], [0, 1]])

EXACT: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("aten::reshape", (X,), {"shape": (4, -1)}),
    ("aten::reshape", (X.transpose(2, 0, 1),), {"shape": (8, 3)}),
    ("aten::view", (X,), {"size": (2, 12)}),
    ("aten::permute", (X,), {"dims": (2, -3, 1)}),
    ("aten::transpose", (X,), {"dim0": 0, "dim1": -1}),
    ("aten::squeeze", (X[:, :1],), {}),
    ("aten::unsqueeze", (X,), {"dim": -2}),
    ("aten::unsqueeze", (channels_last(normal(1, 3, 4, 5)),), {"dim": 2}),
    ("aten::expand", (X[:, :1],), {"size": (5, -1, 3, 4)}),
    ("aten::repeat", (X,), {"repeats": (2, 1, 3, 2)}),
    ("aten::roll", (X,), {"shifts": (1, -2), "dims": (0, 2)}),
    ("aten::roll", (channels_last(IMAGE),), {"shifts": (3,), "dims": (3,)}),
    ("aten::flip", (channels_last(IMAGE),), {"dims": (1, -1)}),
    ("aten::unfold", (X,), {"dimension": 2, "size": 2, "step": 2}),
    (
        "aten::im2col",
        (IMAGE,),
        {"kernel_size": (3, 2), "dilation": (1, 2), "padding": (1, 0), "stride": (2, 1)},
    ),
    ("aten::new_full", (X,), {"size": (2, 3), "fill_value": 0.1}),
    ("aten::hardshrink", (X,), {"lambd": 0.3}),
    ("aten::softshrink", (X,), {"lambd": 0.3}),
    ("aten::trunc", (TIES,), {}),
    ("aten::logical_and", (X, INTS), {}),
    ("aten::logical_xor", (MASK, INTS), {}),
    ("aten::max.dim", (X,), {"dim": 1, "keepdim": True}),
    ("aten::min.dim", (X,), {"dim": -1, "keepdim": False}),
    ("aten::pad", (channels_last(IMAGE),), {"pad": (2, 1, 1, 0), "mode": "circular"}),
    ("aten::clone", (channels_last(IMAGE),), {}),
    ("aten::select", (X,), {"dim": 1, "index": -1}),
    ("aten::slice", (X,), {"dim": -1, "start": -3, "end": 9, "step": 2}),
    ("aten::split_with_sizes", (X,), {"split_sizes": (1, 3), "dim": 2}),
    ("aten::unbind", (X,), {"dim": 1}),
    ("aten::index_select", (X, np.array([1, 1, 0])), {"dim": 1}),
    ("aten::gather", (X, INTS[..., :2] % 3), {"dim": 1}),
    ("aten::embedding", (X[0], ROWS), {}),
    ("aten::pad", (IMAGE,), {"pad": (1, -2, 0, 3), "mode": "constant", "value": 0.5}),
    ("aten::pad", (channels_last(IMAGE),), {"pad": (2, 1, 1, 0), "mode": "reflect"}),
    ("aten::pad", (IMAGE,), {"pad": (2, 1, 1, 0), "mode": "replicate"}),
    ("aten::pad", (IMAGE,), {"pad": (2, 1, 1, 0), "mode": "circular"}),
    ("aten::pixel_shuffle", (IMAGE,), {"upscale_factor": 2}),
    ("aten::pixel_unshuffle", (IMAGE,), {"downscale_factor": 2}),
    ("aten::channel_shuffle", (IMAGE,), {"groups": 4}),
    ("aten::where", (MASK, X, Y), {}),
    ("aten::masked_fill.Scalar", (X, MASK), {"value": -np.inf}),
    ("aten::tril", (X,), {"diagonal": 1}),
    ("aten::triu", (X,), {"diagonal": -1}),
    ("aten::add", (X, Y[:1, :, :1]), {"alpha": 3}),
    ("aten::add", (X, INTS), {}),
    ("aten::add.Scalar", (INTS,), {"other": 0.5}),
    ("aten::sub", (X, Y), {"alpha": 0.3}),
    ("aten::sub.Scalar", (X,), {"other": 2}),
    ("aten::rsub.Scalar", (X,), {"other": 1.7}),
    ("aten::mul", (X, Y), {}),
    ("aten::mul", (X, np.array(1.5)), {}),
    ("aten::mul.Scalar", (INTS,), {"other": 3}),
    ("aten::div", (X, Y), {}),
    ("aten::div", (INTS, INTS + 20), {}),
    ("aten::remainder.Scalar", (X,), {"other": 0.3}),
    ("aten::pow.Tensor_Scalar", (X,), {"exponent": 2}),
    ("aten::pow.Tensor_Scalar", (X,), {"exponent": 3.0}),
    ("aten::pow.Tensor_Scalar", (X,), {"exponent": -1}),
    ("aten::maximum", (X, Y), {}),
    ("aten::minimum", (X, Y), {}),
    ("aten::neg", (X,), {}),
    ("aten::abs", (INTS,), {}),
    ("aten::sign", (TIES,), {}),
    ("aten::square", (X,), {}),
    ("aten::floor", (TIES,), {}),
    ("aten::ceil", (TIES,), {}),
    ("aten::round", (TIES,), {}),
    ("aten::reciprocal", (X,), {}),
    ("aten::rsqrt", (POSITIVE,), {}),
    ("aten::logical_not", (TIES,), {}),
    ("aten::eq", (INTS, X), {}),
    ("aten::lt.Scalar", (X,), {"other": 0.1}),
    ("aten::ge", (X, Y), {}),
    ("aten::sum", (X,), {"dim": (1, 2), "keepdim": False}),
    ("aten::sum", (normal(3, 1000),), {"dim": (1,), "keepdim": True}),
    ("aten::sum", (channels_last(IMAGE),), {"dim": (2, 3), "keepdim": True}),
    ("aten::sum", (INTS,), {"dim": (0,), "keepdim": False}),
    ("aten::amax", (X,), {"dim": (0, 2), "keepdim": True}),
    ("aten::amin", (X,), {"dim": (), "keepdim": False}),
    ("aten::argmax", (X,), {"dim": 1, "keepdim": True}),
    ("aten::argmin", (X,), {}),
    ("aten::cumsum", (normal(5, 40),), {"dim": 1}),
    ("aten::topk", (X,), {"k": 2, "dim": 1, "largest": False}),
    ("aten::reshape", (codes(2, 6),), {"shape": (3, 4)}),
    ("aten::permute", (codes(2, 3, 4),), {"dims": (0, 2, 1)}),
    ("aten::slice", (codes(2, 6),), {"dim": 1, "start": 1, "end": 5, "step": 2}),
    ("aten::flip", (codes(2, 6),), {"dims": (1,)}),
    ("aten::clone", (codes(2, 6),), {}),
    ("aten::unsqueeze", (codes(2, 6),), {"dim": 0}),
    ("aten::pixel_shuffle", (codes(2, 8, 3, 3),), {"upscale_factor": 2}),
    ("aten::pixel_shuffle", (CODES_LAST,), {"upscale_factor": 2}),
    ("aten::pixel_unshuffle", (CODES_LAST,), {"downscale_factor": 2}),
    ("aten::channel_shuffle", (CODES_LAST,), {"groups": 2}),
    ("aten::pad", (CODES_LAST,), {"pad": (1, 1), "mode": "constant", "value": 0.3}),
    ("aten::quantize_per_tensor", (LOOSE,), QUINT8),
    ("aten::quantize_per_tensor", (X.transpose(0, 2, 1),), QUINT8),
    ("aten::channel_shuffle", (codes(2, 8, 3, 3),), {"groups": 2}),
]
# How far float sums and elementary functions may be from torch's, relative to the largest.
CLOSE: list[tuple[str, tuple[Any, ...], dict[str, Any], float]] = [
    ("aten::exp", (X,), {}, 1e-7),
    ("aten::log", (POSITIVE,), {}, 1e-7),
    ("aten::sqrt", (POSITIVE,), {}, 1e-7),
    ("aten::sin", (X,), {}, 1e-7),
    ("aten::cos", (X,), {}, 1e-7),
    ("aten::erf", (X,), {}, 1e-6),
    ("aten::log1p", (POSITIVE,), {}, 1e-7),
    ("aten::expm1", (X,), {}, 1e-7),
    ("aten::softplus", (X * 20,), {"beta": 2.0, "threshold": 15.0}, 1e-6),
    ("aten::log_sigmoid", (X * 20,), {}, 1e-6),
    ("aten::mish", (X * 5,), {}, 1e-6),
    ("aten::pow.Tensor_Tensor", (POSITIVE, Y), {}, 1e-6),
    ("aten::pow.Scalar", (X,), {"self": 2.0}, 1e-6),
    ("aten::var", (X,), {"dim": (0, 2), "correction": 1, "keepdim": True}, 1e-6),
    ("aten::linalg_vector_norm", (X,), {"ord": 2.0, "dim": (1,), "keepdim": True}, 1e-6),
    ("aten::linalg_vector_norm", (X,), {"ord": 3.0, "dim": (1,), "keepdim": False}, 1e-6),
    ("aten::matmul", (X, Y.transpose(0, 2, 1)), {}, 1e-6),
    ("aten::bmm", (X, Y.transpose(0, 2, 1)), {}, 1e-6),
    ("aten::linear", (X, normal(5, 4), normal(5)), {}, 1e-6),
]


def bare(value: Any) -> Any:
    return value.int_repr if isinstance(value, QTensor) else value


def flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def torch_result(name: str, operands: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    """Call torch's op, overload included; its types of attributes are ours but for sequences."""
    op, _, overload = name.removeprefix("aten::").partition(".")
    function = getattr(torch.ops.aten, op)
    if overload:
        function = getattr(function, overload)
    keywords = {k: list(v) if isinstance(v, tuple) else to_torch(v) for k, v in attributes.items()}
    if op == "sum" and "dim" in keywords:
        function = function.dim_IntList
    if op == "var":
        function = function.correction
    arguments = [to_torch(np.ascontiguousarray(x) if _negative(x) else x) for x in operands]
    if op in ("index_select", "gather"):
        return from_torch(function(arguments[0], attributes["dim"], arguments[1]))
    if op == "masked_fill":
        return from_torch(function(*arguments, attributes["value"]))
    if name == "aten::pow.Scalar":
        return from_torch(torch.pow(attributes["self"], arguments[0]))
    if op == "slice":
        return from_torch(
            function(arguments[0], *(attributes[k] for k in ("dim", "start", "end", "step")))
        )
    return from_torch(function(*arguments, **keywords))


def _negative(x: Any) -> bool:
    return isinstance(x, np.ndarray) and any(step < 0 for step in x.strides)


def check_type(name: str, operands: tuple[Any, ...], attributes: dict[str, Any], got: Any) -> None:
    inferred = OPS[name].infer(*map(type_of, operands), **attributes)
    assert flat(inferred) == tuple(map(type_of, flat(got)))


@pytest.mark.parametrize("call", EXACT, ids=[f"{i}-{c[0]}" for i, c in enumerate(EXACT)])
def test_an_op_equals_torchs(call: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    name, operands, attributes = call
    expected = torch_result(name, operands, attributes)
    for fast in (False, True):
        actual = OPS[name].bind(this_machine(), fast=fast)(*operands, **attributes)
        for one, other in zip(flat(actual), flat(expected), strict=True):
            assert_same(one, other)
            if name not in ("aten::gather", "aten::where", "aten::masked_fill.Scalar"):
                assert_same_strides(one, other)
                assert is_channels_last(bare(one)) == is_channels_last(bare(other))
        check_type(name, operands, attributes, actual)


@pytest.mark.parametrize("call", CLOSE, ids=[f"{i}-{c[0]}" for i, c in enumerate(CLOSE)])
def test_an_op_is_as_close_to_torchs_as_its_page_says(
    call: tuple[str, tuple[Any, ...], dict[str, Any], float],
) -> None:
    name, operands, attributes, limit = call
    expected = torch_result(name, operands, attributes)
    actual = OPS[name].bind(this_machine(), fast=True)(*operands, **attributes)
    assert actual.dtype == expected.dtype
    atol = limit * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)
    check_type(name, operands, attributes, actual)


WHOLE = RNG.integers(-4, 5, (2, 8, 5, 6)).astype(np.float32)
KERNEL = RNG.integers(-4, 5, (4, 4, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_products_of_whole_numbers_are_exact(memory: str) -> None:
    """Where every partial sum is representable, the order of summation does not matter."""
    x = channels_last(WHOLE) if memory == "channels_last" else WHOLE
    bias = np.arange(4, dtype=np.float32)
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    expected = from_torch(torch.conv2d(to_torch(x), to_torch(KERNEL), to_torch(bias), **geometry))
    actual = OPS["aten::conv2d"].reference(x, KERNEL, bias, **geometry)
    assert_same(actual, expected)
    assert_same_strides(actual, expected)
    geometry |= {"output_padding": (1, 0)}
    weight = RNG.integers(-4, 5, (8, 3, 3, 2)).astype(np.float32)
    torch_order = [
        geometry[k] for k in ("stride", "padding", "output_padding", "groups", "dilation")
    ]
    expected = from_torch(
        torch.conv_transpose2d(to_torch(x), to_torch(weight), None, *torch_order)
    )
    actual = OPS["aten::conv_transpose2d"].reference(x, weight, None, **geometry)
    assert_same(actual, expected)


def memories(shape: tuple[int, ...]) -> list[Any]:
    """Return one tensor in several memory formats, dense and not."""
    n, c, h, w = shape
    wide = normal(n, 2 * c, h, w)
    return [
        normal(*shape),
        channels_last(normal(*shape)),
        wide[:, 1::2],
        channels_last(wide)[:, ::2],
        normal(n, h, c, w).transpose(0, 2, 1, 3),
    ]


@pytest.mark.parametrize("shape", [(2, 3, 2, 4), (1, 3, 4, 1), (2, 3, 1, 1), (3, 1, 2, 1)])
def test_elementwise_results_have_torchs_memory_format(shape: tuple[int, ...]) -> None:
    """Lengths of one count, too: quantized kernels ask for the format of (N, C, 1, 1) images."""
    second = [y for s in (shape, (1, *shape[1:]), (1, 1, 1, 1)) for y in memories(s)]
    calls = [("aten::add", (x, y)) for x in memories(shape) for y in second]
    calls += [(f"aten::{name}", (x,)) for x in memories(shape) for name in ("relu", "abs", "silu")]
    for name, operands in calls:
        expected = torch_result(name, operands, {})
        actual = OPS[name].reference(*operands)
        assert_same_strides(actual, expected)
        assert is_channels_last(actual) == is_channels_last(expected), [
            x.strides for x in operands
        ]


@pytest.mark.filterwarnings("ignore:All inputs of this cat:UserWarning")
def test_stack_joins_and_splits() -> None:
    images = [channels_last(normal(2, 3, 4, 5)) for _ in range(2)]
    two = [QTensor(codes(2, 3).int_repr, scale, 7) for scale in (0.25, 0.4)]
    for tensors in (images, two):
        for dim in (0, 1, -1):
            expected = from_torch(torch.stack([to_torch(x) for x in tensors], dim))
            actual = OPS["aten::stack"].reference(*tensors, dim=dim)
            assert_same(actual, expected)
            assert_same_strides(actual, expected)
            assert OPS["aten::stack"].infer(*map(type_of, tensors), dim=dim) == type_of(actual)


def test_adaptive_max_pool() -> None:
    for rank, size in ((1, (3,)), (2, (3, 5)), (3, (1, 2, 3))):
        x = normal(2, 3, *(7, 5, 4)[:rank])
        expected = getattr(F, f"adaptive_max_pool{rank}d")(to_torch(x), size).numpy()
        assert_same(OPS[f"aten::adaptive_max_pool{rank}d"].reference(x, size), expected)


def test_einsum_and_attention() -> None:
    expected = torch.einsum("bij,bkj->bik", to_torch(X), to_torch(Y)).numpy()
    actual = OPS["aten::einsum"].reference(X, Y, equation="bij,bkj->bik")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    mask = np.array([[True, False, True]] * 3)
    for options in ({}, {"is_causal": True}, {"scale": 0.3}):
        for attn_mask in (None, mask, mask * np.float32(0.5)):
            if attn_mask is not None and "is_causal" in options:
                continue
            theirs = torch.nn.functional.scaled_dot_product_attention(
                *map(to_torch, (X, Y, Y)),
                None if attn_mask is None else to_torch(attn_mask),
                **options,
            ).numpy()
            ours = OPS["aten::scaled_dot_product_attention"].reference(
                X, Y, Y, attn_mask, **options
            )
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_index_with_several_tensors() -> None:
    for indices in ((None, np.array([2, 0])), (ROWS, ROWS + 1), (ROWS, None, ROWS)):
        expected = to_torch(X)[tuple(slice(None) if i is None else to_torch(i) for i in indices)]
        actual = OPS["aten::index"].reference(X, *indices)
        assert_same(actual, expected.numpy())
        types = [None if i is None else type_of(i) for i in indices]
        assert OPS["aten::index"].infer(type_of(X), *types) == type_of(actual)


def test_stack_and_cat_promote() -> None:
    for op, function in (("aten::cat", torch.cat), ("aten::stack", torch.stack)):
        expected = function([to_torch(X), to_torch(INTS)], 1).numpy()
        assert_same(OPS[op].reference(X, INTS, dim=1), expected)
        assert OPS[op].infer(type_of(X), type_of(INTS), dim=1) == type_of(expected)


def test_casts_round_as_torch() -> None:
    x = np.float32([1.5, -2.7, 3.4e38, 65504.1, 1e-8])
    for name in ("float64", "float16", "bfloat16"):
        expected = to_torch(x).to(getattr(torch, name)).double().numpy()
        actual = OPS["aten::to"].reference(x, DTYPES[name])
        np.testing.assert_array_equal(actual.astype(np.float64), expected)
    np.testing.assert_array_equal(OPS["aten::to"].reference(x[:2], int32), [1, -2])
    assert OPS["aten::to"].reference(x, float64).dtype == np.float64


SYMBOLIC: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[Any, ...]]] = [
    ("aten::reshape", (Dim("N"), 4, 6), {"shape": (-1, 6)}, (4 * Dim("N"), 6)),
    ("aten::reshape", (4 * Dim("N"), 6), {"shape": (Dim("N"), -1)}, (Dim("N"), 24)),
    ("aten::flatten", (Dim("N"), 4, 6), {"start_dim": 1}, (Dim("N"), 24)),
    ("aten::permute", (Dim("N"), 4, 6), {"dims": (2, 0, 1)}, (6, Dim("N"), 4)),
    ("aten::expand", (1, 4), {"size": (Dim("N"), -1)}, (Dim("N"), 4)),
    ("aten::repeat", (Dim("N"), 4), {"repeats": (3, 1)}, (3 * Dim("N"), 4)),
    ("aten::squeeze", (Dim("N"), 1), {}, (Dim("N"),)),
    ("aten::sum", (Dim("N"), 4), {"dim": (1,)}, (Dim("N"),)),
    ("aten::mean", (Dim("N"), 4), {"dim": (1,)}, (Dim("N"),)),
    ("aten::select", (Dim("N"), 4), {"dim": 1, "index": 0}, (Dim("N"),)),
    ("aten::pad", (Dim("N"), 4), {"pad": (1, 1)}, (Dim("N"), 6)),
]


@pytest.mark.parametrize("rule", SYMBOLIC, ids=[r[0] for r in SYMBOLIC])
def test_shapes_are_symbolic_in_the_batch(
    rule: tuple[str, tuple[Any, ...], dict[str, Any], tuple[Any, ...]],
) -> None:
    name, before, attributes, after = rule
    inferred = OPS[name].infer(TensorType(DTYPES["float32"], before), **attributes)
    assert isinstance(inferred, TensorType)
    assert inferred.shape == after
