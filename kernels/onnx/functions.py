"""Elementary functions that torch's ops of this package do not have: onnx::Tan, Sinh, ..."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.onnx.operator import floating, operator


def _op(
    name: str, what: str, function: Callable[[Array], Any], x: list[float], expected: list[float]
) -> Op:
    def reference(input: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(input.astype(np.float64))).astype(input.dtype)

    reference.__doc__ = f"""Return {what} of each element.

    Computed in float64 and rounded once; outside its domain the result is NaN. The standard
    says nothing of the last bit: compare with a tolerance of 1 unit in the last place.

    Parameters
    ----------
    input : float tensor
        Any shape.

    Returns
    -------
    Tensor like ``input``

    Raises
    ------
    VerifyError
        If the elements are no floats.
    """

    def infer(input: TensorType) -> TensorType:
        floating(name, input)
        return input

    case = Case("values", (np.array(x, np.float32),), {}, expected, "ends of the domain")
    return operator(name, reference, infer, case)


_INF, _NAN = float("inf"), float("nan")

OPS = (
    _op("Acos", "the angle of a cosine", np.arccos, [1, 2], [0, _NAN]),
    _op("Acosh", "the inverse of the hyperbolic cosine", np.arccosh, [1, 0], [0, _NAN]),
    _op("Asin", "the angle of a sine", np.arcsin, [-0.0, 2], [0, _NAN]),
    _op("Asinh", "the inverse of the hyperbolic sine", np.arcsinh, [0, -_INF], [0, -_INF]),
    _op("Atan", "the angle of a tangent", np.arctan, [0, _NAN], [0, _NAN]),
    _op("Atanh", "the inverse of the hyperbolic tangent", np.arctanh, [0, 1, 2], [0, _INF, _NAN]),
    _op("Cosh", "the hyperbolic cosine", np.cosh, [0, -_INF], [1, _INF]),
    _op("Sinh", "the hyperbolic sine", np.sinh, [0, -_INF], [0, -_INF]),
    _op("Tan", "the tangent", np.tan, [0, _INF], [0, _NAN]),
    _op("Tanh", "the hyperbolic tangent", np.tanh, [0, -_INF], [0, -1]),
)
