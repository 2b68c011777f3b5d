"""Arithmetic of two tensors, or of a tensor and a number (``.Scalar``), on floats and integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, type_of
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import DType, TensorType, float32
from refquant.kernels.checks import broadcast
from refquant.kernels.layout import elementwise
from refquant.kernels.promotion import Number, result_dtype

Formula = Callable[[Array, Array], Any]


def _floating(dtype: DType) -> DType:
    """Return the dtype of a true quotient: integers become float32."""
    return dtype if dtype.is_floating_point else float32


def _same(dtype: DType) -> DType:
    return dtype


def _operands(
    op: str, rule: Callable[[DType], DType], *values: Array | Number
) -> tuple[list[Array], DType]:
    """Cast the operands to the type in which torch computes."""
    types = [type_of(v) if isinstance(v, np.ndarray) else v for v in values]
    dtype = rule(result_dtype(op, *types))
    return [np.asarray(v).astype(dtype.storage, copy=False) for v in values], dtype


def _compute(op: str, rule: Callable[[DType], DType], formula: Formula, *values: Any) -> Array:
    (a, b), dtype = _operands(op, rule, *values)
    with np.errstate(all="ignore"):
        result = np.asarray(formula(a, b)).astype(dtype.storage, copy=False)
    return elementwise(result, a, b)


def add(self: Array, other: Array | Number, alpha: Number = 1) -> Array:
    """Return ``self + alpha * other``; the product is rounded only if ``alpha`` is not 1.

    Parameters
    ----------
    self, other : tensors that broadcast (``.Scalar``: ``other`` is a number)
        Types are promoted as in torch. torch's vector kernel multiplies and adds with one
        rounding when ``alpha`` is not 1.
    alpha : number
        Factor of ``other``.

    Returns
    -------
    Tensor of the promoted type.

    Raises
    ------
    VerifyError
        If an operand is quantized or the shapes do not broadcast.

    Examples
    --------
    >>> add(np.float32([1, 2]), np.float32([10]), alpha=2)
    array([21., 22.], dtype=float32)
    """
    return _compute("add", _same, lambda a, b: _scaled_sum(a, b, alpha), self, other)


def sub(self: Array, other: Array | Number, alpha: Number = 1) -> Array:
    """Return ``self - alpha * other``, which is :func:`add` with ``-alpha``.

    Examples
    --------
    >>> sub(np.float32([1, 2]), 0.5)
    array([0.5, 1.5], dtype=float32)
    """
    return _compute("sub", _same, lambda a, b: _scaled_sum(a, b, -alpha), self, other)


def rsub(self: Array, other: Number, alpha: Number = 1) -> Array:
    """Return ``other - alpha * self``: a number minus a tensor.

    Examples
    --------
    >>> rsub(np.float32([1, 2]), 3)
    array([2., 1.], dtype=float32)
    """
    return _compute("rsub", _same, lambda a, b: _scaled_sum(b, a, -alpha), self, other)


def _scaled_sum(a: Array, b: Array, alpha: Number) -> Any:
    if alpha == 1:
        return a + b
    if alpha == -1:
        return a - b
    if a.dtype == np.float32:
        from refquant.kernels.rounding import fma

        return fma(b, np.float32(alpha), a)
    return a + b * np.asarray(alpha, a.dtype)


def mul(self: Array, other: Array | Number) -> Array:
    """Return ``self * other`` with torch's type promotion.

    Examples
    --------
    >>> mul(np.array([2, 3]), 0.5)
    array([1. , 1.5], dtype=float32)
    """
    return _compute("mul", _same, np.multiply, self, other)


def div(self: Array, other: Array | Number, rounding_mode: str | None = None) -> Array:
    """Return the quotient: true, or rounded down (``floor``) or to zero (``trunc``).

    Without ``rounding_mode`` integers become float32.

    Raises
    ------
    VerifyError
        If ``rounding_mode`` is unknown.

    Examples
    --------
    >>> div(np.array([7, -7]), 2), div(np.array([7, -7]), 2, "floor")
    (array([ 3.5, -3.5], dtype=float32), array([ 3, -4]))
    """
    if rounding_mode is None:
        return _compute("div", _floating, np.divide, self, other)
    formula = _floor_quotient if rounding_mode == "floor" else _truncated_quotient
    return _compute("div", _same, formula, self, other)


def floor_divide(self: Array, other: Array | Number) -> Array:
    """Return the quotient rounded down.

    Floats follow torch: the exact remainder is subtracted before the division, and the result
    is rounded to a whole number.

    Examples
    --------
    >>> floor_divide(np.float32([7, -7]), 2)
    array([ 3., -4.], dtype=float32)
    """
    return _compute("floor_divide", _same, _floor_quotient, self, other)


def _floor_quotient(a: Array, b: Array) -> Array:
    if not type_of(a).dtype.is_floating_point:
        return np.asarray(a // b)
    remainder = np.fmod(a, b)
    quotient = (a - remainder) / b
    quotient = np.where((remainder != 0) & ((b < 0) != (remainder < 0)), quotient - 1, quotient)
    whole = np.floor(quotient)
    whole = np.where(quotient - whole > 0.5, whole + 1, whole)
    zero = np.copysign(np.zeros((), a.dtype), a / b)
    return np.where(b == 0, a / b, np.where(quotient == 0, zero, whole)).astype(a.dtype)


def _truncated_quotient(a: Array, b: Array) -> Array:
    if type_of(a).dtype.is_floating_point:
        return np.asarray(np.trunc(a / b))
    quotient = a // b  # rounded down; absolute values would overflow for the lowest integer
    is_low = (quotient * b != a) & ((a < 0) != (b < 0))
    return np.asarray(quotient + is_low).astype(a.dtype)


def remainder(self: Array, other: Array | Number) -> Array:
    """Return the remainder with the sign of ``other``, as Python's ``%``.

    Examples
    --------
    >>> remainder(np.float32([-7, 7]), 3)
    array([2., 1.], dtype=float32)
    """
    return _compute("remainder", _same, np.remainder, self, other)


def power(self: Array, exponent: Array | Number) -> Array:
    """Return ``self ** exponent``.

    Float exponents 2 and 3 are products; 0.5, -0.5, -1, -2 go through the square root and the
    reciprocal; others through the C library, where the last bit may differ from torch's.

    Examples
    --------
    >>> power(np.float32([3]), 2)
    array([9.], dtype=float32)
    """
    if isinstance(exponent, int | float) and self.dtype.kind == "f":
        with np.errstate(all="ignore"):
            special = _special_power(self, float(exponent))
        if special is not None:
            return special
    return _compute("pow", _same, np.power, self, exponent)


def _special_power(x: Array, exponent: float) -> Array | None:
    one = np.ones((), x.dtype)
    if exponent == 1:
        return x.copy()
    if exponent == 2:
        return np.asarray(x * x)
    if exponent == 3:
        return np.asarray(x * x * x)
    if exponent == 0.5:
        return np.sqrt(x)
    if exponent == -0.5:
        return np.asarray(one / np.sqrt(x))
    if exponent == -1:
        return np.asarray(one / x)
    if exponent == -2:
        return np.asarray(one / (x * x))
    return None


def power_of(exponent: Array, /, self: Number) -> Array:
    """Return a number to the power of a tensor; the last bit may differ from torch's.

    Examples
    --------
    >>> power_of(np.float32([3]), 2)
    array([8.], dtype=float32)
    """
    return _compute("pow", _same, lambda e, base: np.power(base, e), exponent, self)


def maximum(self: Array, other: Array) -> Array:
    """Return the larger of two; NaN if either is NaN.

    Examples
    --------
    >>> maximum(np.float32([1, np.nan]), np.float32([2, 2]))
    array([ 2., nan], dtype=float32)
    """
    return _compute("maximum", _same, np.maximum, self, other)


def minimum(self: Array, other: Array) -> Array:
    """Return the smaller of two; NaN if either is NaN.

    Examples
    --------
    >>> minimum(np.float32([1, np.nan]), np.float32([2, 2]))
    array([ 1., nan], dtype=float32)
    """
    return _compute("minimum", _same, np.minimum, self, other)


def _infer(name: str, rule: Callable[[DType], DType]) -> Callable[..., TensorType]:
    def infer(x: TensorType, y: TensorType | None = None, /, **attributes: Any) -> TensorType:
        number = next((attributes[k] for k in ("other", "exponent", "self") if k in attributes), y)
        if isinstance(number, TensorType):
            shape = broadcast(name, x.shape, number.shape)
        elif isinstance(number, bool | int | float):
            shape = x.shape
        else:
            raise VerifyError(f"{name}: expected a number or a tensor, got {number!r}")
        mode = attributes.get("rounding_mode")
        if mode not in (None, "floor", "trunc"):
            raise VerifyError(f"{name}: rounding_mode must be floor or trunc, got {mode!r}")
        dtype = result_dtype(name, x, number)
        return TensorType(dtype if mode else rule(dtype), shape)

    return infer


def _op(
    name: str, reference: Callable[..., Any], rule: Callable[[DType], DType], *cases: Case
) -> Op:
    return Op(
        name=name,
        reference=reference,
        infer=_infer(name, rule),
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=("pytorch/aten/src/ATen/native/BinaryOps.cpp",),
        cases=cases,
    )


_A = np.array([1, -2, 4], np.float32)
_B = np.array([[2], [-1]], np.float32)
_I = np.array([7, -7])
_MINUS_3 = np.array([-3], np.float32)
_2 = np.array([2.0], np.float32)

OPS = (
    _op(
        "aten::add",
        add,
        _same,
        Case("broadcast", (_A, _B), {}, [[3, 0, 6], [0, -3, 3]], "rows and columns"),
        Case("alpha", (_A, _A), {"alpha": 2}, [3, -6, 12], "scaled"),
    ),
    _op(
        "aten::add.Scalar",
        add,
        _same,
        Case("int+float", (_I,), {"other": 0.5}, [7.5, -6.5], "float32"),
    ),
    _op("aten::sub", sub, _same, Case("alpha", (_A, _A), {"alpha": 2}, [-1, 2, -4], "scaled")),
    _op("aten::sub.Scalar", sub, _same, Case("number", (_A,), {"other": 1}, [0, -3, 3], "int")),
    _op("aten::rsub.Scalar", rsub, _same, Case("number", (_A,), {"other": 1}, [0, 3, -3], "1-x")),
    _op("aten::mul", mul, _same, Case("broadcast", (_A[:1], _B), {}, [[2], [-1]], "length 1")),
    _op(
        "aten::mul.Scalar", mul, _same, Case("number", (_I,), {"other": 2}, [14, -14], "stays int")
    ),
    _op(
        "aten::div",
        div,
        _floating,
        Case("zero", (_A, _A * 0), {}, [np.inf, np.inf, np.inf], "no error; -2 / -0 is +inf"),
        Case("floor", (_I, _I * 0 + 2), {"rounding_mode": "floor"}, [3, -4], "down"),
    ),
    _op(
        "aten::div.Scalar",
        div,
        _floating,
        Case("integers", (_I,), {"other": 2}, [3.5, -3.5], "become float32"),
        Case("trunc", (_I,), {"other": 2, "rounding_mode": "trunc"}, [3, -3], "to zero"),
    ),
    _op(
        "aten::floor_divide",
        floor_divide,
        _same,
        Case("signs", (_A, _MINUS_3), {}, [-1, 0, -2], "down, not to zero"),
    ),
    _op(
        "aten::floor_divide.Scalar",
        floor_divide,
        _same,
        Case("integers", (_I,), {"other": 2}, [3, -4], "stay integers"),
    ),
    _op(
        "aten::remainder",
        remainder,
        _same,
        Case("sign", (_A, _MINUS_3), {}, [-2, -2, -2], "of the divisor"),
    ),
    _op(
        "aten::remainder.Scalar",
        remainder,
        _same,
        Case("sign", (_I,), {"other": 4}, [3, 1], "as in Python"),
    ),
    _op(
        "aten::pow.Tensor_Scalar",
        power,
        _same,
        Case("square", (_A,), {"exponent": 2}, [1, 4, 16], "a product"),
        Case("root", (_A[:1],), {"exponent": -0.5}, [1], "through the square root"),
    ),
    _op(
        "aten::pow.Tensor_Tensor",
        power,
        _same,
        Case("each", (_A, _2), {}, [1, 4, 16], "by pairs"),
    ),
    _op(
        "aten::pow.Scalar",
        power_of,
        _same,
        Case("base", (_A,), {"self": 2}, [2, 0.25, 16], "a number"),
    ),
    _op("aten::maximum", maximum, _same, Case("each", (_A, -_A), {}, [1, 2, 4], "elementwise")),
    _op("aten::minimum", minimum, _same, Case("each", (_A, -_A), {}, [-1, -2, -4], "elementwise")),
)
