"""Types of values: dtype, shape (symbolic in the batch) and quantization parameters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from refquant.ir.errors import VerifyError


@dataclass(frozen=True, eq=False)
class DType:
    """An element type, named as in torch; those of ONNX that torch has not, as in ml_dtypes.

    Parameters
    ----------
    name : str
        torch's name without ``torch.``, such as ``quint8``.
    storage : numpy.dtype
        What an array of this type holds. Types of less than a byte take one byte for each value.
    quant_min, quant_max : int or None
        Range of the quantized values; None where the type is not quantized.
    """

    name: str
    storage: np.dtype[Any]
    quant_min: int | None = None
    quant_max: int | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether values of this type carry a scale and a zero point."""
        return self.quant_min is not None

    @property
    def is_floating_point(self) -> bool:
        """Whether the type is a float (bfloat16 and float16 included)."""
        return not self.is_quantized and self.name.startswith(("float", "bfloat"))

    @cached_property
    def limits(self) -> tuple[int, int]:
        """``(quant_min, quant_max)`` of a quantized type.

        Raises
        ------
        VerifyError
            If the type is not quantized.
        """
        if self.quant_min is None or self.quant_max is None:
            raise VerifyError(f"{self.name} is not a quantized dtype")
        return self.quant_min, self.quant_max

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, DType) and self.name == other.name)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"refquant.{self.name}"

    def __str__(self) -> str:
        return self.name


float64 = DType("float64", np.dtype(np.float64))
float32 = DType("float32", np.dtype(np.float32))
float16 = DType("float16", np.dtype(np.float16))
bfloat16 = DType("bfloat16", np.dtype(ml_dtypes.bfloat16))
float8_e5m2 = DType("float8_e5m2", np.dtype(ml_dtypes.float8_e5m2))
float8_e4m3fn = DType("float8_e4m3fn", np.dtype(ml_dtypes.float8_e4m3fn))
float8_e4m3fnuz = DType("float8_e4m3fnuz", np.dtype(ml_dtypes.float8_e4m3fnuz))
float8_e5m2fnuz = DType("float8_e5m2fnuz", np.dtype(ml_dtypes.float8_e5m2fnuz))
float8_e8m0fnu = DType("float8_e8m0fnu", np.dtype(ml_dtypes.float8_e8m0fnu))
float6_e2m3fn = DType("float6_e2m3fn", np.dtype(ml_dtypes.float6_e2m3fn))
float6_e3m2fn = DType("float6_e3m2fn", np.dtype(ml_dtypes.float6_e3m2fn))
float4_e2m1fn = DType("float4_e2m1fn", np.dtype(ml_dtypes.float4_e2m1fn))
complex64 = DType("complex64", np.dtype(np.complex64))
complex128 = DType("complex128", np.dtype(np.complex128))
int64 = DType("int64", np.dtype(np.int64))
int32 = DType("int32", np.dtype(np.int32))
int16 = DType("int16", np.dtype(np.int16))
int8 = DType("int8", np.dtype(np.int8))
int4 = DType("int4", np.dtype(ml_dtypes.int4))
int2 = DType("int2", np.dtype(ml_dtypes.int2))
uint64 = DType("uint64", np.dtype(np.uint64))
uint32 = DType("uint32", np.dtype(np.uint32))
uint16 = DType("uint16", np.dtype(np.uint16))
uint8 = DType("uint8", np.dtype(np.uint8))
uint4 = DType("uint4", np.dtype(ml_dtypes.uint4))
uint2 = DType("uint2", np.dtype(ml_dtypes.uint2))
bool_ = DType("bool", np.dtype(np.bool_))
quint8 = DType("quint8", np.dtype(np.uint8), 0, 255)
qint8 = DType("qint8", np.dtype(np.int8), -128, 127)
qint32 = DType("qint32", np.dtype(np.int32), -(2**31), 2**31 - 1)
quint4x2 = DType("quint4x2", np.dtype(np.uint8), 0, 15)

_OF_TORCH = (
    *(float64, float32, float16, bfloat16, float8_e5m2, float8_e4m3fn),
    *(int64, int32, int16, int8, uint16, uint8, bool_),
    *(quint8, qint8, qint32, quint4x2),
)
_OF_ONNX = (
    *(float8_e4m3fnuz, float8_e5m2fnuz, float8_e8m0fnu, float6_e2m3fn, float6_e3m2fn),
    *(float4_e2m1fn, complex64, complex128, int4, int2, uint64, uint32, uint4, uint2),
)
# Those in which torch's models are imported and run, and all.
TORCH_DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _OF_TORCH}
DTYPES: dict[str, DType] = TORCH_DTYPES | {dtype.name: dtype for dtype in _OF_ONNX}
_PLAIN = {dtype.storage: dtype for dtype in DTYPES.values() if not dtype.is_quantized}


