"""The scale and zero point that torch chooses for a range, in ATen's float64 arithmetic."""

from __future__ import annotations

import math

import numpy as np

from refquant.ir.errors import VerifyError

_SMALLEST_SCALE = np.float32(6.1e-5)


def choose_qparams(
    minimum: float, maximum: float, quant_min: int, quant_max: int, reduce_range: bool = False
) -> tuple[float, int]:
    r"""Return the scale and zero point that cover ``[minimum, maximum]`` and 0.

    .. math:: s = (max - min) / (q_{max} - q_{min}), \qquad z = \mathrm{rint}(q_{min} - min / s)

    in float64; the scale is not rounded to float32. The zero point is computed from whichever
    end has the smaller error bound. A scale that float32 cannot hold becomes 0.1; one below
    6.1e-5 is raised to it, and the range is stretched in float32.

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
    low, high = np.float32(min(minimum, 0.0)), np.float32(max(maximum, 0.0))
    steps = quant_max - quant_min
    scale = (float(high) - float(low)) / steps
    with np.errstate(over="ignore", divide="ignore"):
        if np.float32(scale) == 0 or np.isinf(np.float32(1) / np.float32(scale)):
            scale = 0.1
    if scale < _SMALLEST_SCALE:
        stretch = _SMALLEST_SCALE / np.float32(scale)
        scale = float(_SMALLEST_SCALE)
        if low == 0:
            high = _SMALLEST_SCALE * np.float32(steps)
        elif high == 0:
            low = -_SMALLEST_SCALE * np.float32(steps)
        else:
            low, high = low * stretch, high * stretch
    from_low, from_high = quant_min - float(low) / scale, quant_max - float(high) / scale
    low_error = abs(quant_min) - abs(float(low) / scale)
    high_error = abs(quant_max) - abs(float(high) / scale)
    zero_point = from_low if low_error < high_error else from_high
    return scale, int(np.rint(min(max(zero_point, quant_min), quant_max)))
