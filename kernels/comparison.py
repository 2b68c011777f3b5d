"""Comparisons of two tensors, or of a tensor and a number (``.Scalar``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, QTensor, Tensor, type_of
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, bool_
from refquant.kernels import dequantize
from refquant.kernels.checks import broadcast
from refquant.kernels.layout import elementwise
from refquant.kernels.promotion import Number, result_dtype


def _infer(
    name: str, *, quantized: bool = True
) -> Callable[[TensorType, TensorType | Number], TensorType]:
    def infer(self: TensorType, other: TensorType | Number) -> TensorType:
        result_dtype(name, *(_real_type(v) if quantized else v for v in (self, other)))
        if isinstance(other, TensorType):
            return TensorType(bool_, broadcast(name, self.shape, other.shape))
        if not isinstance(other, bool | int | float):
            raise VerifyError(f"{name}: expected a number or a tensor, got {other!r}")
        return TensorType(bool_, self.shape)

    return infer


def _real(x: Tensor | Number) -> Any:
    return dequantize.reference(x) if isinstance(x, QTensor) else x


def _real_type(x: TensorType | Number) -> Any:
    quantized = isinstance(x, TensorType) and x.dtype.is_quantized
    return dequantize.infer(x) if quantized else x  # type: ignore[arg-type]


def _ops(
    name: str, symbol: str, function: Callable[[Array, Array], Any], expected: list[bool]
) -> tuple[Op, Op]:
    def reference(self: Tensor, other: Tensor | Number) -> Array:
        operands = [_real(v) for v in (self, other)]
        types = [type_of(v) if isinstance(v, np.ndarray) else v for v in operands]
        storage = result_dtype(name, *types).storage
        a, b = (np.asarray(v).astype(storage, copy=False) for v in operands)
        return elementwise(np.asarray(function(a, b)), a, b)

    reference.__doc__ = f"""Return whether ``self {symbol} other``, element by element.

    Operands are promoted to one type first, as in torch; comparisons with NaN are false, except
    ``!=``. Quantized operands are dequantized before.

    Parameters
    ----------
    self, other : tensors that broadcast (``.Scalar``: ``other`` is a number)
        Quantized or not.

    Returns
    -------
    bool tensor

    Raises
    ------
    VerifyError
        If the shapes do not broadcast.
    """
    x = np.array([1, 2, np.nan], np.float32)
    case = "NaN is in no order"

    def record(full: str, operands: tuple[Any, ...], attributes: dict[str, Any]) -> Op:
        return Op(
            name=full,
            reference=reference,
            infer=_infer(full),
            kernels=dict.fromkeys(TORCH_ENGINES, reference),
            source=("pytorch/aten/src/ATen/native/BinaryOps.cpp",),
            cases=(Case("values", operands, attributes, expected, case),),
        )

    op = f"aten::{name}"
    return record(op, (x, np.array([2.0], np.float32)), {}), record(
        f"{op}.Scalar", (x,), {"other": 2}
    )


def _logical(name: str, function: Callable[[Array, Array], Any], expected: list[bool]) -> Op:
    def reference(self: Array, other: Array) -> Array:
        return elementwise(np.asarray(function(self != 0, other != 0)), self, other)

    reference.__doc__ = f"""Return the logical {name} of two tensors, element by element.

    Zero is false, everything else true, NaN too.

    Parameters
    ----------
    self, other : tensors that broadcast
        Not quantized.

    Returns
    -------
    bool tensor

    Raises
    ------
    VerifyError
        If an operand is quantized or the shapes do not broadcast.
    """
    operands = np.array([0, 0, np.nan, 2], np.float32), np.array([0, 1, 0, 1], np.int64)
    return Op(
        name=f"aten::logical_{name}",
        reference=reference,
        infer=_infer(f"logical_{name}", quantized=False),
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=("pytorch/aten/src/ATen/native/BinaryOps.cpp",),
        cases=(Case("values", operands, {}, expected, "NaN is true"),),
    )


OPS = (
    _logical("and", np.logical_and, [False, False, False, True]),
    _logical("or", np.logical_or, [False, True, True, True]),
    _logical("xor", np.logical_xor, [False, True, True, False]),
    *_ops("eq", "==", np.equal, [False, True, False]),
    *_ops("ne", "!=", np.not_equal, [True, False, True]),
    *_ops("lt", "<", np.less, [True, False, False]),
    *_ops("le", "<=", np.less_equal, [True, True, False]),
    *_ops("gt", ">", np.greater, [False, False, False]),
    *_ops("ge", ">=", np.greater_equal, [False, True, False]),
)
