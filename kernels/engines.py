"""Which engine, and which of oneDNN's kernels, runs a convolution: both decide its rounding.

Engine x86 is no arithmetic but a choice between fbgemm and oneDNN when the weight is packed.
oneDNN in turn takes the first of its kernels that accepts a shape, and what they fall back on
rounds otherwise. These rules were read off the kernels' names for thousands of shapes.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from refquant.ir.errors import UnsupportedError
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Isa, Target

Ints = tuple[int, ...]

# x86: torch leaves convolutions with more groups to fbgemm's depthwise kernel.
MOST_GROUPS = 100
# oneDNN's vectors: int32 accumulators, and vector registers that a kernel has for them.
_LANES, _LANES_AVX2 = 16, 4
_REGISTERS, _REGISTERS_AVX2 = 30, 14
_BLOCKS, _BLOCKS_AVX2 = (16, 8, 4), (8, 4)
# Memory of oneDNN's GEMM kernel, in bytes of all tensors, up to which it was always seen.
_MOST_WORK, _TINY = 25, 64
# Inputs times taps of a column, up to which oneDNN was seen to leave its usual kernels.
_FEW = 18


def resolve(
    target: Target, weight: QTensor, groups: int, *, transposed: bool, output_padding: Ints = ()
) -> Target:
    """Return the target with the engine that x86 packs this weight for.

    Examples
    --------
    >>> from refquant.ir.types import qint8
    >>> w = QTensor(np.int8([[[1]]]), 1.0, 0, None, qint8)
    >>> print(resolve(Target("x86"), w, 1, transposed=False))
    onednn/avx512_vnni/threads=1
    """
    if target.engine is not Engine.X86:
        return target
    onednn = (
        target.isa not in (Isa.AVX512, Isa.AVX2)
        and groups <= MOST_GROUPS
        and not np.any(weight.zero_point)
        and not any(output_padding)
        and not (transposed and weight.axis is not None)
    )
    return replace(target, engine=Engine.ONEDNN if onednn else Engine.FBGEMM)


def check_symmetric(op: str, weight: QTensor) -> None:
    """Check that the zero points of a weight are 0, as oneDNN demands."""
    if np.any(weight.zero_point):
        raise UnsupportedError(
            f"{op}: engine onednn needs weight zero points 0, got {weight.zero_point}"
        )


def is_outside(kernel: Ints, dilation: Ints, padding: Ints) -> bool:
    """Whether some axis has a padding as long as the dilated kernel."""
    axes = zip(kernel, dilation, padding, strict=True)
    return any((k - 1) * d + 1 <= p for k, d, p in axes)


def is_unseen(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether along an axis of ``size`` inputs every tap of every output lies in the padding.

    Along the last axis oneDNN's kernels then give wrong results or end the process.

    Examples
    --------
    >>> is_unseen(1, out=2, kernel=1, stride=2, padding=1, dilation=1)
    True
    """
    if (kernel - 1) * dilation + 1 > padding:
        return False
    at = np.arange(out)[:, None] * stride - padding + np.arange(kernel) * dilation
    return not np.any((at >= 0) & (at < size))


def leaves_gaps(kernel: Ints, stride: Ints, dilation: Ints) -> bool:
    """Whether a transposed convolution leaves two rows or planes next to each other without input.

    oneDNN then adds what it finds in memory, unless the zero point of the input is 0.
    """
    axes = list(zip(kernel, stride, dilation, strict=True))[:-1]
    return any(s - ((k - 1) * d + 1) >= 2 for k, s, d in axes)


def combines_scales(kernel: Ints, dilation: Ints, groups: int, each: Ints) -> bool:
    """Whether oneDNN's convolution multiplies the scales before the sum.

    Its GEMM kernel does; it is left with three-dimensional depthwise convolutions that are
    dilated, even along an axis where the kernel has one tap. ``each`` is the number of input and
    of output channels in a group.
    """
    return len(kernel) == 3 and groups > 1 and each == (1, 1) and max(dilation) > 1


def loses_zero_point(kernel: Ints, padding: Ints, groups: int, each: Ints) -> bool:
    """Whether oneDNN for VNNI leaves out the input's zero point in some rows of a depthwise layer.

    Seen with kernels of height (and depth) 1, padding along these axes but not along the last,
    and groups in multiples of 16; not for every stride and dilation.

    Examples
    --------
    >>> loses_zero_point((1, 3), (1, 0), 16, (1, 1)), loses_zero_point((1, 3), (1, 1), 16, (1, 1))
    (True, False)
    """
    beside = set(kernel[:-1]) == {1} and any(padding[:-1]) and padding[-1] == 0
    return beside and groups % _LANES == 0 and each == (1, 1)


