"""``aten::max_pool1d``, ``max_pool2d`` and ``max_pool3d``: the largest value of each window."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import TensorType, format_shape, quint8
from refquant.kernels import checks
from refquant.kernels.layout import empty_suggested
from refquant.kernels.max_pool_loops import max_compiled
from refquant.kernels.windows import (
    Geometry,
    IntOrInts,
    as_image,
    hashable,
    in_torch_memory,
    output_length,
    per_dimension,
    spatial,
)

Array = npt.NDArray[Any]
# Engines whose kernel looks at the nearest pixel for each place outside.
CLAMPING = (Engine.QNNPACK,)


def _max_pool(
    x: QTensor | Array,
    rank: int,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    dilation: IntOrInts,
    ceil_mode: bool,
    target: Target,
) -> QTensor | Array:
    geometry = _geometry(rank, kernel_size, stride, padding, dilation)
    if isinstance(x, QTensor):
        pool = _max_clamped if _is_clamped(x, geometry, ceil_mode, target) else _max_quantized
        return _on_image(x, geometry, ceil_mode, pool)
    largest = _windows_max(x, -np.inf, geometry, ceil_mode)
    out = empty_suggested(x, x.dtype, largest.shape)
    out[...] = largest
    return out


def _on_image(
    x: QTensor,
    geometry: Geometry,
    ceil_mode: bool,
    pool: Callable[[QTensor, Geometry, bool], Array],
) -> QTensor:
    """Pool a quantized tensor; a signal is pooled as an image of height 1."""
    if len(geometry[0]) > 1:
        return x.with_int_repr(pool(x, geometry, ceil_mode))
    kernel, stride, padding, dilation = geometry
    flat: Geometry = ((1, *kernel), (1, *stride), (0, *padding), (1, *dilation))
    image = x.with_int_repr(as_image(x.int_repr))
    return x.with_int_repr(pool(image, flat, ceil_mode)[..., 0, :])


def _is_clamped(x: QTensor, geometry: Geometry, ceil_mode: bool, target: Target) -> bool:
    """Whether qnnpack's kernel runs, and padding shows pixels that are not in the window."""
    runs = target.engine in CLAMPING and x.dtype == quint8 and not ceil_mode
    return runs and len(geometry[0]) < 3 and max(geometry[2]) > 0 and max(geometry[3]) > 1


def _max_clamped(x: QTensor, geometry: Geometry, ceil_mode: bool) -> Array:
    """Take the nearest pixel for each place outside, also one that the window leaves out."""
    largest = _windows_max(x.int_repr, None, geometry, ceil_mode)
    return in_torch_memory(largest, x.int_repr, len(geometry[0]))


def _max_quantized(x: QTensor, geometry: Geometry, ceil_mode: bool) -> Array:
    largest = _windows_max(x.int_repr, x.dtype.limits[0], geometry, ceil_mode)
    return in_torch_memory(largest, x.int_repr, len(geometry[0]))


def _geometry(
    rank: int,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    dilation: IntOrInts,
) -> Geometry:
    parts = (kernel_size, stride, padding, dilation)
    return _per_dimension(rank, *map(hashable, parts))


@lru_cache(maxsize=1024)
def _per_dimension(
    rank: int,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    dilation: IntOrInts,
) -> Geometry:
    kernel = per_dimension(kernel_size, rank, ())
    return (
        kernel,
        per_dimension(stride, rank, kernel),
        per_dimension(padding, rank, (0,) * rank),
        per_dimension(dilation, rank, (1,) * rank),
    )


def _lengths(x: Array, geometry: Geometry, ceil_mode: bool) -> tuple[int, ...]:
    rank = len(geometry[0])
    per_dim = zip(x.shape[x.ndim - rank :], *geometry, strict=True)
    return tuple(int(output_length(*sizes, ceil_mode)) for sizes in per_dim)  # type: ignore[arg-type]


def _windows_max(x: Array, lowest: float | None, geometry: Geometry, ceil_mode: bool) -> Array:
    """Maximum over shifted, strided views of the padded input, one view per window position.

    Padding is ``lowest``, or the nearest element.
    """
    kernel, stride, _, dilation = geometry
    lengths = _lengths(x, geometry, ceil_mode)
    lead = x.ndim - len(kernel)
    pads = [(0, 0)] * lead
    for n, out, k, s, p, d in zip(x.shape[lead:], lengths, *geometry, strict=True):
        pads.append((p, max((out - 1) * s + d * (k - 1) + 1 - n - p, 0)))
    if lowest is None:
        padded, lowest = np.pad(x, pads, "edge"), 0
    else:
        padded = np.pad(x, pads, constant_values=lowest)
    result = np.full(x.shape[:lead] + lengths, lowest, x.dtype)
    for position in product(*map(range, kernel)):
        view = tuple(
            slice(i * d, i * d + (out - 1) * s + 1, s)
            for i, d, s, out in zip(position, dilation, stride, lengths, strict=True)
        )
        where: tuple[Any, ...] = (..., *view)
        np.maximum(result, padded[where], out=result)
    return result


def reference_1d(
    self: QTensor | Array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    target: Target = Target(),
) -> QTensor | Array:
    """Return the largest value of each window along the last dimension.

    See ``aten::max_pool2d``.

    Examples
    --------
    >>> reference_1d(np.float32([[1, 3, 2, 5]]), 2)
    array([[3., 5.]], dtype=float32)
    """
    return _max_pool(self, 1, kernel_size, stride, padding, dilation, ceil_mode, target)


