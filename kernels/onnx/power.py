"""``onnx::Pow``: a power, of the type of the base."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, type_of
from refquant.ir.types import TensorType, bool_
from refquant.kernels.checks import broadcast
from refquant.kernels.onnx.operator import operator, plain


def reference(x: Array, y: Array) -> Array:
    """Return ``x`` to the power of ``y``.

    A float base is raised in its own type (float64 below float32), an integer by an integer in
    int64, an integer by a float in float64 whose result loses its fraction. The standard says
    nothing of rounding: compare floats with 1 unit in the last place.

    Parameters
    ----------
    x, y : tensors of numbers that broadcast
        Base and exponent, of any two types.

    Returns
    -------
    Tensor of the type of ``x``

    Raises
    ------
    VerifyError
        If an operand is no number.

    Examples
    --------
    >>> reference(np.array([2, 3]), np.float32([0.5, 2]))
    array([1, 9])
    """
    is_float = [type_of(v).dtype.is_floating_point for v in (x, y)]
    wide = np.float64 if any(is_float) else np.int64
    with np.errstate(all="ignore"):
        if not any(is_float) and np.any(y < 0):
            small = np.power(x.astype(np.float64), y.astype(np.float64))
            return np.asarray(small).astype(x.dtype)
        return np.asarray(np.power(x.astype(wide), y.astype(wide))).astype(x.dtype)


def infer(x: TensorType, y: TensorType) -> TensorType:
    """Check that both are numbers."""
    plain("Pow", x, y)
    for operand in (x, y):
        if operand.dtype == bool_:
            raise VerifyError(f"Pow: expected numbers, got {operand}")
    return TensorType(x.dtype, broadcast("Pow", x.shape, y.shape))


_I = np.array([1, -2, 3], np.int32)

OPS = (
    operator(
        "Pow",
        reference,
        infer,
        Case("integers", (_I, _I + 1), {}, [1, 0, 81], "-2 to the power of -1 is -0.5"),
        Case("mixed", (_I[::2], np.array([2.5], np.float32)), {}, [1, 15], "15.6 is cut"),
        Case("float", (np.array([2.0, 0], np.float32), _I[:1] - 1), {}, [1, 1], "0 to the 0"),
    ),
)
