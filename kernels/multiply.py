"""Matrix products by the compiled tile, for linear layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.ir.types import quint8
from refquant.kernels import job
from refquant.kernels.accumulate import Sums
from refquant.kernels.convolve import buffer
from refquant.kernels.convolve_pairs import multiply_rows
from refquant.kernels.layout import raveled
from refquant.kernels.packing import Lanes, PackedWeight
from refquant.kernels.registers import SLACK
from refquant.kernels.requantize import UNREAD, Rounding, Stage, finish_sums
from refquant.kernels.walk import matrix_walk

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


def matrix_product(
    x: Bytes,
    weight: PackedWeight,
    lanes: Lanes,
    form: str,
    whole: npt.NDArray[np.int32],
    y: Array,
) -> None:
    """Run the compiled tile over contiguous (rows, K), into contiguous (rows, channels)."""
    count, depth = x.shape
    if y.size == 0:
        return
    if depth % 4:
        source = buffer(x.size + SLACK)
        source[: x.size] = x.reshape(-1)
    else:
        source = raveled(x)
    walk = matrix_walk(count, depth, weight.passes, weight.sums.size)
    job.dense(walk, weight, lanes, form, whole, y.size).run(source, y.reshape(-1))


def linear_product(
    x: QTensor,
    weight: PackedWeight,
    bias: npt.NDArray[np.float32] | None,
    rounding: Rounding,
    stage: Stage,
    sums: Sums = Sums.EXACT,
) -> Array:
    """Multiply the rows of (..., K) by a packed weight and requantise; bytes of the result."""
    y = np.empty((*x.shape[:-1], weight.sums.size), np.uint8)
    if stage.loop is None and sums is Sums.EXACT:
        rows = as_unsigned(x)
        matrix = np.ascontiguousarray(rows.int_repr).reshape(-1, x.shape[-1])
        lanes = weight.lanes(stage.constants, rows, rounding.scale, bias)
        matrix_product(matrix, weight, lanes, stage.form, rounding.whole, y)
    else:
        total = linear_sums(x, weight, sums)
        channels = weight.sums.size
        constants = stage.constants(float(x.scale), weight.scale, rounding.scale, bias, channels)
        finish_sums(stage, total, constants, rounding, y)
    return y


def linear_sums(
    x: QTensor, weight: PackedWeight, sums: Sums = Sums.EXACT
) -> npt.NDArray[np.int32]:
    """Return the sums of a linear, (..., channels) in C order."""
    rows = as_unsigned(x)
    matrix = np.ascontiguousarray(rows.int_repr).reshape(-1, x.shape[-1])
    y = np.empty((*x.shape[:-1], weight.sums.size), np.int32)
    if sums is not Sums.EXACT:
        multiply_rows(matrix, rows, weight, False, y)
        return y
    matrix_product(matrix, weight, weight.lanes(None, rows, 1.0, None), "sum", UNREAD, y)
    return y


def as_unsigned(x: QTensor) -> QTensor:
    """Return a qint8 tensor as quint8, integers and zero point moved by 128; quint8 as it is.

    Examples
    --------
    >>> from refquant.ir.types import qint8
    >>> y = as_unsigned(QTensor(np.int8([-128, 5]), 0.5, -3, None, qint8))
    >>> y.int_repr, y.zero_point
    (array([  0, 133], dtype=uint8), 125)
    """
    if x.dtype == quint8:
        return x
    return QTensor(x.int_repr.view(np.uint8) ^ np.uint8(128), x.scale, int(x.zero_point) + 128)
