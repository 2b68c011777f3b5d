"""The dataflow IR: types, operations, graphs, files, execution. Imports nothing of refquant."""

from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError
from refquant.ir.file import load
from refquant.ir.graph import Graph, Node, Origin, Result, Value
from refquant.ir.module import Module
from refquant.ir.op import OPS, Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Isa, Target
from refquant.ir.text import parse
from refquant.ir.types import Dim, DType, QParams, TensorType

__all__ = [
    "OPS",
    "Case",
    "DType",
    "Dim",
    "Engine",
    "Graph",
    "Isa",
    "Module",
    "Node",
    "Op",
    "Origin",
    "QParams",
    "QTensor",
    "RefquantError",
    "Result",
    "Target",
    "TensorType",
    "UnsupportedError",
    "Value",
    "VerifyError",
    "load",
    "parse",
]
