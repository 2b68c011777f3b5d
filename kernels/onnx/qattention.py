"""``com.microsoft::QAttention``: self-attention whose projections are integer products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.types import Shape, TensorType, float32, format_shape, int32, uint8
from refquant.kernels.onnx import integer_product as product
from refquant.kernels.onnx import (
    matmul_integer_to_float,
    mlas_gemm,
    mlas_products,
    mlas_softmax,
    operands,
)
from refquant.kernels.onnx.kept import pack
from refquant.kernels.onnx.literals import f32, i8, u8
from refquant.kernels.onnx.operands import BYTES, Engines, dtype_in, same_dtype

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
_OP = "com.microsoft::QAttention"
Ints = tuple[int, ...]
Softmax = Callable[[F32], F32]
Gemm = Callable[..., F32]


def reference(
    input: Array,
    weight: Array,
    bias: F32,
    input_scale: Array,
    weight_scale: Array,
    mask_index: Array | None = None,
    input_zero_point: Array | None = None,
    weight_zero_point: Array | None = None,
    past: F32 | None = None,
    num_heads: int = 1,
    unidirectional: int = 0,
    scale: float | None = None,
    mask_filter_value: float = -10000.0,
    do_rotary: int = 0,
    past_present_share_buffer: int = 0,
) -> tuple[F32, F32]:
    r"""Project by integers, then attend in float32.

    .. math:: [Q, K, V] = f32(acc) \cdot (s_w s_x) + b, \quad
              y = \mathrm{softmax}(scale \cdot Q K^T + mask) V

    The projections are those of ``com.microsoft::MatMulIntegerToFloat``. Head by head follow a
    product with alpha ``scale``, the sum with the mask, which is not fused, onnxruntime's softmax
    (``mlas_softmax.py``) and a second product, in the order of MLAS for matrices that are no
    constants (``mlas_gemm.py``). Engines onnx and ort are the same: the operator is onnxruntime's
    own.

    Parameters
    ----------
    input : uint8 (batch, time, inputs)
    weight : uint8 or int8 (inputs, 3 * hidden)
        Columns of Q, K and V, head by head.
    bias : float32 (3 * hidden,)
    input_scale, weight_scale : float32, one element; of the weight also (3 * hidden,)
    mask_index : int32, optional
        (batch, all times) or (batch, time, all times): 0 where a key is not seen; (batch,): how
        many keys are; (2 * batch,): where keys end and where they begin; (batch, 1) or (1, 1):
        nothing.
    input_zero_point, weight_zero_point : like ``input`` and ``weight``, shapes of the scales
        None means 0.
    past : float32 (2, batch, heads, past times, head), optional
        Keys and values that come first.
    num_heads : int
    unidirectional : int
        Whether a time does not see later ones.
    scale : float, optional
        None and 0 mean ``1 / sqrt(head)``.
    mask_filter_value : float
        What is added where the mask hides a key; later times have the least float32 instead.
    do_rotary, past_present_share_buffer : int
        Must be 0.

    Returns
    -------
    float32 (batch, time, hidden), and keys and values (2, batch, heads, all times, head)

    Raises
    ------
    VerifyError
        If types or shapes do not fit.
    UnsupportedError
        With rotary embeddings or a shared buffer.

    Examples
    --------
    >>> one = np.float32(1)
    >>> x, w = np.uint8([[[1], [3]]]), np.int8([[0, 0, 2]])
    >>> reference(x, w, np.zeros(3, np.float32), one, one)[0]
    array([[[4.],
            [4.]]], dtype=float32)
    """
    parameters = input_scale, weight_scale, input_zero_point, weight_zero_point, bias
    projected = matmul_integer_to_float.reference(input, weight, *parameters)
    mask = _mask(mask_index, input.shape, past, unidirectional, mask_filter_value)
    functions = mlas_gemm.reference, mlas_softmax.reference
    return _attend(projected, mask, past, num_heads, scale, *functions)


def _mask(
    index: Array | None, shape: Ints, past: F32 | None, causal: int, hidden: float
) -> F32 | None:
    """Return what is added to the scores, (batch, time, all times)."""
    batch, time = shape[:2]
    total = time + (0 if past is None else past.shape[3])
    causal = causal and time > 1
    if index is None and not causal:
        return None
    hides = np.zeros((batch, time, total), np.bool_)
    if index is not None and index.shape not in ((batch, 1), (1, 1)):
        if index.ndim == 1:
            key = np.arange(total)
            ends = index[:batch, None]
            begins = index[batch:, None] if index.size == 2 * batch else 0 * ends
            hides |= ((key >= ends) | (key < begins))[:, None]
        else:
            hides |= (index <= 0).reshape(batch, -1, total)
    mask = np.where(hides, np.float32(hidden), np.float32(0))
    if causal:
        later = np.arange(total) > np.arange(time)[:, None] + total - time
        mask = np.where(later, np.finfo(np.float32).min, mask)
    return np.asarray(mask, np.float32)


def _attend(
    projected: F32,
    mask: F32 | None,
    past: F32 | None,
    heads: int,
    scale: float | None,
    gemm: Gemm,
    softmax: Softmax,
) -> tuple[F32, F32]:
    batch, time, _ = projected.shape
    split = projected.reshape(batch, time, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    q, present = split[0], split[1:]
    if past is not None:
        present = np.concatenate((past, present), axis=3)
    head = q.shape[-1]
    alpha = np.float32(scale) if scale else np.float32(1) / np.sqrt(np.float32(head))
    y = np.empty((batch, time, heads, head), np.float32)
    for n in range(batch):
        for h in range(heads):
            key, value = present[:, n, h]
            scores = _scores(q[n, h], key, alpha, gemm)
            scores = scores if mask is None else scores + mask[n]
            y[n, :, h] = mlas_products.product(softmax(scores), value, None, gemm)
    return y.reshape(batch, time, heads * head), np.ascontiguousarray(present)


def _scores(q: F32, key: F32, alpha: np.float32, gemm: Gemm) -> F32:
    if alpha == 1 and len(q) == 1:
        return mlas_gemm.dot_products(q[0], key)[None]
    return gemm(q, key.T, mlas_gemm.piece_of(len(key), q.shape[1]), None, float(alpha))


def kernel(
    input: Array,
    weight: Array,
    bias: F32,
    input_scale: Array,
    weight_scale: Array,
    mask_index: Array | None = None,
    input_zero_point: Array | None = None,
    weight_zero_point: Array | None = None,
    past: F32 | None = None,
    num_heads: int = 1,
    unidirectional: int = 0,
    scale: float | None = None,
    mask_filter_value: float = -10000.0,
    do_rotary: int = 0,
    past_present_share_buffer: int = 0,
) -> tuple[F32, F32]:
    """Compute :func:`reference` with the compiled tile, products and softmax."""
    parameters = input_scale, weight_scale, input_zero_point, weight_zero_point, bias
    projected = matmul_integer_to_float.kernel(input, weight, *parameters)
    mask = _mask(mask_index, input.shape, past, unidirectional, mask_filter_value)
    functions = mlas_gemm.gemm, mlas_softmax.kernel
    return _attend(projected, mask, past, num_heads, scale, *functions)


def infer(
    input: TensorType,
    weight: TensorType,
    bias: TensorType,
    input_scale: TensorType,
    weight_scale: TensorType,
    mask_index: TensorType | None = None,
    input_zero_point: TensorType | None = None,
    weight_zero_point: TensorType | None = None,
    past: TensorType | None = None,
    num_heads: int = 1,
    unidirectional: int = 0,
    scale: float | None = None,
    mask_filter_value: float = -10000.0,
    do_rotary: int = 0,
    past_present_share_buffer: int = 0,
) -> tuple[TensorType, ...]:
    """Check types, shapes and attributes."""
    if do_rotary or past_present_share_buffer:
        raise UnsupportedError(
            f"{_OP}: do_rotary and past_present_share_buffer must be 0, got {do_rotary} and "
            f"{past_present_share_buffer}"
        )
    operands.quantized(_OP, input, input_scale, input_zero_point, "input", (uint8,))
    dtype_in(_OP, weight, BYTES, "weight")
    dtype_in(_OP, weight_scale, (float32,), "weight_scale")
    same_dtype(_OP, weight_zero_point, weight, "weight_zero_point")
    if input.rank != 3 or weight.rank != 2 or weight.shape[0] != input.shape[2]:
        raise VerifyError(
            f"{_OP}: input (batch, time, inputs) and weight (inputs, 3 * hidden) do not fit, got "
            f"{format_shape(input.shape)} and {format_shape(weight.shape)}"
        )
    columns = weight.shape[1]
    assert isinstance(columns, int)
    if num_heads < 1 or columns % (3 * num_heads):
        raise VerifyError(f"{_OP}: {columns} columns are not 3 times {num_heads} heads")
    product.check_column_parameter(_OP, weight_scale, weight.shape, "weight_scale")
    product.check_column_parameter(_OP, weight_zero_point, weight.shape, "weight_zero_point")
    dtype_in(_OP, bias, (float32,), "bias")
    _check(bias, "bias", ((columns,),))
    batch, time, _ = input.shape
    head = columns // 3 // num_heads
    before: Any = 0
    if past is not None:
        dtype_in(_OP, past, (float32,), "past")
        before = past.shape[3] if past.rank == 5 else 0
        _check(past, "past", ((2, batch, num_heads, before, head),))
    total = time + before if before else time
    if mask_index is not None:
        dtype_in(_OP, mask_index, (int32,), "mask_index")
        shapes: list[Shape] = [(batch,), (batch, 1), (1, 1), (batch, total), (batch, time, total)]
        if isinstance(batch, int):
            shapes.append((2 * batch,))
        _check(mask_index, "mask_index", shapes)
    present = (2, batch, num_heads, total, head)
    return TensorType(float32, (batch, time, columns // 3)), TensorType(float32, present)


def _check(x: TensorType, name: str, shapes: Any) -> None:
    if x.shape not in shapes:
        accepted = " or ".join(format_shape(shape) for shape in shapes)
        raise VerifyError(f"{_OP}: {name} must be {accepted}, got {format_shape(x.shape)}")


_X, _W, _NONE = u8([[[1], [3]]]), i8([[0, 0, 2]]), f32([0, 0, 0])
_ONE = np.float32(1)

OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        pack=pack,
        source=(
            "microsoft/onnxruntime/onnxruntime/contrib_ops/cpu/quantization/"
            "attention_quant.cc::QAttention",
            "microsoft/onnxruntime/onnxruntime/contrib_ops/cpu/bert/attention_cpu_base.h",
        ),
        cases=(
            Case(
                "mean",
                (_X, _W, _NONE, _ONE, _ONE),
                {},
                ([[[4], [4]]], [[[[[0], [0]]]], [[[[2], [6]]]]]),
                "scores of zero weigh all values alike",
            ),
            Case(
                "unidirectional",
                (_X, _W, _NONE, _ONE, _ONE),
                {"unidirectional": 1},
                ([[[2], [4]]], [[[[[0], [0]]]], [[[[2], [6]]]]]),
                "the first time sees itself only",
            ),
            Case(
                "masked",
                (_X, _W, _NONE, _ONE, _ONE, np.array([1], np.int32)),
                {},
                ([[[2], [2]]], [[[[[0], [0]]]], [[[[2], [6]]]]]),
                "one key is seen",
            ),
        ),
    ),
)
