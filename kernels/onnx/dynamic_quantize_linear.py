"""``onnx::DynamicQuantizeLinear``: real values to uint8 with parameters of their own range."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, float32, uint8
from refquant.kernels.onnx.literals import f32
from refquant.kernels.onnx.operands import ONNX, dtype_in
from refquant.kernels.onnx.quantize_linear import kernel as quantize
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


def kernel(x: F32, target: Target = ONNX) -> Triple:
    """Compute :func:`reference` and quantize in one compiled pass."""
    low, high = (x.min(), x.max()) if x.size else (_F(0), _F(0))
    scale, zero = parameters(low, high, target.engine)
    return quantize(x, scale, zero, target=target), scale, zero


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