def is_left_to_reference(kernel: Ints, groups: int, each: Ints) -> bool:
    """Whether oneDNN for AVX2 leaves a convolution to its reference, whose sums are exact.

    Its one vector kernel takes groups of multiples of four channels and depthwise layers, those
    in one and two dimensions. ``each`` is the number of input and of output channels in a group.

    Examples
    --------
    >>> is_left_to_reference((3, 3), 4, (12, 6)), is_left_to_reference((3, 3), 1, (12, 9))
    (True, False)
    """
    if groups == 1:
        return False
    if each == (1, 1):
        return len(kernel) == 3
    return any(n % _LANES_AVX2 for n in each)


def is_small_group(inputs: int, kernel: Ints, padding: Ints, out: int, groups: int) -> bool:
    """Whether oneDNN may leave a grouped convolution to its GEMM kernel, or to its reference.

    It does for some columns (maps of width 1, kernels of width 1) of few inputs, by a rule that
    was not found; these conditions held in all cases seen.

    Parameters
    ----------
    inputs : int
        Input channels of all groups.
    kernel, padding : tuple of int
        One entry per spatial axis.
    out : int
        Width of the result.
    groups : int
        Number of groups.
    """
    column = kernel[-1] == out == 1 and padding[-1] == 0 and len(kernel) > 1
    return groups > 1 and column and inputs * prod(kernel[:-1]) <= _FEW


def divides(
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    out: Ints,
    groups: int,
    each: Ints,
) -> bool:
    """Whether oneDNN's transposed convolution divides by the output's scale.

    Its reference kernel does, which is left with the shapes that two others refuse. ``each`` is
    the number of input and of output channels in a group.
    """
    depthwise = groups > 1 and each == (1, 1)
    grouped_by_four = groups > 1 and each[0] <= _LANES and each[0] % 4 == each[1] % 4 == 0
    outside = is_outside(kernel, dilation, padding)
    if max(stride) > 1:
        even = all(o % s == 0 for o, s in zip(out, stride, strict=True))
        batched = even and max(dilation) == 1
    else:
        batched = not outside and not depthwise
    if batched and not grouped_by_four:
        return False
    axes = (kernel, stride, padding, dilation, out)
    return _is_refused(axes, groups, each, _BLOCKS, _REGISTERS)


def is_left_to_product(
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    out: Ints,
    groups: int,
    each: Ints,
) -> bool:
    """Whether oneDNN for AVX2 leaves a transposed convolution to its GEMM kernel.

    It divides by the output's scale; the vector kernel multiplies both scales before the sum.
    """
    axes = (kernel, stride, padding, dilation, out)
    return _is_refused(axes, groups, each, _BLOCKS_AVX2, _REGISTERS_AVX2)


def outgrows_memory(
    sizes: Ints, out: Ints, kernel: Ints, images: int, inputs: int, each: int, threads: int
) -> bool:
    """Whether a transposed convolution may need more memory than oneDNN's GEMM kernel allows.

    Then the reference takes its place. The bound, about 30 times the bytes of all tensors, was
    measured, not found; shapes near it count as beyond. ``each`` is the number of inputs and of
    outputs in a group.
    """
    taps, pixels = prod(kernel), prod(out)
    work = 4 * each * (taps * prod(sizes) + pixels) * threads
    tensors = inputs * (images * (prod(sizes) + pixels) + each * taps)
    return tensors < _TINY or work > _MOST_WORK * tensors


def _is_refused(
    axes: tuple[Ints, ...], groups: int, each: Ints, sizes: Ints, registers: int
) -> bool:
    """Whether oneDNN's vector kernel for transposed convolutions does not take a shape.

    ``axes`` are kernel, stride, padding, dilation and output, ``sizes`` the numbers of channels
    that it takes at a time.
    """
    kernel, stride, padding, dilation, _ = axes
    depthwise = groups > 1 and each == (1, 1)
    both = any(s > 1 and d > 1 for s, d in zip(stride, dilation, strict=True))
    outside = is_outside(kernel, dilation, padding)
    if outside or both or (depthwise and len(kernel) == 3):
        return True
    blocks = 1
    if not depthwise:
        fitting = [size for size in sizes if groups == 1 or not any(n % size for n in each)]
        if not fitting:
            return True
        blocks = -(-each[1] // fitting[0])
    return not _fits_in_registers([values[-1] for values in axes], blocks, registers)


def _fits_in_registers(row: list[int], blocks: int, registers: int) -> bool:
    """Whether all outputs next to an end of a row can be held in registers together."""
    kernel, stride, padding, dilation, out = row
    together = min(4, blocks)
    while together > 1 and (blocks % together or padding > registers // (together + 1)):
        together -= 1
    most = registers // (together + 1)
    if out < most:
        return True
    reach = (kernel - 1) * dilation - padding
    left = max(0, reach // stride)
    for width in range(most, 0, -1):
        right = max(0, (reach - out % width) // stride)
        if width % stride == 0 and width >= max(left, right) * stride:
            return True
    return False
