"""``aten::upsample_nearest1d``, ``2d``, ``3d`` and their exact forms: copies of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, quint8
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_suggested
from refquant.kernels.resample import (
    Factors,
    Sizes,
    infer_upsample,
    nearest,
    output_lengths,
    takes_float_vectors,
)
from refquant.kernels.windows import (
    as_volume,
    from_volume,
    in_torch_memory,
    is_pooled_channels_last,
)

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


def _sources(
    input: QTensor | Array, sizes: Sequence[int], scale_factors: Factors, *, exact: bool
) -> list[Array]:
    """Return which element each output copies, for each dimension."""
    x = input.int_repr if isinstance(input, QTensor) else input
    lengths = x.shape[2:]
    if isinstance(input, QTensor) and list(sizes) == list(lengths):
        if len(sizes) == 3 and len(x) > 1 and is_pooled_channels_last(x, 3):
            raise UnsupportedError(
                "upsample_nearest3d: torch returns uninitialised memory for all channels-last "
                "images but the first where the size stays"
            )
        return [np.arange(n) for n in lengths]
    factors = [None] * len(lengths) if scale_factors is None else scale_factors
    vectors = not isinstance(input, QTensor) and takes_float_vectors(x, sizes)
    return [
        nearest(n, size, factor, exact=exact, vectors=vectors)
        for n, size, factor in zip(lengths, sizes, factors, strict=True)
    ]


def _copy(
    input: QTensor | Array, output_size: Sizes, scale_factors: Factors, *, exact: bool
) -> QTensor | Array:
    x = input.int_repr if isinstance(input, QTensor) else input
    sizes = output_lengths(x.shape[2:], output_size, scale_factors)
    sources = _sources(input, sizes, scale_factors, exact=exact)
    where: tuple[Any, ...] = (slice(None), slice(None), *np.ix_(*sources))
    y = x[where]
    if isinstance(input, QTensor):
        return input.with_int_repr(in_torch_memory(y, x, len(sizes)))
    out = empty_suggested(x, x.dtype, y.shape)
    out[...] = y
    return out


@jit
def _fill(x: Any, planes: Any, rows: Any, columns: Any, y: Any) -> None:
    """Copy pixels of a volume; a row that comes again is copied as a whole."""
    inner, width = x.shape[4], y.shape[3] * x.shape[4]
    for n in range(y.shape[0]):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                into = y[n, i, j].reshape(width)
                if j > 0 and rows[j] == rows[j - 1]:
                    into[:] = y[n, i, j - 1].reshape(width)
                    continue
                row = x[n, planes[i], rows[j]].reshape(x.shape[3] * inner)
                if inner == 1:
                    for k in range(width):
                        into[k] = row[columns[k]]
                    continue
                for k in range(columns.size):
                    pixel = row[columns[k] * inner : (columns[k] + 1) * inner]
                    place = into[k * inner : (k + 1) * inner]
                    for c in range(inner):
                        place[c] = pixel[c]


@lru_cache(maxsize=1024)
def _places(
    lengths: tuple[int, ...], sizes: tuple[int, ...], factors: Factors, exact: bool
) -> tuple[Array, ...]:
    """Return the sources in a quantized volume; fewer dimensions are lengths of one."""
    image = QTensor(np.empty((1, 1, *lengths), np.uint8), 1.0, 0)
    return (np.zeros(1, np.int64),) * (3 - len(sizes)) + tuple(
        _sources(image, sizes, factors, exact=exact)
    )


def _words(inner: int, itemsize: int) -> str:
    """Return the type of the largest words that pixels of ``inner`` elements consist of."""
    size = inner * itemsize
    return next(f"u{n}" for n in (8, 4, 2, 1) if size % n == 0)


def _run(
    input: QTensor | Array, output_size: Sizes, scale_factors: Factors, *, exact: bool
) -> QTensor | Array:
    if not isinstance(input, QTensor):
        return _copy(input, output_size, scale_factors, exact=exact)
    q = input.int_repr
    rank = q.ndim - 2
    sizes = tuple(output_lengths(q.shape[2:], output_size, scale_factors))
    if len(q) > 1 and sizes == q.shape[2:]:
        return _copy(input, output_size, scale_factors, exact=exact)
    factors = tuple(scale_factors) if scale_factors is not None else None
    volume = as_volume(q, rank)
    y = np.empty((volume.shape[0], *(1,) * (3 - rank), *sizes, volume.shape[4]), q.dtype)
    if y.size:
        words = _words(volume.shape[4], q.itemsize)
        planes, rows, columns = _places(q.shape[2:], sizes, factors, exact)
        _fill(volume.view(words), planes, rows, columns, y.view(words))
    return input.with_int_repr(from_volume(y, sizes, q, rank))


def kernel(input: QTensor | Array, output_size: Sizes, scale_factors: Factors) -> QTensor | Array:
    """Copy the pixels of a quantized image in one compiled pass."""
    return _run(input, output_size, scale_factors, exact=False)


def kernel_exact(
    input: QTensor | Array, output_size: Sizes, scale_factors: Factors
) -> QTensor | Array:
    """Copy the pixels of a quantized image in one compiled pass."""
    return _run(input, output_size, scale_factors, exact=True)


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
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_exact if exact else kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/UpSampleNearest2d.cpp"
            "::_upsample_nearest2d_quantized_cpu",
            "pytorch/pytorch/aten/src/ATen/native/cpu/UpSampleKernel.cpp::HelperInterpNearest",
        ),
        cases=tuple(cases),
    )


OPS = tuple(_op(rank, exact=exact) for exact in (False, True) for rank in (1, 2, 3))
