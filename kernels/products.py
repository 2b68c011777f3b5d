"""What float matrix products and convolutions share: checks, and the order of summation.

torch sums float products in the order of MKL and oneDNN, which depends on shapes, threads and
the processor and cannot be promised. These ops sum in NumPy's order. The difference is bounded by
the usual rounding error, ``k * 2**-24`` relative to the sum of the absolute terms for ``k``
terms; where every partial sum is exactly representable (small integers times powers of two) there
is none. For engine ort the order is onnxruntime's; see ``onnx/mlas_products.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import Shape, Size, TensorType, format_shape

SOURCE = "pytorch/aten/src/ATen/native/{}.cpp"


def product(
    name: str,
    reference: Callable[..., Any],
    infer: Callable[..., Any],
    *cases: Case,
    source: str = "LinearAlgebra",
    kernels: Mapping[Engine, Callable[..., Any]] | None = None,
) -> Op:
    """Return the record of a float product: NumPy's BLAS is the kernel but for ``kernels``."""
    return Op(
        name=name,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, reference) | dict(kernels or {}),
        source=(SOURCE.format(source),),
        cases=cases,
    )


def is_onnxruntimes(x: Array, target: Target) -> bool:
    """Whether a product is added up in onnxruntime's order, which is known for float32."""
    return target.engine is Engine.ORT and x.dtype == np.float32


def check_float(op: str, *operands: TensorType | None) -> None:
    """Refuse quantized operands and mixed types.

    Raises
    ------
    VerifyError
        If an operand is not a float of the first one's type.
    """
    first = operands[0]
    assert first is not None
    for operand in operands:
        if operand is not None and (
            not operand.dtype.is_floating_point or operand.dtype != first.dtype
        ):
            raise VerifyError(f"{op}: expected {first.dtype} operands, got {operand}")


def check_equal(op: str, what: str, got: Size, expected: Size) -> None:
    """Refuse a length that does not fit.

    Raises
    ------
    VerifyError
        If the two lengths differ.
    """
    if got != expected:
        raise VerifyError(f"{op}: {what} must be {expected}, got {got}")


def check_rank(op: str, operand: TensorType, least: int) -> None:
    """Refuse a tensor with too few dimensions.

    Raises
    ------
    VerifyError
        If the rank is below ``least``.
    """
    if operand.rank < least:
        raise VerifyError(
            f"{op}: expected at least {least} dimensions, got {format_shape(operand.shape)}"
        )


def joined(*parts: Shape | Size) -> Shape:
    """Return one shape from shapes and lengths."""
    result: list[Size] = []
    for part in parts:
        result += part if isinstance(part, tuple) else (part,)
    return tuple(result)
