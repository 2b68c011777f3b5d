"""``onnx::DFT`` and ``onnx::STFT``: Fourier transforms of a dimension and of windows of it."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.checks import dimension, known_length
from refquant.kernels.onnx.operator import floating, operator


def _complex(x: Array) -> Array:
    """Return complex numbers from a last dimension of real and perhaps imaginary parts."""
    wide = x if x.dtype == np.float64 else x.astype(np.float32)
    if x.shape[-1] == 1:
        return np.asarray(wide[..., 0])
    return np.asarray(np.ascontiguousarray(wide).view(np.result_type(wide, np.complex64))[..., 0])


def _parts(x: Array, dtype: np.dtype[np.generic]) -> Array:
    return np.stack([x.real, x.imag], -1).astype(dtype)


def reference(
    input: Array, axis: int, length: int, inverse: bool = False, onesided: bool = False
) -> Array:
    r"""Return the discrete Fourier transform along a dimension.

    :math:`y_k = \sum_n x_n e^{-2 \pi j k n / N}`, inverse
    :math:`x_n = \frac1N \sum_k y_k e^{2 \pi j k n / N}`, in float32 (float64 where the
    input is); the standard says nothing of the order of sums: compare with 1e-6 relative to the
    largest result.

    Parameters
    ----------
    input : float tensor (..., 1) or (..., 2)
        Real numbers, or real and imaginary parts.
    axis : int
        The dimension, not the last one.
    length : int
        *N*; the dimension is cut off or filled with zeros.
    inverse : bool
        Which of the two.
    onesided : bool
        Forward: only the first half of the result, of real numbers. Inverse: from such a half,
        to real numbers.

    Returns
    -------
    Tensor (..., 2), or (..., 1) where the result is real

    Raises
    ------
    VerifyError
        If the dimension or the parts do not fit.

    Examples
    --------
    >>> reference(np.float32([[1], [0], [0]]), 0, 3, onesided=True)
    array([[1., 0.],
           [1., 0.]], dtype=float32)
    """
    numbers, at = _complex(input), axis % input.ndim
    if onesided and inverse:
        return np.asarray(np.fft.irfft(numbers, length, at)[..., None]).astype(input.dtype)
    if onesided:
        return _parts(np.fft.rfft(numbers.real, length, at), input.dtype)
    return _parts((np.fft.ifft if inverse else np.fft.fft)(numbers, length, at), input.dtype)


def infer(
    input: TensorType, axis: int, length: int, inverse: bool = False, onesided: bool = False
) -> TensorType:
    """Check the dimension and the parts."""
    floating("DFT", input)
    parts = input.shape[-1] if input.rank > 1 else None
    accepted = (1, 2) if not onesided else (2,) if inverse else (1,)
    if parts not in accepted:
        listed = " or ".join(map(str, accepted))
        raise VerifyError(f"DFT: the last dimension must be {listed}, got {input}")
    at = dimension("DFT", axis, input.rank)
    if at == input.rank - 1:
        raise VerifyError(f"DFT: axis {axis} is that of the real and imaginary parts")
    known_length("DFT", input.shape[at], at)
    if length < 1:
        raise VerifyError(f"DFT: the length must be >= 1, got {length}")
    count = length // 2 + 1 if onesided and not inverse else length
    made = 1 if onesided and inverse else 2
    return TensorType(input.dtype, (*input.shape[:at], count, *input.shape[at + 1 : -1], made))


def stft(
    signal: Array, window: Array, frame_step: int, frame_length: int, onesided: bool = True
) -> Array:
    """Return the discrete Fourier transforms of windows of a signal.

    Frame *i* holds the elements from ``i * frame_step``, times the window; the last one ends
    within the signal. Precision is that of :func:`reference`.

    Parameters
    ----------
    signal : float tensor (batch, length, 1) or (batch, length, 2)
        Real numbers, or real and imaginary parts.
    window : float tensor (frame_length,)
        Factors.
    frame_step, frame_length : int
        Distance and length of the frames.
    onesided : bool
        Whether only the first half of the result, of real numbers, is returned.

    Returns
    -------
    Tensor (batch, frames, bins, 2)

    Raises
    ------
    VerifyError
        If the window or the parts do not fit.

    Examples
    --------
    >>> stft(np.ones((1, 3, 1), np.float32), np.ones(2, np.float32), 1, 2).shape
    (1, 2, 2, 2)
    """
    numbers = _complex(signal)
    frames = np.lib.stride_tricks.sliding_window_view(numbers, frame_length, 1)[:, ::frame_step]
    weighted = frames * window.astype(numbers.real.dtype)
    made = np.fft.rfft(weighted.real) if onesided else np.fft.fft(weighted)
    return _parts(made, signal.dtype)


def infer_stft(
    signal: TensorType,
    window: TensorType,
    frame_step: int,
    frame_length: int,
    onesided: bool = True,
) -> TensorType:
    """Count the frames."""
    floating("STFT", signal, window)
    if signal.rank != 3 or signal.shape[2] not in ((1,) if onesided else (1, 2)):
        raise VerifyError(f"STFT: expected (batch, length, 1) or, two-sided, 2, got {signal}")
    length = known_length("STFT", signal.shape[1], 1)
    if frame_step < 1 or not 1 <= frame_length <= length:
        raise VerifyError(f"STFT: frames of {frame_length} by {frame_step} in {length}")
    if window.shape != (frame_length,):
        raise VerifyError(f"STFT: the window must be [{frame_length}], got {window}")
    bins = frame_length // 2 + 1 if onesided else frame_length
    frames = (length - frame_length) // frame_step + 1
    return TensorType(signal.dtype, (signal.shape[0], frames, bins, 2))


_X = np.array([[[1], [2], [3], [4]]], np.float32)

OPS = (
    operator(
        "DFT",
        reference,
        infer,
        Case(
            "half",
            (_X,),
            {"axis": 1, "length": 4, "onesided": True},
            [[[10, 0], [-2, 2], [-2, 0]]],
            "the rest mirrors it",
        ),
        Case(
            "inverse",
            (np.array([[4, 0], [0, 0]], np.float32),),
            {"axis": 0, "length": 4, "inverse": True},
            [[1, 0]] * 4,
            "filled with zeros",
        ),
        Case(
            "real",
            (np.array([[4, 0], [0, 0]], np.float32),),
            {"axis": 0, "length": 2, "inverse": True, "onesided": True},
            [[2], [2]],
            "one part",
        ),
    ),
    operator(
        "STFT",
        stft,
        infer_stft,
        Case(
            "frames",
            (_X, np.array([1, 2], np.float32)),
            {"frame_step": 2, "frame_length": 2},
            [[[[5, 0], [-3, 0]], [[11, 0], [-5, 0]]]],
            "each weighted",
        ),
    ),
)
