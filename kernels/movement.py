"""What ops that only move data share: they treat an array and a QTensor alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import ALL_ENGINES, Case, Op
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import Shape, Size, TensorType, format_shape


def move(x: Tensor, function: Callable[[Array], Array]) -> Any:
    """Apply a rearrangement to the elements; a QTensor keeps its quantization parameters."""
    if isinstance(x, QTensor):
        return x.with_int_repr(function(x.int_repr))
    return function(x)


def dimension(dim: int, rank: int, op: str) -> int:
    """Return ``dim`` counted from the front.

    Raises
    ------
    VerifyError
        If there is no such dimension.
    """
    if not -rank <= dim < rank:
        raise VerifyError(f"{op}: dim must be in [{-rank}, {rank - 1}], got {dim}")
    return dim % rank


def moved(x: TensorType, shape: Sequence[Size], op: str) -> TensorType:
    """Return the type after a rearrangement.

    Raises
    ------
    VerifyError
        If ``x`` is quantized per channel: the channel axis would no longer be one axis.
    """
    if x.qparams is not None and x.qparams.axis is not None and tuple(shape) != x.shape:
        raise VerifyError(f"{op}: a tensor quantized per channel cannot be rearranged, got {x}")
    return x.with_shape(tuple(shape))


def check_length(length: Size, op: str, dim: int) -> int:
    """Return a length that must be known.

    Raises
    ------
    VerifyError
        If it is symbolic.
    """
    if not isinstance(length, int):
        raise VerifyError(f"{op}: the length of dim {dim} must be known, got {length}")
    return length


def example(*shape: int) -> Array:
    """Return float32 numbers 0, 1, 2, ... for hand-written cases."""
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def movement(
    name: str,
    reference: Callable[..., Any],
    infer: Callable[..., Any],
    *cases: Case,
    source: str = "pytorch/aten/src/ATen/native/TensorShape.cpp",
) -> Op:
    """Return the record of an op that only moves data: NumPy is as fast as a kernel."""
    return Op(
        name=name,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(ALL_ENGINES, reference),
        source=(source,),
        cases=cases,
    )


def broadcast(op: str, *shapes: Shape) -> Shape:
    """Return the shape that all shapes broadcast to.

    Raises
    ------
    VerifyError
        If they do not fit.
    """
    rank = max(len(shape) for shape in shapes)
    result: list[Size] = []
    for position in range(-rank, 0):
        sizes = {shape[position] for shape in shapes if len(shape) >= -position} - {1}
        if len(sizes) > 1:
            listed = " and ".join(map(format_shape, shapes))
            raise VerifyError(f"{op}: shapes {listed} do not broadcast")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)
