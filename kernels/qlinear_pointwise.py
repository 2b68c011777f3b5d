"""``onednn::qlinear_pointwise``: pt2e's int8 linear with what follows it, of oneDNN."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import (
    DType,
    TensorType,
    bfloat16,
    element_count,
    float32,
    format_shape,
    int8,
    qint8,
    quint8,
    uint8,
)
from refquant.kernels import post_ops, quantized_linear
from refquant.kernels.multiply import linear_product, linear_sums
from refquant.kernels.onednn_functions import Args, name_of
from refquant.kernels.packing import Layout, PackedArray, packed_of

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Compute = Callable[..., Array]
_OP = "qlinear_pointwise"


def reference_binary(
    qx: Array,
    qw: Array,
    w_scale: F32,
    w_zero_point: Array,
    other: Array | None,
    bias: Array | None,
    x_scale: float,
    x_zero_point: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType | None,
    other_scale: float,
    other_zp: int,
    binary_post_op: str,
    binary_alpha: float,
    unary_post_op: str,
    unary_post_op_args: Args,
    unary_post_op_algorithm: str,
    target: Target = Target(),
    compute: Compute | None = None,
) -> Array:
    r"""Do :func:`reference` with another tensor added before the function.

    ``"sum"`` adds ``(other - other_zp) * other_scale`` with one rounding, for int8 rows with two;
    ``other`` has the dtype of the result, and torch writes the result into its memory, which here
    is left as it is.
    ``"add"`` adds the numbers of ``other`` as they are, without scale or zero point.

    Parameters
    ----------
    other : uint8, int8, float32 or bfloat16, shape of the result
        Not read with ``"none"``.
    other_scale, other_zp : float, int
        Read with ``"sum"``; 1 and 0 for a float result.
    binary_post_op : {"none", "sum", "add"}
        How it is added.
    binary_alpha : float
        Not read.
    unary_post_op : str
        With ``"sum"`` and ``"add"``: ``"none"`` or ``"relu"``.

    Examples
    --------
    >>> one, zero = np.float32([1]), np.int32([0])
    >>> given = np.uint8([[3, 5]]), np.int8([[1, 2]]), one, zero, np.uint8([[7]]), None
    >>> rest = {"binary_alpha": 1, "unary_post_op_args": (), "unary_post_op_algorithm": ""}
    >>> rest["unary_post_op"] = "relu"
    >>> reference_binary(*given, 0.5, 1, 1.0, 0, None, 0.25, 5, "sum", **rest)
    array([[6]], dtype=uint8)
    """
    post_ops.check_machine(_OP, target)
    stage = _stage(
        *(qx, qw, w_scale, bias, x_scale, output_scale, output_zero_point),
        output_dtype or _plain(qx),
        *(name_of(unary_post_op, unary_post_op_algorithm), unary_post_op_args),
    )
    if binary_post_op == "sum":
        post_ops.check_contiguous(_OP, other=other)
    added = post_ops.other_of(other, binary_post_op, other_scale, other_zp)
    return (compute or _exact)(qx, qw, x_zero_point, stage, added)


def _exact(
    qx: Array,
    qw: Array,
    x_zero_point: int,
    stage: post_ops.Stage,
    added: post_ops.Other | None,
) -> Array:
    rows = added and added._replace(shifted=added.shifted.reshape(-1, qw.shape[0]))
    y = np.empty((qx[..., 0].size, qw.shape[0]), stage.dtype.storage)
    x = _quantized(qx.reshape(-1, qx.shape[-1]), x_zero_point)
    for part, total in quantized_linear.sums(x, _weight(qw), Target(Engine.ONEDNN)):
        some = rows and rows._replace(shifted=rows.shifted[part])
        y[part] = post_ops.finish(total, stage, some)
    return y.reshape(*qx.shape[:-1], qw.shape[0])


def reference(
    qx: Array,
    qw: Array,
    w_scale: F32,
    w_zero_point: Array,
    bias: Array | None,
    x_scale: float,
    x_zero_point: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType | None,
    post_op_name: str,
    post_op_args: Args,
    post_op_algorithm: str,
    target: Target = Target(),
    compute: Compute | None = None,
) -> Array:
    r"""Multiply int8 rows by a transposed int8 weight, apply a function and round.

    .. math:: v = \mathrm{float}(\sum_k (x_k - z_x) w_k) \cdot s_x \cdot s_w + bias

    with each step rounded to float32 and the scales taken as they are, in float32; then
    ``v = f(v)``. An 8-bit result is ``rint(clamp(v * (1 / s) + z, low, high))``, with ``1 / s``
    divided in float32; for int8 rows oneDNN's other kernel divides ``v`` by ``s``. A float result
    is ``v``, rounded to its dtype.

    Parameters
    ----------
    qx : uint8 or int8 (..., K)
        Rows.
    qw : int8 (N, K)
        Weight, as it was before ``onednn::qlinear_prepack``.
    w_scale : float32 (1,) or (N,)
        Scales of the weight.
    w_zero_point : integers
        Not read: oneDNN takes zero points of weights to be 0.
    bias : float (N,) or None
        Rounded to float32.
    x_scale, x_zero_point : float, int
        Quantization parameters of the rows.
    output_scale, output_zero_point : float, int
        Quantization parameters of an 8-bit result; the zero point may lie outside its range. For
        a float result they are 1 and 0.
    output_dtype : DType or None
        uint8, int8, float32, bfloat16 or float16; None is the dtype of the rows.
    post_op_name : str
        ``"none"``, ``"relu"``, ``"hardtanh"`` (two limits), ``"leaky_relu"`` (a slope),
        ``"hardswish"``: ``v * clamp(v * (1/6) + 0.5, 0, 1)``, ``"swish"`` (SiLU), ``"tanh"`` or
        ``"gelu"``; see ``onednn_functions.py``. With uint8 rows the last two are correctly
        rounded here, so that a result next to a tie may be one step away from torch's.
    post_op_args : tuple of float
        Numbers of the function.
    post_op_algorithm : str
        For ``"gelu"``: ``"none"`` or ``"tanh"``.

    Returns
    -------
    Array (..., N), contiguous

    Raises
    ------
    VerifyError
        If dtypes, shapes or attributes do not fit.
    UnsupportedError
        For tanh and GELU of uint8 rows with a float result, float8 rows, machines without VNNI,
        and scales or a bias with strides, which torch ignores.

    Notes
    -----
    The engine has no say.

    Examples
    --------
    >>> x, w = np.uint8([[3, 5]]), np.int8([[1, 2], [-3, 4]])
    >>> s, z = np.float32([0.5]), np.int32([0])
    >>> reference(x, w, s, z, None, 0.5, 1, 1.0, 10, None, "relu", (), "")
    array([[12, 12]], dtype=uint8)
    """
    return reference_binary(
        *(qx, qw, w_scale, w_zero_point, None, bias, x_scale, x_zero_point),
        *(output_scale, output_zero_point, output_dtype, 1.0, 0, "none", 1.0),
        *(post_op_name, post_op_args, post_op_algorithm, target, compute),
    )


def reference_tensor(
    qx: Array,
    x_scale: Array,
    x_zero_point: Array,
    qw: Array,
    w_scale: F32,
    w_zero_point: Array,
    bias: Array | None,
    target: Target = Target(),
    **attributes: Any,
) -> Array:
    """Do :func:`reference` with the input's scale and zero point as tensors of one element."""
    numbers = numbers_of(x_scale, x_zero_point)
    operands = (qx, qw, w_scale, w_zero_point, bias)
    return reference(*operands, *numbers, **attributes, target=target)


