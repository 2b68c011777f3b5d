"""The executable truth of PyTorch's quantization: bit for bit, without torch."""

from importlib import import_module
from typing import Any

from refquant import kernels
from refquant.ir import (
    Graph,
    QTensor,
    RefquantError,
    Target,
    UnsupportedError,
    VerifyError,
    load,
    parse,
)
from refquant.ir.types import (
    DType,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    qint8,
    qint32,
    quint4x2,
    quint8,
    uint8,
    uint16,
)

__version__ = "0.1.0"
__all__ = [
    "DType",
    "Graph",
    "QTensor",
    "RefquantError",
    "Target",
    "UnsupportedError",
    "VerifyError",
    "__version__",
    "bfloat16",
    "bool_",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "kernels",
    "load",
    "parse",
    "qint8",
    "qint32",
    "quint4x2",
    "quint8",
    "uint8",
    "uint16",
]


def __getattr__(name: str) -> Any:
    """Import ``refquant.compare`` and ``refquant.importers`` when first asked for."""
    if name in ("compare", "importers"):
        return import_module(f"refquant.{name}")
    raise AttributeError(f"module 'refquant' has no attribute {name!r}")
