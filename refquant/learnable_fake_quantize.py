"""``LearnableFakeQuantize``: a fake-quant whose scale and zero point are trained (LSQ)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.fake_quantize_base import FakeQuantizeBase, check_within
from refquant.ir.errors import VerifyError
from refquant.ir.qtensor import Array
from refquant.ir.target import Target
from refquant.ir.types import DType, per_channel_affine, per_channel_symmetric
from refquant.kernels import learnable_fake_quantize as learnable
from refquant.kernels import learnable_fake_quantize_backward as learnable_backward
from refquant.kernels.calculate_qparams import F32, FLOAT32_EPS


class LearnableFakeQuantize(FakeQuantizeBase):
    """Round with a scale and a zero point that are trained (``_LearnableFakeQuantize``).

    With ``static_enabled`` they are estimated from the data by the observer; without, they are
    parameters, whose gradients ``backward`` returns. A symmetric scheme keeps the zero point 0.

    Parameters
    ----------
    observer : observer class or factory
        Makes the static estimates.
    quant_min, quant_max : int
        Range of the quantized values, within the observer's dtype.
    scale, zero_point : float
        Initial parameters.
    channel_len : int
        Number of channels; -1 for one scale for the whole tensor.
    use_grad_scaling : bool
        Divide the gradients of scale and zero point by ``sqrt(elements * quant_max)``.
    target : Target
        The gradients' bits depend on the instruction set and on the number of threads.
    **observer_kwargs
        Further arguments of the observer.

    Raises
    ------
    VerifyError
        If the range is empty or does not lie within the dtype, or ``channel_len`` is wrong.

    Examples
    --------
    >>> from refquant.observer import MinMaxObserver
    >>> fake_quant = LearnableFakeQuantize(MinMaxObserver, 0, 7, scale=0.5)
    >>> fake_quant.enable_param_learning().forward(np.float32([0.3, 9.0]))
    array([0.5, 3.5], dtype=float32)
    >>> dx, dscale, dzero_point = fake_quant.backward(np.float32([1.0, 1.0]))
    >>> dx, dscale, dzero_point
    (array([1., 0.], dtype=float32), array([7.4], dtype=float32), array([-0.5], dtype=float32))
    """

    scale: F32
    zero_point: F32
    static_enabled: Array
    learning_enabled: Array
    eps: F32

    def __init__(
        self,
        observer: Callable[..., Any],
        quant_min: int = 0,
        quant_max: int = 255,
        scale: float = 1.0,
        zero_point: float = 0.0,
        channel_len: int = -1,
        use_grad_scaling: bool = False,
        *,
        target: Target | None = None,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        if quant_min >= quant_max:
            raise VerifyError(f"quant_min must be below quant_max, got [{quant_min}, {quant_max}]")
        if channel_len != -1 and channel_len < 1:
            raise VerifyError(f"channel_len must be -1 or positive, got {channel_len}")
        self.quant_min, self.quant_max = quant_min, quant_max
        self.use_grad_scaling = use_grad_scaling
        self.target = target or Target()
        channels = max(channel_len, 1)
        self.register_buffer("scale", np.full(channels, scale, np.float32))
        self.register_buffer("zero_point", np.full(channels, zero_point, np.float32))
        made = observer(**observer_kwargs, quant_min=quant_min, quant_max=quant_max)
        self.activation_post_process: Any = made
        self._parts.append("activation_post_process")
        if target is not None and hasattr(made, "target"):
            made.target = target
        check_within(made.dtype, quant_min, quant_max)
        self.dtype: DType = made.dtype
        self.qscheme = made.qscheme
        self.ch_axis = getattr(made, "ch_axis", -1)
        self.register_buffer("static_enabled", np.array([1], np.uint8))
        self.register_buffer("learning_enabled", np.array([0], np.uint8))
        self.register_buffer("eps", np.array([FLOAT32_EPS], np.float32))
        self.bitwidth = int(np.log2(quant_max - quant_min + 1))
        self._last: tuple[Any, ...] | None = None

    def enable_param_learning(self) -> LearnableFakeQuantize:
        """Train scale and zero point, without static estimates."""
        return self._switch(learning=True, rounding=True, static=False)

    def enable_static_estimate(self) -> None:
        """Estimate scale and zero point from the data, and round."""
        self._switch(learning=False, rounding=True, static=True)

    def enable_static_observation(self) -> None:
        """Estimate scale and zero point from the data, without rounding."""
        self._switch(learning=False, rounding=False, static=True)

    def _switch(self, *, learning: bool, rounding: bool, static: bool) -> LearnableFakeQuantize:
        self.toggle_qparam_learning(learning)
        self.toggle_fake_quant(rounding)
        return self.toggle_observer_update(static)

    def toggle_observer_update(self, enabled: bool = True) -> LearnableFakeQuantize:
        """Switch the static estimates."""
        self.static_enabled = np.array([enabled], np.uint8)
        return self

    def enable_observer(self, enabled: bool = True) -> None:
        """Switch the static estimates."""
        self.toggle_observer_update(enabled)

    def toggle_qparam_learning(self, enabled: bool = True) -> LearnableFakeQuantize:
        """Note whether scale and zero point are trained; the gradients are always computed."""
        self.learning_enabled = np.array([enabled], np.uint8)
        return self

    def toggle_fake_quant(self, enabled: bool = True) -> LearnableFakeQuantize:
        """Switch the rounding."""
        self.enable_fake_quant(enabled)
        return self

    def calculate_qparams(self) -> tuple[F32, Array]:
        """Return the scale, at least eps, and the zero point rounded and limited to the range."""
        self._limit_scale()
        limited = np.clip(np.rint(self.zero_point), self.quant_min, self.quant_max)
        return self.scale, limited.astype(np.int64)

    def _limit_scale(self) -> None:
        self.scale = np.maximum(self.scale, self.eps)

    def forward(self, x: Array) -> Array:
        """Return ``x`` fake-quantized, with estimated or trained scale and zero point.

        Parameters
        ----------
        x : float array
            Real values.

        Raises
        ------
        VerifyError
            If the number of channels is not ``channel_len``.
        """
        if self.static_enabled[0] == 1:
            self.activation_post_process(x)
            for name, value in zip(
                ("scale", "zero_point"),
                self.activation_post_process.calculate_qparams(),
                strict=True,
            ):
                old = getattr(self, name)
                if value.size not in (1, old.size):
                    raise VerifyError(
                        f"LearnableFakeQuantize: {value.size} channels were observed, "
                        f"channel_len is {old.size}"
                    )
                setattr(self, name, np.broadcast_to(value, old.shape).astype(np.float32))
        else:
            self._limit_scale()
        self._last = None
        if self.fake_quant_enabled[0] != 1:
            return x
        if self.qscheme.is_symmetric:
            self.zero_point = np.zeros_like(self.zero_point)
        if self.use_grad_scaling and self.quant_max <= 0:
            raise VerifyError(f"use_grad_scaling needs quant_max > 0, got {self.quant_max}")
        factor = 1.0 / (x.size * self.quant_max) ** 0.5 if self.use_grad_scaling else 1.0
        axis = (self.ch_axis,) if self._is_per_channel() else ()
        arguments = self.scale, self.zero_point, *axis, self.quant_min, self.quant_max, factor
        self._last = _kept(x), *arguments
        forward = learnable.per_channel_compiled if axis else learnable.per_tensor_compiled
        return forward(x, *arguments)

    def _is_per_channel(self) -> bool:
        return self.qscheme in (per_channel_symmetric, per_channel_affine)

    def backward(self, grad: Array) -> tuple[Array, F32, F32]:
        """Return the gradients by the last ``x``, by the scale and by the zero point.

        With the rounding switched off they are ``grad`` and zeros.

        Parameters
        ----------
        grad : float array
            Gradient by what ``forward`` returned.
        """
        if self._last is None:
            return grad, np.zeros_like(self.scale), np.zeros_like(self.zero_point)
        backward: Any = learnable_backward.per_tensor_compiled
        if self._is_per_channel():
            backward = learnable_backward.per_channel_compiled
        dx, dscale, dzero_point = backward(grad, *self._last, target=self.target)
        return dx.astype(self._last[0].dtype, copy=False), dscale, dzero_point

    def extra_repr(self) -> str:
        """Return switches, range, scale and zero point."""
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, static_enabled={self.static_enabled}, "
            f"learning_enabled={self.learning_enabled}, quant_min={self.quant_min}, "
            f"quant_max={self.quant_max}, scale={self.scale}, zero_point={self.zero_point}"
        )


def _kept(x: Array) -> Array:
    """Return a copy that later changes of ``x`` do not reach, with strides that torch can have."""
    return x.copy(order="C" if any(stride < 0 for stride in x.strides) else "K")
