"""The averages of pools, of all engines, in plain NumPy or compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.kernels import qnnpack_average
from refquant.kernels.averages import Nest, Rule, average, average_compiled
from refquant.kernels.windows import Windows

Array = npt.NDArray[Any]


class Pool(NamedTuple):
    """The windows of a pool, what their sums are multiplied with, and both laid out."""

    windows: list[Windows]
    factor: npt.NDArray[np.float32]
    nest: Nest


class Averages(NamedTuple):
    """How quantized windows are averaged: by a rule, or by qnnpack's count of elements."""

    by_rule: Callable[[QTensor, Pool, Rule], Array]
    by_count: Callable[[QTensor, Pool, int], Array]


PLAIN = Averages(
    lambda x, pool, rule: average(x, pool.windows, pool.factor, rule),
    lambda x, pool, count: qnnpack_average.average(x, pool.windows, count),
)
COMPILED = Averages(
    lambda x, pool, rule: average_compiled(x, pool.nest, rule),
    lambda x, pool, count: qnnpack_average.average_compiled(x, pool.nest, count),
)
