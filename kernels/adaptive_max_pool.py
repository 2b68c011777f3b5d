"""``aten::adaptive_max_pool1d``, ``2d``, ``3d``: the largest value of windows that tile a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.types import TensorType
from refquant.kernels import checks
from refquant.kernels.layout import channels_last, is_channels_last
from refquant.kernels.movement import example, movement

F32 = npt.NDArray[np.float32]
Ints = tuple[int, ...]


def reference(self: F32, output_size: Ints) -> F32:
    r"""Return the largest value of each window; NaN if there is one.

    Output *i* of *n* looks at the inputs from :math:`\lfloor iL/n \rfloor` to
    :math:`\lceil (i+1)L/n \rceil`, as in adaptive average pooling. torch returns the positions,
    too; they are left out here.

    Parameters
    ----------
    self : float32 (N, C, ...)
        One to three spatial axes.
    output_size : tuple of int
        One entry per spatial axis.

    Returns
    -------
    float32 array, channels-last where ``self`` is

    Raises
    ------
    VerifyError
        If the value is not float32 or the rank does not fit.

    Examples
    --------
    >>> reference(np.float32([[[1, 5, 2, 4]]]), (3,))
    array([[[5., 5., 4.]]], dtype=float32)
    """
    result = self
    for axis, wanted in enumerate(output_size, 2):
        length = result.shape[axis]
        parts = [
            result.take(range(i * length // wanted, -(-(i + 1) * length // wanted)), axis)
            for i in range(wanted)
        ]
        result = np.stack([part.max(axis) for part in parts], axis)
    return channels_last(result) if is_channels_last(self) else np.ascontiguousarray(result)


def _infer(rank: int) -> Callable[[TensorType, Ints], TensorType]:
    op = f"adaptive_max_pool{rank}d"

    def infer(self: TensorType, output_size: Ints) -> TensorType:
        """Check type and rank; spatial lengths become the wanted ones."""
        checks.is_float32(op, self)
        if self.rank != rank + 2 or len(output_size) != rank:
            raise VerifyError(f"{op}: expected {rank} spatial axes, got {self} to {output_size}")
        if min(output_size) < 1:
            raise VerifyError(f"{op}: output_size must be >= 1, got {list(output_size)}")
        return self.with_shape((*self.shape[:2], *output_size))

    return infer


def _op(rank: int) -> Op:
    line: Any = example(*(1,) * (rank + 1), 5)
    ones = (1,) * (rank - 1)
    expected = np.array([1, 3, 4], np.float32).reshape(1, 1, *ones, 3)
    return movement(
        f"aten::adaptive_max_pool{rank}d",
        reference,
        _infer(rank),
        Case("overlap", (line,), {"output_size": (*ones, 3)}, expected, "windows 0-1, 1-3, 3-4"),
        source="pytorch/aten/src/ATen/native/AdaptiveMaxPooling2d.cpp",
    )


OPS = tuple(_op(rank) for rank in (1, 2, 3))
