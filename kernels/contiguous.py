"""``aten::contiguous``, ``clone`` and ``alias``: the same elements, perhaps in other memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import TensorType
from refquant.kernels.layout import (
    channels_last,
    empty_like,
    empty_suggested,
    is_contiguous_channels_last,
)
from refquant.kernels.movement import example, move, movement

_RANK = {"contiguous_format": None, "channels_last": 4, "channels_last_3d": 5}


def contiguous(x: Tensor, memory_format: str = "contiguous_format") -> Any:
    """Lay the elements out in a memory format; copied only if needed.

    The values do not change, but a few kernels round differently on channels-last memory.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    memory_format : str
        ``contiguous_format``, ``channels_last`` (rank 4) or ``channels_last_3d`` (rank 5).

    Returns
    -------
    ``x``, or a copy with the wanted strides.

    Raises
    ------
    VerifyError
        If the format is unknown or does not fit the rank.

    Examples
    --------
    >>> contiguous(np.zeros((1, 3, 4, 4), np.uint8), "channels_last").strides
    (48, 1, 12, 3)
    """
    if memory_format == "contiguous_format":
        return move(x, np.ascontiguousarray)
    return move(x, lambda a: a if is_contiguous_channels_last(a) else channels_last(a))


def infer_contiguous(x: TensorType, memory_format: str = "contiguous_format") -> TensorType:
    """Check the format."""
    if memory_format not in _RANK:
        raise VerifyError(
            f"contiguous: memory_format must be one of {', '.join(_RANK)}, got {memory_format!r}"
        )
    if _RANK[memory_format] not in (None, x.rank):
        raise VerifyError(
            f"contiguous: {memory_format} needs rank {_RANK[memory_format]}, got {x}"
        )
    return x


def clone(x: Tensor) -> Any:
    """Copy a tensor, keeping its strides where it is dense.

    A quantized tensor is copied into its memory format: channels-last, or else contiguous.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.

    Returns
    -------
    A copy.

    Examples
    --------
    >>> x = np.zeros(3)
    >>> np.shares_memory(clone(x), x)
    False
    """

    def copy(array: Array) -> Array:
        empty = empty_suggested if isinstance(x, QTensor) else empty_like
        result = empty(array, array.dtype)
        result[...] = array
        return result

    return move(x, copy)


def alias(x: Tensor) -> Any:
    """Return the tensor itself: ``nn.Identity``, ``detach`` and other calls without effect.

    Parameters
    ----------
    x : any tensor
        Passes through.

    Returns
    -------
    The object that was given.

    Examples
    --------
    >>> x = np.zeros(3)
    >>> alias(x) is x
    True
    """
    return x


def infer_same(x: TensorType) -> TensorType:
    """Return the type of ``x``."""
    return x


_X = example(2, 3)

OPS = (
    movement(
        "aten::contiguous",
        contiguous,
        infer_contiguous,
        Case("transposed", (_X.T,), {}, _X.T, "a view becomes a copy"),
        Case(
            "channels last",
            (example(1, 2, 2, 2),),
            {"memory_format": "channels_last"},
            example(1, 2, 2, 2),
            "other strides, same elements",
        ),
    ),
    movement("aten::clone", clone, infer_same, Case("strides", (_X.T,), {}, _X.T, "kept")),
    movement("aten::alias", alias, infer_same, Case("same", (_X,), {}, _X, "nothing happens")),
)
