"""``aten::clamp``, ``aten::hardtanh`` and ``aten::relu6``: values limited to a range."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import DType, TensorType, qint32, quint8
from refquant.kernels import checks, rounding
from refquant.kernels.layout import flat, is_channels_last
from refquant.kernels.pointwise import limit
from refquant.kernels.tensor_iterator import empty_sorted

Array = npt.NDArray[Any]


# Engines whose own kernel writes channels-last results into memory that is read in C order.
SCRAMBLING = (Engine.QNNPACK,)


def _limit(
    x: QTensor | Array, low: float | None, high: float | None, target: Target
) -> QTensor | Array:
    if isinstance(x, QTensor):
        q, into, y = flat(x.int_repr, x.int_repr.dtype)
        limit(q, *_bounds(low, high, float(x.scale), int(x.zero_point), x.dtype), into)
        if target.engine in SCRAMBLING and x.dtype == quint8 and is_channels_last(y):
            return x.with_int_repr(np.moveaxis(y, 1, -1).reshape(y.shape))
        return x.with_int_repr(y)
    out = empty_sorted(x.shape, [x], np.float32)
    out[...] = x
    if low is not None:
        np.maximum(out, np.float32(low), out=out)
    if high is not None:
        np.minimum(out, np.float32(high), out=out)
    return out


@lru_cache(maxsize=1024)
def _bounds(
    low: float | None, high: float | None, scale: float, zero_point: int, dtype: DType
) -> tuple[int, int]:
    """Return the bounds quantized as torch's scalar code does."""

    def quantized(bound: float) -> int:
        with np.errstate(over="ignore"):
            real = np.asarray(bound, np.float32)
        return int(rounding.quantize_before(real, scale, zero_point, dtype))

    least, most = dtype.limits
    return (
        least if low is None else quantized(low),
        most if high is None else quantized(high),
    )


def clamp(
    self: QTensor | Array,
    min: float | None = None,
    max: float | None = None,
    target: Target = Target(),
) -> QTensor | Array:
    r"""Return each value limited to ``[min, max]``.

    Quantized: the bounds are quantized,
    :math:`Q(b) = \mathrm{clamp}(\mathrm{rint}(b \cdot 1/s + z))` with product and sum rounded to
    float32, and the integers are limited to them. ``max`` wins if the bounds cross. In float32
    a NaN stays.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        Values.
    min, max : float, optional
        Bounds, of which at least one is given.

    Returns
    -------
    QTensor or float32 array
        With the parameters of the input. A defect of torch is reproduced: under qnnpack a
        channels-last quint8 tensor comes out scrambled, its values in NHWC order in C-ordered
        memory.

    Raises
    ------
    VerifyError
        If both bounds are None, or the value is neither quantized per tensor nor float32.

    Examples
    --------
    >>> clamp(QTensor(np.uint8([3, 9]), 0.5, 7), min=-0.5, max=0.5).int_repr
    array([6, 8], dtype=uint8)
    """
    return _limit(self, min, max, target)


def hardtanh(
    self: QTensor | Array,
    min_val: float = -1.0,
    max_val: float = 1.0,
    target: Target = Target(),
) -> QTensor | Array:
    """Return each value limited to ``[min_val, max_val]``; see ``aten::clamp``.

    Examples
    --------
    >>> hardtanh(QTensor(np.uint8([3, 8]), 0.5, 7)).int_repr
    array([5, 8], dtype=uint8)
    """
    return _limit(self, min_val, max_val, target)


def relu6(self: QTensor | Array, target: Target = Target()) -> QTensor | Array:
    """Return each value limited to ``[0, 6]``; see ``aten::clamp``.

    Examples
    --------
    >>> relu6(QTensor(np.uint8([3, 8, 99]), 0.5, 7)).int_repr
    array([ 7,  8, 19], dtype=uint8)
    """
    return _limit(self, 0.0, 6.0, target)


def limits(
    self: TensorType,
    target: Target,
    *,
    min: float | None = None,
    max: float | None = None,
) -> tuple[int, int] | None:
    """Return the range of a quantized ``clamp``; None where the memory is scrambled."""
    if self.qparams is None or target.engine in SCRAMBLING:
        return None
    return _bounds(min, max, *self.per_tensor(), self.dtype)


def infer_clamp(
    self: TensorType, min: float | None = None, max: float | None = None
) -> TensorType:
    """Check that there is a bound; the result has the type of the operand."""
    checks.float_or_per_tensor("clamp", self)
    if min is None and max is None:
        raise VerifyError("clamp: at least one of min and max must be given")
    return self


def infer_hardtanh(self: TensorType, min_val: float = -1.0, max_val: float = 1.0) -> TensorType:
    """Check the order of the bounds; the result has the type of the operand."""
    checks.float_or_per_tensor("hardtanh", self)
    if min_val > max_val:
        raise VerifyError(f"hardtanh: min_val {min_val} is above max_val {max_val}")
    return self


def infer_relu6(self: TensorType) -> TensorType:
    """Return the type of the operand."""
    checks.float_or_per_tensor("relu6", self)
    return self


def _u8(*values: int) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), 1.0, 7, None, quint8)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qclamp.cpp::quantized_clamp_impl",
    "pytorch/pytorch/aten/src/ATen/native/quantized/AffineQuantizer.cpp::quantize_val",
)

OPS = (
    Op(
        name="aten::clamp",
        reference=clamp,
        infer=infer_clamp,
        limits=limits,
        kernels=dict.fromkeys(TORCH_ENGINES, clamp),
        source=_SOURCE,
        cases=(
            Case(
                *("ties", (_u8(0, 255),), {"min": 0.5, "max": 1.5}),
                *([8, 8], "7.5 and 8.5 go to 8: the zero point is added before rounding"),
            ),
            Case(
                *("one_bound", (_u8(0, 255),), {"min": None, "max": 1e9}),
                *([0, 255], "a bound outside the range saturates"),
            ),
            Case(
                *("crossed", (_u8(0, 255),), {"min": 3.0, "max": 1.0}),
                *([8, 8], "max wins"),
            ),
            Case(
                "qint32",
                (QTensor(np.array([-(2**31), 2**31 - 1], np.int32), 1.0, 7, None, qint32),),
                {"min": -3e9, "max": 1.0},
                [-(2**31), 8],
                "saturation at 32 bits",
            ),
            Case(
                *("float", (np.array([-9, np.nan, 9], np.float32),), {"min": 0.1}),
                *(np.array([0.1, np.nan, 9], np.float32), "NaN stays; the bound is float32"),
            ),
        ),
    ),
    Op(
        name="aten::hardtanh",
        reference=hardtanh,
        infer=infer_hardtanh,
        limits=lambda x, target, min_val=-1.0, max_val=1.0: limits(
            x, target, min=min_val, max=max_val
        ),
        kernels=dict.fromkeys(TORCH_ENGINES, hardtanh),
        source=_SOURCE,
        cases=(
            Case(
                *("default", (_u8(0, 7, 255),), {}),
                *([6, 7, 8], "bounds -1 and 1"),
            ),
        ),
    ),
    Op(
        name="aten::relu6",
        reference=relu6,
        infer=infer_relu6,
        limits=partial(limits, min=0.0, max=6.0),
        kernels=dict.fromkeys(TORCH_ENGINES, relu6),
        source=_SOURCE,
        cases=(
            Case(
                *("quint8", (_u8(0, 9, 255),), {}),
                *([7, 9, 13], "bounds 0 and 6"),
            ),
            Case("float", (np.array([-1, 7], np.float32),), {}, [0, 6], "bounds 0 and 6"),
        ),
    ),
)
