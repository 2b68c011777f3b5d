"""``aten::dropout`` and ``quantized::dropout``: the identity outside training."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, quint8
from refquant.kernels import checks

Array = npt.NDArray[Any]


def reference(input: QTensor | Array, p: float, train: bool) -> QTensor | Array:
    """Return the input: nothing is dropped outside training.

    Parameters
    ----------
    input : any QTensor or array
        Values.
    p : float
        Probability of dropping; without effect.
    train : bool
        Must be False.

    Returns
    -------
    QTensor or array
        The input itself.

    Raises
    ------
    UnsupportedError
        If ``train`` is True: the random numbers of torch are not reproduced.

    Examples
    --------
    >>> reference(np.float32([1, 2]), 0.5, False)
    array([1., 2.], dtype=float32)
    """
    _refuse_training("aten::dropout", train)
    return input


def reference_quantized(
    self: QTensor,
    output_scale: float,
    output_zero_point: int,
    p: float = 0.5,
    training: bool = False,
) -> QTensor:
    """Return the input; the output parameters are ignored, as in torch.

    Examples
    --------
    >>> reference_quantized(QTensor(np.uint8([1, 2]), 0.5, 0), 9.0, 9).scale
    0.5
    """
    _refuse_training("quantized::dropout", training)
    return self


def _refuse_training(op: str, training: bool) -> None:
    if training:
        raise UnsupportedError(f"{op}: torch's random numbers are not reproduced; use eval mode")


def infer(input: TensorType, p: float, train: bool) -> TensorType:
    """Check that the model is not in training; the result is the operand."""
    _refuse_training("aten::dropout", train)
    return input


def infer_quantized(
    self: TensorType,
    output_scale: float,
    output_zero_point: int,
    p: float = 0.5,
    training: bool = False,
) -> TensorType:
    """Check that the model is not in training; the result is the operand."""
    _refuse_training("quantized::dropout", training)
    checks.per_tensor("quantized::dropout", self)
    return self


_SOURCE = ("pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qdropout.cpp::quantized_dropout",)
_X = QTensor(np.array([1, 2], np.uint8), 0.5, 7, None, quint8)

OPS = (
    Op(
        name="aten::dropout",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=_SOURCE,
        cases=(Case("eval", (_X,), {"p": 0.5, "train": False}, [1, 2], "the identity"),),
    ),
    Op(
        name="quantized::dropout",
        reference=reference_quantized,
        infer=infer_quantized,
        kernels=dict.fromkeys(TORCH_ENGINES, reference_quantized),
        source=_SOURCE,
        cases=(
            Case(
                *("eval", (_X,), {"output_scale": 9.0, "output_zero_point": 9}),
                *([1, 2], "torch ignores the output parameters"),
            ),
        ),
    ),
)
