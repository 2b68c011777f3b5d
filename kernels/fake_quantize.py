"""``observer::fake_quantize``: a fake-quant with frozen scale and zero point."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.graph import Module
from refquant.ir.op import ALL_ENGINES, Case, Op
from refquant.ir.types import TensorType, float32
from refquant.kernels import rounding
from refquant.kernels.layout import empty_like, is_dense
from refquant.kernels.tensor_iterator import empty_sorted

F32 = npt.NDArray[np.float32]


def reference(x: F32, module: Module) -> F32:
    r"""Quantize and dequantize with the module's scale and zero point, staying in float32.

    .. math:: q = \mathrm{clamp}(z + \mathrm{rint}(x \cdot (1/s)), q_{min}, q_{max}),
        \quad y = s \cdot (q - z)

    The zero point is added *after* rounding, so ties differ from ``quantize_per_tensor`` where
    the zero point is odd. NaN gives the lower bound; per channel +inf does too.

    Running a graph reads the module's state and never changes it. With ``fake_quant_enabled``
    0 in the state, ``x`` is returned.

    Parameters
    ----------
    x : float32, any shape
        Real values.
    module : Module
        State ``scale``, ``zero_point``, ``fake_quant_enabled``; config
        ``activation_post_process`` range as ``observer.quant_min`` and ``observer.quant_max``,
        and for per channel ``ch_axis``.

    Returns
    -------
    float32, shape of ``x``
        Values on the quantized grid.

    Raises
    ------
    VerifyError
        If the module's state or range is missing.

    Examples
    --------
    >>> reference(np.float32([0.3, -9.0, 0.25]), _example_module())
    array([ 0.5, -0.5,  0. ], dtype=float32)
    """
    state = module.state
    if "fake_quant_enabled" in state and not int(np.ravel(state["fake_quant_enabled"])[0]):
        return x
    if "scale" not in state or "zero_point" not in state:
        raise VerifyError(f"fake_quantize: {module.kind} has no scale and zero_point in its state")
    low, high = _range(module)
    scale = np.asarray(state["scale"], np.float32).reshape(-1)
    zero_point = np.asarray(state["zero_point"], np.int64).reshape(-1)
    axis = module.config.get("ch_axis", -1)
    if scale.size == 1 and axis in (-1, None):
        return fake_quantize_per_tensor(x, scale[0], int(zero_point[0]), low, high)
    return fake_quantize_per_channel(x, scale, zero_point, int(str(axis)), low, high)


def fake_quantize_per_tensor(
    x: F32, scale: np.float32, zero_point: int, low: int, high: int
) -> F32:
    """Return the nearest value on the grid, one scale for the whole tensor."""
    real = np.float32(zero_point) + np.rint(x * rounding.reciprocal(float(scale)))
    q = np.fmin(np.fmax(real.astype(np.float64), low), high)
    result = np.asarray(q - zero_point).astype(np.float32) * np.float32(scale)
    return _like(x, result)


def fake_quantize_per_channel(
    x: F32, scale: F32, zero_point: npt.NDArray[np.int64], axis: int, low: int, high: int
) -> F32:
    """Return the nearest value on the grid, one scale per slice along ``axis``."""
    shape = [1] * x.ndim
    shape[axis] = -1
    s, z = scale.reshape(shape), zero_point.reshape(shape)
    real = z.astype(np.float32) + np.rint(x * (np.float32(1) / s))
    fits = np.abs(real) < np.float32(2.0**63)  # otherwise the C cast gives the smallest int64
    q = np.clip(np.where(fits, real, np.float32(low)).astype(np.int64), low, high)
    result = ((q - z).astype(np.float64) * s.astype(np.float64)).astype(np.float32)
    return _like(x, result)


def _like(x: F32, values: F32) -> F32:
    """Return values with the strides of ``x``, or in their order where it is not dense."""
    out = empty_like(x, np.float32) if is_dense(x) else empty_sorted(x.shape, [x], np.float32)
    out[...] = values
    return out


def _range(module: Module) -> tuple[int, int]:
    for prefix in ("", "observer."):
        low = module.config.get(f"{prefix}quant_min")
        high = module.config.get(f"{prefix}quant_max")
        if isinstance(low, int) and isinstance(high, int):
            return low, high
    raise VerifyError(f"fake_quantize: {module.kind} has no quant_min and quant_max")


def infer(x: TensorType, module: str | Module) -> TensorType:
    """Return the type of ``x``, which must be float32."""
    if x.dtype != float32:
        raise VerifyError(f"fake_quantize: expected float32, got {x.dtype}")
    return x


def _example_module(**state: Any) -> Module:
    return Module(
        "torch.ao.quantization.fake_quantize.FakeQuantize",
        {"quant_min": 0, "quant_max": 7},
        {"scale": np.array([0.5], np.float32), "zero_point": np.array([1], np.int32)}
        | {key: np.asarray(value) for key, value in state.items()},
    )


OPS = (
    Op(
        name="observer::fake_quantize",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(ALL_ENGINES, reference),
        source=("pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp",),
        cases=(
            Case(
                "ties",
                (np.array([0.25, 0.75, -0.25], np.float32),),
                {"module": _example_module()},
                [0.0, 1.0, 0.0],
                "even before the zero point is added",
            ),
            Case(
                "specials",
                (np.array([np.nan, np.inf, -np.inf], np.float32),),
                {"module": _example_module()},
                [-0.5, 3.0, -0.5],
                "NaN goes to the bottom",
            ),
            Case(
                "disabled",
                (np.array([0.3], np.float32),),
                {"module": _example_module(fake_quant_enabled=[0])},
                np.array([0.3], np.float32),
                "passes through",
            ),
        ),
    ),
)
