"""``aten::max`` and ``aten::min`` of a whole tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import TensorType, element_count
from refquant.kernels import checks
from refquant.kernels.movement import example, move, movement


def _record(name: str, function: Callable[[Array], Any], word: str, expected: Any) -> Op:
    def reference(self: Tensor) -> Any:
        return move(self, lambda array: np.asarray(function(array)))

    reference.__doc__ = f"""Return the {word} element of a tensor; NaN if there is one.

    Parameters
    ----------
    self : float or integer tensor, or QTensor quantized per tensor
        Any shape; a quantized tensor keeps its parameters.

    Returns
    -------
    Tensor without dimensions

    Raises
    ------
    VerifyError
        If there is no element, or the tensor is quantized per channel.
    """

    def infer(self: TensorType) -> TensorType:
        if self.dtype.is_quantized:
            checks.per_tensor(name, self)
        if element_count(self.shape) == 0:
            raise VerifyError(f"{name}: {self} is empty")
        return self.with_shape(())

    x = np.array([3, np.nan, 1], np.float32)
    quantized = QTensor(np.array([[3, 9], [2, 7]], np.uint8), 0.5, 4)
    return movement(
        f"aten::{name}",
        reference,
        infer,
        Case("NaN", (x,), {}, np.nan, "wins"),
        Case("quantized", (quantized,), {}, expected, "of the integers"),
        Case("one", (example(1, 1),), {}, 0, "no dimension is left"),
        source="pytorch/aten/src/ATen/native/ReduceAllOps.cpp",
    )


OPS = (
    _record("max", np.max, "largest", 9),
    _record("min", np.min, "smallest", 2),
)
