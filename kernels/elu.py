"""``elu`` and ``celu``, quantized and float: exponential below 0."""

from __future__ import annotations

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
    filling,
    infer_quantized,
)
from refquant.kernels.jit import jit

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def _elu(expm1: Function, alpha: float, scale: float, input_scale: float) -> Function:
    """Return ``x * scale`` above 0 and ``expm1(x * input_scale) * alpha * scale`` below."""
    a, s, i = np.float32(alpha), np.float32(scale), np.float32(input_scale)

    def elu(x: F32) -> F32:
        with np.errstate(over="ignore"):  # above 0 the exponential is not used
            return np.where(x > 0, x, expm1(x * i) * a) * s

    return elu


def _elu_float(expm1: Function, alpha: float, scale: float, input_scale: float) -> Function:
    """Return elu of ATen's float kernel, which multiplies ``alpha * scale`` first."""
    s, i = np.float32(scale), np.float32(input_scale)
    below = np.float32(alpha) * s

    def elu(x: F32) -> F32:
        with np.errstate(over="ignore"):
            return np.where(x <= 0, expm1(x * i) * below, x * s)

    return elu


def reference(
    self: QTensor,
    output_scale: float,
    output_zero_point: int,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
    target: Target = Target(),
) -> QTensor:
    r"""Return elu of a quantized tensor.

    .. math:: y = s \begin{cases} x & x > 0 \\ \alpha (e^{i x} - 1) & x \le 0 \end{cases}

    with *s* = ``scale`` and *i* = ``input_scale``; every step is rounded to float32. Values are
    dequantized and quantized as in ``quantized::add``. The vector body calls SLEEF's expm1, the
    scalar tail (and the body without vector instructions) glibc's ``expm1f``. The result is
    always in C order, so a channels-last tensor is all tail.

    Parameters
    ----------
    self : QTensor, quint8, qint8 or qint32
        Quantized per tensor.
    output_scale : float, > 0
        Scale of the result.
    output_zero_point : int
        Zero point of the result.
    alpha, scale, input_scale : float
        Shape of the function.

    Returns
    -------
    QTensor
        C-contiguous.

    Raises
    ------
    VerifyError
        If the input is not quantized per tensor or an output parameter is out of range.

    Examples
    --------
    >>> reference(QTensor(np.uint8([0, 5, 9]), 1.0, 5), 0.1, 20).int_repr
    array([10, 20, 60], dtype=uint8)
    """
    parameters = (alpha, scale, input_scale)
    formula = Formula(
        _elu(elementary.expm1_sleef, *parameters),
        _elu(elementary.expm1_glibc, *parameters),
        _elu(elementary.expm1_glibc, *parameters),
    )
    qparams = QParams(float(output_scale), int(output_zero_point))
    return apply(self, _c_order(self), qparams, formula, target)


def reference_celu(
    self: QTensor,
    output_scale: float,
    output_zero_point: int,
    alpha: float = 1.0,
    target: Target = Target(),
) -> QTensor:
    r"""Return celu of a quantized tensor: elu with ``input_scale`` = 1 / ``alpha``.

    .. math:: y = \begin{cases} x & x > 0 \\ \alpha (e^{x / \alpha} - 1) & x \le 0 \end{cases}

    Everything else is as in ``quantized::elu``.

    Examples
    --------
    >>> reference_celu(QTensor(np.uint8([0, 5, 9]), 1.0, 5), 0.1, 20, 2.0).int_repr
    array([ 2, 20, 60], dtype=uint8)
    """
    return reference(self, output_scale, output_zero_point, alpha, 1.0, 1.0 / alpha, target)


def reference_float(
    self: F32,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
    target: Target = Target(),
) -> F32:
    """Return elu of a float32 array.

    The formula is that of ``quantized::elu``, except that ``alpha * scale`` is multiplied first.
    SLEEF's expm1 in the vector body, glibc's in the scalar tail; see ``aten::sigmoid``.

    Examples
    --------
    >>> reference_float(np.float32([-1, 2]))
    array([-0.63212055,  2.        ], dtype=float32)
    """
    parameters = (alpha, scale, input_scale)
    formula = Formula(
        _elu_float(elementary.expm1_sleef, *parameters),
        _elu_float(elementary.expm1_glibc, *parameters),
        _elu_float(elementary.expm1_glibc, *parameters),
    )
    return apply_float(self, formula, target)


def reference_celu_float(self: F32, alpha: float = 1.0, target: Target = Target()) -> F32:
    """Return celu of a float32 array: ``aten::elu`` with ``input_scale`` = 1 / ``alpha``.

    Examples
    --------
    >>> reference_celu_float(np.float32([-1, 2]), 2.0)
    array([-0.78693867,  2.        ], dtype=float32)
    """
    return reference_float(self, alpha, 1.0, 1.0 / alpha, target)


