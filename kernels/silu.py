"""``aten::silu``: x times its logistic function."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType
from refquant.kernels import checks, elementary
from refquant.kernels.activations import Formula, Function, apply_float

F32 = npt.NDArray[np.float32]


def _silu(exp: Function) -> Function:
    def silu(x: F32) -> F32:
        return x / (np.float32(1) + exp(-x))

    return silu


FORMULA = Formula(
    _silu(elementary.exp_sleef), _silu(elementary.exp_glibc), _silu(elementary.exp_glibc)
)


def reference(self: F32, target: Target = Target()) -> F32:
    r"""Return *x* times the logistic function of *x*.

    .. math:: y = x / (1 + e^{-x})

    Each step is rounded to float32; SLEEF's exp in the vector body, glibc's ``expf`` in the scalar
    tail; see ``aten::sigmoid``. torch has no quantized silu.

    Parameters
    ----------
    self : float32, any shape
        Values.

    Returns
    -------
    float32 array, shape and strides of the input

    Raises
    ------
    VerifyError
        If the value is not float32.

    Examples
    --------
    >>> reference(np.float32([-1, 0, 1]))
    array([-0.26894143,  0.        ,  0.7310586 ], dtype=float32)
    """
    return apply_float(self, FORMULA, target)


def infer(self: TensorType) -> TensorType:
    """Check that the operand is float32."""
    checks.is_float32("aten::silu", self)
    return self


OPS = (
    Op(
        name="aten::silu",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=("pytorch/pytorch/aten/src/ATen/native/cpu/Activation.cpp::silu_kernel",),
        cases=(
            Case(
                "float",
                (np.array([0, 200, -200, np.nan], np.float32),),
                {},
                [0, 200, -0.0, np.nan],
                "both ends and NaN",
            ),
        ),
    ),
)
