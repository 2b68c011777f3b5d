"""Every op as a function, under torch's names: ``ops.aten.quantize_per_tensor(x, ...)``.

What ``torch.ops`` is to torch: the operators of ``refquant.kernels`` without a graph. Arguments
are those of the op's reference, in its order or by name, and are checked before anything runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Target


class Namespace:
    """The ops of one namespace as attributes.

    Examples
    --------
    >>> from refquant.ir.types import quint8
    >>> aten.quantize_per_tensor(np.float32([0.5, 1.5]), 1.0, 7, quint8).int_repr
    array([8, 8], dtype=uint8)
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if f"{self._name}::{op}" not in OPS:
            raise AttributeError(f"refquant has no op {self._name}::{op}")
        return function(f"{self._name}::{op}")

    def __dir__(self) -> list[str]:
        return sorted(name.partition("::")[2] for name in OPS if name.startswith(self._name))


@cache
def function(name: str) -> Callable[..., Any]:
    """Return an op as a function of its operands and attributes.

    Parameters
    ----------
    name : str
        ``namespace::op``, with ``.overload`` if there is one.

    Returns
    -------
    callable
        It also takes ``target``, the machine to reproduce (``Target()`` by default), and
        ``executor``, "fast" or "reference".

    Examples
    --------
    >>> quantize = function("quantized_decomposed::quantize_per_tensor.tensor")
    >>> from refquant.ir.types import uint8
    >>> quantize(np.float32([1.0]), np.array(0.5), np.array(1), 0, 255, uint8)
    array([3], dtype=uint8)
    """
    op = OPS[name]
    parameters = inspect.signature(op.reference).parameters.values()
    signature = inspect.Signature([p for p in parameters if p.name not in ("target", "compute")])
    bound = cache(op.bind)

    def call(
        *arguments: Any, target: Target = Target(), executor: str = "fast", **named: Any
    ) -> Any:
        if named:
            given = signature.bind(*arguments, **named)
            arguments, named = given.args, given.kwargs
        op.infer(*map(_typed, arguments), **{key: _typed(x) for key, x in named.items()})
        return bound(target, fast=executor == "fast")(*arguments, **named)

    call.__name__, call.__doc__ = name, op.doc
    return call


def _typed(x: Any) -> Any:
    return type_of(x) if isinstance(x, np.ndarray | QTensor) else x


aten = Namespace("aten")
quantized = Namespace("quantized")
quantized_decomposed = Namespace("quantized_decomposed")
