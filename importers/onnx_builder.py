"""Building a graph from ONNX nodes: what depends on constants alone is computed at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from inspect import signature
from math import isqrt, prod
from types import NotImplementedType
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.importers.builder import Builder
from refquant.importers.onnx_file import MOST_BYTES, OnnxGraph, OnnxNode
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.graph import Origin, Value
from refquant.ir.op import OPS
from refquant.ir.qtensor import type_of
from refquant.ir.target import Target
from refquant.ir.types import Dim, DType, Size, TensorType, int64

Array = npt.NDArray[Any]
# Of constants that nodes compute, in bytes, and of one product of constants in multiplications.
MOST_COMPUTED = 2**33
MOST_MULTIPLIED = 2**32
PRODUCTS = (
    *(f"aten::{name}" for name in ("matmul", "linear", "conv1d", "conv2d", "conv3d")),
    *(f"aten::conv_transpose{rank}d" for rank in (1, 2, 3)),
    *(f"onnx::{name}" for name in ("Gemm", "MatMul", "MatMulInteger", "ConvInteger")),
)


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that is known while the model is read.

    ``data`` is an array of objects where it holds lengths that depend on the batch: integers
    and :class:`~refquant.ir.types.Dim`. ``stored`` tells constants of the file from those
    that its nodes compute.
    """

    name: str
    data: Array
    stored: bool = False

    @property
    def is_symbolic(self) -> bool:
        """Whether an entry depends on the batch."""
        return self.data.dtype == object

    @property
    def type(self) -> TensorType:
        """Type of the tensor."""
        if self.is_symbolic:
            return TensorType(int64, self.data.shape)
        return type_of(self.data)


# What a name of an ONNX graph stands for: a value of our graph, a constant, a sequence, or an
# optional input that is absent.
Known = Value | Constant
Operand = Known | tuple[Any, ...] | None
Result = Operand | list[Operand] | NotImplementedType
# A list is several results; a tuple is one result, which is a sequence; NotImplemented asks for
# the standard's function.
Rule = Callable[..., Result]


class DataDependentError(UnsupportedError):
    """A shape or a branch depends on values that only a run gives."""


