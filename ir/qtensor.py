"""``QTensor``: integers with their quantization parameters, what torch's quantized tensor is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.types import DType, QParams, TensorType, dtype_of, quint8

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized tensor: ``real = scale * (int_repr - zero_point)``.

    Parameters
    ----------
    int_repr : integer array
        Quantized values. The strides matter: as in torch, a few kernels compute differently on
        a channels-last array (NCHW shape, NHWC memory).
    scale : float, or float64 array of one entry per channel
        Real size of one step.
    zero_point : int, or array of one entry per channel
        The quantized value that stands for 0.0.
    axis : int or None
        Channel axis; None means per tensor.
    dtype : DType
        ``quint8``, ``qint8``, ``qint32`` or ``quint4x2``.

    Raises
    ------
    VerifyError
        If the storage type, the number of scales or the range of a zero point is wrong.

    Examples
    --------
    >>> q = QTensor(np.uint8([87, 0]), 0.5, 7)
    >>> print(q.type)
    quint8<0.5:7>[2]
    """

    int_repr: Array
    scale: float | Array
    zero_point: int | Array
    axis: int | None = None
    dtype: DType = quint8
    group_size: int | None = None

    def __post_init__(self) -> None:
        if not self.dtype.is_quantized:
            raise VerifyError(f"QTensor: {self.dtype} is not a quantized dtype")
        if self.int_repr.dtype != self.dtype.storage:
            raise VerifyError(
                f"QTensor: {self.dtype} is stored as {self.dtype.storage}, "
                f"got {self.int_repr.dtype}"
            )
        low, high = self.dtype.limits
        zero_point = np.asarray(self.zero_point)
        if zero_point.dtype.kind in "iu" and zero_point.size:
            smallest, largest = int(zero_point.min()), int(zero_point.max())
            if smallest < low or largest > high:
                got = smallest if smallest < low else largest
                raise VerifyError(f"QTensor: zero_point must be in [{low}, {high}], got {got}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.int_repr.shape

    @property
    def qparams(self) -> QParams:
        """Scale and zero point in the hashable form that types hold."""
        if self.axis is None:
            return QParams(float(self.scale), int(self.zero_point))
        return QParams(
            tuple(np.asarray(self.scale, np.float64).tolist()),
            tuple(np.asarray(self.zero_point).tolist()),
            self.axis,
            self.group_size,
        )

    @property
    def type(self) -> TensorType:
        """Type of the tensor."""
        return TensorType(self.dtype, self.shape, self.qparams)

    def with_int_repr(self, int_repr: Array) -> QTensor:
        """Return other integers with the same quantization parameters."""
        return QTensor(
            int_repr, self.scale, self.zero_point, self.axis, self.dtype, self.group_size
        )


Tensor = Array | QTensor


def type_of(value: Tensor) -> TensorType:
    """Return the type of an array or a quantized tensor.

    Examples
    --------
    >>> print(type_of(np.zeros((2, 3), np.float32)))
    float32[2, 3]
    """
    if isinstance(value, QTensor):
        return value.type
    return TensorType(dtype_of(value), value.shape)
