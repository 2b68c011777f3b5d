"""``onednn::qadd``, ``qadd_relu`` and ``qmul``: pt2e's elementwise products of plain uint8."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES, Isa, Target
from refquant.ir.types import (
    DType,
    TensorType,
    bfloat16,
    float16,
    float32,
    format_shape,
    uint8,
)
from refquant.kernels.jit import fma as fma_jit
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_like, is_dense, memory_order
from refquant.kernels.rounding import fma

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

DTYPES = (uint8, float32, bfloat16, float16)
_WIDTH = 16  # bytes that one step of the vector loop reads
_INT32 = 2.0**31


def reference(
    self: Array,
    other: Array,
    self_scale: float,
    self_zero_point: int,
    other_scale: float,
    other_zero_point: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType,
    target: Target = Target(),
) -> Array:
    r"""Add two uint8 tensors; their quantization parameters are numbers.

    With AVX512 torch's vector loop takes 16 elements at a time, in the order of memory, and
    **reads bytes above 127 as negative** (a defect). It computes

    .. math:: v = \mathrm{fma}(x - z_x, s_x, (y - z_y) s_y)

    in float32, and ``rint(v * (1 / s)) + z``. The elements that are left, and all of them on
    other machines, are read without sign; each is scaled in float64 and rounded to float32, their
    sum is rounded again, and ``v * (1 / s)`` rounds half away from zero. ``1 / s`` is divided in
    float64, then rounded. The result is clamped to [0, 255]; a float result is ``v``, rounded to
    its dtype.

    Parameters
    ----------
    self, other : uint8, the same shape
        Dense, with the same strides: torch pairs elements by their place in memory.
    self_scale, self_zero_point, other_scale, other_zero_point : float, int
        Their quantization parameters.
    output_scale, output_zero_point : float, int
        Those of the result; 1 and 0 for a float result.
    output_dtype : DType
        uint8, float32, bfloat16 or float16.

    Returns
    -------
    Array, shape and strides of ``self``

    Raises
    ------
    VerifyError
        If shapes, dtypes or scales do not fit.
    UnsupportedError
        If strides differ or leave gaps: torch then pairs other elements.

    Examples
    --------
    >>> x, y = np.uint8([1, 200]), np.uint8([3, 5])
    >>> reference(x, y, 0.5, 0, 1.0, 0, 1.0, 10, uint8)
    array([ 14, 115], dtype=uint8)
    """
    numbers = _Numbers(
        *(self_scale, self_zero_point, other_scale, other_zero_point),
        *(output_scale, output_zero_point),
    )
    return _exact("qadd", self, other, numbers, output_dtype, target)


def reference_relu(
    self: Array,
    other: Array,
    self_scale: float,
    self_zero_point: int,
    other_scale: float,
    other_zero_point: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType,
    target: Target = Target(),
) -> Array:
    """Do :func:`reference` with negative sums replaced by 0."""
    numbers = _Numbers(
        *(self_scale, self_zero_point, other_scale, other_zero_point),
        *(output_scale, output_zero_point),
    )
    return _exact("qadd_relu", self, other, numbers, output_dtype, target)


def reference_mul(
    self: Array,
    other: Array,
    self_scale: float,
    self_zero_point: int,
    other_scale: float,
    other_zero_point: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType,
    target: Target = Target(),
) -> Array:
    """Multiply as :func:`reference` adds: ``float((x - z_x) * (y - z_y)) * m``.

    ``m = s_x * s_y / s`` is computed in float64 and rounded to float32.

    Examples
    --------
    >>> reference_mul(np.uint8([1, 200]), np.uint8([3, 5]), 0.5, 0, 1.0, 0, 1.0, 10, uint8)
    array([ 12, 255], dtype=uint8)
    """
    numbers = _Numbers(
        *(self_scale, self_zero_point, other_scale, other_zero_point),
        *(output_scale, output_zero_point),
    )
    return _exact("qmul", self, other, numbers, output_dtype, target)


class _Numbers(NamedTuple):
    x_scale: float
    x_zero: int
    y_scale: float
    y_zero: int
    scale: float
    zero: int

    @property
    def multiplier(self) -> np.float32:
        """Of a product."""
        return np.float32(self.x_scale * self.y_scale / self.scale)

    @property
    def inverse(self) -> np.float32:
        """Of the scale of a sum."""
        return np.float32(1.0 / self.scale)


def _sum_of_vector(x: F32, y: F32, n: _Numbers) -> F32:
    return fma(x, np.float32(n.x_scale), y * np.float32(n.y_scale))


def _sum_of_scalars(x: F32, y: F32, n: _Numbers) -> F32:
    scaled = (v.astype(np.float64) * s for v, s in ((x, n.x_scale), (y, n.y_scale)))
    one, other = (v.astype(np.float32) for v in scaled)
    return np.asarray(one + other)


def _product(x: F32, y: F32, n: _Numbers) -> F32:
    return np.asarray(x * y * n.multiplier)


def _no_relu(real: F32) -> F32:
    return real


def _relu(real: F32) -> F32:
    return np.maximum(real, np.float32(0))


# What the vector loop and the scalar one compute, and what follows.
_FORMULAS: dict[str, tuple[Callable[..., F32], Callable[..., F32], Callable[[F32], F32]]] = {
    "qadd": (_sum_of_vector, _sum_of_scalars, _no_relu),
    "qadd_relu": (_sum_of_vector, _sum_of_scalars, _relu),
    "qmul": (_product, _product, _no_relu),
}


def _away(x: F32) -> npt.NDArray[np.float64]:
    """Round half away from zero."""
    wide = x.astype(np.float64)
    return np.copysign(np.floor(np.abs(wide) + 0.5), wide)


def _check_memory(op: str, x: Array, y: Array) -> None:
    strides = [[s for s, n in zip(v.strides, v.shape, strict=True) if n > 1] for v in (x, y)]
    if not (is_dense(x) and is_dense(y) and strides[0] == strides[1]):
        raise UnsupportedError(
            f"{op}: torch pairs elements by their place in memory; operands must be dense with "
            f"the same strides, got {x.strides} and {y.strides}"
        )


def _in_vectors(size: int, target: Target) -> int:
    """Return how many elements the vector loop takes."""
    return size // _WIDTH * _WIDTH if target.isa in (Isa.AVX512_VNNI, Isa.AVX512) else 0


def _exact(op: str, self: Array, other: Array, n: _Numbers, dtype: DType, target: Target) -> Array:
    _check_memory(op, self, other)
    out = empty_like(self, dtype.storage)
    x, y, flat = memory_order(self), memory_order(other), memory_order(out)
    body = _in_vectors(x.size, target)
    vector, scalar, relu = _FORMULAS[op]
    factor = np.float32(1) if op == "qmul" else n.inverse
    for part, formula, whole in (
        (slice(body), vector, np.rint),
        (slice(body, None), scalar, _away),
    ):
        signed = np.int8 if part.start is None else np.uint8
        parts = ((x[part], n.x_zero), (y[part], n.y_zero))
        one, two = (v.view(signed).astype(np.float32) - np.float32(z) for v, z in parts)
        real = relu(formula(one, two, n))
        if dtype != uint8:
            flat[part] = real.astype(dtype.storage)
            continue
        steps = np.asarray(whole(real * factor), np.float64)
        steps = np.where(np.abs(steps) < _INT32, steps, -_INT32)
        flat[part] = np.clip(steps + n.zero, 0, 255)
    return out


def _infer(
    op: str,
    self: TensorType,
    other: TensorType,
    self_scale: float,
    self_zero_point: int,
    other_scale: float,
    other_zero_point: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType,
) -> TensorType:
    """Check operands and attributes."""
    for operand in (self, other):
        if operand.dtype != uint8:
            raise VerifyError(f"{op}: operands must be uint8, got {operand.dtype}")
    if self.shape != other.shape:
        raise VerifyError(
            f"{op}: operands must have one shape, got {format_shape(self.shape)} and "
            f"{format_shape(other.shape)}"
        )
    check_result(op, output_dtype, output_scale, output_zero_point)
    return TensorType(output_dtype, self.shape)


def check_result(op: str, dtype: DType, scale: float, zero_point: int) -> None:
    """Check the dtype of a result, and scale 1 and zero point 0 where it is a float."""
    if dtype not in DTYPES:
        accepted = ", ".join(map(str, DTYPES))
        raise VerifyError(f"{op}: output_dtype must be one of {accepted}, got {dtype}")
    if dtype == uint8 and not scale > 0:
        raise VerifyError(f"{op}: output_scale must be > 0, got {scale}")
    if dtype != uint8 and (scale != 1 or zero_point != 0):
        raise VerifyError(
            f"{op}: output_dtype {dtype} needs output_scale 1 and output_zero_point 0, "
            f"got {scale} and {zero_point}"
        )


# ---- compiled


@jit
def _reals(
    x: Array,
    y: Array,
    body: int,
    kind: int,
    x_scale: float,
    x_zero: int,
    y_scale: float,
    y_zero: int,
    multiplier: np.float32,
    real: Array,
) -> None:
    """Fill in the real values; ``kind``: 0 sum, 1 sum and relu, 2 product."""
    x_step, y_step = np.float32(x_scale), np.float32(y_scale)
    for i in range(x.size):
        a, b = np.int64(x[i]), np.int64(y[i])
        if i < body:
            a = a - 256 if a > 127 else a
            b = b - 256 if b > 127 else b
        a, b = a - x_zero, b - y_zero
        if kind == 2:
            v = np.float32(np.float32(a * b) * multiplier)
        elif i < body:
            v = fma_jit(np.float32(a), x_step, np.float32(np.float32(b) * y_step))
        else:
            v = np.float32(np.float32(a * x_scale) + np.float32(b * y_scale))
        real[i] = np.float32(0) if kind == 1 and v < np.float32(0) else v


@jit
def _store(real: Array, body: int, factor: np.float32, zero: int, y: Array) -> None:
    for i in range(real.size):
        steps = np.float64(np.float32(real[i] * factor))
        if i < body:
            whole = np.rint(steps)
        else:
            whole = np.floor(abs(steps) + 0.5)
            whole = -whole if steps < 0 else whole
        whole = whole if abs(whole) < 2147483648.0 else -2147483648.0
        y[i] = np.uint8(min(max(whole + zero, 0.0), 255.0))


def _compiled(op: str) -> Callable[..., Array]:
    kind = list(_FORMULAS).index(op)

    def kernel(
        self: Array,
        other: Array,
        self_scale: float,
        self_zero_point: int,
        other_scale: float,
        other_zero_point: int,
        output_scale: float,
        output_zero_point: int,
        output_dtype: DType,
        target: Target = Target(),
    ) -> Array:
        """Compute the reference in compiled loops."""
        _check_memory(op, self, other)
        n = _Numbers(
            *(float(self_scale), self_zero_point, float(other_scale), other_zero_point),
            *(float(output_scale), output_zero_point),
        )
        out = empty_like(self, output_dtype.storage)
        x, y, flat = memory_order(self), memory_order(other), memory_order(out)
        body = _in_vectors(x.size, target)
        real = flat if output_dtype == float32 else np.empty(x.size, np.float32)
        _reals(
            *(_writeable(x), _writeable(y), body, kind, n.x_scale, n.x_zero),
            *(n.y_scale, n.y_zero, n.multiplier, real),
        )
        if output_dtype == uint8:
            factor = np.float32(1) if op == "qmul" else n.inverse
            _store(real, body, factor, n.zero, flat)
        elif output_dtype != float32:
            flat[...] = real.astype(output_dtype.storage)
        return out

    return kernel


def _writeable(x: Array) -> Array:
    """Numba compiles anew for a read-only array."""
    return x if x.flags.writeable else x.copy()


_X, _Y = np.array([1, 200, 3], np.uint8), np.array([2, 5, 4], np.uint8)
_PLAIN = {
    **{"self_scale": 0.5, "self_zero_point": 0, "other_scale": 1.0, "other_zero_point": 0},
    **{"output_scale": 1.0, "output_zero_point": 10, "output_dtype": uint8},
}
_REAL = {**_PLAIN, "output_zero_point": 0, "output_dtype": float32}
_LOW = {**_PLAIN, "other_zero_point": 9}
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::_{}_tensor_cpu_impl"
)

OPS = tuple(
    Op(
        name=f"onednn::{name}.tensor",
        reference=formula,
        infer=partial(_infer, name),
        kernels=dict.fromkeys(TORCH_ENGINES, _compiled(name)),
        source=(_SOURCE.format(name.removesuffix("_relu")),),
        cases=cases,
    )
    for name, formula, cases in (
        (
            "qadd",
            reference,
            (
                Case("ties", (_X, _Y), _PLAIN, [13, 115, 16], "2.5 and 5.5 away from zero"),
                Case("float", (_X, _Y), _REAL, [2.5, 105, 5.5], "not rounded"),
                Case(
                    "signed",
                    (np.full(16, 200, np.uint8), np.full(16, 2, np.uint8)),
                    {**_PLAIN, "output_zero_point": 100},
                    [74] * 16,
                    "16 bytes together are read with a sign: 200 is -56",
                ),
            ),
        ),
        (
            "qadd_relu",
            reference_relu,
            (Case("negative", (_X, _Y), _LOW, [10, 106, 10], "-6.5 and -3.5 become 0"),),
        ),
        (
            "qmul",
            reference_mul,
            (
                Case("ties", (_X, _X), _PLAIN, [11, 255, 15], "0.5 and 4.5 away from zero"),
                Case("float", (_X, _Y), _REAL, [1, 500, 6], "not rounded"),
            ),
        ),
    )
)
