"""``aten::gelu``: x times the normal distribution function."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import QParams, TensorType, quint8
from refquant.kernels import checks, elementary, elementary_jit
from refquant.kernels.activations import (
    Formula,
    Function,
    apply,
    apply_compiled,
    apply_float,
    apply_float_compiled,
    filling,
    suggested_output,
)
from refquant.kernels.jit import fma, jit
from refquant.kernels.rounding import fma as numpy_fma
from refquant.kernels.tensor_iterator import empty_sorted

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

_HALF, _ONE = np.float32(0.5), np.float32(1)
_SQRT_HALF_64 = math.sqrt(0.5)
_SQRT_HALF = np.float32(_SQRT_HALF_64)
_BETA_64 = math.sqrt(2) * (2 / math.sqrt(math.pi)) * 0.5
_BETA = np.float32(_BETA_64)
_KAPPA = np.float32(0.044715)


def _exact(erf: Function) -> Function:
    def gelu(x: F32) -> F32:
        return x * _HALF * (_ONE + erf(x * _SQRT_HALF))

    return gelu


def _exact_64(x: F32) -> F32:
    wide = x.astype(np.float64)
    normal = 1 + elementary.erf_float64(wide * _SQRT_HALF_64)
    return (wide * 0.5 * normal).astype(np.float32)


def _tanh(tanh: Function, *, fused: bool) -> Function:
    def gelu(x: F32) -> F32:
        cube = x * x * x
        inner = numpy_fma(_KAPPA, cube, x) if fused else x + _KAPPA * cube
        return _HALF * x * (_ONE + tanh(_BETA * inner))

    return gelu


def _tanh_64(x: F32) -> F32:
    wide, cube = x.astype(np.float64), (x * x * x).astype(np.float64)
    inner = _BETA_64 * (wide + 0.044715 * cube)
    return (0.5 * wide * (1 + elementary.tanh_float64(inner))).astype(np.float32)


QUANTIZED = {
    "none": Formula(_exact(elementary.erf_aten), _exact_64, _exact(elementary.erf_glibc)),
    "tanh": Formula(
        _tanh(elementary.tanh_sleef, fused=True),
        _tanh_64,
        _tanh(elementary.tanh_glibc, fused=False),
    ),
}
FLOAT_TANH = Formula(
    _tanh(elementary.tanh_sleef, fused=True),
    _tanh(elementary.tanh_glibc, fused=True),
    _tanh(elementary.tanh_glibc, fused=False),
)


def reference(
    self: QTensor | Array, approximate: str = "none", target: Target = Target()
) -> QTensor | Array:
    r"""Return *x* times the normal distribution function of *x*.

    .. math:: y = \tfrac x 2 (1 + \mathrm{erf}(x / \sqrt 2)) \quad\text{or}\quad
              y = \tfrac x 2 (1 + \tanh(\sqrt{2 / \pi} (x + 0.044715 x^3)))

    Quantized values are dequantized and quantized as in ``quantized::add`` and keep their
    parameters, but the scale is rounded to float32. The vector body computes in float32, with
    ATen's own polynomial for erf, or SLEEF's tanh and one fused step; the scalar tail computes in
    float64 with the C library (the cube in float32). The body without vector instructions takes
    glibc's float32 functions.

    float32, ``tanh``: as the quantized body, with glibc's ``tanhf`` in the scalar tail.
    float32, ``none``: float64, rounded once; torch calls oneDNN, whose polynomial differs by up to
    1.3e-6, and by 4e-7 of the result above 0.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        Values.
    approximate : str
        ``none`` or ``tanh``.

    Returns
    -------
    QTensor or float32 array
        Shape and memory format of the input.

    Raises
    ------
    VerifyError
        If the value is neither quantized per tensor nor float32, or ``approximate`` is unknown.

    Examples
    --------
    >>> reference(QTensor(np.uint8([0, 4, 9]), 1.0, 5)).int_repr
    array([5, 5, 9], dtype=uint8)
    """
    if isinstance(self, QTensor):
        formula = QUANTIZED[approximate]
        return apply(self, suggested_output(self), _kept(self.type), formula, target)
    if approximate == "tanh":
        return apply_float(self, FLOAT_TANH, target)
    out = empty_sorted(self.shape, [self], np.float32)
    out[...] = _exact_64(self)
    return out


def infer(self: TensorType, approximate: str = "none") -> TensorType:
    """Check the approximation; the result has the type of the operand."""
    checks.float_or_per_tensor("gelu", self)
    if approximate not in QUANTIZED:
        raise VerifyError(f"gelu: approximate must be none or tanh, got {approximate!r}")
    if self.qparams is None:
        return self
    return TensorType(self.dtype, self.shape, _kept(self))


def _kept(x: TensorType) -> QParams:
    scale, zero_point = x.per_tensor()
    return QParams(float(np.float32(scale)), zero_point)


@jit
def _body_none(x: F32, y: F32) -> None:
    for i in range(x.size):
        e = elementary_jit.erf_aten(np.float32(x[i] * _SQRT_HALF))
        y[i] = np.float32(np.float32(x[i] * _HALF) * np.float32(_ONE + e))


@jit
def _tail_none(x: F32, y: F32) -> None:
    for i in range(x.size):
        wide = np.float64(x[i])
        y[i] = np.float32(wide * 0.5 * (1.0 + elementary_jit.erf_float64(wide * _SQRT_HALF_64)))


@jit
def _plain_none(x: F32, y: F32) -> None:
    for i in range(x.size):
        e = elementary_jit.erf_glibc(np.float32(x[i] * _SQRT_HALF))
        y[i] = np.float32(np.float32(x[i] * _HALF) * np.float32(_ONE + e))


@jit
def _body_tanh(x: F32, y: F32) -> None:
    for i in range(x.size):
        cube = np.float32(np.float32(x[i] * x[i]) * x[i])
        t = elementary_jit.tanh_sleef(np.float32(_BETA * fma(_KAPPA, cube, x[i])))
        y[i] = np.float32(np.float32(_HALF * x[i]) * np.float32(_ONE + t))


@jit
def _tail_tanh(x: F32, y: F32) -> None:
    for i in range(x.size):
        wide = np.float64(x[i])
        cube = np.float64(np.float32(np.float32(x[i] * x[i]) * x[i]))
        t = elementary_jit.tanh_float64(_BETA_64 * (wide + 0.044715 * cube))
        y[i] = np.float32(0.5 * wide * (1.0 + t))


@jit
def _plain_tanh(x: F32, y: F32) -> None:
    for i in range(x.size):
        cube = np.float32(np.float32(x[i] * x[i]) * x[i])
        inner = np.float32(x[i] + np.float32(_KAPPA * cube))
        t = elementary_jit.tanh_glibc(np.float32(_BETA * inner))
        y[i] = np.float32(np.float32(_HALF * x[i]) * np.float32(_ONE + t))


@jit
def _fused_tanh(x: F32, y: F32) -> None:
    for i in range(x.size):
        cube = np.float32(np.float32(x[i] * x[i]) * x[i])
        t = elementary_jit.tanh_glibc(np.float32(_BETA * fma(_KAPPA, cube, x[i])))
        y[i] = np.float32(np.float32(_HALF * x[i]) * np.float32(_ONE + t))


COMPILED = {
    "none": Formula(filling(_body_none), filling(_tail_none), filling(_plain_none)),
    "tanh": Formula(filling(_body_tanh), filling(_tail_tanh), filling(_plain_tanh)),
}

# glibc's tanhf behind the vector body's formula, and without vector instructions its own.
_COMPILED_FLOAT_TANH = Formula(filling(_body_tanh), filling(_fused_tanh), filling(_plain_tanh))


def kernel(
    self: QTensor | Array, approximate: str = "none", target: Target = Target()
) -> QTensor | Array:
    """Compute :func:`reference` by tables, of float32 in compiled loops."""
    if not isinstance(self, QTensor):
        if approximate == "tanh":
            return apply_float_compiled(self, _COMPILED_FLOAT_TANH, target)
        out = empty_sorted(self.shape, [self], np.float32)
        out[...] = COMPILED["none"].tail(self.reshape(-1)).reshape(self.shape)
        return out
    formula = COMPILED[approximate]
    return apply_compiled(self, None, _kept(self.type), formula, target)


_X = QTensor(np.array([0, 4, 5, 9], np.uint8), 0.5, 5, None, quint8)

OPS = (
    Op(
        name="aten::gelu",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::qgelu_kernel",
            "pytorch/pytorch/aten/src/ATen/native/cpu/Activation.cpp::GeluKernelImpl",
        ),
        cases=(
            Case("none", (_X,), {}, [5, 5, 5, 9], "-0.154 at -0.5, 1.95 at 2"),
            Case("tanh", (_X,), {"approximate": "tanh"}, [5, 5, 5, 9], "the approximation"),
            Case(
                "float", (np.array([0, 20, np.nan], np.float32),), {}, [0, 20, np.nan], "NaN stays"
            ),
        ),
    ),
)
