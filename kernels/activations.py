"""How torch evaluates a real function on a quantized tensor, element by element.

``QuantizedCPU`` activations dequantize, call a float32 function and quantize. The vector body
and the scalar tail of the loop differ in all three steps; see ``quantized::add`` for the
roundings and :mod:`refquant.kernels.elementary` for the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Target
from refquant.ir.types import DType, QParams, TensorType, qint32
from refquant.kernels import checks, rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_suggested, flat_pair, memory_order, suggested
from refquant.kernels.lookup import look_up
from refquant.kernels.pointwise import (
    body_mask,
    body_rule,
    chunks,
    dequantize_body,
    float_width,
    quantize_body,
    same_memory,
    vector_width,
)
from refquant.kernels.rounding_jit import BEFORE, dequantize, quantize
from refquant.kernels.tensor_iterator import empty_sorted

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Function = Callable[[F32], F32]


class Formula(NamedTuple):
    """A function in the forms that torch has of it, each float32 to float32.

    Parameters
    ----------
    body : function
        In the vector loop.
    tail : function
        In the scalar loop.
    plain : function
        In the vector loop of a build without vector instructions (``isa="default"``).
    fused_input : bool
        Whether the vector loop dequantizes with a fused multiply-add.
    made_dense : bool
        Whether the operand is first copied to dense memory in its own format, so that a view
        with gaps still has a vector body.
    all_tail : set of (Engine, DType)
        Where the engine looks values up in a table made with the scalar function.
    """

    body: Function
    tail: Function
    plain: Function
    fused_input: bool = True
    made_dense: bool = False
    all_tail: frozenset[tuple[Engine, DType]] = frozenset()

    def in_body(self, target: Target) -> Function:
        """Return the function of the vector loop."""
        return self.body if target.fused_multiply_add else self.plain

    @classmethod
    def everywhere(
        cls,
        function: Function,
        *,
        fused_input: bool = True,
        made_dense: bool = False,
        all_tail: frozenset[tuple[Engine, DType]] = frozenset(),
    ) -> Formula:
        """Return the record of a function that is the same in all three forms."""
        return cls(function, function, function, fused_input, made_dense, all_tail)


def _operand(x: QTensor, formula: Formula) -> Array:
    return suggested(x.int_repr) if formula.made_dense else x.int_repr


class filling:  # noqa: N801  (reads as the function that it is)
    """A compiled loop ``loop(x, *parameters, y)`` as a function from x to y.

    Two are equal, for the cache of tables, where loop and bits of the parameters are.
    """

    def __init__(self, loop: Callable[..., None], *parameters: np.float32) -> None:
        self.loop, self.parameters = loop, parameters
        self.key = (loop, *(parameter.tobytes() for parameter in parameters))
        self.hash = hash(self.key)

    def __call__(self, x: F32) -> F32:
        """Return y."""
        y = np.empty_like(x)
        self.loop(x, *self.parameters, y)
        return y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, filling) and self.key == other.key

    def __hash__(self) -> int:
        return self.hash


def apply(x: QTensor, out: Array, qparams: QParams, formula: Formula, target: Target) -> QTensor:
    """Evaluate a formula on every element, in plain NumPy."""
    q, dtype = _operand(x, formula), x.dtype
    (s, z), (scale, zero_point) = x.type.per_tensor(), _pair(qparams)
    mask = body_mask(out, [q], target, vector_width(dtype))
    if (target.engine, dtype) in formula.all_tail:
        mask[...] = False
    body, tail = q[mask], q[~mask]
    if formula.fused_input:
        real = dequantize_body(body, s, z, target)
    else:
        real = rounding.dequantize_plain(body, s, z)
    out[mask] = quantize_body(formula.in_body(target)(real), scale, zero_point, dtype, target)
    value = formula.tail(rounding.dequantize_plain(tail, s, z))
    out[~mask] = rounding.quantize_before(value, scale, zero_point, dtype)
    return QTensor(out, scale, zero_point, None, dtype)


def apply_float(x: F32, formula: Formula, target: Target) -> F32:
    """Evaluate a formula on a float32 array, in plain NumPy."""
    out = empty_sorted(x.shape, [x], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        if not target.fused_multiply_add:
            out[...] = formula.plain(x.reshape(-1)).reshape(x.shape)
            return out
        mask = body_mask(out, [x], target, float_width(target))
        out[mask] = formula.body(x[mask])
        out[~mask] = formula.tail(x[~mask])
    return out


def apply_float_compiled(x: F32, formula: Formula, target: Target) -> F32:
    """Evaluate a formula of compiled functions on a float32 array."""
    dense = flat_pair(x, x)
    if dense is None or not target.fused_multiply_add:
        return apply_float(x, formula, target)
    real, _, into, out = dense
    for start, middle, end in chunks(real.size, target, float_width(target)):
        into[start:middle] = formula.body(real[start:middle])
        into[middle:end] = formula.tail(real[middle:end])
    return out


@jit
def _dequantize(q: Any, scale: np.float32, zero_point: int, fused: bool, real: F32) -> None:
    offset = np.float32(-scale * np.float32(zero_point))
    for i in range(q.size):
        real[i] = dequantize(q[i], scale, offset, zero_point, fused)


@jit
def _quantize(
    real: F32, inverse: np.float32, zero_point: int, low: int, high: int, rule: int, q: Any
) -> None:
    for i in range(q.size):
        q[i] = quantize(real[i], inverse, zero_point, low, high, rule)


class _Loops:
    """The compiled body and tail for one set of parameters: from integers, into integers."""

    def __init__(
        self,
        formula: Formula,
        dtype: DType,
        scales: tuple[float, float],
        zero_points: tuple[int, int],
        target: Target,
    ) -> None:
        self.formula, self.dtype, self.target = formula, dtype, target
        self.scales, self.zero_points = scales, zero_points

    def body(self, q: Array, into: Array) -> None:
        """Compute what torch's vector loop does."""
        if self.dtype != qint32:
            look_up(q, self._body_table, into)
        else:
            self._body(q, into)

    def tail(self, q: Array, into: Array) -> None:
        """Compute what torch's scalar loop does."""
        if self.dtype != qint32:
            look_up(q, self._tail_table, into)
        else:
            self._tail(q, into)

    def _body(self, q: Array, into: Array) -> None:
        fused = self.formula.fused_input and self.target.fused_multiply_add
        rule = body_rule(self.dtype, self.target)
        self._run(q, into, fused, self.formula.in_body(self.target), rule)

    def _tail(self, q: Array, into: Array) -> None:
        self._run(q, into, False, self.formula.tail, BEFORE)

    def _run(self, q: Array, into: Array, fused: bool, function: Function, rule: int) -> None:
        real = np.empty(q.size, np.float32)
        _dequantize(q, np.float32(self.scales[0]), self.zero_points[0], fused, real)
        inverse = rounding.reciprocal(self.scales[1])
        limits = self.dtype.limits
        _quantize(function(real), inverse, self.zero_points[1], *limits, rule, into)

    def _tabulated(self, loop: Callable[[Array, Array], None]) -> Array:
        every = np.arange(256, dtype=np.uint8).view(self.dtype.storage)
        table = np.empty_like(every)
        loop(every, table)
        return table

    @cached_property
    def _body_table(self) -> Array:
        return self._tabulated(self._body)

    @cached_property
    def _tail_table(self) -> Array:
        return self._tabulated(self._tail)