class OnnxBuilder(Builder):
    """The builder with what rules of ONNX operators need.

    A node all of whose operands are constants is not added but computed, by the kernel of
    ``target``'s engine.

    Attributes
    ----------
    node : OnnxNode
        The node in hand, with the defaults of its attributes.
    version : int
        The opset since which the operator in hand is as it is.
    """

    node: OnnxNode
    version: int

    def __init__(self, target: Target, subgraph: Callable[..., list[Operand]]) -> None:
        super().__init__()
        self.target = target
        self._subgraph = subgraph
        self.computed = 0  # bytes of constants

    # ---- attributes and constants

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the node in hand."""
        return self.node.attributes.get(name, default)

    def only(self, condition: bool, message: str) -> None:
        """Refuse what no op of ours does."""
        if not condition:
            raise UnsupportedError(message)

    def constant(self, data: Any, dtype: Any = None) -> Constant:
        """Return a constant of the node in hand."""
        return Constant(self.node.label, np.asarray(data, dtype))

    def shape_constant(self, sizes: tuple[Size, ...]) -> Constant:
        """Return lengths as a constant, symbolic where one depends on the batch."""
        return Constant(self.node.label, vector(sizes))

    def array(self, operand: Operand, what: str) -> Array:
        """Return a constant's data; refuse a value that only a run gives."""
        if isinstance(operand, Constant) and not operand.is_symbolic:
            return operand.data
        if isinstance(operand, Constant):
            raise DataDependentError(f"{what} depends on the batch; give the input's shape")
        raise DataDependentError(f"{what} must be a constant, it is computed when the model runs")

    def sizes(self, operand: Operand, what: str) -> tuple[Size, ...]:
        """Return a constant vector of lengths or positions, which may depend on the batch."""
        if isinstance(operand, Constant):
            if operand.data.dtype.kind not in "iuO":
                raise VerifyError(f"{what} must be integers, got {operand.type}")
            return tuple(
                int(n) if isinstance(n, int | np.integer) else n for n in operand.data.reshape(-1)
            )
        raise DataDependentError(f"{what} must be a constant, it is computed when the model runs")

    def integers(self, operand: Operand, what: str) -> tuple[int, ...]:
        """Return a constant vector of integers."""
        return tuple(int(n) for n in self.array(operand, what).reshape(-1))

    # ---- nodes

    def input(self, name: str, value_type: TensorType) -> Value:
        """Add an argument of the model, of up to 2 GiB."""
        try:
            check_size(value_type)
        except UnsupportedError as error:
            raise UnsupportedError(f"input {name}: {error}") from None
        return super().input(name, value_type)

    def emit(self, op: str, /, *inputs: Any, **attributes: Any) -> Known:  # type: ignore[override]
        """Append a node of one result, or compute it; return what it gives."""
        found: Known
        (found,) = self.emit_all(op, *inputs, **attributes)
        return found

    def emit_all(self, op: str, /, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        """Append a node, or compute it if all operands are constants."""
        given = [x for x in inputs if x is not None]
        check_signature(op, inputs, attributes)
        if any(isinstance(x, tuple) for x in given):
            raise UnsupportedError(f"{op} of a sequence")
        if any(isinstance(x, Constant) and x.is_symbolic for x in given):
            raise DataDependentError("a value that depends on the batch; give the input's shape")
        if all(isinstance(x, Constant) for x in given) and not is_symbolic(attributes.values()):
            return self._compute(op, inputs, attributes)
        values = [self.parameter(x.name, x.data) if isinstance(x, Constant) else x for x in inputs]
        outputs = super().emit_all(op, *values, **attributes)
        for value in outputs:
            check_size(value.type)
        return outputs

    def _compute(self, op: str, inputs: tuple[Any, ...], attributes: Any) -> tuple[Constant, ...]:
        if op not in OPS:
            raise UnsupportedError(f"no op {op}")
        types = OPS[op].infer(*(x and x.type for x in inputs), **attributes)
        results = (types,) if isinstance(types, TensorType) else types
        for kind in results:
            check_size(kind)
        if op in PRODUCTS:
            check_work(inputs[0].type, inputs[1].type, results[0])
        self.computed += sum(map(bytes_of, results))
        if self.computed > MOST_COMPUTED:
            raise UnsupportedError(f"constants of more than {MOST_COMPUTED} bytes to compute")
        kernel = OPS[op].bind(self.target, fast=True)
        made = kernel(*(x and x.data for x in inputs), **attributes)
        several = made if isinstance(made, tuple) else (made,)
        return tuple(Constant(self.node.label, np.asarray(y)) for y in several)

    def cast(self, x: Known, dtype: DType) -> Known:
        """Return a tensor as another type."""
        return x if x.type.dtype == dtype else self.emit("aten::to", x, dtype=dtype)

    def step(self, op: str, /, *inputs: Any, **attributes: Any) -> Known:
        """Add one node apart from a rule, for a step of the control flow in hand."""
        self.open(Origin("onnx", self.node.qualified, self.node.label))
        made: Known = self.close(self.node.label, self.emit(op, *inputs, **attributes))
        return made

    def run_subgraph(self, graph: OnnxGraph, *operands: Operand) -> list[Operand]:
        """Import the nodes of a subgraph in place; return its results."""
        return self._subgraph(graph, operands)


_NOT = {"int": (str, tuple), "float": (str, tuple), "str": (int, float, tuple)}


@cache
def _formal(op: str) -> tuple[tuple[int, str, str], ...]:
    """Return position, name and annotation of what the checks of an op take."""
    parameters = signature(OPS[op].infer).parameters.values() if op in OPS else ()
    return tuple((i, p.name, str(p.annotation)) for i, p in enumerate(parameters))


def check_signature(op: str, inputs: tuple[Any, ...], attributes: Mapping[str, Any]) -> None:
    """Refuse a missing operand and an attribute of another type than the op takes.

    Examples
    --------
    >>> check_signature("com.microsoft::QGemm", (None,), {})
    Traceback (most recent call last):
    refquant.ir.errors.VerifyError: operand a is missing
    """
    for i, name, annotation in _formal(op):
        if annotation == "TensorType" and i < len(inputs) and inputs[i] is None:
            raise VerifyError(f"operand {name} is missing")
        if isinstance(attributes.get(name), _NOT.get(annotation, ())):
            raise VerifyError(f"{name}: expected {annotation}, got {attributes[name]!r:.60}")


def is_symbolic(values: Iterable[Any]) -> bool:
    """Whether a value, or an entry of a tuple among them, depends on the batch."""
    return any(is_symbolic(v) if isinstance(v, tuple) else isinstance(v, Dim) for v in values)


def vector(sizes: tuple[Size, ...]) -> Array:
    """Return lengths as an array: of int64, or of objects where one is symbolic.

    Examples
    --------
    >>> vector((2, 3)).dtype
    dtype('int64')
    """
    known = all(isinstance(size, int) for size in sizes)
    made = np.empty(len(sizes), np.int64 if known else object)
    made[:] = sizes
    return made


def check_work(a: TensorType, b: TensorType, result: TensorType) -> None:
    """Refuse a product of constants that takes more than seconds.

    Each of the three lengths of a product of matrices is a length of two of its matrices.
    """
    count = isqrt(prod(prod(x.sizes) for x in (a, b, result)))
    if count > MOST_MULTIPLIED:
        raise UnsupportedError(f"a product of constants takes {count} multiplications")


def bytes_of(kind: TensorType) -> int:
    """Return what a tensor takes, a symbolic length counted as 1."""
    return prod(n for n in kind.shape if isinstance(n, int)) * kind.dtype.storage.itemsize


def check_size(kind: TensorType) -> None:
    """Refuse a tensor of more than 2 GiB."""
    size = bytes_of(kind)
    if size > MOST_BYTES:
        raise UnsupportedError(f"a tensor {kind} takes {size} bytes, more than 2 GiB")
