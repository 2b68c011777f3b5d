"""The scale and zero point that torch's C++ code chooses for a range: two algorithms.

``choose_qparams`` is ATen's, behind ``quantize_per_tensor_dynamic`` and the dynamic linears;
``choose_qparams_fbgemm`` is FBGEMM's, behind ``fused_moving_avg_obs_fake_quant``. The third, that
of the Python observers (``calculate_qparams``), is float32 throughout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.kernels.jit import jit

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

_SMALLEST_SCALE = np.float32(6.1e-5)
_INT32_MIN = -(2**31)


class _Variant(NamedTuple):
    """What ATen and FBGEMM do differently: rounding the scale, and the sign in the errors."""

    rounds_scale: bool
    sign: int


_ATEN = _Variant(rounds_scale=False, sign=-1)
_FBGEMM = _Variant(rounds_scale=True, sign=1)


def choose_qparams(
    minimum: float, maximum: float, quant_min: int, quant_max: int, reduce_range: bool = False
) -> tuple[float, int]:
    r"""Return the scale and zero point that cover ``[minimum, maximum]`` and 0, as ATen does.

    .. math:: s = (max - min) / (q_{max} - q_{min}), \qquad z = \mathrm{rint}(q_{min} - min / s)

    in float64; the scale is not rounded to float32. The zero point is computed from whichever
    end has the smaller error bound, taken as :math:`|q_{end}| - |end / s|`. A scale that float32
    cannot hold becomes 0.1; one below 6.1e-5 is raised to it, and the range is stretched in
    float32.

    :func:`choose_qparams_fbgemm` differs: it rounds the scale to float32 first, and its error
    bound is a sum.

    Parameters
    ----------
    minimum, maximum : float32 numbers
        The observed range; extended to include 0.
    quant_min, quant_max : int
        Range of the quantized values.
    reduce_range : bool
        Halve the range of the quantized values.

    Returns
    -------
    scale : float
        As float64, where the kernels later round it to float32.
    zero_point : int

    Raises
    ------
    VerifyError
        If a bound is NaN or infinite, or ``minimum > maximum``.

    Examples
    --------
    >>> choose_qparams(-7.5, 2.0, 0, 255)
    (0.03725490196078431, 201)
    """
    if not (math.isfinite(minimum) and math.isfinite(maximum) and minimum <= maximum):
        raise VerifyError(f"choose_qparams: no quantization range for [{minimum}, {maximum}]")
    if reduce_range:
        quant_min, quant_max = int(quant_min / 2), int(quant_max / 2)
    return _choose(np.float32(minimum), np.float32(maximum), quant_min, quant_max, False, _ATEN)


def choose_qparams_fbgemm(
    minimum: float | np.float32,
    maximum: float | np.float32,
    quant_min: int,
    quant_max: int,
    preserve_sparsity: bool = False,
) -> tuple[float, int]:
    r"""Return the scale and zero point that cover ``[minimum, maximum]`` and 0, as FBGEMM does.

    The formula of :func:`choose_qparams` with three differences:

    * the scale is rounded to float32 as soon as it is computed (so the substitute for a scale that
      float32 cannot hold is float32's 0.1), then used in float64;
    * the error bound of an end is :math:`|q_{end}| + |end / s|`;
    * with ``preserve_sparsity``, a range around 0 is first made symmetric: with
      :math:`n = q_{max} - q_{min}`, :math:`m = \max(|min / (-(n // 2 + 1))|, |max / (n // 2)|)`,
      :math:`min = -(n // 2 + 1) m`, :math:`max = (n // 2) m`; its zero point is
      :math:`(q_{min} + q_{max}) / 2`, ties to even.

    Nothing is refused: a bound that is NaN or infinite gives such a scale, and then a zero point
    that is NaN becomes the smallest int32. The number of steps and :math:`|q_{end}|` wrap to
    int32.

    The Python observers compute the symmetric scale as ``max(-min, max) / (n / 2)``, so this scale
    of a fused fake-quant in training is not the one it is converted with.

    Parameters
    ----------
    minimum, maximum : float32 numbers
        The observed range; extended to include 0.
    quant_min, quant_max : int
        Range of the quantized values, int32.
    preserve_sparsity : bool
        Symmetric quantization.

    Returns
    -------
    scale : float
        A float32 number.
    zero_point : int

    Examples
    --------
    >>> choose_qparams_fbgemm(-7.5, 2.0, 0, 255)
    (0.037254903465509415, 201)
    >>> choose_qparams_fbgemm(-8.0, 7.0, -128, 127, preserve_sparsity=True)
    (0.0625, 0)
    """
    low, high = np.float32(minimum), np.float32(maximum)
    return _choose(low, high, quant_min, quant_max, preserve_sparsity, _FBGEMM)


def _choose(
    low: np.float32,
    high: np.float32,
    quant_min: int,
    quant_max: int,
    preserve_sparsity: bool,
    variant: _Variant,
) -> tuple[float, int]:
    zero = np.float32(0)
    steps = _int32(quant_max - quant_min)
    with np.errstate(all="ignore"):
        if preserve_sparsity and low < 0 < high:
            half = int(steps / 2)
            per_low, per_high = abs(low / np.float32(-(half + 1))), abs(high / np.float32(half))
            step = np.float64(per_high if per_low < per_high else per_low)
            low, high = np.float32(step * -(half + 1)), np.float32(step * half)
        low, high = zero if low > 0 else low, zero if high < 0 else high
        scale = (np.float64(high) - np.float64(low)) / np.float64(steps)
        substitute = np.float64(0.1)
        if variant.rounds_scale:
            scale, substitute = (np.float64(np.float32(x)) for x in (scale, substitute))
        if np.float32(scale) == 0 or np.isinf(np.float32(1) / np.float32(scale)):
            scale = substitute
        if scale < _SMALLEST_SCALE:
            stretch = _SMALLEST_SCALE / np.float32(scale)
            scale = np.float64(_SMALLEST_SCALE)
            if low == 0:
                high = _SMALLEST_SCALE * np.float32(steps)
            elif high == 0:
                low = -_SMALLEST_SCALE * np.float32(steps)
            else:
                low, high = low * stretch, high * stretch
        below, above = np.float64(low) / scale, np.float64(high) / scale
        low_error = _int32(abs(quant_min)) + variant.sign * abs(below)
        high_error = _int32(abs(quant_max)) + variant.sign * abs(above)
        zero_point = quant_min - below if low_error < high_error else quant_max - above
        if preserve_sparsity and low < 0 < high:
            zero_point = np.float64(quant_min + quant_max) / 2
    if np.isnan(zero_point):
        return float(scale), _INT32_MIN
    return float(scale), int(np.rint(min(max(zero_point, quant_min), quant_max)))


def _int32(value: int) -> int:
    """Wrap as C's int does."""
    return (value + 2**31) % 2**32 - 2**31


def choose_qparams_fbgemm_per_channel(
    minimum: F32, maximum: F32, quant_min: int, quant_max: int, preserve_sparsity: bool = False
) -> tuple[F32, I32]:
    """Return :func:`choose_qparams_fbgemm` of each channel, compiled.

    Examples
    --------
    >>> choose_qparams_fbgemm_per_channel(np.float32([-1, 0]), np.float32([1, 255]), 0, 255)
    (array([0.00784314, 1.        ], dtype=float32), array([127,   0], dtype=int32))
    """
    scale, zero_point = np.empty(minimum.shape, np.float32), np.empty(minimum.shape, np.int32)
    with np.errstate(all="ignore"):
        _fill(minimum, maximum, quant_min, quant_max, preserve_sparsity, scale, zero_point)
    return scale, zero_point


@jit
def _fill(
    minimum: F32,
    maximum: F32,
    quant_min: int,
    quant_max: int,
    preserve_sparsity: bool,
    scales: F32,
    zero_points: I32,
) -> None:
    smallest = np.float32(6.1e-5)
    steps = np.int64(np.int32(quant_max - quant_min))
    half = abs(steps) // 2 if steps > 0 else -(abs(steps) // 2)
    size_low = np.float64(np.int32(abs(quant_min)))
    size_high = np.float64(np.int32(abs(quant_max)))
    center = (np.float64(quant_min) + np.float64(quant_max)) / 2.0
    for i in range(minimum.size):
        low, high = minimum[i], maximum[i]
        if preserve_sparsity and low < 0 and high > 0:
            m = abs(low / np.float32(-half - 1))
            other = abs(high / np.float32(half))
            if m < other:
                m = other
            low = np.float32(np.float64(m) * np.float64(-half - 1))
            high = np.float32(np.float64(m) * np.float64(half))
        if low > 0:
            low = np.float32(0)
        if high < 0:
            high = np.float32(0)
        short = np.float32((np.float64(high) - np.float64(low)) / np.float64(steps))
        if short == 0 or np.float32(1) / short == np.inf or np.float32(1) / short == -np.inf:
            short = np.float32(0.1)
        if short < smallest:
            stretch = smallest / short
            if low == 0:
                high = smallest * np.float32(steps)
            elif high == 0:
                low = -smallest * np.float32(steps)
            else:
                low, high = low * stretch, high * stretch
            short = smallest
        scale = np.float64(short)
        below, above = np.float64(low) / scale, np.float64(high) / scale
        if size_low + abs(below) < size_high + abs(above):
            z = quant_min - below
        else:
            z = quant_max - above
        if preserve_sparsity and low < 0 and high > 0:
            z = center
        scales[i] = short
        if z != z:
            zero_points[i] = -(2**31)
        elif z < quant_min:
            zero_points[i] = quant_min
        elif z > quant_max:
            zero_points[i] = quant_max
        else:
            zero_points[i] = np.int32(np.rint(z))
