"""``onnx::Mod``: the remainder, with the sign of either operand."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.checks import broadcast
from refquant.kernels.onnx.operator import numeric, operator


def reference(a: Array, b: Array, fmod: bool = False) -> Array:
    """Return the remainder of a division, exactly.

    It has the sign of ``b``, as in Python, or with ``fmod`` that of ``a``, as in C. An integer
    divided by 0 leaves 0, a float NaN.

    Parameters
    ----------
    a, b : tensors of numbers of one type that broadcast
        Floats must be divided with ``fmod`` before opset 28.
    fmod : bool
        Whose sign the result has.

    Returns
    -------
    Tensor of the same type

    Raises
    ------
    VerifyError
        If the types differ.

    Examples
    --------
    >>> reference(np.array([-4, 7]), np.array([3, -3])), reference(
    ...     np.array([-4, 7]), np.array([3, -3]), fmod=True
    ... )
    (array([ 2, -2]), array([-1,  1]))
    """
    with np.errstate(all="ignore"):
        return np.asarray((np.fmod if fmod else np.remainder)(a, b))


def infer(a: TensorType, b: TensorType, fmod: bool = False) -> TensorType:
    """Check the types."""
    numeric("Mod", a, b)
    if not isinstance(fmod, bool):
        raise VerifyError(f"Mod: fmod must be True or False, got {fmod!r}")
    return TensorType(a.dtype, broadcast("Mod", a.shape, b.shape))


_A = np.array([-4, 7, 5, -8], np.int8)
_B = np.array([2, -3, 8, 3], np.int8)
_F = np.array([-4.5, 4.5, np.inf], np.float32)

OPS = (
    operator(
        "Mod",
        reference,
        infer,
        Case("divisor", (_A, _B), {}, [0, -2, 5, 1], "the sign of the divisor"),
        Case("dividend", (_A, _B), {"fmod": True}, [0, 1, 5, -2], "the sign of the dividend"),
        Case("floats", (_F, _F[1:2] - 2.5), {"fmod": True}, [-0.5, 0.5, np.nan], "exact"),
        Case("zero", (_A[:1], _B[:1] * 0), {}, [0], "no error"),
    ),
)
