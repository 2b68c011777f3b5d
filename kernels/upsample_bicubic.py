"""``aten::upsample_bicubic2d``: cubic convolution of sixteen neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType
from refquant.kernels.layout import empty_suggested
from refquant.kernels.resample import Factors, Sizes, cubic, infer_upsample, output_lengths

F32 = npt.NDArray[np.float32]


def reference(input: F32, output_size: Sizes, align_corners: bool, scale_factors: Factors) -> F32:
    r"""Return a float32 image of another size, by cubic convolution with *a* = -0.75.

    Positions are those of ``aten::upsample_bilinear2d`` without the lower limit 0; sources
    beyond the edge repeat it. Computed in float64 from float32 positions and weights; torch adds
    in float32, in an order that depends on the layout: compare with a tolerance of
    ``5e-6 * max|x|``. torch has no quantized form.

    Parameters
    ----------
    input : float32
        (N, C, H, W).
    output_size : sequence of int, optional
        Height and width of the result.
    align_corners : bool
        Whether the corners of input and output are the centres of the corner pixels.
    scale_factors : sequence of float, optional
        Factors; exactly one of the two is given. The size is rounded down.

    Returns
    -------
    float32 array
        In the memory format of the input.

    Raises
    ------
    VerifyError
        If the rank does not fit, or not exactly one of size and factors is given.

    Examples
    --------
    >>> reference(np.float32([[[[0, 4]]]]), [1, 3], True, None)
    array([[[[0., 2., 4.]]]], dtype=float32)
    """
    lengths = input.shape[2:]
    sizes = output_lengths(lengths, output_size, scale_factors)
    factors = (None, None) if scale_factors is None else scale_factors
    (rows, row_weights), (columns, column_weights) = (
        cubic(n, size, factor, align_corners)
        for n, size, factor in zip(lengths, sizes, factors, strict=True)
    )
    x = input.astype(np.float64)
    along_width = (x[..., columns] * column_weights).sum(axis=-1)
    y = (along_width[:, :, rows] * row_weights[..., np.newaxis]).sum(axis=3)
    out = empty_suggested(input, np.float32, y.shape)
    out[...] = y
    return out


def infer(
    input: TensorType, output_size: Sizes, align_corners: bool, scale_factors: Factors
) -> TensorType:
    """Check rank, size and factors."""
    op = "upsample_bicubic2d"
    return infer_upsample(op, input, 2, output_size, scale_factors, quantized=False)


OPS = (
    Op(
        name="aten::upsample_bicubic2d",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=("pytorch/pytorch/aten/src/ATen/native/cpu/UpSampleKernel.cpp::HelperInterpCubic",),
        cases=(
            Case(
                *("middle", (np.array([[[[0, 4]]]], np.float32),)),
                {"output_size": [1, 3], "align_corners": True, "scale_factors": None},
                *([[[[0, 2, 4]]]], "symmetric weights in the middle"),
            ),
        ),
    ),
)
