"""Checks that the ``infer`` functions of many ops share; each raises a one-line error."""

from __future__ import annotations

from collections.abc import Sequence

from refquant.ir.errors import VerifyError
from refquant.ir.types import (
    DType,
    QParams,
    Shape,
    Size,
    TensorType,
    float32,
    format_shape,
    qint8,
    qint32,
    quint8,
)

QUANTIZED = (quint8, qint8, qint32)


def per_tensor(op: str, x: TensorType, accepted: tuple[DType, ...] = QUANTIZED) -> None:
    """Check that a value is quantized per tensor; its parameters may be chosen at run time."""
    if x.dtype not in accepted:
        raise VerifyError(f"{op}: dtype must be one of {_list(accepted)}, got {x.dtype}")
    if x.qparams is not None and x.qparams.axis is not None:
        raise VerifyError(f"{op}: expected a value quantized per tensor, got {x}")


def float_or_per_tensor(op: str, x: TensorType, accepted: tuple[DType, ...] = QUANTIZED) -> bool:
    """Return whether ``x`` is quantized; it must be float32 or quantized per tensor."""
    if x.dtype == float32:
        return False
    if not x.dtype.is_quantized:
        names = _list((float32, *accepted))
        raise VerifyError(f"{op}: dtype must be one of {names}, got {x.dtype}")
    per_tensor(op, x, accepted)
    return True


def is_float32(op: str, x: TensorType, operand: str = "input") -> None:
    """Check that an operand is float32."""
    if x.dtype != float32:
        raise VerifyError(f"{op}: {operand} must be float32, got {x.dtype}")


def vector(op: str, x: TensorType | None, length: object, operand: str) -> None:
    """Check that an operand, where present, is a float32 vector of the given length."""
    if x is None:
        return
    is_float32(op, x, operand)
    if x.shape != (length,):
        raise VerifyError(f"{op}: {operand} must be [{length}], got {format_shape(x.shape)}")


def output_qparams(op: str, dtype: DType, scale: float, zero_point: int) -> QParams:
    """Return the quantization parameters of a result, checked."""
    if not scale > 0:
        raise VerifyError(f"{op}: scale must be > 0, got {scale}")
    low, high = dtype.limits
    if not low <= zero_point <= high:
        raise VerifyError(f"{op}: zero_point must be in [{low}, {high}], got {zero_point}")
    return QParams(float(scale), int(zero_point))


def dimension(op: str, dim: int, rank: int) -> int:
    """Return a dimension counted from the front.

    Examples
    --------
    >>> dimension("mean", -1, 4)
    3
    """
    if not -max(rank, 1) <= dim < max(rank, 1):
        raise VerifyError(f"{op}: dim {dim} is outside a value of rank {rank}")
    return dim % max(rank, 1)


def broadcast(op: str, *shapes: Shape) -> Shape:
    """Return the broadcast of shapes.

    Examples
    --------
    >>> broadcast("add", (2, 3, 4, 4), (3, 1, 1))
    (2, 3, 4, 4)
    """
    rank = max(map(len, shapes))
    result: list[Size] = []
    for position in range(-rank, 0):
        sizes = {shape[position] for shape in shapes if len(shape) >= -position} - {1}
        if len(sizes) > 1:
            listed = " and ".join(map(format_shape, shapes))
            raise VerifyError(f"{op}: shapes {listed} do not broadcast")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def known_length(op: str, length: Size, dim: int) -> int:
    """Return a length that must not be symbolic."""
    if not isinstance(length, int):
        raise VerifyError(f"{op}: the length of dim {dim} must be known, got {length}")
    return length


def groups(
    op: str,
    input: TensorType,
    num_groups: int | None,
    weight: TensorType | None,
    bias: TensorType | None,
    least_rank: int,
) -> None:
    """Check the operands of a norm per group of channels."""
    if input.rank < least_rank:
        raise VerifyError(f"{op}: expected rank {least_rank} or more, got {input}")
    channels = input.shape[1]
    if not isinstance(channels, int):
        raise VerifyError(f"{op}: the number of channels of {input} is symbolic")
    if num_groups is not None and (num_groups < 1 or channels % num_groups):
        raise VerifyError(f"{op}: num_groups {num_groups} does not divide {channels} channels")
    vector(op, weight, channels, "weight")
    vector(op, bias, channels, "bias")


def _list(dtypes: Sequence[DType]) -> str:
    return ", ".join(map(str, dtypes))


def window(op: str, geometry: tuple[tuple[int, ...], ...], rank: int) -> None:
    """Check kernel size, stride, padding and (where given) dilation of a pool."""
    names = ("kernel_size", "stride", "padding", "dilation")
    for name, values in zip(names, geometry, strict=False):
        if len(values) != rank:
            raise VerifyError(f"{op}: {name} needs {rank} entries, got {list(values)}")
        least = 0 if name == "padding" else 1
        if min(values) < least:
            raise VerifyError(f"{op}: {name} must be >= {least}, got {list(values)}")
    for kernel, padding in zip(geometry[0], geometry[2], strict=True):
        if padding > kernel // 2:
            raise VerifyError(
                f"{op}: padding must be at most half of kernel_size {kernel}, got {padding}"
            )
