"""``aten::upsample_nearest1d``, ``2d``, ``3d`` and their exact forms: copies of neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.op import ALL_ENGINES, Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.types import TensorType, quint8
from refquant.kernels.layout import empty_suggested
from refquant.kernels.resample import (
    Factors,
    Sizes,
    infer_upsample,
    nearest,
    output_lengths,
    takes_float_vectors,
)
from refquant.kernels.windows import in_torch_memory, is_pooled_channels_last

Array = npt.NDArray[Any]


def reference(
    input: QTensor | Array, output_size: Sizes, scale_factors: Factors
) -> QTensor | Array:
    r"""Return an image of another size whose pixels are copies.

    Output *i* copies source :math:`\min(\lfloor i r \rfloor, n - 1)`, in float32, where the
    ratio *r* is the input length divided by the output length, or the reciprocal of the scale
    factor where one is given. A quantized image whose size stays is copied, whatever the factor;
    a small or channels-last float image copies along each length that stays, and halves the
    index along each that doubles. Nothing is rounded, and parameters are kept.

    Parameters
    ----------
    input : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        (N, C, ...); torch has no quantized form of rank 3.
    output_size : sequence of int, optional
        Spatial size of the result.
    scale_factors : sequence of float, optional
        Factors; exactly one of the two is given. The size is rounded down.

    Returns
    -------
    QTensor or float32 array
        In the memory format of the input. A defect of torch is reproduced: a quantized map of
        one pixel in NCHW memory comes out scrambled, its values in NHWC order.

    Raises
    ------
    VerifyError
        If the rank does not fit, or not exactly one of size and factors is given.
    UnsupportedError
        For quantized channels-last volumes (N > 1) whose size stays: torch leaves all but the
        first uninitialised.

    Examples
    --------
    >>> reference(np.float32([[[1, 2]]]), [4], None)
    array([[[1., 1., 2., 2.]]], dtype=float32)
    """
    return _copy(input, output_size, scale_factors, exact=False)


def reference_exact(
    input: QTensor | Array, output_size: Sizes, scale_factors: Factors
) -> QTensor | Array:
    r"""Return an image of another size whose pixels are copies of the truly nearest ones.

    Output *i* copies source :math:`\min(\lfloor (i + 0.5) r \rfloor, n - 1)`; everything else is
    as in ``aten::upsample_nearest2d``.

    Examples
    --------
    >>> reference_exact(np.float32([[[1, 2, 3]]]), [2], None)
    array([[[1., 3.]]], dtype=float32)
    """
    return _copy(input, output_size, scale_factors, exact=True)


def _copy(
    input: QTensor | Array, output_size: Sizes, scale_factors: Factors, *, exact: bool
) -> QTensor | Array:
    x = input.int_repr if isinstance(input, QTensor) else input
    lengths = x.shape[2:]
    sizes = output_lengths(lengths, output_size, scale_factors)
    if isinstance(input, QTensor) and sizes == list(lengths):
        if len(sizes) == 3 and len(x) > 1 and is_pooled_channels_last(x, 3):
            raise UnsupportedError(
                "upsample_nearest3d: torch returns uninitialised memory for all channels-last "
                "images but the first where the size stays"
            )
        return input.with_int_repr(in_torch_memory(x, x, len(lengths)))
    factors = [None] * len(lengths) if scale_factors is None else scale_factors
    vectors = not isinstance(input, QTensor) and takes_float_vectors(x, sizes)
    sources = [
        nearest(n, size, factor, exact=exact, vectors=vectors)
        for n, size, factor in zip(lengths, sizes, factors, strict=True)
    ]
    where: tuple[Any, ...] = (slice(None), slice(None), *np.ix_(*sources))
    y = x[where]
    if isinstance(input, QTensor):
        return input.with_int_repr(in_torch_memory(y, x, len(lengths)))
    out = empty_suggested(x, x.dtype, y.shape)
    out[...] = y
    return out


def _infer(name: str, rank: int) -> Callable[..., TensorType]:
    def infer(input: TensorType, output_size: Sizes, scale_factors: Factors) -> TensorType:
        """Check rank, size and factors."""
        if rank == 1 and input.dtype.is_quantized:
            raise UnsupportedError(f"{name}: torch has no quantized form")
        return infer_upsample(name, input, rank, output_size, scale_factors)

    return infer


def _u8(values: Any) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), 0.5, 7, None, quint8)


def _case(rank: int, *, exact: bool) -> Case:
    x = np.reshape(np.array([1, 2, 3], np.float32), (1, 1, *(1,) * (rank - 1), 3))
    expected = np.reshape([1, 3] if exact else [1, 2], (1, 1, *(1,) * (rank - 1), 2))
    why = "position 0.75 and 2.25" if exact else "position 0 and 1.5"
    attributes = {"output_size": [*[1] * (rank - 1), 2], "scale_factors": None}
    return Case("smaller", (x,), attributes, expected, why)


def _op(rank: int, *, exact: bool) -> Op:
    name = f"aten::_upsample_nearest_exact{rank}d" if exact else f"aten::upsample_nearest{rank}d"
    cases = [_case(rank, exact=exact)]
    if rank == 2:
        cases.append(
            Case(
                *("scrambled", (_u8([[[[1]], [[5]]]]),)),
                {"output_size": None, "scale_factors": [1.0, 2.0]},
                *([[[[1, 5]], [[1, 5]]]], "torch's defect on a 1 x 1 map: NHWC values in NCHW"),
            )
        )
    return Op(
        name=name,
        reference=reference_exact if exact else reference,
        infer=_infer(name, rank),
        kernels=dict.fromkeys(ALL_ENGINES, reference_exact if exact else reference),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/UpSampleNearest2d.cpp"
            "::_upsample_nearest2d_quantized_cpu",
            "pytorch/pytorch/aten/src/ATen/native/cpu/UpSampleKernel.cpp::HelperInterpNearest",
        ),
        cases=tuple(cases),
    )


OPS = tuple(_op(rank, exact=exact) for exact in (False, True) for rank in (1, 2, 3))
