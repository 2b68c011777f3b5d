"""What is known not to be exact: the cause, and how far it goes."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from refquant.ledger.cell import Cell

if TYPE_CHECKING:
    from refquant.ledger.check import Outcome


class Inexact(NamedTuple):
    """Why results of some cells differ, and the largest difference.

    ``share`` is the largest part of the elements, which lie at ties more often than in a model.
    """

    cause: str
    worst: float
    share: float


INEXACT: dict[str, Inexact] = {
    "quantized::softmax */default *": Inexact(
        "torch's float softmax without vector instructions, whose last bit is not reproduced",
        *(1, 1e-5),
    ),
    "quantized::matmul *": Inexact(
        "float sums in the order of torch's MKL on AMD processors with AVX512; a result next to a "
        "tie may be one step away where MKL takes another order (one column, other processors)",
        *(1, 1e-3),
    ),
    **dict.fromkeys(
        ("quantized::linear_tanh onednn/* quint8", "quantized::linear_tanh onednn/avx2 qint8"),
        Inexact(
            "oneDNN's float32 tanh is a polynomial whose last bits are not reproduced", 1, 1e-3
        ),
    ),
    "onednn::qlinear_pointwise* uint8": Inexact(
        "oneDNN's float32 tanh and GELUs are piecewise polynomials whose last bits are not "
        "reproduced (float results are refused); all other post ops are exact",
        *(1, 1e-4),
    ),
}


UNDEFINED: dict[str, str] = {
    "quantized::conv_transpose3d* qnnpack/*": "torch's kernel writes to foreign memory, and dies",
}


def why_undefined(cell: Cell) -> str:
    """Return why torch is not run for a cell, or nothing."""
    found = [why for pattern, why in UNDEFINED.items() if fnmatchcase(str(cell), pattern)]
    return found[0] if found else ""


def cause_of(cell: Cell) -> Inexact | None:
    """Return why a cell may differ, or None."""
    for pattern, known in INEXACT.items():
        if fnmatchcase(str(cell), pattern):
            return known
    return None


def is_expected(cell: Cell, outcome: Outcome) -> bool:
    """Whether an outcome is equal, refused, or differs by no more than is known."""
    if outcome.status == "differs":
        known = cause_of(cell)
        within = known and outcome.worst <= known.worst
        return bool(known and within and outcome.mismatches <= known.share * outcome.elements)
    return outcome.status not in ("broken", "crash")
