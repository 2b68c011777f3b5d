"""Functions of one float or integer tensor, element by element."""

from __future__ import annotations

from collections.abc import Callable
from math import erf as _erf
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, type_of
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, bool_, float32
from refquant.kernels.layout import elementwise

_LIBRARY = """Float32 goes through float64 and is rounded once. torch uses its math library
    there, whose last bit may differ: compare with a tolerance of 1 unit in the last place."""


def _is_float(x: Array) -> bool:
    return type_of(x).dtype.is_floating_point


def _through_float64(function: Callable[[Any], Any]) -> Callable[[Array], Array]:
    def compute(x: Array) -> Array:
        dtype = x.dtype if _is_float(x) else np.dtype(np.float32)
        with np.errstate(all="ignore"):
            return np.asarray(function(x.astype(np.float64))).astype(dtype)

    return compute


def _direct(function: Callable[[Any], Any]) -> Callable[[Array], Array]:
    def compute(x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(x)).astype(x.dtype)

    return compute


def _floats(function: Callable[[Any], Any]) -> Callable[[Array], Array]:
    """Return the function on floats; integers become float32 first."""

    def compute(x: Array) -> Array:
        if not _is_float(x):
            x = x.astype(np.float32)
        with np.errstate(all="ignore"):
            return np.asarray(function(x)).astype(x.dtype)

    return compute


def _sign(x: Array) -> Array:
    return np.asarray((x > 0) * 1.0 - (x < 0))


def _round(x: Array) -> Array:
    return np.rint(x) if _is_float(x) else x


def _whole(function: Callable[[Any], Any]) -> Callable[[Array], Array]:
    """Return the function on floats; integers pass."""
    return lambda x: function(x) if _is_float(x) else x


def _infer(name: str, to_float: bool, to_bool: bool) -> Callable[[TensorType], TensorType]:
    def infer(x: TensorType) -> TensorType:
        if x.dtype.is_quantized:
            raise VerifyError(f"{name}: expected a tensor that is not quantized, got {x}")
        if to_bool:
            return TensorType(bool_, x.shape)
        floating = x.dtype.is_floating_point or not to_float
        return x if floating else TensorType(float32, x.shape)

    return infer


def _op(
    name: str,
    what: str,
    function: Callable[[Array], Array],
    x: list[Any],
    expected: list[Any],
    *,
    to_float: bool = False,
    to_bool: bool = False,
    library: bool = False,
    dtype: Any = np.float32,
) -> Op:
    def reference(x: Array) -> Array:
        return elementwise(function(x), x)

    note = _LIBRARY if library else "Exact or correctly rounded, as in torch."
    reference.__doc__ = f"""Return {what}.

    {note}

    Parameters
    ----------
    x : float or integer tensor, any shape
        Integers become float32 where the result is not whole.

    Returns
    -------
    Tensor of the shape of ``x``.
    """
    op = f"aten::{name}"
    return Op(
        name=op,
        reference=reference,
        infer=_infer(op, to_float, to_bool),
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=("pytorch/aten/src/ATen/native/UnaryOps.cpp",),
        cases=(Case("values", (np.array(x, dtype),), {}, expected, what),),
    )


def _library(
    name: str, what: str, function: Callable[[Any], Any], x: list[Any], expected: list[Any]
) -> Op:
    return _op(name, what, _through_float64(function), x, expected, to_float=True, library=True)


_erf_of_array = np.vectorize(_erf, otypes=[np.float64])
_NAN = float("nan")
_INF = float("inf")

OPS = (
    _op("neg", "-x", _direct(np.negative), [1, -2, _INF], [-1, 2, -_INF]),
    _op("abs", "the absolute value", _direct(np.abs), [1, -2, -_INF], [1, 2, _INF]),
    _op(
        "sign",
        "-1, 0 or 1; 0 for NaN",
        _direct(_sign),
        [-3, _NAN],
        [-1, 0],
    ),
    _op("square", "x * x", _direct(np.square), [3, -2], [9, 4]),
    _op("floor", "the next whole number below", _direct(_whole(np.floor)), [1.5, -1.5], [1, -2]),
    _op("ceil", "the next whole number above", _direct(_whole(np.ceil)), [1.5, -1.5], [2, -1]),
    _op("trunc", "x without its fraction", _direct(_whole(np.trunc)), [1.5, -1.5], [1, -1]),
    _op("round", "the nearest whole number, ties to even", _direct(_round), [0.5, 1.5], [0, 2]),
    _op(
        "reciprocal",
        "1 / x",
        _floats(lambda x: np.ones((), x.dtype) / x),
        [2, 0],
        [0.5, _INF],
        to_float=True,
    ),
    _op(
        "rsqrt",
        "1 / sqrt(x), both correctly rounded",
        _floats(lambda x: np.ones((), x.dtype) / np.sqrt(x)),
        [4, 0, -1],
        [0.5, _INF, _NAN],
        to_float=True,
    ),
    _op(
        "sqrt",
        "the square root, correctly rounded; torch's own is off by one unit in the last place "
        "for about a sixth of all inputs",
        _floats(np.sqrt),
        [4, -1],
        [2, _NAN],
        to_float=True,
        library=True,
    ),
    _op(
        "exp",
        "e to the x",
        _through_float64(np.exp),
        [0, -_INF],
        [1, 0],
        to_float=True,
        library=True,
    ),
    _op(
        "log",
        "the natural logarithm",
        _through_float64(np.log),
        [1, 0],
        [0, -_INF],
        to_float=True,
        library=True,
    ),
    _library("log1p", "the natural logarithm of 1 + x", np.log1p, [0, -1], [0, -_INF]),
    _library("expm1", "e to the x, minus 1", np.expm1, [0, -_INF], [0, -1]),
    _library("sin", "the sine", np.sin, [0], [0]),
    _library("cos", "the cosine", np.cos, [0], [1]),
    _library("erf", "the error function", _erf_of_array, [0, _INF], [0, 1]),
    _op(
        "logical_not",
        "whether x is zero",
        lambda x: x == 0,
        [0, 2],
        [True, False],
        to_bool=True,
    ),
)
