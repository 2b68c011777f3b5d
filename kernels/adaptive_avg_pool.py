"""``aten::adaptive_avg_pool1d``, ``2d`` and ``3d``: averages over evenly spread windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import Dim, TensorType, format_shape, qint32, quint8
from refquant.kernels import checks, qnnpack_average
from refquant.kernels.averages import (
    Rule,
    divisors,
    nest,
    reciprocals,
    reciprocals_in_turn,
)
from refquant.kernels.layout import (
    channels_last,
    empty_channels_last,
    empty_suggested,
    is_channels_last,
    is_contiguous_channels_last,
)
from refquant.kernels.mean import kernel as mean_kernel
from refquant.kernels.mean import mean_float
from refquant.kernels.mean import reference as mean_reference
from refquant.kernels.pool_averages import COMPILED, PLAIN, Averages, Pool
from refquant.kernels.rounding_jit import BEFORE, FUSED
from refquant.kernels.windows import (
    IntOrInts,
    Windows,
    adaptive,
    adaptive_rounded,
    as_image,
    is_pooled_channels_last,
    per_dimension,
    spatial,
)

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Mean = Callable[..., Any]
CHANNELS_PER_STEP = 8


def _rule(x: QTensor, rank: int, target: Target) -> Rule:
    """C order sums the integers themselves; channels-last fuses whole vectors of channels."""
    if not is_pooled_channels_last(x.int_repr, rank):
        return Rule(0, FUSED, BEFORE, raw=True)
    fused = target.fused_multiply_add and x.dtype != qint32
    channels = x.int_repr.shape[1] if fused else 0
    return Rule(channels // CHANNELS_PER_STEP * CHANNELS_PER_STEP, FUSED, BEFORE)


def _adaptive(
    x: QTensor | Array,
    rank: int,
    output_size: IntOrInts,
    target: Target,
    averages: Averages,
    mean: Mean,
) -> QTensor | Array:
    sizes = per_dimension(output_size, rank, ())
    if rank == 1:
        image: Any = as_image(x.int_repr if isinstance(x, QTensor) else x)
        image = x.with_int_repr(image) if isinstance(x, QTensor) else image
        y: Any = _adaptive(image, 2, (1, *sizes), target, averages, mean)
        if isinstance(y, QTensor):
            return y.with_int_repr(y.int_repr[..., 0, :])
        return np.asarray(y[..., 0, :])
    to_one = set(sizes) == {1}
    dims = tuple(range(-rank, 0))
    if isinstance(x, QTensor):
        if rank == 3 and to_one:
            q = mean(x, dims, True, target=target)
            restored: QTensor = q.with_int_repr(_restrided(q.int_repr, x.int_repr))
            return restored
        return _quantized(x, sizes, target, averages)
    if to_one:
        return _restrided(mean_float(x, tuple(range(x.ndim - rank, x.ndim)), target), x)
    windows = [adaptive(n, size) for n, size in zip(x.shape[-rank:], sizes, strict=True)]
    return _average_float(x, windows)


def _quantized(x: QTensor, sizes: Sequence[int], target: Target, averages: Averages) -> QTensor:
    """Average windows of exact integers; C order divides 1 by one length after the other."""
    rank = len(sizes)
    if rank == 2 and qnnpack_average.applies(x, target) and _divides(x.shape[-2:], sizes):
        count = prod(n // size for n, size in zip(x.shape[-2:], sizes, strict=True))
        pool = _pool(x.shape[-2:], tuple(sizes), False)
        return x.with_int_repr(averages.by_count(x, pool, count))
    if rank == 3 and x.int_repr.ndim == 4 and is_contiguous_channels_last(x.int_repr):
        raise UnsupportedError(
            "adaptive_avg_pool3d: torch misreads a single volume whose memory is dense with "
            "depth innermost; add a batch dimension"
        )
    rule = _rule(x, rank, target)
    return x.with_int_repr(
        averages.by_rule(x, _pool(x.shape[-rank:], tuple(sizes), rule.raw), rule)
    )


@lru_cache(maxsize=1024)
def _pool(lengths: tuple[int, ...], sizes: tuple[int, ...], in_turn: bool) -> Pool:
    pairs = list(zip(lengths, sizes, strict=True))
    windows = [adaptive_rounded(n, size) for n, size in pairs]
    for (n, size), window in zip(pairs, windows, strict=True):
        if n * size >= 2**31 or window.end.max(initial=0) > n:
            raise UnsupportedError(
                f"adaptive_avg_pool: torch's int32 and float32 windows leave the input, from "
                f"length {n} to {size}"
            )
    if in_turn:
        factor = reciprocals_in_turn(windows)
    else:
        factor = reciprocals(divisors(windows, count_padding=False))
    return Pool(windows, factor, nest(windows, factor))


def _divides(lengths: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether all windows are equal, and larger than one pixel: qnnpack pools those."""
    pairs = list(zip(lengths, sizes, strict=True))
    return all(n % size == 0 for n, size in pairs) and any(n != size for n, size in pairs)


