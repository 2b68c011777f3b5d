"""Which cells there are, and in which environment torch has to run for each."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from refquant.ir.target import TORCH_ENGINES, Engine, Isa, Target
from refquant.ir.types import DType, qint8, qint32, quint8
from refquant.ledger.cell import Cell
from refquant.ledger.draw import DTYPES, SAMPLERS

# torch and its libraries read these once, when they are loaded.
ENVIRONMENTS: dict[Isa, dict[str, str]] = {
    Isa.AVX512_VNNI: {},
    Isa.AVX512: {
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    },
    Isa.AVX2: {
        "ATEN_CPU_CAPABILITY": "avx2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    Isa.DEFAULT: {"ATEN_CPU_CAPABILITY": "default"},
}
_OF_LIBRARIES = (
    *("*::*linear*", "*::*conv*", "*::embedding*", "onednn::*", "aten::quantize_per_*"),
    *("quantized::*lstm*", "quantized::*gru*", "quantized::*rnn*", "aten::quantized_*"),
)
_USUAL = (quint8, qint8, qint32)


def dtypes_of(name: str) -> tuple[DType, ...]:
    """Return the dtypes with which an operator is tried."""
    return DTYPES.get(name, _USUAL)


def _has_a_say(name: str, target: Target) -> bool:
    """Whether engine and instruction set can change what torch does, given another cell.

    ``quantized_decomposed`` is written in Python, for no engine, and ``onednn`` always runs that
    library, whatever the engine; ``avx512`` differs from
    ``avx512_vnni`` in what fbgemm and oneDNN do, not in torch's own kernels.
    """
    if name.startswith("quantized_decomposed::") and target.engine is not Engine.FBGEMM:
        return False
    if name.startswith("onednn::") and target.engine is not Engine.ONEDNN:
        return False
    return target.isa is not Isa.AVX512 or any(fnmatchcase(name, part) for part in _OF_LIBRARIES)


def cells(only: str = "*") -> Iterator[Cell]:
    """Yield every cell whose text matches a pattern such as ``quantized::add* fbgemm/*``."""
    for isa in Isa:
        for name in SAMPLERS:
            for engine in TORCH_ENGINES:
                if not _has_a_say(name, Target(engine, isa)):
                    continue
                for dtype in dtypes_of(name):
                    cell = Cell(name, Target(engine, isa), dtype)
                    if fnmatchcase(str(cell), only) or fnmatchcase(name, only):
                        yield cell