_loops = lru_cache(maxsize=1024)(_Loops)


def apply_compiled(
    x: QTensor, out: Array | None, qparams: QParams, formula: Formula, target: Target
) -> QTensor:
    """Evaluate a formula of compiled functions; 8-bit values by tables of 256 entries.

    Without ``out`` the result has the memory format of the input.
    """
    dtype, (scale, zero_point) = x.dtype, _pair(qparams)
    scales, zero_points = (float(x.scale), scale), (int(x.zero_point), zero_point)
    loops = _loops(formula, dtype, scales, zero_points, target)
    all_tail = (target.engine, dtype) in formula.all_tail
    dense = flat_pair(x.int_repr, x.int_repr) if out is None and not all_tail else None
    if dense is not None:
        flat, _, into, out = dense
    else:
        q = _operand(x, formula)
        out = suggested_output(x) if out is None else out
        if all_tail:
            out[...] = _through(loops.tail, q.reshape(-1)).reshape(q.shape)
            return QTensor.unchecked(out, scale, zero_point, dtype)
        if not same_memory(out, q):
            mask = body_mask(out, [q], target, vector_width(dtype))
            out[mask] = _through(loops.body, q[mask])
            out[~mask] = _through(loops.tail, q[~mask])
            return QTensor.unchecked(out, scale, zero_point, dtype)
        flat, into = memory_order(q), memory_order(out)
    for start, middle, end in chunks(flat.size, target, vector_width(dtype)):
        if middle > start:
            loops.body(flat[start:middle], into[start:middle])
        if end > middle:
            loops.tail(flat[middle:end], into[middle:end])
    return QTensor.unchecked(out, scale, zero_point, dtype)


def _through(loop: Callable[[Array, Array], None], q: Array) -> Array:
    """Return what a loop makes of some integers."""
    contiguous = np.ascontiguousarray(q)
    into = np.empty_like(contiguous)
    loop(contiguous, into)
    return into


def _pair(qparams: QParams) -> tuple[float, int]:
    scale, zero_point = qparams.scale, qparams.zero_point
    assert isinstance(scale, float)
    assert isinstance(zero_point, int)
    return scale, zero_point


def suggested_output(x: QTensor) -> Array:
    """Allocate the result of most activations: in the memory format of the input."""
    return empty_suggested(x.int_repr, x.int_repr.dtype)


def infer_quantized(
    op: str, x: TensorType, output_scale: float, output_zero_point: int
) -> TensorType:
    """Check a quantized operand and the output parameters of an activation."""
    checks.per_tensor(op, x)
    qparams = checks.output_qparams(op, x.dtype, output_scale, output_zero_point)
    return TensorType(x.dtype, x.shape, qparams)