def _c_order(x: QTensor) -> Array:
    return np.empty(x.shape, x.int_repr.dtype)


def infer(
    self: TensorType,
    output_scale: float,
    output_zero_point: int,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
) -> TensorType:
    """Check the operand and the output parameters."""
    return infer_quantized("quantized::elu", self, output_scale, output_zero_point)


def infer_celu(
    self: TensorType, output_scale: float, output_zero_point: int, alpha: float = 1.0
) -> TensorType:
    """Check the operand, ``alpha`` and the output parameters."""
    _check_alpha("quantized::celu", alpha)
    return infer_quantized("quantized::celu", self, output_scale, output_zero_point)


def infer_float(
    self: TensorType, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> TensorType:
    """Check that the operand is float32."""
    checks.is_float32("aten::elu", self)
    return self


def infer_celu_float(self: TensorType, alpha: float = 1.0) -> TensorType:
    """Check the operand and ``alpha``."""
    _check_alpha("aten::celu", alpha)
    checks.is_float32("aten::celu", self)
    return self


def _check_alpha(op: str, alpha: float) -> None:
    if alpha == 0:
        raise VerifyError(f"{op}: alpha must not be 0")


@jit
def _sleef(x: F32, alpha: np.float32, scale: np.float32, input_scale: np.float32, y: F32) -> None:
    for i in range(x.size):
        value = x[i]
        if not value > 0:
            value = elementary_jit.expm1_sleef(np.float32(value * input_scale))
            value = np.float32(value * alpha)
        y[i] = np.float32(value * scale)


@jit
def _glibc(x: F32, alpha: np.float32, scale: np.float32, input_scale: np.float32, y: F32) -> None:
    for i in range(x.size):
        value = x[i]
        if not value > 0:
            value = elementary_jit.expm1_glibc(np.float32(value * input_scale))
            value = np.float32(value * alpha)
        y[i] = np.float32(value * scale)


def kernel(
    self: QTensor,
    output_scale: float,
    output_zero_point: int,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference` by tables."""
    parameters = tuple(map(np.float32, (alpha, scale, input_scale)))
    tail = filling(_glibc, *parameters)
    formula = Formula(filling(_sleef, *parameters), tail, tail)
    qparams = QParams(float(output_scale), int(output_zero_point))
    return apply_compiled(self, _c_order(self), qparams, formula, target)


def kernel_celu(
    self: QTensor,
    output_scale: float,
    output_zero_point: int,
    alpha: float = 1.0,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference_celu` by tables."""
    return kernel(self, output_scale, output_zero_point, alpha, 1.0, 1.0 / alpha, target)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::qelu_kernel",
)
_SOURCE_FLOAT = (
    "pytorch/pytorch/aten/src/ATen/native/cpu/Elu.h::get_vectorized_elu_elementwise_func",
)
_X = QTensor(np.array([0, 4, 5, 9], np.uint8), 1.0, 5, None, quint8)
_OUTPUT = {"output_scale": 0.1, "output_zero_point": 20}

OPS = (
    Op(
        name="quantized::elu",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case("default", (_X,), _OUTPUT, [10, 14, 20, 60], "-1 at -5, -0.63 at -1"),
            Case(
                "selu",
                (_X,),
                {**_OUTPUT, "alpha": 2.0, "scale": 3.0, "input_scale": 0.5},
                [0, 0, 20, 140],
                "all three parameters",
            ),
        ),
    ),
    Op(
        name="quantized::celu",
        reference=reference_celu,
        infer=infer_celu,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_celu),
        source=_SOURCE,
        cases=(Case("alpha", (_X,), {**_OUTPUT, "alpha": 2.0}, [2, 12, 20, 60], "-1.84 at -5"),),
    ),
    Op(
        name="aten::elu",
        reference=reference_float,
        infer=infer_float,
        kernels=dict.fromkeys(TORCH_ENGINES, reference_float),
        source=_SOURCE_FLOAT,
        cases=(
            Case(
                "float",
                (np.array([-np.inf, 0, 2, np.nan], np.float32),),
                {"alpha": 0.5},
                [-0.5, 0, 2, np.nan],
                "both ends and NaN",
            ),
        ),
    ),
    Op(
        name="aten::celu",
        reference=reference_celu_float,
        infer=infer_celu_float,
        kernels=dict.fromkeys(TORCH_ENGINES, reference_celu_float),
        source=_SOURCE_FLOAT,
        cases=(
            Case(
                "float",
                (np.array([-np.inf, 0, 2], np.float32),),
                {"alpha": 0.5},
                [-0.5, 0, 2],
                "both ends",
            ),
        ),
    ),
)