def _restrided(y: Array, x: Array) -> Array:
    """Copy a map of one element per channel to the memory format of the input."""
    out = empty_channels_last(y.shape, y.dtype) if is_channels_last(x) else np.empty_like(y)
    out[...] = y
    return out


def _average_float(x: F32, windows: list[Windows]) -> F32:
    """Add the elements of each window in row-major order, then divide.

    Whole vectors of channels-last channels are divided by the number of elements, all others by
    the height, then by the width.
    """
    rank = len(windows)
    lengths = tuple(len(w.start) for w in windows)
    out = empty_suggested(x, np.float32, x.shape[: x.ndim - rank] + lengths)
    if rank == 3:
        out = np.empty(out.shape, np.float32)
    in_body = np.arange(x.shape[-rank - 1]) < _body_channels(x, rank)
    for position in np.ndindex(*lengths):
        bounds = [(int(w.start[i]), int(w.end[i])) for w, i in zip(windows, position, strict=True)]
        where: tuple[Any, ...] = (..., *(slice(a, b) for a, b in bounds))
        window = x[where]
        flat = window.reshape(*x.shape[: x.ndim - rank], -1)
        value = np.add.accumulate(flat, axis=-1, dtype=np.float32)[..., -1]
        in_turn, at_once = value, value / np.float32(flat.shape[-1])
        for a, b in bounds:
            in_turn = in_turn / np.float32(b - a)
        out[(..., *position)] = np.where(in_body, at_once, in_turn)
    return out


