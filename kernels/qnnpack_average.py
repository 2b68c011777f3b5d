"""Averages over windows as qnnpack computes them, for pools and means of quint8 images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Target
from refquant.ir.types import quint8
from refquant.kernels import averages, rounding
from refquant.kernels.averages import Nest, Rule, window_sums
from refquant.kernels.layout import channels_last
from refquant.kernels.rounding_jit import AFTER
from refquant.kernels.windows import Windows

ENGINES = (Engine.QNNPACK,)


def applies(x: QTensor, target: Target) -> bool:
    """Whether the engine has a kernel of its own for averages of this dtype."""
    return target.engine in ENGINES and x.dtype == quint8


def average(x: QTensor, windows: Sequence[Windows], count: int) -> npt.NDArray[np.uint8]:
    """Average the last dimensions over windows of ``count`` elements, padding counted as zero.

    The factor is ``s / (s * count)``, each step rounded to float32, so not always
    ``1 / count``; sum times factor is rounded before the zero point is added.

    Examples
    --------
    >>> x = QTensor(np.uint8([[[[8, 7]]]]), 0.5, 7)
    >>> whole = Windows(np.array([0]), np.array([2]), np.array([2]))
    >>> average(x, [Windows(np.array([0]), np.array([1]), np.array([1])), whole], 2)
    array([[[[7]]]], dtype=uint8)
    """
    zero_point = int(x.zero_point)
    sums = window_sums(x.int_repr.astype(np.int64) - zero_point, windows)
    factor = _factor(x, count)
    q = rounding.round_after(sums.astype(np.float32), factor, zero_point, x.dtype)
    return channels_last(q) if q.ndim == 4 else q


def _factor(x: QTensor, count: int) -> np.float32:
    scale = np.float32(x.scale)
    return scale / (scale * np.float32(count))


def average_compiled(x: QTensor, windows: Nest, count: int) -> npt.NDArray[np.uint8]:
    """Compute :func:`average` of windows laid out before, in one compiled pass."""
    q = x.int_repr
    factor = _factor(x, count)
    pool = windows._replace(
        factor=np.full_like(windows.factor, factor), finite=bool(np.isfinite(factor))
    )
    image = x.with_int_repr(channels_last(q if q.ndim == 4 else q[None]))
    y = averages.average_compiled(image, pool, Rule(image.shape[1], AFTER, AFTER))
    return y if q.ndim == 4 else np.ascontiguousarray(y[0])