def reference_binary_tensor(
    qx: Array,
    x_scale: Array,
    x_zero_point: Array,
    qw: Array,
    w_scale: F32,
    w_zero_point: Array,
    other: Array | None,
    bias: Array | None,
    target: Target = Target(),
    **attributes: Any,
) -> Array:
    """Do :func:`reference_binary` with the input's scale and zero point as tensors."""
    numbers = numbers_of(x_scale, x_zero_point)
    operands = (qx, qw, w_scale, w_zero_point, other, bias)
    return reference_binary(*operands, *numbers, **attributes, target=target)


def numbers_of(x_scale: Array, x_zero_point: Array) -> tuple[float, int]:
    """Return scale and zero point that are given as tensors of one element."""
    return float(x_scale.item()), int(x_zero_point.item())


def _plain(qx: Array) -> DType:
    return uint8 if qx.dtype == np.uint8 else int8


def _quantized(qx: Array, zero_point: int) -> QTensor:
    return QTensor(qx, 1.0, zero_point, None, quint8 if qx.dtype == np.uint8 else qint8)


def _weight(qw: Array) -> QTensor:
    return QTensor(qw, 1.0, 0, None, qint8)


def _stage(
    qx: Array,
    qw: Array,
    w_scale: F32,
    bias: Array | None,
    x_scale: float,
    output_scale: float,
    output_zero_point: int,
    dtype: DType,
    unary: str,
    args: Args,
) -> post_ops.Stage:
    post_ops.check_contiguous(_OP, w_scale=w_scale, bias=bias)
    return post_ops.stage(
        *(x_scale, w_scale, bias, qw.shape[0], output_scale, output_zero_point, dtype),
        *(unary, args),
        divides=qx.dtype == np.int8,
    )


