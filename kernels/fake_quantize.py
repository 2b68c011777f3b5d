"""``observer::fake_quantize``: a fake-quant with frozen scale and zero point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.module import Module
from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType
from refquant.kernels.fake_quantize_per_channel import (
    fake_quantize_per_channel,
    fake_quantize_per_channel_compiled,
)
from refquant.kernels.fake_quantize_per_tensor import (
    check_float,
    fake_quantize_per_tensor,
    fake_quantize_per_tensor_compiled,
)

Array = npt.NDArray[Any]
Form = Callable[..., tuple[Array, Array]]


def reference(x: Array, module: Module, target: Target = Target()) -> Array:
    """Quantize and dequantize with the module's scale and zero point, staying a float.

    The arithmetic is that of ``aten::fake_quantize_per_tensor_affine``; with several scales, or
    a ``ch_axis``, that of ``aten::fake_quantize_per_channel_affine``.

    Running a graph reads the module's state and never changes it. With ``fake_quant_enabled``
    0 in the state, ``x`` is returned.

    Parameters
    ----------
    x : float32, float64, float16 or bfloat16, any shape
        Real values.
    module : Module
        State ``scale``, ``zero_point``, ``fake_quant_enabled``; config
        ``activation_post_process`` range as ``observer.quant_min`` and ``observer.quant_max``,
        and for per channel ``ch_axis``.
    target : Target
        ``fused_multiply_add`` decides how a float zero point is added, per channel.

    Returns
    -------
    dtype, shape and, where dense, strides of ``x``
        Values on the quantized grid.

    Raises
    ------
    VerifyError
        If the module's state or range is missing or, per channel, the range does not hold an
        integer zero point.

    Examples
    --------
    >>> reference(np.float32([0.3, -9.0, 0.25]), _example_module())
    array([ 0.5, -0.5,  0. ], dtype=float32)
    """
    return _run(x, module, target, fake_quantize_per_tensor, fake_quantize_per_channel)


def kernel(x: Array, module: Module, target: Target = Target()) -> Array:
    """Compute :func:`reference`, compiled."""
    forms = fake_quantize_per_tensor_compiled, fake_quantize_per_channel_compiled
    return _run(x, module, target, *forms)


def _run(x: Array, module: Module, target: Target, per_tensor: Form, per_channel: Form) -> Array:
    state = module.state
    if "fake_quant_enabled" in state and not int(np.ravel(state["fake_quant_enabled"])[0]):
        return x
    if "scale" not in state or "zero_point" not in state:
        raise VerifyError(f"fake_quantize: {module.kind} has no scale and zero_point in its state")
    limits = _range(module)
    scale = np.asarray(state["scale"], np.float32).reshape(-1)
    zero_point = np.asarray(state["zero_point"]).reshape(-1)
    axis = module.config.get("ch_axis", -1)
    if scale.size == 1 and axis in (-1, None):
        return per_tensor(x, scale[0], int(zero_point[0]), *limits)[0]
    return per_channel(x, scale, zero_point, int(str(axis)), *limits, target=target)[0]


def _range(module: Module) -> tuple[int, int]:
    for prefix in ("", "observer."):
        low = module.config.get(f"{prefix}quant_min")
        high = module.config.get(f"{prefix}quant_max")
        if isinstance(low, int) and isinstance(high, int):
            return low, high
    raise VerifyError(f"fake_quantize: {module.kind} has no quant_min and quant_max")


def infer(x: TensorType, module: str | Module) -> TensorType:
    """Return the type of ``x``, which must be a float."""
    check_float("fake_quantize", x)
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
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=("pytorch/torch/ao/quantization/fake_quantize.py::FakeQuantize.forward",),
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