def dtype_of(array: np.ndarray[Any, Any]) -> DType:
    """Return the plain (not quantized) dtype of an array.

    Raises
    ------
    VerifyError
        If there is no such element type.

    Examples
    --------
    >>> dtype_of(np.zeros(3, np.float32))
    refquant.float32
    """
    try:
        return _PLAIN[array.dtype]
    except KeyError:
        accepted = ", ".join(d.name for d in _PLAIN.values())
        raise VerifyError(f"array dtype {array.dtype} is not supported; use {accepted}") from None


class QScheme(StrEnum):
    """How a range becomes a scale and a zero point, and for how much of a tensor.

    Examples
    --------
    >>> QScheme.PER_CHANNEL_SYMMETRIC, QScheme.PER_CHANNEL_SYMMETRIC.is_per_channel
    (refquant.per_channel_symmetric, True)
    """

    PER_TENSOR_AFFINE = "per_tensor_affine"
    PER_TENSOR_SYMMETRIC = "per_tensor_symmetric"
    PER_CHANNEL_AFFINE = "per_channel_affine"
    PER_CHANNEL_SYMMETRIC = "per_channel_symmetric"
    PER_CHANNEL_AFFINE_FLOAT_QPARAMS = "per_channel_affine_float_qparams"

    @property
    def is_per_channel(self) -> bool:
        """Whether each channel has a scale and a zero point of its own."""
        return self.value.startswith("per_channel")

    @property
    def is_symmetric(self) -> bool:
        """Whether the range is made symmetric around 0."""
        return self.value.endswith("symmetric")

    def __repr__(self) -> str:
        return f"refquant.{self.value}"


per_tensor_affine = QScheme.PER_TENSOR_AFFINE
per_tensor_symmetric = QScheme.PER_TENSOR_SYMMETRIC
per_channel_affine = QScheme.PER_CHANNEL_AFFINE
per_channel_symmetric = QScheme.PER_CHANNEL_SYMMETRIC
per_channel_affine_float_qparams = QScheme.PER_CHANNEL_AFFINE_FLOAT_QPARAMS


