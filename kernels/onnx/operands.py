"""Scales, zero points and their checks, as operators of ONNX take them: arrays of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.target import Engine, Target
from refquant.ir.types import (
    DType,
    Shape,
    Size,
    TensorType,
    float32,
    format_shape,
    int8,
    uint8,
)

Array = npt.NDArray[Any]
Engines = (Engine.ONNX, Engine.ORT)
BYTES = (uint8, int8)
ONNX = Target(Engine.ONNX)


def single(x: Array | None) -> int:
    """Return the only value of a zero point; 0 where there is none.

    Examples
    --------
    >>> single(np.uint8([7])), single(None)
    (7, 0)
    """
    return 0 if x is None else int(np.asarray(x).reshape(()))


def scale_of(x: Array) -> np.float32:
    """Return the only value of a float32 scale."""
    return np.float32(np.asarray(x, np.float32).reshape(()))


def limits_of(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the range of an integer type, those of ml_dtypes included.

    Examples
    --------
    >>> limits_of(np.dtype(np.int8))
    (-128, 127)
    """
    if dtype.kind in "iu":
        found = np.iinfo(dtype)
        return int(found.min), int(found.max)
    bits = int(dtype.name.removeprefix("u").removeprefix("int"))
    return (0, 2**bits - 1) if dtype.name[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def along(x: Array, rank: int, axis: int) -> Array:
    """Shape a vector so that it lies along an axis; a single value stays one."""
    if x.size == 1 and x.ndim < 2:
        return x.reshape(())
    return x.reshape((-1,) + (1,) * (rank - 1 - axis % rank)) if x.ndim == 1 else x


# ---- checks


def dtype_in(op: str, x: TensorType, accepted: tuple[DType, ...], operand: str) -> None:
    """Check the element type of an operand."""
    if x.dtype not in accepted:
        names = ", ".join(map(str, accepted))
        raise VerifyError(f"{op}: {operand} must be one of {names}, got {x.dtype}")


def same_dtype(op: str, x: TensorType | None, other: TensorType, operand: str) -> None:
    """Check that an operand, where present, has the element type of another."""
    if x is not None and x.dtype != other.dtype:
        raise VerifyError(f"{op}: {operand} must be {other.dtype}, got {x.dtype}")


def one_element(op: str, x: TensorType | None, operand: str) -> None:
    """Check that an operand, where present, is a scalar or a vector of one element."""
    if x is not None and x.shape not in ((), (1,)):
        raise VerifyError(f"{op}: {operand} must hold one element, got {format_shape(x.shape)}")


def one_or_each(op: str, x: TensorType | None, length: Size, operand: str) -> None:
    """Check that an operand, where present, has one element or one for each channel."""
    if x is not None and x.shape not in ((), (1,), (length,)):
        raise VerifyError(
            f"{op}: {operand} must hold 1 or {length} elements, got {format_shape(x.shape)}"
        )


def scale(op: str, x: TensorType, operand: str) -> None:
    """Check that an operand is one float32."""
    dtype_in(op, x, (float32,), operand)
    one_element(op, x, operand)


def quantized(
    op: str,
    x: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType | None,
    operand: str,
    accepted: tuple[DType, ...] = BYTES,
) -> None:
    """Check a tensor with one scale and one zero point."""
    dtype_in(op, x, accepted, operand)
    scale(op, x_scale, f"{operand}_scale")
    one_element(op, x_zero_point, f"{operand}_zero_point")
    same_dtype(op, x_zero_point, x, f"{operand}_zero_point")


def axis_of(op: str, axis: int, shape: Shape) -> int:
    """Return an axis counted from the front."""
    if not -len(shape) <= axis < len(shape):
        raise VerifyError(f"{op}: axis {axis} is outside {format_shape(shape)}")
    return axis % len(shape)