def infer_binary(
    qx: TensorType,
    qw: TensorType,
    w_scale: TensorType,
    w_zero_point: TensorType,
    other: TensorType | None,
    bias: TensorType | None,
    x_scale: float,
    x_zero_point: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType | None,
    other_scale: float,
    other_zp: int,
    binary_post_op: str,
    binary_alpha: float,
    unary_post_op: str,
    unary_post_op_args: Args,
    unary_post_op_algorithm: str,
) -> TensorType:
    """Check operands and attributes; the last size becomes that of the weight."""
    post_ops.check_input(_OP, qx, x_zero_point, (uint8, int8))
    post_ops.check_weight(_OP, qw, w_scale, bias)
    if qw.rank != 2 or not qx.rank or qx.shape[-1] != qw.shape[1]:
        raise VerifyError(
            f"{_OP}: weight {format_shape(qw.shape)} does not fit input {format_shape(qx.shape)}"
        )
    post_ops.check_functions(_OP, binary_post_op, unary_post_op, unary_post_op_args)
    if unary_post_op == "gelu" and unary_post_op_algorithm not in ("none", "tanh"):
        raise VerifyError(f"{_OP}: gelu is 'none' or 'tanh', got {unary_post_op_algorithm!r}")
    numbers = (output_scale, output_zero_point)
    dtype = post_ops.result_dtype(_OP, output_dtype, qx.dtype, *numbers)
    post_ops.check_exact(_OP, unary_post_op, qx.dtype, dtype)
    shape = (*qx.shape[:-1], qw.shape[0])
    post_ops.check_other(_OP, other, binary_post_op, shape, dtype, other_scale, other_zp)
    return TensorType(dtype, shape)


def infer(
    qx: TensorType,
    qw: TensorType,
    w_scale: TensorType,
    w_zero_point: TensorType,
    bias: TensorType | None,
    x_scale: float,
    x_zero_point: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType | None,
    post_op_name: str,
    post_op_args: Args,
    post_op_algorithm: str,
) -> TensorType:
    """Check operands and attributes; the last size becomes that of the weight."""
    return infer_binary(
        *(qx, qw, w_scale, w_zero_point, None, bias, x_scale, x_zero_point),
        *(output_scale, output_zero_point, output_dtype, 1.0, 0, "none", 1.0),
        *(post_op_name, post_op_args, post_op_algorithm),
    )


def check_numbers(x_scale: TensorType, x_zero_point: TensorType) -> None:
    """Check that scale and zero point of the input are tensors of one element."""
    for name, tensor in (("x_scale", x_scale), ("x_zero_point", x_zero_point)):
        if element_count(tensor.shape) != 1:
            raise VerifyError(f"{_OP}: {name} must have one element, got {tensor}")


def infer_tensor(
    qx: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType,
    qw: TensorType,
    w_scale: TensorType,
    w_zero_point: TensorType,
    bias: TensorType | None,
    **attributes: Any,
) -> TensorType:
    """Check operands and attributes; the zero point is known when the graph runs."""
    check_numbers(x_scale, x_zero_point)
    return infer(qx, qw, w_scale, w_zero_point, bias, 1.0, 0, **attributes)


def infer_binary_tensor(
    qx: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType,
    qw: TensorType,
    w_scale: TensorType,
    w_zero_point: TensorType,
    other: TensorType | None,
    bias: TensorType | None,
    **attributes: Any,
) -> TensorType:
    """Check operands and attributes; the zero point is known when the graph runs."""
    check_numbers(x_scale, x_zero_point)
    return infer_binary(qx, qw, w_scale, w_zero_point, other, bias, 1.0, 0, **attributes)


def pack(qw: Array, **_attributes: Any) -> PackedArray:
    """Arrange the weight for the compiled tile."""
    return PackedArray.of(qw, Layout())


def _tiled(
    qx: Array,
    qw: Array,
    x_zero_point: int,
    stage: post_ops.Stage,
    added: post_ops.Other | None,
) -> Array:
    """Compute :func:`_exact` from the sums of the compiled tile."""
    x, packed = _quantized(qx, x_zero_point), packed_of(qw, Layout())
    fast = post_ops.in_registers(stage, added)
    if fast is not None:
        return linear_product(x, packed, None, fast[1], fast[0])
    return post_ops.run(linear_sums(x, packed), stage, added)


