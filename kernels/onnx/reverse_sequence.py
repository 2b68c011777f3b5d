"""``onnx::ReverseSequence``: the beginning of each batch backwards."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.onnx.operator import index, operator, plain


def reference(
    input: Array, sequence_lens: Array, batch_axis: int = 1, time_axis: int = 0
) -> Array:
    """Return the first ``sequence_lens[b]`` steps of each batch *b* in the other order.

    Parameters
    ----------
    input : tensor that is not quantized
        Rank 2 or more.
    sequence_lens : integer tensor (batch,)
        How many steps are turned; the others stay where they are.
    batch_axis, time_axis : int
        Dimensions 0 and 1 in either order.

    Returns
    -------
    Tensor like ``input``

    Raises
    ------
    VerifyError
        If shapes do not fit, or a length is outside the sequence.

    Examples
    --------
    >>> reference(np.arange(8).reshape(4, 2), np.array([1, 3]))[:, 1]
    array([5, 3, 1, 7])
    """
    steps = input.shape[time_axis]
    if np.any((sequence_lens < 0) | (sequence_lens > steps)):
        raise VerifyError(f"ReverseSequence: lengths must be in [0, {steps}], got {sequence_lens}")
    at, lengths = np.arange(steps), np.expand_dims(sequence_lens, 1)
    order = np.where(at < lengths, lengths - 1 - at, at)  # (batch, time)
    batches = np.moveaxis(input, (batch_axis, time_axis), (0, 1))
    turned = batches[np.arange(len(batches))[:, None], order]
    return np.ascontiguousarray(np.moveaxis(turned, (0, 1), (batch_axis, time_axis)))


def infer(
    input: TensorType, sequence_lens: TensorType, batch_axis: int = 1, time_axis: int = 0
) -> TensorType:
    """Check the axes and the number of lengths."""
    op = "ReverseSequence"
    plain(op, input)
    index(op, sequence_lens)
    if {batch_axis, time_axis} != {0, 1} or input.rank < 2:
        raise VerifyError(f"{op}: batch_axis {batch_axis}, time_axis {time_axis} of {input}")
    if sequence_lens.shape != (input.shape[batch_axis],):
        raise VerifyError(f"{op}: expected a length for each batch, got {sequence_lens}")
    return input


_X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)

OPS = (
    operator(
        "ReverseSequence",
        reference,
        infer,
        Case(
            *("rows", (_X, np.array([2, 0])), {"batch_axis": 0, "time_axis": 1}),
            *([[2, 1, 3], [4, 5, 6]], "0 turns nothing"),
        ),
        Case("columns", (_X, np.array([2, 1, 2])), {}, [[4, 2, 6], [1, 5, 3]], "time goes first"),
    ),
)
