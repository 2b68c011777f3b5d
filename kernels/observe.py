"""``observer::observe``: what an observer in a graph does to the data, which is nothing."""

from __future__ import annotations

import numpy as np

from refquant.ir.module import Module
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Tensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType


def reference(x: Tensor, module: Module) -> Tensor:
    """Return ``x`` itself.

    The node refers to a stateful module of the graph, in which torch's statistics are kept.
    Running a graph reads that state and never changes it: the same run twice gives the same
    result.

    Parameters
    ----------
    x : any tensor
        What is observed.
    module : Module
        The observer.

    Returns
    -------
    The object that was given.

    Examples
    --------
    >>> x = np.float32([1, 2])
    >>> reference(x, Module("torch.ao.quantization.observer.MinMaxObserver")) is x
    True
    """
    return x


def infer(x: TensorType, module: str | Module) -> TensorType:
    """Return the type of ``x``."""
    return x


_OBSERVER = Module("torch.ao.quantization.observer.MinMaxObserver")

OPS = (
    Op(
        name="observer::observe",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=("pytorch/torch/ao/quantization/observer.py::ObserverBase.forward",),
        cases=(
            Case(
                "identity",
                (np.array([1.5, -np.inf], np.float32),),
                {"module": _OBSERVER},
                [1.5, -np.inf],
                "infinities pass too",
            ),
        ),
    ),
)
