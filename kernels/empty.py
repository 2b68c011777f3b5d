"""``aten::empty`` and its relatives: memory that is written to later."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import DType, QParams, Shape, TensorType, float32, quint8
from refquant.kernels import checks
from refquant.kernels.contiguous import contiguous, infer_contiguous
from refquant.kernels.layout import empty_preserved
from refquant.kernels.movement import example, move, movement


def _zeros(shape: tuple[int, ...], dtype: DType, memory_format: str | None) -> Array:
    zeros = np.zeros(shape, dtype.storage)
    array: Array = contiguous(zeros, memory_format or "contiguous_format")
    return array


def _checked(shape: Shape, dtype: DType, memory_format: str | None) -> Shape:
    infer_contiguous(TensorType(dtype, shape), memory_format or "contiguous_format")
    return tuple(shape)


def empty(
    size: tuple[int, ...], dtype: DType = float32, memory_format: str | None = None
) -> Array:
    """Return memory for a tensor that is not quantized.

    torch leaves in it what was there; here it is 0.

    Parameters
    ----------
    size : tuple of int
        The shape.
    dtype : DType
        The type of the elements.
    memory_format : str, optional
        As for ``aten::contiguous``.

    Returns
    -------
    Tensor of zeros

    Raises
    ------
    VerifyError
        If the type is quantized, or the format does not fit.

    Examples
    --------
    >>> empty((2,))
    array([0., 0.], dtype=float32)
    """
    return _zeros(size, dtype, memory_format)


def infer_empty(
    size: Shape, dtype: DType = float32, memory_format: str | None = None
) -> TensorType:
    """Check type and format."""
    if dtype.is_quantized:
        raise VerifyError(f"empty: expected a type that is not quantized, got {dtype}")
    return TensorType(dtype, _checked(size, dtype, memory_format))


def empty_like(self: Tensor, memory_format: str | None = None) -> Tensor:
    """Return memory for a tensor of the same type; see ``aten::empty.memory_format``.

    Parameters
    ----------
    self : any tensor
        Quantization parameters are kept, and the strides unless a format is given.
    memory_format : str, optional
        As for ``aten::contiguous``.

    Returns
    -------
    Tensor of zeros

    Raises
    ------
    VerifyError
        If the format does not fit.

    Examples
    --------
    >>> empty_like(QTensor(np.uint8([5]), 0.5, 7)).int_repr
    array([0], dtype=uint8)
    """

    def make(array: Array) -> Array:
        if memory_format is not None:
            blank: Array = contiguous(np.zeros(array.shape, array.dtype), memory_format)
            return blank
        made = empty_preserved(array, array.dtype)
        made[...] = 0
        return made

    made: Tensor = move(self, make)
    return made


def infer_empty_like(self: TensorType, memory_format: str | None = None) -> TensorType:
    """Check the format; the type stays."""
    return self if memory_format is None else infer_contiguous(self, memory_format)


def empty_quantized(
    qtensor: QTensor, size: tuple[int, ...], memory_format: str | None = None
) -> QTensor:
    """Return memory of another shape with the quantization parameters of a tensor.

    Examples
    --------
    >>> print(empty_quantized(QTensor(np.uint8([5]), 0.5, 7), (2, 3)).type)
    quint8<0.5:7>[2, 3]
    """
    return qtensor.with_int_repr(_zeros(size, qtensor.dtype, memory_format))


def infer_empty_quantized(
    qtensor: TensorType, size: Shape, memory_format: str | None = None
) -> TensorType:
    """Check the tensor and the format."""
    checks.per_tensor("empty_quantized", qtensor)
    return qtensor.with_shape(_checked(size, qtensor.dtype, memory_format))


def empty_affine_quantized(
    size: tuple[int, ...],
    scale: float,
    zero_point: int,
    dtype: DType,
    memory_format: str | None = None,
) -> QTensor:
    """Return memory with given quantization parameters.

    Examples
    --------
    >>> print(empty_affine_quantized((2, 3), 0.5, 7, quint8).type)
    quint8<0.5:7>[2, 3]
    """
    return QTensor(_zeros(size, dtype, memory_format), scale, zero_point, None, dtype)


def infer_empty_affine_quantized(
    size: Shape, scale: float, zero_point: int, dtype: DType, memory_format: str | None = None
) -> TensorType:
    """Check type, parameters and format."""
    if dtype not in checks.QUANTIZED:
        raise VerifyError(f"_empty_affine_quantized: expected a quantized dtype, got {dtype}")
    qparams = checks.output_qparams("_empty_affine_quantized", dtype, scale, zero_point)
    return TensorType(dtype, _checked(size, dtype, memory_format), qparams)


def empty_per_channel(
    size: tuple[int, ...],
    scales: tuple[float, ...],
    zero_points: tuple[int, ...],
    axis: int,
    dtype: DType,
    memory_format: str | None = None,
) -> QTensor:
    """Return memory with given quantization parameters of each channel.

    Examples
    --------
    >>> empty_per_channel((2, 1), (0.5, 0.25), (7, 0), 0, quint8).int_repr
    array([[0],
           [0]], dtype=uint8)
    """
    qparams = np.asarray(scales, np.float64), np.asarray(zero_points, np.int64)
    return QTensor(_zeros(size, dtype, memory_format), *qparams, axis, dtype)


def infer_empty_per_channel(
    size: Shape,
    scales: tuple[float, ...],
    zero_points: tuple[int, ...],
    axis: int,
    dtype: DType,
    memory_format: str | None = None,
) -> TensorType:
    """Check type, number of parameters and format."""
    op = "_empty_per_channel_affine_quantized"
    if dtype not in checks.QUANTIZED:
        raise VerifyError(f"{op}: expected a quantized dtype, got {dtype}")
    lengths = {len(scales), len(zero_points)}
    if not 0 <= axis < len(size) or lengths != {size[axis]}:
        raise VerifyError(
            f"{op}: expected a scale and zero point for each of axis {axis} of {list(size)}, got "
            f"{len(scales)} and {len(zero_points)}"
        )
    qparams = QParams(tuple(scales), tuple(zero_points), axis)
    return TensorType(dtype, _checked(size, dtype, memory_format), qparams)


_Q = QTensor(np.array([5, 6], np.uint8), 0.5, 7)
_SOURCE = "pytorch/aten/src/ATen/native/TensorFactories.cpp"
_QUANTIZED = "pytorch/aten/src/ATen/native/quantized/TensorFactories.cpp"

OPS = (
    movement(
        "aten::empty.memory_format",
        empty,
        infer_empty,
        Case("zeros", (), {"size": (2,)}, [0, 0], "torch leaves what was there"),
        source=_SOURCE,
    ),
    movement(
        "aten::empty_like",
        empty_like,
        infer_empty_like,
        Case("float", (example(2),), {}, [0, 0], "shape and strides of the tensor"),
        source=_SOURCE,
    ),
    movement(
        "aten::empty_quantized",
        empty_quantized,
        infer_empty_quantized,
        Case("shape", (_Q,), {"size": (1, 3)}, [[0, 0, 0]], "another shape"),
        source=_QUANTIZED,
    ),
    movement(
        "aten::_empty_affine_quantized",
        empty_affine_quantized,
        infer_empty_affine_quantized,
        Case(
            "given",
            (),
            {"size": (2,), "scale": 0.5, "zero_point": 7, "dtype": quint8},
            [0, 0],
            "given parameters",
        ),
        source=_QUANTIZED,
    ),
    movement(
        "aten::_empty_per_channel_affine_quantized",
        empty_per_channel,
        infer_empty_per_channel,
        Case(
            "rows",
            (),
            {
                **{"size": (2, 1), "scales": (0.5, 0.25), "zero_points": (7, 0), "axis": 0},
                "dtype": quint8,
            },
            [[0], [0]],
            "a scale for each row",
        ),
        source=_QUANTIZED,
    ),
)