def _body_channels(x: F32, rank: int) -> int:
    if rank == 2 and is_channels_last(x):
        return int(x.shape[1] // CHANNELS_PER_STEP * CHANNELS_PER_STEP)
    return 0


def reference_1d(
    self: QTensor | Array, output_size: IntOrInts, target: Target = Target()
) -> QTensor | Array:
    """Average evenly spread windows along the last dimension.

    See ``aten::adaptive_avg_pool2d``: the signal is pooled as an image of height 1.

    Examples
    --------
    >>> reference_1d(QTensor(np.uint8([[1, 2, 3]]), 0.5, 0), 2).int_repr
    array([[2, 2]], dtype=uint8)
    """
    return _adaptive(self, 1, output_size, target, PLAIN, mean_reference)


def reference_2d(
    self: QTensor | Array, output_size: IntOrInts, target: Target = Target()
) -> QTensor | Array:
    r"""Average evenly spread windows, so that the result has a given size.

    Window *i* of *O* along a dimension of length *n* covers
    :math:`\lfloor i n / O \rfloor \dots \lceil (i + 1) n / O \rceil` (quantized, with product
    and quotient rounded to float32). With *D* elements in a
    window and :math:`m = 1 / D` rounded to float32 (in C order 1 is divided by one length after
    the other, each time rounded), quantized values are averaged exactly:

    * in C order: :math:`q = \mathrm{rint}(m \sum q_i)`, the zero point is not looked at;
    * channels-last: :math:`q = \mathrm{rint}(\mathrm{fma}(S, m, z))` with
      :math:`S = \sum (q_i - z)` in the first ``C // 8 * 8`` channels, and
      :math:`\mathrm{rint}(S m + z)` with a rounded product in the others (in all of
      them for qint32, or without vector instructions).

    Under qnnpack quint8 images whose size is a multiple of the result's are averaged as by
    ``aten::avg_pool2d``.

    float32: elements are added in row-major order and the sum is divided by the height, then by
    the width of the window (in the first ``C // 8 * 8`` channels of a channels-last tensor by
    their product); a result of 1 x 1 is ``aten::mean``.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        ([N,] C, H, W).
    output_size : int or sequence of int
        Height and width of the result.

    Returns
    -------
    QTensor or float32 array
        ([N,] C, H', W'), in the memory format and with the parameters of the input. A defect of
        torch is reproduced: from a quantized 1 x 1 map in NCHW memory, a larger result comes out
        scrambled, its values in NHWC order.

    Raises
    ------
    VerifyError
        If the rank is wrong or the spatial size of the input is 0.

    Examples
    --------
    >>> x = QTensor(np.uint8([[[[1, 2], [3, 4]]]]), 0.5, 7)
    >>> reference_2d(x, 1).int_repr
    array([[[[2]]]], dtype=uint8)
    """
    return _adaptive(self, 2, output_size, target, PLAIN, mean_reference)


def reference_3d(
    self: QTensor | Array, output_size: IntOrInts, target: Target = Target()
) -> QTensor | Array:
    """Average evenly spread windows over depth, height and width.

    See ``aten::adaptive_avg_pool2d``; quantized, too, a result of 1 x 1 x 1 is ``aten::mean``.

    Examples
    --------
    >>> reference_3d(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2), 1)
    array([[[[3.5]]]], dtype=float32)
    """
    return _adaptive(self, 3, output_size, target, PLAIN, mean_reference)


def reference_windows(self: QTensor, output_size: IntOrInts, target: Target = Target()) -> QTensor:
    """Average evenly spread windows of a quantized volume, one of 1 x 1 x 1 like all others.

    See ``aten::adaptive_avg_pool2d`` for the arithmetic; ``aten::adaptive_avg_pool3d`` is this
    except where the result is 1 x 1 x 1.

    Examples
    --------
    >>> reference_windows(QTensor(np.uint8([[[[[8, 7]]]]]), 0.5, 7), 1).int_repr
    array([[[[[8]]]]], dtype=uint8)
    """
    return _quantized(self, per_dimension(output_size, 3, ()), target, PLAIN)


def kernel_windows(self: QTensor, output_size: IntOrInts, target: Target = Target()) -> QTensor:
    """Compute :func:`reference_windows` in one compiled pass."""
    return _quantized(self, per_dimension(output_size, 3, ()), target, COMPILED)


def infer_windows(self: TensorType, output_size: IntOrInts) -> TensorType:
    """Check that the volume is quantized; the rest as for ``aten::adaptive_avg_pool3d``."""
    checks.per_tensor("_adaptive_avg_pool3d", self)
    return _infer(3)(self, output_size)


def _infer(rank: int) -> Callable[..., TensorType]:
    op = f"adaptive_avg_pool{rank}d"

    def infer(self: TensorType, output_size: IntOrInts) -> TensorType:
        """Check rank and size; the spatial lengths become ``output_size``."""
        checks.float_or_per_tensor(op, self)
        leading, lengths = spatial(op, self, rank)
        sizes = per_dimension(output_size, rank, ())
        if len(sizes) != rank or min(sizes) < 0:
            raise VerifyError(f"{op}: output_size must be {rank} lengths, got {output_size}")
        if any(isinstance(n, Dim) or n < 1 for n in lengths):
            raise VerifyError(f"{op}: cannot pool the lengths {format_shape(lengths)}")
        return self.with_shape(leading + sizes)

    return infer


def _kernel(rank: int) -> Callable[..., QTensor | Array]:
    def kernel(
        self: QTensor | Array, output_size: IntOrInts, target: Target = Target()
    ) -> QTensor | Array:
        """Compute the reference in one compiled pass."""
        return _adaptive(self, rank, output_size, target, COMPILED, mean_kernel)

    return kernel


def _u8(values: Any) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), 0.5, 7, None, quint8)


