"""``onnx::GridSample``: interpolation at the places of a grid, in any number of dimensions."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.onnx.operator import floating, operator, plain
from refquant.kernels.onnx.resize import keys_kernel

PADDINGS = ("zeros", "border", "reflection")
_TAPS = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}
_FAR = 2.0**30  # indices stay integers


def _reflected(x: Array, length: int, align_corners: bool) -> Array:
    """Return places mirrored at the borders until they lie between them."""
    low, span = (0.0, length - 1) if align_corners else (-0.5, length)
    if span == 0:
        return np.zeros_like(x)
    beyond = np.abs(x - low)
    extra, flips = np.fmod(beyond, span), np.floor(beyond / span)
    return np.asarray(low + np.where(flips % 2 == 0, extra, span - extra)).astype(x.dtype)


def _padded(x: Array, length: int, padding: str, align_corners: bool) -> Array:
    """Return places between the borders; with zeros they stay where they are."""
    if padding == "zeros":
        return x
    if padding == "border":
        return np.clip(x, 0, length - 1)
    low, high = (0.0, length - 1.0) if align_corners else (-0.5, length - 0.5)
    is_beyond = (x < low) | (x > high)
    return np.where(is_beyond, _reflected(x, length, align_corners), x)


def _along(
    g: Array, length: int, mode: str, padding: str, align_corners: bool
) -> list[tuple[npt.NDArray[np.int64], Array, Array]]:
    """Return position, presence and weight of each neighbour along a dimension."""
    x = (g + 1) / 2 * (length - 1) if align_corners else ((g + 1) * length - 1) / 2
    x = np.clip(np.rint(x) if mode == "nearest" else x, -_FAR, _FAR)
    if mode != "cubic" or padding != "border":
        x = _padded(x, length, padding, align_corners)
    base = np.floor(np.nan_to_num(x))
    taps = []
    for offset in _TAPS[mode]:
        distance = np.abs(x - (base + offset)).astype(np.float64)
        weight = np.ones(x.shape)
        if mode == "linear":
            weight = 1 - distance
        elif mode == "cubic":
            weight = keys_kernel(distance, -0.75)
        at = _padded(base + offset, length, padding, align_corners)
        is_inside = (at > -1) & (at < length)
        taps.append((np.where(is_inside, at, 0).astype(np.int64), is_inside, weight))
    return taps


def reference(
    x: Array,
    grid: Array,
    mode: str = "linear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Array:
    r"""Return the tensor at the places of a grid.

    A coordinate *g* from -1 to 1 spans a dimension of length *n*: :math:`x = (g + 1) / 2 (n - 1)`
    with ``align_corners``, else :math:`x = ((g + 1) n - 1) / 2`, in the type of the grid. Places
    beyond the borders are moved onto them (``border``), mirrored (``reflection``) or stay
    (``zeros``), and so are the neighbours; of ``cubic`` with ``border`` only these, as in torch
    and onnxruntime. Weights and sums are float64, the result is rounded
    once; the standard says nothing of rounding: compare with 1e-5 relative to the largest
    element.

    Parameters
    ----------
    x : tensor of numbers (N, C, d1, ..., dr)
        Not empty.
    grid : float tensor (N, o1, ..., or, r)
        Coordinates, of the last dimension first.
    mode : str
        ``nearest`` (ties to even), ``linear`` or ``cubic`` (Keys' kernel with -0.75).
    padding_mode : str
        ``zeros``, ``border`` or ``reflection``.
    align_corners : bool
        Whether -1 and 1 are the centres of the corner elements, not their outer edges.

    Returns
    -------
    Tensor (N, C, o1, ..., or) of the type of ``x``

    Raises
    ------
    VerifyError
        If shapes do not fit, or a word is unknown.

    Examples
    --------
    >>> reference(np.float32([[[10, 20]]]), np.float32([[[0], [0.5]]]))
    array([[[15., 20.]]], dtype=float32)
    """
    lengths = x.shape[2:]
    wide = grid if grid.dtype == np.float64 else grid.astype(np.float32)
    with np.errstate(all="ignore"):
        each = [
            _along(wide[..., -1 - d], n, mode, padding_mode, align_corners)
            for d, n in enumerate(lengths)
        ]
        batch = np.arange(len(x)).reshape((-1,) + (1,) * len(lengths))
        elements = np.moveaxis(x, 1, -1)
        total = np.zeros((*grid.shape[:-1], x.shape[1]))
        for taps in product(*each):
            weight = np.prod([w for _, _, w in taps], axis=0)
            is_inside = np.logical_and.reduce([inside for _, inside, _ in taps])
            values = elements[(batch, *(at for at, _, _ in taps))].astype(np.float64)
            total += np.where(is_inside[..., None], values, 0.0) * weight[..., None]
        return np.ascontiguousarray(np.moveaxis(total, -1, 1)).astype(x.dtype)


def infer(
    x: TensorType,
    grid: TensorType,
    mode: str = "linear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> TensorType:
    """Check shapes and words; the grid gives the lengths."""
    op = "GridSample"
    plain(op, x)
    floating(op, grid)
    for what, word, known in (
        ("mode", mode, (*_TAPS,)),
        ("padding_mode", padding_mode, PADDINGS),
    ):
        if word not in known:
            raise VerifyError(f"{op}: {what} must be one of {', '.join(known)}, got {word!r}")
    rank = x.rank - 2
    fits = grid.rank == x.rank and grid.shape[-1] == rank and grid.shape[0] == x.shape[0]
    if rank < 1 or not fits:
        raise VerifyError(
            f"{op}: expected [N, C, ...] and a grid [N, ..., {rank}], got {x}, {grid}"
        )
    if 0 in x.shape[2:]:
        raise VerifyError(f"{op}: {x} is empty")
    x.with_shape(x.shape[2:]).sizes  # noqa: B018 (which refuses symbols)
    return TensorType(x.dtype, (x.shape[0], x.shape[1], *grid.shape[1:-1]))


_X = np.array([[[1, 2, 4, 8]]], np.float32)
_G = np.array([[[0], [-1], [2]]], np.float32)
_NEAREST = {"mode": "nearest", "padding_mode": "reflection"}

OPS = (
    operator(
        "GridSample",
        reference,
        infer,
        Case("linear", (_X, _G), {}, [[[3, 0.5, 0]]], "half of the edge is outside"),
        Case("border", (_X, _G), {"padding_mode": "border"}, [[[3, 1, 8]]], "the last element"),
        Case(
            *("nearest", (_X, _G), {**_NEAREST, "align_corners": True}),
            *([[[4, 1, 4]]], "1.5 to even, 4.5 to even and back to 2"),
        ),
        Case("cubic", (_X, _G[:, :1]), {"mode": "cubic"}, [[[2.71875]]], "4 neighbours"),
    ),
)
