"""torch's type promotion, which differs from NumPy's where integers meet floats."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.types import DTYPES, DType, TensorType, bool_, float32, int64

Number = bool | int | float


def _category(dtype: DType) -> int:
    """Order of precedence: bool, integer, float."""
    return 0 if dtype == bool_ else 2 if dtype.is_floating_point else 1


def _promote(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    try:
        return np.promote_types(a, b)
    except np.exceptions.DTypePromotionError:  # float16 and bfloat16
        return np.dtype(np.float32)


def _widest(dtypes: list[DType]) -> DType:
    storage = reduce(_promote, (dtype.storage for dtype in dtypes))
    return next(d for d in DTYPES.values() if not d.is_quantized and d.storage == storage)


def result_dtype(op: str, *operands: TensorType | Number) -> DType:
    """Return the dtype of an arithmetic result.

    The highest category (bool < integer < float) wins; within it tensors of rank > 0 count
    before tensors of rank 0, and those before Python numbers.

    Raises
    ------
    VerifyError
        If an operand is quantized.

    Examples
    --------
    >>> result_dtype("add", TensorType(int64, (3,)), TensorType(float32, (3,)))
    refquant.float32
    >>> result_dtype("add", TensorType(int64, (3,)), 0.5)
    refquant.float32
    """
    ranked: list[tuple[int, int, DType]] = []
    for operand in operands:
        if isinstance(operand, TensorType):
            if operand.dtype.is_quantized:
                raise VerifyError(f"{op}: expected a tensor that is not quantized, got {operand}")
            ranked.append((_category(operand.dtype), 2 if operand.rank else 1, operand.dtype))
        else:
            kind = bool_ if isinstance(operand, bool) else int64
            kind = float32 if isinstance(operand, float) else kind
            ranked.append((_category(kind), 0, kind))
    top = max(category for category, _, _ in ranked)
    priority = max(p for category, p, _ in ranked if category == top)
    return _widest([d for category, p, d in ranked if (category, p) == (top, priority)])
