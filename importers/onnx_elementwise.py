"""Rules of operators that work element by element."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from refquant.importers.onnx_builder import Constant, Known, OnnxBuilder, Operand, Result, Rule
from refquant.importers.onnx_file import element_type
from refquant.ir.errors import VerifyError
from refquant.ir.types import (
    DTYPES,
    DType,
    bool_,
    float32,
    float64,
    int8,
    uint8,
)

# Element types of a byte or less whose conversions the standard writes down.
_SMALL = {
    d
    for d in DTYPES.values()
    if not d.is_quantized and d.storage.itemsize == 1 and d not in (bool_, int8, uint8)
}
# Exponents for which torch's power is a product, a root or a quotient.
_SPECIAL_EXPONENTS = (0.5, 1.0, 2.0, 3.0, -0.5, -1.0, -2.0)


def same(op: str) -> Rule:
    """Return the rule of an operator that is one of ours, without attributes."""

    def rule(b: OnnxBuilder, *operands: Known) -> Known:
        return b.emit(op, *operands)

    return rule


def alike(b: OnnxBuilder, value: Any, x: Known) -> Constant:
    """Return a number as a constant of the type of ``x``."""
    return b.constant(np.asarray(value).astype(x.type.dtype.storage))


def _pairwise(op: str) -> Rule:
    """Return the rule of an operator of any number of operands."""

    def rule(b: OnnxBuilder, first: Known, *others: Known) -> Known:
        return reduce(lambda x, y: b.emit(op, x, y), others, first)

    return rule


def _mean(b: OnnxBuilder, first: Known, *others: Known) -> Known:
    total = reduce(lambda x, y: b.emit("aten::add", x, y), others, first)
    return b.emit("aten::div", total, alike(b, 1 + len(others), first))


def _div(b: OnnxBuilder, x: Known, y: Known) -> Known:
    if x.type.dtype.is_floating_point:
        return b.emit("aten::div", x, y)
    return b.emit("aten::div", x, y, rounding_mode="trunc")


def _mod(b: OnnxBuilder, x: Known, y: Known) -> Known:
    fmod = bool(b.get("fmod", 0))
    if b.version < 28 and x.type.dtype.is_floating_point and not fmod:
        raise VerifyError("floats need fmod = 1 before opset 28")
    return b.emit("onnx::Mod", x, y, fmod=fmod)


def _pow(b: OnnxBuilder, x: Known, y: Known) -> Known:
    if isinstance(y, Constant) and y.data.size == 1 and x.type.dtype == float32:
        exponent = float(y.data.reshape(())[()])
        if exponent in _SPECIAL_EXPONENTS and y.type.rank <= x.type.rank:
            return b.emit("aten::pow.Tensor_Scalar", x, exponent=exponent)
    return b.emit("onnx::Pow", x, y)


def _clip(b: OnnxBuilder, x: Known, low: Operand = None, high: Operand = None) -> Known:
    if b.version < 11:
        bounds = [b.get(name) for name in ("min", "max")]
        low, high = (None if bound is None else alike(b, bound, x) for bound in bounds)
    known = all(bound is None or isinstance(bound, Constant) for bound in (low, high))
    if low is None and high is None:
        return x
    if known and x.type.dtype == float32:
        least, most = (None if v is None else float(b.array(v, "a bound")) for v in (low, high))
        return b.emit("aten::clamp", x, min=least, max=most)
    if low is not None:
        x = b.emit("aten::maximum", x, low)
    return x if high is None else b.emit("aten::minimum", x, high)


def _cast_to(b: OnnxBuilder, x: Known, dtype: DType) -> Known:
    if x.type.dtype == dtype:
        return x
    if not {dtype, x.type.dtype} & _SMALL:
        return b.emit("aten::to", x, dtype=dtype)
    options = {"saturate": bool(b.get("saturate", 1)), "round_mode": b.get("round_mode", "up")}
    return b.emit("onnx::Cast", x, to=dtype, **options)


def _cast(b: OnnxBuilder, x: Known) -> Known:
    return _cast_to(b, x, element_type(b.get("to"), "the result"))


def _bit_cast(b: OnnxBuilder, x: Known) -> Known:
    return b.emit("onnx::BitCast", x, to=element_type(b.get("to"), "the result"))


def _binarized(b: OnnxBuilder, x: Known) -> Known:
    threshold = alike(b, b.get("threshold", 0.0), x)
    return b.cast(b.emit("aten::gt", x, threshold), x.type.dtype)


# ---- activations


def activation(op: str, **names: str) -> Rule:
    """Return the rule of an activation that is torch's, whose attributes have other names.

    Smaller floats go through float32 and are rounded once; float64 goes by the standard's
    function.
    """

    def rule(b: OnnxBuilder, x: Known) -> Result:
        return through_float32(b, op, x, **{own: b.get(name) for own, name in names.items()})

    return rule


def through_float32(b: OnnxBuilder, op: str, x: Known, **attributes: Any) -> Result:
    """Return an op of float32 applied to a float; NotImplemented for a float64."""
    if x.type.dtype == float64:
        by_function: Result = NotImplemented
        return by_function
    return b.cast(b.emit(op, b.cast(x, float32), **attributes), x.type.dtype)


def _relu(b: OnnxBuilder, x: Known) -> Known:
    if x.type.dtype == float32:
        return b.emit("aten::relu", x)
    return b.emit("aten::maximum", x, alike(b, 0, x))


def _sigmoid(b: OnnxBuilder, x: Known) -> Result:
    if x.type.dtype != float64:
        return through_float32(b, "aten::sigmoid", x)
    power = b.emit("aten::exp", b.emit("aten::neg", x))
    return b.emit("aten::reciprocal", b.emit("aten::add", power, alike(b, 1, x)))


def _tanh(b: OnnxBuilder, x: Known) -> Result:
    if x.type.dtype == float64:
        return b.emit("onnx::Tanh", x)
    return through_float32(b, "aten::tanh", x)


def _hard_sigmoid(b: OnnxBuilder, x: Known) -> Result:
    return b.emit("onnx::HardSigmoid", x, alpha=b.get("alpha"), beta=b.get("beta"))


def _gelu(b: OnnxBuilder, x: Known) -> Result:
    return through_float32(b, "aten::gelu", x, approximate=b.get("approximate", "none"))


def _selu(b: OnnxBuilder, x: Known) -> Result:
    alpha, gamma = b.get("alpha", 1.67326), b.get("gamma", 1.0507)
    return through_float32(b, "aten::elu", x, alpha=alpha, scale=gamma)


def _swish(b: OnnxBuilder, x: Known) -> Result:
    return through_float32(b, "aten::silu", x) if b.get("alpha", 1.0) == 1 else NotImplemented


def _thresholded(b: OnnxBuilder, x: Known) -> Result:
    return through_float32(b, "aten::threshold", x, threshold=b.get("alpha", 1.0), value=0.0)


def _prelu(b: OnnxBuilder, x: Known, slope: Known) -> Known:
    rank, lengths = x.type.rank, slope.type.shape
    by_channel = rank > 1 and lengths == (x.type.shape[1], *(1,) * (rank - 2))
    if x.type.dtype == float32 and (by_channel or set(lengths) <= {1}):
        count = lengths[0] if by_channel else 1
        return b.emit("aten::prelu", x, b.emit("aten::reshape", slope, shape=(count,)))
    scaled = b.emit("aten::mul", x, slope)
    is_negative = b.emit("aten::lt", x, alike(b, 0, x))
    return b.emit("aten::where", is_negative, scaled, x)


ELEMENTWISE: dict[str, Rule] = {
    **{
        name: same(f"onnx::{name}")
        for name in (
            *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "IsNaN", "Sinh", "Tan"),
            *("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        )
    },
    **{
        name: same(f"aten::{name.lower()}")
        for name in (
            *("Abs", "Add", "Ceil", "Cos", "Erf", "Exp", "Floor", "Log", "Mul", "Neg"),
            *("Reciprocal", "Round", "Sign", "Sin", "Sqrt", "Sub", "Where"),
        )
    },
    "And": same("aten::logical_and"),
    "BitCast": _bit_cast,
    "BitShift": lambda b, x, y: b.emit("onnx::BitShift", x, y, direction=b.get("direction")),
    "Cast": _cast,
    "CastLike": lambda b, x, target: _cast_to(b, x, target.type.dtype),
    "Celu": activation("aten::celu", alpha="alpha"),
    "Clip": _clip,
    "Div": _div,
    "Elu": activation("aten::elu", alpha="alpha"),
    "Equal": same("aten::eq"),
    "Gelu": _gelu,
    "Greater": same("aten::gt"),
    "GreaterOrEqual": same("aten::ge"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda b, x: b.emit("onnx::HardSwish", x),
    "IsInf": lambda b, x: b.emit(
        "onnx::IsInf",
        x,
        detect_negative=bool(b.get("detect_negative", 1)),
        detect_positive=bool(b.get("detect_positive", 1)),
    ),
    "LeakyRelu": activation("aten::leaky_relu", negative_slope="alpha"),
    "Less": same("aten::lt"),
    "LessOrEqual": same("aten::le"),
    "Max": _pairwise("aten::maximum"),
    "Mean": _mean,
    "Min": _pairwise("aten::minimum"),
    "Mish": activation("aten::mish"),
    "Mod": _mod,
    "Not": same("aten::logical_not"),
    "Or": same("aten::logical_or"),
    "PRelu": _prelu,
    "Pow": _pow,
    "Relu": _relu,
    "Selu": _selu,
    "Sigmoid": _sigmoid,
    "Softplus": activation("aten::softplus"),
    "Sum": _pairwise("aten::add"),
    "Swish": _swish,
    "Tanh": _tanh,
    "ThresholdedRelu": _thresholded,
    "Xor": same("aten::logical_xor"),
    "ai.onnx.ml.Binarizer": _binarized,
}