def reference_2d(
    self: QTensor | Array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    target: Target = Target(),
) -> QTensor | Array:
    r"""Return the largest value of each window.

    .. math:: y_o = \max_{0 \le k < K} x_{o \cdot stride - padding + k \cdot dilation}

    Quantized values are compared as integers and keep their parameters, so nothing is rounded.
    Padding never wins. In float tensors a NaN wins.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        ([N,] C, H, W).
    kernel_size : int or sequence of int
        Height and width of a window.
    stride : int or sequence of int, optional
        Distance of windows; the kernel size if None or empty.
    padding : int or sequence of int
        At most half a window on each side.
    dilation : int or sequence of int
        Distance of the elements of a window.
    ceil_mode : bool
        Whether a last window may hang over the end; it never starts beyond the input.

    Returns
    -------
    QTensor or float32 array
        ([N,] C, H', W'), in the memory format of the input. A defect of torch is reproduced: from
        a quantized 1 x 1 map in NCHW memory, a larger result (by padding) comes out scrambled,
        its values in NHWC order.

    Under qnnpack quint8 windows with dilation see, for each place in the padding, the nearest
    pixel, even one that lies between the elements of the window (``ceil_mode`` false).

    Raises
    ------
    VerifyError
        If the rank is wrong, the padding is more than half a window, or no window fits.

    Examples
    --------
    >>> x = QTensor(np.uint8([[[[1, 2], [3, 4]]]]), 0.5, 7)
    >>> reference_2d(x, 2).int_repr
    array([[[[4]]]], dtype=uint8)
    """
    return _max_pool(self, 2, kernel_size, stride, padding, dilation, ceil_mode, target)


def reference_3d(
    self: QTensor | Array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    target: Target = Target(),
) -> QTensor | Array:
    """Return the largest value of each window over depth, height and width.

    See ``aten::max_pool2d``. A quantized value needs its batch dimension.

    Examples
    --------
    >>> reference_3d(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2), 2)
    array([[[[7.]]]], dtype=float32)
    """
    return _max_pool(self, 3, kernel_size, stride, padding, dilation, ceil_mode, target)


def _infer(rank: int) -> Callable[..., TensorType]:
    op = f"max_pool{rank}d"

    def infer(
        self: TensorType,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: IntOrInts = 0,
        dilation: IntOrInts = 1,
        ceil_mode: bool = False,
    ) -> TensorType:
        """Check rank, window and padding; every spatial length becomes a number of windows."""
        quantized = checks.float_or_per_tensor(op, self)
        leading, lengths = spatial(op, self, rank)
        if quantized and rank == 3 and self.rank != 5:
            raise VerifyError(f"{op}: a quantized value needs rank 5, got {self}")
        geometry = _geometry(rank, kernel_size, stride, padding, dilation)
        checks.window(op, geometry, rank)
        out = tuple(
            output_length(*sizes, ceil_mode) for sizes in zip(lengths, *geometry, strict=True)
        )
        if any(isinstance(n, int) and n < 1 for n in out):
            raise VerifyError(f"{op}: no window fits: {format_shape(lengths)} gives {out}")
        return self.with_shape(leading + out)

    return infer


def _kernel(rank: int) -> Callable[..., QTensor | Array]:
    def kernel(
        self: QTensor | Array,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: IntOrInts = 0,
        dilation: IntOrInts = 1,
        ceil_mode: bool = False,
        target: Target = Target(),
    ) -> QTensor | Array:
        """Compute the reference with one compiled loop over all windows."""
        geometry = _geometry(rank, kernel_size, stride, padding, dilation)
        if not isinstance(self, QTensor) or _is_clamped(self, geometry, ceil_mode, target):
            return _max_pool(self, rank, *geometry, ceil_mode, target)
        return _on_image(self, geometry, ceil_mode, max_compiled)

    return kernel


def _u8(values: Any) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), 0.5, 7, None, quint8)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/Pooling.cpp::q_maxpool_2d",
    "pytorch/pytorch/aten/src/ATen/native/cpu/MaxPoolKernel.cpp::cpu_max_pool",
)
_NAN = np.array([[1, np.nan, 2, 3]], np.float32)


def _op(rank: int, reference: Callable[..., Any], cases: tuple[Case, ...]) -> Op:
    return Op(
        name=f"aten::max_pool{rank}d",
        reference=reference,
        infer=_infer(rank),
        kernels=dict.fromkeys(TORCH_ENGINES, _kernel(rank)),
        keeps_channels_last=rank == 2,
        source=_SOURCE,
        cases=cases,
    )


OPS = (
    _op(
        1,
        reference_1d,
        (
            Case(
                "ceil_mode",
                (_u8([[1, 3, 2, 5, 4]]),),
                {"kernel_size": [2], "ceil_mode": True},
                [[3, 5, 4]],
                "the last window hangs over the end",
            ),
            Case("nan", (_NAN,), {"kernel_size": [2]}, [[np.nan, 3]], "a NaN wins"),
        ),
    ),
    _op(
        2,
        reference_2d,
        (
            Case(
                "padding",
                (_u8([[[[0, 0], [0, 1]]]]),),
                {"kernel_size": [2, 2], "stride": [2, 2], "padding": [1, 1]},
                [[[[0, 0], [0, 1]]]],
                "padding is not the zero point 7: it never wins",
            ),
            Case(
                "dilation",
                (_u8([[[[9, 1, 2, 3], [1, 1, 1, 1], [4, 1, 5, 1]]]]),),
                {"kernel_size": [2, 2], "stride": [1, 1], "dilation": [2, 2]},
                [[[[9, 3]]]],
                "elements of a window are two apart",
            ),
        ),
    ),
    _op(
        3,
        reference_3d,
        (
            Case(
                "all",
                (_u8(np.arange(8).reshape(1, 1, 2, 2, 2)),),
                {"kernel_size": [2, 2, 2]},
                [[[[[7]]]]],
                "one window",
            ),
        ),
    ),
)
