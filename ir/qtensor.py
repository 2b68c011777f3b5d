"""``QTensor``: integers with their quantization parameters, what torch's quantized tensor is."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.types import DType, QParams, TensorType, dtype_of, quint4x2, quint8

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
        smallest = largest = self.zero_point
        if not isinstance(self.zero_point, int):
            zero_points = np.asarray(self.zero_point)
            if zero_points.dtype.kind not in "iu" or not zero_points.size:
                return
            smallest, largest = int(zero_points.min()), int(zero_points.max())
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

    def packed(self) -> Array:
        """Return a quint4x2 tensor as torch stores it: two values in a byte, the first one low.

        Returns
        -------
        uint8 array, one dimension
            In C order; the last high half is 0 where the number of values is odd.

        Raises
        ------
        VerifyError
            If the dtype is not quint4x2.

        Examples
        --------
        >>> QTensor(np.uint8([1, 2, 3]), 1.0, 0, None, quint4x2).packed()
        array([33,  3], dtype=uint8)
        """
        if self.dtype != quint4x2:
            raise VerifyError(f"QTensor: only quint4x2 is packed, got {self.dtype}")
        values = np.append(self.int_repr.reshape(-1), np.zeros(self.int_repr.size % 2, np.uint8))
        packed: Array = values[::2] | values[1::2] << np.uint8(4)
        return packed

    @classmethod
    def from_packed(
        cls,
        packed: Array,
        shape: tuple[int, ...],
        scale: float | Array,
        zero_point: int | Array,
        axis: int | None = None,
    ) -> QTensor:
        """Return the quint4x2 tensor that torch stores as ``packed``.

        Parameters
        ----------
        packed : uint8 array
            Two values in a byte, in C order.
        shape : tuple of int
            Shape of the tensor.
        scale, zero_point, axis
            As for the constructor.

        Raises
        ------
        VerifyError
            If the number of bytes does not fit the shape.

        Examples
        --------
        >>> QTensor.from_packed(np.uint8([33, 3]), (3,), 1.0, 0).int_repr
        array([1, 2, 3], dtype=uint8)
        """
        bytes_ = packed.reshape(-1)
        size = prod(shape)
        if bytes_.dtype != np.uint8 or bytes_.size != (size + 1) // 2:
            raise VerifyError(
                f"QTensor: shape {list(shape)} needs {(size + 1) // 2} packed uint8, "
                f"got {bytes_.size} {bytes_.dtype}"
            )
        values = np.stack([bytes_ & 15, bytes_ >> 4], -1).reshape(-1)[:size].reshape(shape)
        return cls(values, scale, zero_point, axis, quint4x2)

    def with_int_repr(self, int_repr: Array) -> QTensor:
        """Return other integers with the same quantization parameters."""
        if int_repr.dtype is not self.int_repr.dtype:
            return QTensor(
                int_repr, self.scale, self.zero_point, self.axis, self.dtype, self.group_size
            )
        made = object.__new__(QTensor)
        fields = made.__dict__
        fields.update(self.__dict__)
        fields["int_repr"] = int_repr
        return made

    @classmethod
    def unchecked(cls, int_repr: Array, scale: float, zero_point: int, dtype: DType) -> QTensor:
        """Return a tensor quantized per tensor, for kernels whose attributes were checked before.

        The checks of the constructor take as long as a small kernel.
        """
        made = object.__new__(cls)
        made.__dict__.update(
            int_repr=int_repr,
            scale=scale,
            zero_point=zero_point,
            axis=None,
            dtype=dtype,
            group_size=None,
        )
        return made


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
