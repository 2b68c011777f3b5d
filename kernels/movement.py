"""What ops that only move data share: they treat an array and a QTensor alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import Size, TensorType


def move(x: Tensor, function: Callable[[Array], Array]) -> Any:
    """Apply a rearrangement to the elements; a QTensor keeps its quantization parameters."""
    if isinstance(x, QTensor):
        return x.with_int_repr(function(x.int_repr))
    return function(x)


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
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=(source,),
        cases=cases,
    )
