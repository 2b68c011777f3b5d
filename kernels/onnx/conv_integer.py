"""``onnx::ConvInteger``: the int32 sums of a convolution of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.types import TensorType, int32
from refquant.kernels.onnx import integer_conv
from refquant.kernels.onnx.conv_geometry import geometry
from refquant.kernels.onnx.kept import pack
from refquant.kernels.onnx.literals import i8, u8
from refquant.kernels.onnx.operands import Engines, single

Array = npt.NDArray[Any]
Ints = tuple[int, ...]
_OP = "onnx::ConvInteger"


def reference(
    x: Array,
    w: Array,
    x_zero_point: Array | None = None,
    w_zero_point: Array | None = None,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    r"""Convolve (cross-correlate) integers less their zero points.

    .. math:: y_o = \sum_{c, k} (x_{c, o \cdot stride + k \cdot dilation - pad} - z_x)
              (w_{o, c, k} - z_w)

    exact in int32, which wraps; positions outside the map are real 0. Engines onnx and ort are
    the same.

    Parameters
    ----------
    x : uint8 or int8 (N, C, ...)
        At least one spatial axis.
    w : uint8 or int8 (OC, C / group, ...)
        Weight, of either type.
    x_zero_point : like ``x``, one element, or None
        None means 0.
    w_zero_point : like ``w``, one element or (OC,), or None
        Of the whole or of each output channel.
    auto_pad : {"NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"}
        How to pad where it is not by ``pads``; SAME_UPPER has the odd position at the end.
    dilations, pads, strides, kernel_shape : tuple of int or None
        ``pads`` holds those in front and then those at the end.
    group : int
        Channels are split into groups that do not see each other.

    Returns
    -------
    int32 array (N, OC, ...)

    Raises
    ------
    VerifyError
        If types, shapes or attributes do not fit.

    Examples
    --------
    >>> reference(np.uint8([[[2, 3, 4]]]), np.uint8([[[1, 1]]]), np.uint8(1), pads=(1, 0))
    array([[[1, 3, 5]]], dtype=int32)
    """
    how = geometry(_OP, x.shape[2:], w.shape[2:], auto_pad, dilations, pads, strides)
    zero = np.zeros((), w.dtype) if w_zero_point is None else w_zero_point
    return integer_conv.sums(x, single(x_zero_point), w, zero, how, group)


def kernel(
    x: Array,
    w: Array,
    x_zero_point: Array | None = None,
    w_zero_point: Array | None = None,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Compute :func:`reference` with the compiled tile."""
    how = geometry(_OP, x.shape[2:], w.shape[2:], auto_pad, dilations, pads, strides)
    zero = np.zeros((), w.dtype) if w_zero_point is None else w_zero_point
    return integer_conv.fast_sums(x, single(x_zero_point), w, zero, how, group)


def infer(
    x: TensorType,
    w: TensorType,
    x_zero_point: TensorType | None = None,
    w_zero_point: TensorType | None = None,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Check types, shapes and attributes."""
    result = integer_conv.check(
        *(_OP, x, x_zero_point, w, w_zero_point, group, kernel_shape),
        auto_pad=auto_pad,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )
    return TensorType(int32, result.shape)


_X = u8([[[[2, 3], [5, 6]]]])
_W = i8([[[[1, -1], [2, 3]]]])

OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        pack=pack,
        source=(
            "onnx/onnx/onnx/reference/ops/op_conv_integer.py::ConvInteger",
            "microsoft/onnxruntime/onnxruntime/core/providers/cpu/quantization/"
            "conv_integer.cc::ConvInteger",
        ),
        cases=(
            Case("plain", (_X, _W), {}, [[[[27]]]], "no padding"),
            Case("zero points", (_X, _W, np.uint8(1), i8([2])), {}, [[[[-2]]]], "less both"),
            Case(
                "padded",
                (_X, _W, np.uint8(1)),
                {"pads": (1, 0, 0, 1)},
                [[[[8, 4], [22, 12]]]],
                "padding is real 0",
            ),
            Case(
                "same",
                (_X, _W, np.uint8(1)),
                {"auto_pad": "SAME_LOWER"},
                [[[[3, 8], [11, 22]]]],
                "the odd position in front",
            ),
            Case(
                "groups",
                (u8([[[1], [2]]]), u8([[[3]], [[4]]])),
                {"group": 2},
                [[[3], [8]]],
                "each sees its own",
            ),
        ),
    ),
)