@dataclass(frozen=True)
class Dim:
    """A symbolic length: ``factor`` times the batch size named ``symbol``.

    Arithmetic gives a ``Dim`` where the result is again such a multiple and otherwise raises
    ``VerifyError``, so shape arithmetic is either exact for every batch size or refused.

    Examples
    --------
    >>> 3 * Dim("N")
    Dim(symbol='N', factor=3)
    >>> str(3 * Dim("N")), (6 * Dim("N")) // 2 == 3 * Dim("N")
    ('3*N', True)
    """

    symbol: str
    factor: int = 1

    def bind(self, sizes: dict[str, int]) -> int:
        """Return the length where ``sizes`` gives each symbol a value."""
        return self.factor * sizes[self.symbol]

    def __str__(self) -> str:
        return self.symbol if self.factor == 1 else f"{self.factor}*{self.symbol}"

    def _refuse(self, operation: str, other: object) -> VerifyError:
        return VerifyError(f"{self} {operation} {other} is not a multiple of {self.symbol}")

    def __add__(self, other: Size) -> Size:
        if isinstance(other, Dim) and other.symbol == self.symbol:
            return Dim(self.symbol, self.factor + other.factor)
        if other == 0:
            return self
        raise self._refuse("+", other)

    __radd__ = __add__

    def __sub__(self, other: Size) -> Size:
        if isinstance(other, Dim) and other.symbol == self.symbol:
            factor = self.factor - other.factor
            return Dim(self.symbol, factor) if factor else 0
        if other == 0:
            return self
        raise self._refuse("-", other)

    def __mul__(self, other: int) -> Size:
        if isinstance(other, int):
            return Dim(self.symbol, self.factor * other) if other else 0
        raise self._refuse("*", other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Size) -> Size:
        if isinstance(other, Dim):
            if other.symbol == self.symbol and self.factor % other.factor == 0:
                return self.factor // other.factor
        elif other and self.factor % other == 0:
            return Dim(self.symbol, self.factor // other)
        raise self._refuse("//", other)


Size = int | Dim
Shape = tuple[Size, ...]


def element_count(shape: Shape) -> Size:
    """Return the product of all lengths.

    Examples
    --------
    >>> str(element_count((Dim("N"), 3, 4)))
    '12*N'
    """
    symbolic = [size for size in shape if isinstance(size, Dim)]
    if len(symbolic) > 1:
        raise VerifyError(f"shape {format_shape(shape)} has more than one symbolic length")
    known = prod(size for size in shape if isinstance(size, int))
    return symbolic[0] * known if symbolic else known


def format_shape(shape: Shape) -> str:
    """Return ``[N, 3, 4]``."""
    return f"[{', '.join(map(str, shape))}]"


@dataclass(frozen=True)
class QParams:
    """Quantization parameters: ``real = scale * (q - zero_point)``.

    Parameters
    ----------
    scale : float or tuple of float
        Real size of one step; a tuple has one entry per channel or group.
    zero_point : int, or tuple of int or float
        The quantized value that stands for 0.0.
    axis : int or None
        The channel axis; None means one scale for the whole tensor.
    group_size : int or None
        With it, each run of ``group_size`` elements along ``axis`` has its own entry, and the
        entries are in row-major order of the groups.

    Examples
    --------
    >>> str(QParams(0.5, 128)), str(QParams((0.5, 0.25), (0, 0), axis=0))
    ('<0.5:128>', '<axis=0 0.5:0 0.25:0>')
    """

    scale: float | tuple[float, ...]
    zero_point: int | tuple[int | float, ...]
    axis: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        per_channel = isinstance(self.scale, tuple)
        if per_channel != isinstance(self.zero_point, tuple) or per_channel != (
            self.axis is not None
        ):
            raise VerifyError(
                "qparams: per channel needs a tuple of scales, a tuple of zero points and an "
                "axis; per tensor needs one scale, one zero point and no axis"
            )
        if self.group_size is not None and (self.axis is None or self.group_size < 1):
            raise VerifyError("qparams: group_size must be >= 1 and needs an axis")
        if isinstance(self.scale, tuple) and isinstance(self.zero_point, tuple):
            n, m = len(self.scale), len(self.zero_point)
            if n != m:
                raise VerifyError(f"qparams: {n} scales but {m} zero points")

    def __str__(self) -> str:
        if isinstance(self.scale, tuple) and isinstance(self.zero_point, tuple):
            pairs = " ".join(
                f"{s!r}:{z!r}" for s, z in zip(self.scale, self.zero_point, strict=True)
            )
            group = "" if self.group_size is None else f" group={self.group_size}"
            return f"<axis={self.axis}{group} {pairs}>"
        return f"<{self.scale!r}:{self.zero_point!r}>"


@dataclass(frozen=True)
class TensorType:
    """Dtype, shape and, where the dtype is quantized, quantization parameters.

    Examples
    --------
    >>> print(TensorType(quint8, (Dim("N"), 16, 8, 8), QParams(0.5, 128)))
    quint8<0.5:128>[N, 16, 8, 8]
    """

    dtype: DType
    shape: Shape
    qparams: QParams | None = None

    def __post_init__(self) -> None:
        if self.qparams is None:
            return
        if not self.dtype.is_quantized:
            raise VerifyError(f"{self.dtype} cannot have quantization parameters")
        axis, scale = self.qparams.axis, self.qparams.scale
        if axis is None or not isinstance(scale, tuple):
            return
        if not 0 <= axis < len(self.shape):
            raise VerifyError(f"qparams: axis {axis} is outside {format_shape(self.shape)}")
        if self.qparams.group_size is None and self.shape[axis] != len(scale):
            raise VerifyError(
                f"qparams: {len(scale)} scales for axis {axis} of {format_shape(self.shape)}"
            )

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape, where no length is a symbol.

        Raises
        ------
        VerifyError
            If one is.
        """
        if any(isinstance(size, Dim) for size in self.shape):
            raise VerifyError(f"expected known lengths, got {format_shape(self.shape)}")
        return tuple(int(size) for size in self.shape if not isinstance(size, Dim))

    def per_tensor(self) -> tuple[float, int]:
        """Return ``(scale, zero_point)``.

        Raises
        ------
        VerifyError
            If the value is not quantized per tensor.
        """
        q = self.qparams
        if q is None or not isinstance(q.scale, float) or not isinstance(q.zero_point, int):
            raise VerifyError(f"expected a value quantized per tensor, got {self}")
        return q.scale, q.zero_point

    def with_shape(self, shape: Shape) -> TensorType:
        """Return the type with another shape."""
        return TensorType(self.dtype, shape, self.qparams)

    def __str__(self) -> str:
        qparams = "" if self.qparams is None else str(self.qparams)
        return f"{self.dtype}{qparams}{format_shape(self.shape)}"
