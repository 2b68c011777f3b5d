"""``onnx::DynamicQuantizeLinear``: real values to uint8 with parameters of their own range."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, float32, uint8
from refquant.kernels.jit import jit
from refquant.kernels.layout import flat
from refquant.kernels.onnx.literals import f32
from refquant.kernels.onnx.operands import ONNX, dtype_in
from refquant.kernels.onnx.quantize_linear import fill
from refquant.kernels.onnx.quantize_linear import reference as quantize_slowly

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
_OP = "onnx::DynamicQuantizeLinear"
_F = np.float32
Triple = tuple[Array, Array, Array]


def reference(x: F32, target: Target = ONNX) -> Triple:
    r"""Choose scale and zero point for the range of a tensor, and quantize it.

    .. math:: s = (max - min) / 255, \quad z = \mathrm{rint}(\mathrm{clamp}(-min / s, 0, 255)),
              \quad y = \mathrm{saturate}(\mathrm{rint}(x / s) + z)

    where the range holds 0, each step in float32 and ties to even. Where all values are 0 the
    scale is 1 / 255 under onnx, as in ``onnx.reference``, and 1 under ort. If ``min / s`` is NaN
    because the range is infinite, the zero point is 255.

    Parameters
    ----------
    x : float32, any shape
        Real values, none of them NaN: what the range is then depends on the place of the NaN in
        onnxruntime's vectors and is not reproduced.

    Returns
    -------
    tuple of uint8 array of the shape of ``x``, float32 scalar, uint8 scalar
        The values, the scale and the zero point. No values have scale and zero point of zeros.

    Raises
    ------
    VerifyError
        If ``x`` is not float32.

    Examples
    --------
    >>> y, scale, zero = reference(np.float32([0, 2, -3, -2.5]))
    >>> y, float(scale), int(zero)
    (array([153, 255,   0,  26], dtype=uint8), 0.019607843831181526, 153)
    """
    low, high = (x.min(), x.max()) if x.size else (_F(0), _F(0))
    scale, zero = parameters(low, high, target.engine)
    return quantize_slowly(x, np.asarray(scale), np.asarray(zero), target=target), scale, zero


def parameters(low: np.float32, high: np.float32, engine: Engine) -> tuple[Array, Array]:
    """Return scale and zero point for a range."""
    least, most = min(_F(0), _F(low)), max(_F(0), _F(high))
    with np.errstate(all="ignore"):
        scale = _FLAT[engine] if most == least else _F(_F(most - least) / _F(255))
        start = _F(_F(0) - least / scale)
    zero = _F(255) if np.isnan(start) else np.clip(start, _F(0), _F(255))
    return np.asarray(scale, np.float32), np.asarray(np.rint(zero)).astype(np.uint8)


_FLAT = {Engine.ONNX: _F(1) / _F(255), Engine.ORT: _F(1)}


@jit
def quantize(x: Any, scale_of_zeros: np.float32, q: Any) -> tuple[Any, Any]:
    """Quantize by the range of the values and return scale and zero point.

    ``scale_of_zeros`` is the scale where all values are 0.
    """
    # As integers in the order of the floats: their least and most are found in vectors.
    bits = x.view(np.int32)
    low = high = np.int32(0)
    for i in range(bits.size):
        key = bits[i] ^ ((bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF))
        low, high = min(low, key), max(high, key)
    least = np.int32(low ^ ((low >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)
    most = np.int32(high).view(np.float32)
    scale = (
        scale_of_zeros if most == least else np.float32(np.float32(most - least) / np.float32(255))
    )
    start = np.float32(np.float32(0) - np.float32(least / scale))
    # NaN is the top; no comparison holds for it.
    start = (start if start > 0 else np.float32(0)) if start < 255 else np.float32(255)
    zero: Any = np.int32(np.rint(start))
    fill(x, scale, zero, 0, 255, q)
    return scale, zero


def kernel(x: F32, target: Target = ONNX) -> Triple:
    """Compute :func:`reference` in one compiled call."""
    values, into, y = flat(x, np.uint8)
    with np.errstate(all="ignore"):  # for the function that is not compiled
        scale, zero = quantize(values, _FLAT[target.engine], into)
    return y, np.asarray(scale, np.float32), np.asarray(zero, np.uint8)


def infer(x: TensorType) -> tuple[TensorType, ...]:
    """Check the type; scale and zero point are scalars."""
    dtype_in(_OP, x, (float32,), "x")
    return TensorType(uint8, x.shape), TensorType(float32, ()), TensorType(uint8, ())


OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels={Engine.ONNX: kernel, Engine.ORT: kernel},
        source=(
            "onnx/onnx/onnx/reference/ops/op_dynamic_quantize_linear.py::DynamicQuantizeLinear",
            "microsoft/onnxruntime/onnxruntime/core/util/qmath.h::GetQuantizationParameter",
        ),
        cases=(
            Case(
                "both signs",
                (f32([-1, 1.55]),),
                {},
                ([0, 255], _F(2.55) / _F(255), 100),
                "the range is the scale",
            ),
            Case("positive", (f32([51, 255]),), {}, ([51, 255], 1, 0), "the range holds 0"),
            Case(
                "zeros",
                (f32([0, 0]),),
                {},
                ([0, 0], _F(1) / _F(255), 0),
                "the reference's",
                (Engine.ONNX,),
            ),
            Case("zeros of ort", (f32([0, 0]),), {}, ([0, 0], 1, 0), "no range", (Engine.ORT,)),
            Case("infinite", (f32([-np.inf, 1]),), {}, ([0, 255], np.inf, 255), "NaN is the top"),
            Case("denormal", (f32([-1e-45]),), {}, ([0], 0, 255), "a scale of 0"),
        ),
    ),
)
