"""``onnx::BitShift``, ``BitwiseAnd``, ``BitwiseOr``, ``BitwiseXor`` and ``BitwiseNot``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.checks import broadcast
from refquant.kernels.onnx.operator import is_integer, operator

_SHIFTS = {"LEFT": np.left_shift, "RIGHT": np.right_shift}


def shift(x: Array, y: Array, direction: str) -> Array:
    """Move the bits of integers by as many places as the other operand says.

    Zeros come in from the right; from the left too, and copies of the sign bit where the type is
    signed. Bits that leave the type are lost: a shift by its width or more gives 0, or -1 for a
    negative number that is moved to the right.

    Parameters
    ----------
    x, y : integer tensors of one type that broadcast
        Numbers, and places (not negative).
    direction : str
        ``LEFT`` or ``RIGHT``.

    Returns
    -------
    Tensor of the type of ``x``

    Raises
    ------
    VerifyError
        If types differ or are no integers, or the direction is unknown.

    Examples
    --------
    >>> shift(np.uint8([16, 4, 1]), np.uint8([1, 2, 3]), "RIGHT")
    array([8, 1, 0], dtype=uint8)
    """
    return np.asarray(_SHIFTS[direction](x, y))


def infer_shift(x: TensorType, y: TensorType, direction: str) -> TensorType:
    """Check the types and the direction."""
    if direction not in _SHIFTS:
        raise VerifyError(f"BitShift: direction must be LEFT or RIGHT, got {direction!r}")
    return _infer("BitShift")(x, y)


def _infer(name: str) -> Callable[..., TensorType]:
    def infer(*operands: TensorType) -> TensorType:
        first = operands[0]
        if not is_integer(first) or any(x.dtype != first.dtype for x in operands):
            listed = " and ".join(map(str, operands))
            raise VerifyError(f"{name}: expected integers of one type, got {listed}")
        return TensorType(first.dtype, broadcast(name, *(x.shape for x in operands)))

    return infer


def _bitwise(name: str, function: Callable[..., Any], expected: list[int]) -> Op:
    def reference(*operands: Array) -> Array:
        return np.asarray(function(*operands))

    reference.__doc__ = f"""Return the {name.lower()} of integers, bit by bit.

    Parameters
    ----------
    *operands : integer tensors of one type that broadcast
        One for ``BitwiseNot``, two for the others.

    Returns
    -------
    Tensor of the same type

    Raises
    ------
    VerifyError
        If types differ or are no integers.
    """
    op = f"Bitwise{name}"
    operands = np.array([12, -1, 5], np.int8), np.array([10, 1, 0], np.int8)
    given = operands[: 1 if name == "Not" else 2]
    case = Case("signed", given, {}, expected, "two's complement")
    return operator(op, reference, _infer(op), case)


OPS = (
    operator(
        "BitShift",
        shift,
        infer_shift,
        Case(
            "left",
            (np.array([129, 1], np.uint8), np.array([1, 9], np.uint8)),
            {"direction": "LEFT"},
            [2, 0],
            "bits leave",
        ),
        Case(
            "right",
            (np.array([-5], np.int8), np.array([[1], [9]], np.int8)),
            {"direction": "RIGHT"},
            [[-3], [-1]],
            "the sign stays",
        ),
    ),
    _bitwise("And", np.bitwise_and, [8, 1, 0]),
    _bitwise("Or", np.bitwise_or, [14, -1, 5]),
    _bitwise("Xor", np.bitwise_xor, [6, -2, 5]),
    _bitwise("Not", np.bitwise_not, [-13, 0, -6]),
)
