"""What an op can do ahead of a run: bind its constants, its shapes and the memory it works in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import Tensor
from refquant.ir.target import Target
from refquant.ir.types import TensorType

Bytes = npt.NDArray[np.uint8]
# An operand whose value is known only in the run has a type, a constant its data.
Operand = TensorType | Tensor | None


class Margins(NamedTuple):
    """Positions around a map that hold its zero point, one entry per spatial axis."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def union(self, other: Margins) -> Margins:
        """Return margins that are wide enough for both.

        Examples
        --------
        >>> Margins((1, 0), (2, 0)).union(Margins((0, 1), (1, 1)))
        Margins(before=(1, 1), after=(2, 1))
        """
        before, after = (tuple(map(max, a, b)) for a, b in zip(self, other, strict=True))
        return Margins(before, after)


class Place(NamedTuple):
    """Memory that a plan sets aside for a quantized value.

    Parameters
    ----------
    memory : uint8 array
        The channels-last map with its margins, and some bytes more that may be read.
    margins : Margins or None
        What lies around the value in it.
    tensor : QTensor or array
        The value, a view.
    """

    memory: Bytes
    margins: Margins | None
    tensor: Tensor


class Prepared(Protocol):
    """An op, and maybe some that follow it, with constants and shapes bound.

    Its result has channels-last memory.
    """

    def margins(self, operand: int) -> Margins | None:
        """Return what it likes to find around an operand; None if it does not matter."""

    def absorb(
        self,
        name: str,
        position: int,
        operands: tuple[Operand, ...],
        attributes: Mapping[str, Any],
        result: TensorType,
    ) -> Prepared | None:
        """Return what also does the only user of the result, bit for bit; None if it cannot.

        The result is operand ``position`` of that op. Its other operands of the run, which
        have channels-last memory, too, become further operands.
        """

    def size(self, margins: Margins | None) -> int:
        """Return the bytes of a place for the result."""

    def place(self, memory: Bytes, margins: Margins | None) -> Place:
        """Return a place for the result."""

    def bind(
        self, operands: tuple[Place | None, ...], result: Place | None
    ) -> Callable[..., Tensor]:
        """Return the function of the run, which takes the operands that are not constants.

        An operand with a place is read there. Without a place each call makes its own result.
        """


Prepare = Callable[[tuple[Operand, ...], Mapping[str, Any], TensorType, Target], Prepared | None]