_TIES = channels_last(np.broadcast_to(np.array([[8, 7]], np.uint8), (1, 2, 1, 2)))
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/AdaptiveAveragePooling.cpp"
    "::q_adaptive_avg_pool2d",
    "pytorch/pytorch/aten/src/ATen/native/cpu/AdaptiveAvgPoolKernel.cpp",
)


def _op(rank: int, reference: Callable[..., Any], cases: tuple[Case, ...]) -> Op:
    return Op(
        name=f"aten::adaptive_avg_pool{rank}d",
        reference=reference,
        infer=_infer(rank),
        kernels=dict.fromkeys(TORCH_ENGINES, _kernel(rank)),
        source=_SOURCE,
        cases=cases,
    )


OTHERS = (Engine.FBGEMM, Engine.ONEDNN, Engine.X86)
OPS = (
    _op(
        1,
        reference_1d,
        (
            Case(
                "overlap",
                (_u8([[1, 2, 9]]),),
                {"output_size": [2]},
                [[2, 6]],
                "windows 0..1 and 1..2 share an element; 1.5 and 5.5 are ties",
            ),
        ),
    ),
    _op(
        2,
        reference_2d,
        (
            Case(
                "one_pixel",
                (_u8([[[[8, 7]]]]),),
                {"output_size": [1, 1]},
                [[[[8]]]],
                "rint(15 / 2)",
                OTHERS,
            ),
            Case(
                "one_pixel_by_count",
                (_u8([[[[8, 7]]]]),),
                {"output_size": [1, 1]},
                [[[[7]]]],
                "rint(1 / 2) + 7",
                (Engine.QNNPACK,),
            ),
            Case(
                "channels_last",
                (_u8(0).with_int_repr(_TIES),),
                {"output_size": [1, 1]},
                np.reshape([8, 8], (1, 2, 1, 1)),
                "rint(1 / 2 + 7)",
                OTHERS,
            ),
            Case(
                "scrambled",
                (_u8([[[[1]], [[5]]]]),),
                {"output_size": [1, 2]},
                [[[[1, 5]], [[1, 5]]]],
                "torch's defect on a 1 x 1 map: NHWC values in NCHW",
            ),
            Case(
                "float",
                (np.array([[[1e8, 1, -1e8, 1]]], np.float32),),
                {"output_size": [1, 1]},
                [[[0.25]]],
                "aten::mean: added in four columns, here one by one",
            ),
        ),
    ),
    _op(
        3,
        reference_3d,
        (
            Case(
                "one_voxel",
                (_u8(np.reshape([8, 7], (1, 1, 1, 1, 2))),),
                {"output_size": [1, 1, 1]},
                np.reshape([8], (1, 1, 1, 1, 1)),
                "aten::mean, by way of its integer kernel",
            ),
        ),
    ),
    Op(
        name="aten::_adaptive_avg_pool3d",
        reference=reference_windows,
        infer=infer_windows,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_windows),
        source=_SOURCE,
        cases=(
            Case(
                "one_voxel",
                (_u8(np.reshape([8, 7], (1, 1, 1, 1, 2))),),
                {"output_size": [1, 1, 1]},
                np.reshape([8], (1, 1, 1, 1, 1)),
                "not aten::mean: 7.5 without the zero point",
            ),
        ),
    ),
)