_X = np.array([[3, 5]], np.uint8)
_SIGNED = np.array([[3, 5]], np.int8)
_W = np.array([[1, 2], [-3, 4]], np.int8)
_HALF, _ZERO = np.array([0.5], np.float32), np.array([0], np.int32)
_PARAMETERS = (_W, _HALF, _ZERO)
_INPUT = {"x_scale": 0.5, "x_zero_point": 1}
_UNIT = {"output_scale": 1.0, "output_zero_point": 10, "output_dtype": None}
_REAL = {"output_scale": 1.0, "output_zero_point": 0, "output_dtype": float32}
_NOTHING = {"post_op_name": "none", "post_op_args": (), "post_op_algorithm": ""}
_SUM = {
    **{"other_scale": 0.5, "other_zp": 4, "binary_post_op": "sum", "binary_alpha": 1.0},
    **{"unary_post_op": "none", "unary_post_op_args": (), "unary_post_op_algorithm": ""},
}
_ADD = {**_SUM, "other_scale": 1.0, "other_zp": 0, "binary_post_op": "add"}
_LIMITED = {**_NOTHING, "post_op_name": "hardtanh", "post_op_args": (-1.0, 2.25)}
_OTHER = np.array([[7, 4]], np.uint8)
_TENSORS = (np.array([0.5], np.float32), np.array([1], np.int64))

_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qlinear.cpp"
    "::linear_int8_with_onednn_weight",
)

OPS = (
    Op(
        name="onednn::qlinear_pointwise",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, partial(reference, compute=_tiled)),
        pack=pack,
        source=_SOURCE,
        cases=(
            Case(
                "ties",
                (_X, *_PARAMETERS, None),
                {**_INPUT, **_UNIT, **_NOTHING},
                [[12, 12]],
                "2.5 and 2.5 steps, plus 10, to even",
            ),
            Case(
                "float",
                (_X, *_PARAMETERS, np.array([0, 1], np.float32)),
                {**_INPUT, **_REAL, **_NOTHING},
                [[2.5, 3.5]],
                "not rounded",
            ),
            Case(
                "limited",
                (_X, *_PARAMETERS, None),
                {**_INPUT, **_REAL, **_LIMITED, "output_dtype": bfloat16},
                [[2.25, 2.25]],
                "clamped before it is stored",
            ),
            Case(
                "signed",
                (_SIGNED, *_PARAMETERS, None),
                {**_INPUT, **_UNIT, **_NOTHING, "output_zero_point": -200},
                [[-128, -128]],
                "the zero point may lie outside the range",
            ),
        ),
    ),
    Op(
        name="onednn::qlinear_pointwise.tensor",
        reference=reference_tensor,
        infer=infer_tensor,
        kernels=dict.fromkeys(TORCH_ENGINES, partial(reference_tensor, compute=_tiled)),
        source=_SOURCE,
        cases=(
            Case(
                "ties",
                (_X, *_TENSORS, *_PARAMETERS, None),
                {**_UNIT, **_NOTHING},
                [[12, 12]],
                "scale and zero point of one element",
            ),
        ),
    ),
    Op(
        name="onednn::qlinear_pointwise.binary",
        reference=reference_binary,
        infer=infer_binary,
        kernels=dict.fromkeys(TORCH_ENGINES, partial(reference_binary, compute=_tiled)),
        pack=pack,
        source=_SOURCE,
        cases=(
            Case(
                "sum",
                (_X, *_PARAMETERS, _OTHER, None),
                {**_INPUT, **_UNIT, **_SUM},
                [[14, 12]],
                "2.5 + 1.5 and 2.5 + 0",
            ),
            Case(
                "add",
                (_X, *_PARAMETERS, np.array([[-3, 0.25]], np.float32), None),
                {**_INPUT, **_REAL, **_ADD, "unary_post_op": "relu"},
                [[0, 2.75]],
                "-0.5 becomes 0",
            ),
        ),
    ),
    Op(
        name="onednn::qlinear_pointwise.binary_tensor",
        reference=reference_binary_tensor,
        infer=infer_binary_tensor,
        kernels=dict.fromkeys(TORCH_ENGINES, partial(reference_binary_tensor, compute=_tiled)),
        source=_SOURCE,
        cases=(
            Case(
                "sum",
                (_X, *_TENSORS, *_PARAMETERS, _OTHER, None),
                {**_UNIT, **_SUM},
                [[14, 12]],
                "2.5 + 1.5 and 2.5 + 0",
            ),
        ),
    ),
)
