"""``aten::avg_pool1d``, ``avg_pool2d`` and ``avg_pool3d``: the average of each window."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Isa, Target
from refquant.ir.types import Size, TensorType, format_shape, qint32, quint8
from refquant.kernels import checks, qnnpack_average
from refquant.kernels.averages import (
    Rule,
    divisors,
    nest,
    reciprocals,
)
from refquant.kernels.layout import channels_last, empty_suggested, is_contiguous_channels_last
from refquant.kernels.pool_averages import COMPILED, PLAIN, Averages, Pool
from refquant.kernels.rounding_jit import AFTER, BEFORE
from refquant.kernels.windows import (
    IntOrInts,
    Windows,
    as_image,
    hashable,
    is_pooled_channels_last,
    output_length,
    per_dimension,
    sliding,
    spatial,
)

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

ONE = Windows(*np.array([[0], [1], [1]]))

# Channels per step of the vectorised channels-last loop; None: it has no vector body.
CHANNELS_PER_STEP = {
    Isa.AVX512_VNNI: 16,
    Isa.AVX512: 16,
    Isa.AVX2: 8,
    Isa.DEFAULT: None,
}


def _windows(
    lengths: tuple[int, ...],
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    ceil_mode: bool,
) -> list[Windows]:
    rank = len(lengths)
    kernel = per_dimension(kernel_size, rank, ())
    strides = per_dimension(stride, rank, kernel)
    paddings = per_dimension(padding, rank, (0,) * rank)
    sizes = zip(lengths, kernel, strides, paddings, strict=True)
    windows = [sliding(*size, ceil_mode) for size in sizes]
    return [ONE, *windows] if rank == 1 else windows  # a signal is pooled as an image


def _rule(x: QTensor, rank: int, target: Target) -> Rule:
    """Channels-last loops round whole vectors of channels before they add the zero point."""
    step = CHANNELS_PER_STEP[target.isa]
    if step is None or x.dtype == qint32 or not is_pooled_channels_last(x.int_repr, rank):
        return Rule(0, AFTER, BEFORE)
    channels = x.int_repr.shape[1]
    return Rule(channels // step * step, AFTER, BEFORE)


def _in_torch_layout(x: QTensor, rank: int) -> QTensor:
    """Make the input what torch pools: a volume is always pooled, and returned, channels-last."""
    if rank < 3 or is_contiguous_channels_last(x.int_repr):
        return x
    return x.with_int_repr(channels_last(x.int_repr))


def _avg_pool(
    x: QTensor | Array,
    rank: int,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    target: Target,
    averages: Averages,
) -> QTensor | Array:
    pool, divisor = _pool(
        *(tuple(x.shape[-rank:]), hashable(kernel_size), hashable(stride), hashable(padding)),
        *(ceil_mode, count_include_pad, divisor_override),
    )
    if not isinstance(x, QTensor):
        if rank == 1:
            return _average_float(as_image(x), pool.windows, divisor)[..., 0, :]
        return _average_float(x, pool.windows, divisor)
    if qnnpack_average.applies(x, target) and rank < 3 and not ceil_mode:
        count = prod(per_dimension(kernel_size, rank, ()))  # whatever part lies inside
        if rank > 1:
            return x.with_int_repr(averages.by_count(x, pool, count))
        image = x.with_int_repr(as_image(x.int_repr))
        return x.with_int_repr(averages.by_count(image, pool, count)[..., 0, :])
    if rank == 1:
        image = x.with_int_repr(as_image(x.int_repr))
        return x.with_int_repr(averages.by_rule(image, pool, _rule(image, 2, target))[..., 0, :])
    x = _in_torch_layout(x, rank)
    return x.with_int_repr(averages.by_rule(x, pool, _rule(x, rank, target)))


@lru_cache(maxsize=1024)
def _pool(
    lengths: tuple[int, ...],
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> tuple[Pool, Array]:
    """Return the windows and their divisors."""
    windows = _windows(lengths, kernel_size, stride, padding, ceil_mode)
    divisor = divisors(windows, count_padding=count_include_pad)
    if divisor_override is not None:
        divisor = np.full_like(divisor, divisor_override)
    factor = reciprocals(divisor)
    return Pool(windows, factor, nest(windows, factor)), divisor


def _average_float(x: F32, windows: list[Windows], divisor: Array) -> F32:
    """Add the elements of each window in row-major order, then divide."""
    rank = len(windows)
    lengths = tuple(len(w.start) for w in windows)
    out = empty_suggested(x, np.float32, x.shape[: x.ndim - rank] + lengths)
    if rank == 3:
        out = np.empty(out.shape, np.float32)
    out[...] = 0
    longest = [int(max(w.end - w.start, default=0)) for w in windows]
    for position in product(*map(range, longest)):
        at = [w.start + i for w, i in zip(windows, position, strict=True)]
        inside = reduce(
            np.logical_and.outer, [i < w.end for i, w in zip(at, windows, strict=True)]
        )
        rows = np.ix_(*(np.minimum(i, n - 1) for i, n in zip(at, x.shape[-rank:], strict=True)))
        term = np.where(inside, x[(..., *rows)], np.float32(0))
        out += term
    with np.errstate(invalid="ignore", divide="ignore"):
        out /= divisor.astype(np.float32)
    return out


def reference_1d(
    self: QTensor | Array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    target: Target = Target(),
) -> QTensor | Array:
    """Return the average of each window along the last dimension.

    See ``aten::avg_pool2d``: the signal is pooled as an image of height 1, so a permuted
    (N, L, C) signal counts as channels-last.

    Examples
    --------
    >>> reference_1d(QTensor(np.uint8([[1, 2, 2, 3]]), 0.5, 0), 2).int_repr
    array([[2, 2]], dtype=uint8)
    """
    return _avg_pool(
        *(
            self,
            1,
            kernel_size,
            stride,
            padding,
            ceil_mode,
            count_include_pad,
            None,
            target,
            PLAIN,
        )
    )


def reference_2d(
    self: QTensor | Array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    target: Target = Target(),
) -> QTensor | Array:
    r"""Return the average of each window.

    Quantized: with the exact integer sum :math:`S = \sum (q_i - z)` over the elements inside the
    input, the divisor *D*, and :math:`m = 1 / D` rounded to float32,

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(S m + z))

    where product and sum are rounded to float32 and ties go to even. On a channels-last tensor
    (not of qint32) the first ``C // 16 * 16`` channels (AVX2: 8) use
    :math:`\mathrm{rint}(S m) + z` instead, so ties round differently at an odd zero point.
    Under qnnpack all of a quint8 tensor (rank 1 and 2, ``ceil_mode`` false) does that, with *D*
    the number of elements of a window and :math:`m = s / (s D)`, each step rounded to float32;
    ``count_include_pad`` and ``divisor_override`` have no effect there.

    float32: the elements are added in row-major order, the sum is divided by *D*.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        ([N,] C, H, W).
    kernel_size : int or sequence of int
        Height and width of a window.
    stride : int or sequence of int, optional
        Distance of windows; the kernel size if None or empty.
    padding : int or sequence of int
        At most half a window on each side; padding counts as real 0.
    ceil_mode : bool
        Whether a last window may hang over the end; it never starts beyond the input.
    count_include_pad : bool
        Whether *D* counts padding; what hangs over the padded input is never counted.
    divisor_override : int, optional
        *D* itself.

    Returns
    -------
    QTensor or float32 array
        ([N,] C, H', W'), in the memory format and with the parameters of the input. A defect of
        torch is reproduced: from a quantized 1 x 1 map in NCHW memory, a larger result (by
        padding) comes out scrambled, its values in NHWC order.

    Raises
    ------
    VerifyError
        If the rank is wrong, the padding is more than half a window, or no window fits.

    Examples
    --------
    >>> x = QTensor(np.uint8([[[[1, 2], [3, 4]]]]), 0.5, 7)
    >>> reference_2d(x, 2).int_repr
    array([[[[2]]]], dtype=uint8)
    """
    return _avg_pool(
        *(self, 2, kernel_size, stride, padding, ceil_mode, count_include_pad),
        *(divisor_override, target, PLAIN),
    )


def reference_3d(
    self: QTensor | Array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    target: Target = Target(),
) -> QTensor | Array:
    """Return the average of each window over depth, height and width.

    See ``aten::avg_pool2d``. A quantized value needs its batch dimension; it is pooled with the
    channels-last rule, and the result is channels-last, whatever the layout of the input. A
    float result is always C-contiguous.

    Examples
    --------
    >>> reference_3d(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2), 2)
    array([[[[3.5]]]], dtype=float32)
    """
    return _avg_pool(
        *(self, 3, kernel_size, stride, padding, ceil_mode, count_include_pad),
        *(divisor_override, target, PLAIN),
    )


def _infer(rank: int) -> Callable[..., TensorType]:
    op = f"avg_pool{rank}d"

    def infer(
        self: TensorType,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: IntOrInts = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> TensorType:
        """Check rank, window and padding; every spatial length becomes a number of windows."""
        quantized = checks.float_or_per_tensor(op, self)
        leading, lengths = spatial(op, self, rank)
        if quantized and rank == 3 and self.rank != 5:
            raise VerifyError(f"{op}: a quantized value needs rank 5, got {self}")
        if divisor_override == 0:
            raise VerifyError(f"{op}: divisor_override must not be 0")
        kernel = per_dimension(kernel_size, rank, ())
        strides = per_dimension(stride, rank, kernel)
        paddings = per_dimension(padding, rank, (0,) * rank)
        checks.window(op, (kernel, strides, paddings), rank)
        if rank == 3 and not quantized and any(map(_is_smaller, lengths, kernel)):
            raise VerifyError(f"{op}: {format_shape(lengths)} is smaller than the window")
        out = tuple(
            output_length(n, k, s, p, 1, ceil_mode)
            for n, k, s, p in zip(lengths, kernel, strides, paddings, strict=True)
        )
        if any(isinstance(n, int) and n < 1 for n in out):
            raise VerifyError(f"{op}: no window fits: {format_shape(lengths)} gives {out}")
        return self.with_shape(leading + out)

    return infer


def _is_smaller(length: Size, kernel: int) -> bool:
    return isinstance(length, int) and length < kernel


def kernel_1d(
    self: QTensor | Array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    target: Target = Target(),
) -> QTensor | Array:
    """Compute :func:`reference_1d` in one compiled pass."""
    return _avg_pool(
        *(self, 1, kernel_size, stride, padding, ceil_mode, count_include_pad),
        *(None, target, COMPILED),
    )


def _kernel(rank: int) -> Callable[..., QTensor | Array]:
    def kernel(
        self: QTensor | Array,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: IntOrInts = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        target: Target = Target(),
    ) -> QTensor | Array:
        """Compute the reference in one compiled pass."""
        return _avg_pool(
            *(self, rank, kernel_size, stride, padding, ceil_mode, count_include_pad),
            *(divisor_override, target, COMPILED),
        )

    return kernel


def _u8(values: Any) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), 0.5, 7, None, quint8)


_TIES = channels_last(np.broadcast_to(np.array([[8, 7]], np.uint8), (1, 17, 1, 2)))
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/AveragePool2d.cpp::avg_pool2d_out_frame",
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::do_avg_pool_nhwc_on_AVX_n",
    "pytorch/pytorch/aten/src/ATen/native/cpu/AvgPoolKernel.cpp::cpu_avg_pool2d",
)


def _op(
    rank: int, reference: Callable[..., Any], kernel: Callable[..., Any], cases: tuple[Case, ...]
) -> Op:
    return Op(
        name=f"aten::avg_pool{rank}d",
        reference=reference,
        infer=_infer(rank),
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=_SOURCE,
        cases=cases,
    )


OTHERS = (Engine.FBGEMM, Engine.ONEDNN, Engine.X86)
OPS = (
    _op(
        1,
        reference_1d,
        kernel_1d,
        (
            Case(
                *("ties", (_u8([[8, 7, 8, 9]]),)),
                {"kernel_size": [2]},
                *([[8, 8]], "7.5 and 8.5 go to 8: the zero point is added before rounding"),
                engines=OTHERS,
            ),
            Case(
                *("ties_by_count", (_u8([[[8, 7, 8, 9]]]),)),
                {"kernel_size": [2]},
                *([[[7, 9]]], "0.5 and 1.5 are rounded before the zero point is added"),
                engines=(Engine.QNNPACK,),
            ),
        ),
    ),
    _op(
        2,
        reference_2d,
        _kernel(2),
        (
            Case(
                *("channels_last_ties", (_u8(0).with_int_repr(_TIES),)),
                {"kernel_size": [1, 2]},
                np.reshape([7] * 16 + [8], (1, 17, 1, 1)),
                "0.5 rounds to 0 before 7 is added, but in the last channel 7.5 rounds to 8",
                engines=OTHERS,
            ),
            Case(
                *("padding", (_u8([[[[11, 7], [7, 7]]]]),)),
                {"kernel_size": [2, 2], "stride": [2, 2], "padding": [1, 1]},
                *([[[[8, 7], [7, 7]]]], "padding is the zero point"),
            ),
            Case(
                *("without_padding", (_u8([[[[11, 7], [7, 7]]]]),)),
                {"kernel_size": [2, 2], "padding": [1, 1], "count_include_pad": False},
                *([[[[11, 7], [7, 7]]]], "a window of one element"),
                engines=OTHERS,
            ),
            Case(
                *("float", (np.array([[[1e8, 1], [-1e8, 1]]], np.float32),)),
                {"kernel_size": [2, 2], "divisor_override": 1},
                *([[[1]]], "added in row-major order: the first 1 is lost"),
            ),
        ),
    ),
    _op(
        3,
        reference_3d,
        _kernel(3),
        (
            Case(
                *("ceil_mode", (_u8(np.reshape([7, 8, 9], (1, 1, 1, 1, 3))),)),
                {"kernel_size": [1, 1, 2], "ceil_mode": True},
                np.reshape([8, 9], (1, 1, 1, 1, 2)),
                "the last window has one element",
            ),
        ),
    ),
)
