"""``aten::choose_qparams_optimized``: the range of a row whose rounding errors are smallest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, float32
from refquant.kernels import checks
from refquant.kernels.jit import jit
from refquant.kernels.rounding_jit import half

F32 = npt.NDArray[np.float32]
ENDLESS = "choose_qparams_optimized: a step of 1/{} of the range changes neither end; torch hangs"


def reference(
    input: F32, numel: int, n_bins: int, ratio: float, bit_width: int
) -> tuple[F32, F32]:
    r"""Shrink the range of a row step by step, and return the best on the way.

    One step is :math:`d = (max - min) / n\_bins`. From the full range, that end is moved inwards
    by one step which gives the smaller loss (the upper one on a tie), while
    :math:`min + d \cdot n\_bins (1 - ratio) < max`. A range is taken where its loss is below that
    of both ranges after it and of every range taken before. The loss of a range is

    .. math:: \sqrt{\textstyle\sum_i (x_i - (q_i s + m))^2}, \quad
        q_i = \mathrm{clip}(\mathrm{rint}((x_i - m) \cdot 1/s), 0, 2^b - 1)

    with :math:`m` the minimum and :math:`s` the range divided by :math:`2^b - 1`, both rounded to
    float16 (s = 1 for an empty range). All of it is float32, added from the left, with a rounding
    after every operation; only :math:`1 - ratio` and its product with :math:`n\_bins` are float64.

    Parameters
    ----------
    input : float32 (K,)
        A row.
    numel : int
        How many of its values count.
    n_bins : int, >= 1
        How many steps the range has.
    ratio : float
        Which part of the range must remain, less one step.
    bit_width : int
        Of the quantized values.

    Returns
    -------
    xmax, xmin : float32 (1,)
        The ends of the best range.

    Raises
    ------
    VerifyError
        If types or lengths do not fit, or a step is so small that the search would not end.

    Examples
    --------
    >>> reference(np.float32([0, 0, 2, 3, 8]), 5, n_bins=4, ratio=0.5, bit_width=1)
    (array([8.], dtype=float32), array([2.], dtype=float32))
    """
    x = input[:numel]
    low, high = _extreme(x, np.less), _extreme(x, np.greater)
    with np.errstate(all="ignore"):
        step = np.float32((high - low) / np.float32(n_bins))
        least = np.float32(remaining(n_bins, ratio) * step)
        best = loss = _loss(x, low, high, bit_width)
        found = low, high
        while np.float32(low + least) < high:
            raised, lowered = np.float32(low + step), np.float32(high - step)
            if raised == low and lowered == high:
                raise VerifyError(ENDLESS.format(n_bins))
            left, right = _loss(x, raised, high, bit_width), _loss(x, low, lowered, bit_width)
            if left > loss and right > loss and best > loss:
                best, found = loss, (low, high)
            if left < right:
                low, loss = raised, left
            else:
                high, loss = lowered, right
    return np.array([found[1]], np.float32), np.array([found[0]], np.float32)


def remaining(n_bins: int, ratio: float) -> np.float32:
    """Return how many steps of the range must remain; not a whole number."""
    return np.float32(float(np.float32(n_bins)) * (1.0 - ratio))


def _extreme(x: F32, better: Any) -> np.float32:
    """Return the first of the best values; NaN only where it comes first."""
    found: np.float32 = x[0]
    for value in x[1:]:
        found = value if better(value, found) else found
    return found


def _loss(x: F32, low: np.float32, high: np.float32, bit_width: int) -> np.float32:
    low = np.float32(np.float16(low))
    most = np.float32((1 << bit_width) - 1)
    scale = np.float32(np.float16((high - low) / most)) if high - low != 0 else np.float32(1)
    inverse = np.float32(1) / scale if scale != 0 else np.float32(1)
    rounded = np.rint((x - low) * inverse)
    q = np.where(rounded > 0, np.where(most < rounded, most, rounded), np.float32(0))
    error = x - (q * scale + low)
    return np.float32(np.sqrt(np.cumsum(error * error, dtype=np.float32)[-1]))


def infer(
    input: TensorType, numel: int, n_bins: int, ratio: float, bit_width: int
) -> tuple[TensorType, TensorType]:
    """Check the row; both ends are tensors of one element."""
    op = "choose_qparams_optimized"
    checks.is_float32(op, input)
    if input.rank != 1:
        raise VerifyError(f"{op}: expected a row of rank 1, got {input}")
    length = checks.known_length(op, input.shape[0], 0)
    if not 1 <= numel <= length:
        raise VerifyError(f"{op}: numel must be in [1, {length}], got {numel}")
    if n_bins < 1 or not 1 <= bit_width <= 8:
        raise VerifyError(
            f"{op}: n_bins must be >= 1 and bit_width in [1, 8], got {n_bins} and {bit_width}"
        )
    return TensorType(float32, (1,)), TensorType(float32, (1,))


@jit
def _compiled_loss(x: Any, low: np.float32, high: np.float32, most: np.float32) -> np.float32:
    low = half(low)
    span = np.float32(high - low)
    scale = np.float32(1)
    if span != 0:
        scale = half(np.float32(span / most))
    inverse = np.float32(1)
    if scale != 0:
        inverse = np.float32(np.float32(1) / scale)
    total = np.float32(0)
    for i in range(x.size):
        q = np.float32(np.rint(np.float32(np.float32(x[i] - low) * inverse)))
        if most < q:
            q = most
        if not q > 0:
            q = np.float32(0)
        error = np.float32(x[i] - np.float32(np.float32(q * scale) + low))
        total = np.float32(total + np.float32(error * error))
    return np.float32(np.sqrt(total))


@jit
def search(x: Any, n_bins: int, bins: np.float32, most: np.float32) -> Any:
    """Return the minimum and maximum of the best range, and whether the search ended.

    ``bins`` is the number of steps that must remain, ``most`` the largest quantized value.
    """
    low, high = x[0], x[0]
    for i in range(1, x.size):
        low = x[i] if x[i] < low else low
        high = x[i] if x[i] > high else high
    step = np.float32(np.float32(high - low) / np.float32(n_bins))
    least = np.float32(bins * step)
    loss = _compiled_loss(x, low, high, most)
    best, best_low, best_high = loss, low, high
    while np.float32(low + least) < high:
        raised, lowered = np.float32(low + step), np.float32(high - step)
        if raised == low and lowered == high:
            return best_low, best_high, False
        left = _compiled_loss(x, raised, high, most)
        right = _compiled_loss(x, low, lowered, most)
        if loss < left and loss < right and loss < best:
            best, best_low, best_high = loss, low, high
        if left < right:
            low, loss = raised, left
        else:
            high, loss = lowered, right
    return best_low, best_high, True


def kernel(input: F32, numel: int, n_bins: int, ratio: float, bit_width: int) -> tuple[F32, F32]:
    """Compute :func:`reference` in one compiled loop."""
    x, most = np.ascontiguousarray(input[:numel]), np.float32((1 << bit_width) - 1)
    low, high, ended = search(x, n_bins, remaining(n_bins, ratio), most)
    if not ended:
        raise VerifyError(ENDLESS.format(n_bins))
    return np.array([high], np.float32), np.array([low], np.float32)


def _attributes(numel: int, n_bins: int, bit_width: int) -> dict[str, Any]:
    return {"numel": numel, "n_bins": n_bins, "ratio": 0.5, "bit_width": bit_width}


_ROW = np.array([0, 0, 2, 3, 8], np.float32)

OPS = (
    Op(
        name="aten::choose_qparams_optimized",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=("pytorch/aten/src/ATen/native/quantized/QTensor.cpp::choose_qparams_optimized",),
        cases=(
            Case("shrunk", (_ROW,), _attributes(5, 4, 1), ([8], [2]), "0 to 2 costs least"),
            Case("whole", (_ROW,), _attributes(5, 4, 2), ([8], [0]), "no range is better"),
            Case("part", (_ROW,), _attributes(2, 4, 1), ([0], [0]), "constant so far"),
        ),
    ),
)
