"""Fake-quants, under the names of ``torch.ao.quantization.fake_quantize``.

A fake-quant watches data with its observer, and rounds it to the values that quantization would
leave. Call one with data for the rounded data; ``backward`` then gives the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.factory import Factory
from refquant.fake_quantize_base import FakeQuantizeBase, check_within
from refquant.ir.errors import VerifyError
from refquant.ir.qtensor import Array
from refquant.ir.target import Target
from refquant.ir.types import (
    DType,
    per_channel_affine_float_qparams,
    per_channel_symmetric,
    per_tensor_affine,
    per_tensor_symmetric,
    qint8,
    quint4x2,
    quint8,
)
from refquant.kernels import fake_quantize_backward
from refquant.kernels.calculate_qparams import F32
from refquant.kernels.fake_quantize_per_channel import fake_quantize_per_channel_compiled
from refquant.kernels.fake_quantize_per_tensor import fake_quantize_per_tensor_compiled
from refquant.kernels.fused_moving_avg_obs_fake_quant import (
    State,
    fused_moving_avg_obs_fake_quant_compiled,
)
from refquant.learnable_fake_quantize import LearnableFakeQuantize
from refquant.observer import (
    FixedQParamsObserver,
    HistogramObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
)

__all__ = [
    "FakeQuantize",
    "FakeQuantizeBase",
    "FixedQParamsFakeQuantize",
    "FusedMovingAvgObsFakeQuantize",
    "LearnableFakeQuantize",
    "default_affine_fixed_qparams_fake_quant",
    "default_dynamic_fake_quant",
    "default_embedding_fake_quant",
    "default_embedding_fake_quant_4bit",
    "default_fake_quant",
    "default_fixed_qparams_range_0to1_fake_quant",
    "default_fixed_qparams_range_neg1to1_fake_quant",
    "default_fused_act_fake_quant",
    "default_fused_per_channel_wt_fake_quant",
    "default_fused_wt_fake_quant",
    "default_histogram_fake_quant",
    "default_per_channel_weight_fake_quant",
    "default_symmetric_fixed_qparams_fake_quant",
    "default_weight_fake_quant",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
    "fused_per_channel_wt_fake_quant_range_neg_127_to_127",
    "fused_wt_fake_quant_range_neg_127_to_127",
]


class FakeQuantize(FakeQuantizeBase):
    r"""Observe, choose scale and zero point, and round to the quantized values.

    .. math:: y = (\mathrm{clamp}(\mathrm{rint}(x / s) + z, q_{min}, q_{max}) - z) \cdot s

    with the roundings of ``refquant.kernels.fake_quantize_per_tensor`` and ``_per_channel``.

    Parameters
    ----------
    observer : observer class or factory
        What watches the data and chooses scale and zero point.
    quant_min, quant_max : int, optional
        Range of the quantized values, passed on to the observer; it must lie within its dtype.
    is_dynamic : bool
        Passed on to the observer.
    **observer_kwargs
        Further arguments of the observer.

    Raises
    ------
    VerifyError
        If the range is empty or does not lie within the dtype.

    Examples
    --------
    >>> fake_quant = FakeQuantize(quant_min=0, quant_max=7)
    >>> fake_quant(np.float32([-1.0, 0.3, 2.5]))
    array([-1. ,  0.5,  2.5], dtype=float32)
    >>> fake_quant.scale, fake_quant.zero_point
    (array([0.5], dtype=float32), array([2], dtype=int32))
    >>> fake_quant.disable_observer()
    >>> fake_quant(np.float32([-9.0, 0.3]))
    array([-1. ,  0.5], dtype=float32)
    >>> fake_quant.backward(np.float32([1.0, 1.0]))
    array([0., 1.], dtype=float32)
    """

    _resizable = frozenset({"scale", "zero_point"})
    scale: F32
    zero_point: Array

    def __init__(
        self,
        observer: Callable[..., Any] = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        if quant_min is not None and quant_max is not None:
            dtype = observer_kwargs.get("dtype", quint8)
            if isinstance(observer, Factory):
                dtype = observer.p.keywords.get("dtype", dtype)
            check_within(dtype, quant_min, quant_max)
            observer_kwargs |= {"quant_min": quant_min, "quant_max": quant_max}
        made = observer(**observer_kwargs, is_dynamic=is_dynamic)
        self.activation_post_process: Any = made
        self._parts.append("activation_post_process")
        self.quant_min = made.quant_min
        self.quant_max = made.quant_max
        self.is_dynamic = made.is_dynamic
        self.dtype: DType = made.dtype
        self.qscheme = made.qscheme
        self.ch_axis = getattr(made, "ch_axis", -1)
        self.is_per_channel: bool = made.qscheme.is_per_channel
        self.target = getattr(made, "target", Target())
        float_qparams = made.qscheme == per_channel_affine_float_qparams
        self._register_qparams(np.float32 if float_qparams else np.int32)
        self.mask: Array | None = None

    def _register_qparams(self, zero_point: Any) -> None:
        self.register_buffer("scale", np.array([1.0], np.float32))
        self.register_buffer("zero_point", np.array([0], zero_point))

    def calculate_qparams(self) -> tuple[Array, Array]:
        """Return the observer's scale and zero point, which conversion uses."""
        scale, zero_point = self.activation_post_process.calculate_qparams()
        return scale, zero_point

    def forward(self, x: Array) -> Array:
        """Observe ``x`` and return it fake-quantized, as far as both are switched on.

        Parameters
        ----------
        x : float32, float64, float16 or bfloat16 array
            Real values.

        Returns
        -------
        array
            dtype and shape of ``x``. ``mask`` then says where ``x`` was within the range.
        """
        if self.observer_enabled[0] == 1:
            self._observe(x)
        self.mask = None
        if self.fake_quant_enabled[0] == 1:
            x, self.mask = self._round(x)
        return x

    def _observe(self, x: Array) -> None:
        self.activation_post_process(x)
        scale, zero_point = self.calculate_qparams()
        self.scale = scale.astype(np.float32)
        with np.errstate(invalid="ignore"):
            self.zero_point = zero_point.astype(self.zero_point.dtype)

    def _round(self, x: Array) -> tuple[Array, Array]:
        limits = self.activation_post_process.quant_min, self.activation_post_process.quant_max
        if self.is_per_channel:
            return fake_quantize_per_channel_compiled(
                x, self.scale, self.zero_point, self.ch_axis, *limits, self.target
            )
        if self.scale.size != 1 or self.zero_point.size != 1:
            raise VerifyError(
                f"{type(self).__name__}: {self.qscheme} needs one scale and zero point, got "
                f"{self.scale.size} and {self.zero_point.size}"
            )
        return fake_quantize_per_tensor_compiled(
            x, self.scale[0], int(self.zero_point[0]), *limits
        )

    def backward(self, grad: Array) -> Array:
        """Return the gradient by the last ``x``: ``grad`` where it was within the range, else 0.

        With the rounding switched off it is ``grad``.

        Parameters
        ----------
        grad : float array
            Gradient by what ``forward`` returned.
        """
        if self.mask is None:
            return grad
        return fake_quantize_backward.kernel(grad, self.mask)

    def extra_repr(self) -> str:
        """Return switches, range, settings, scale and zero point."""
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, "
            f"observer_enabled={self.observer_enabled}, quant_min={self.quant_min}, "
            f"quant_max={self.quant_max}, dtype={self.dtype}, qscheme={self.qscheme}, "
            f"ch_axis={self.ch_axis}, scale={self.scale}, zero_point={self.zero_point}, "
            f"activation_post_process={self.activation_post_process}"
        )


class FixedQParamsFakeQuantize(FakeQuantize):
    """Round with a scale and a zero point that are known beforehand.

    Parameters
    ----------
    observer : FixedQParamsObserver factory
        Which holds them; per tensor.

    Raises
    ------
    VerifyError
        If the observer is of another class or per channel.

    Examples
    --------
    >>> default_fixed_qparams_range_0to1_fake_quant()(np.float32([0.5, 2.0]))
    array([0.5       , 0.99609375], dtype=float32)
    """

    def __init__(self, observer: Callable[..., Any]) -> None:
        super().__init__(observer)
        if type(self.activation_post_process) is not FixedQParamsObserver:
            raise VerifyError(
                "FixedQParamsFakeQuantize: the observer must be a FixedQParamsObserver, "
                f"got {type(self.activation_post_process).__name__}"
            )
        if self.is_per_channel:
            raise VerifyError(
                f"FixedQParamsFakeQuantize: the qscheme must be per tensor, got {self.qscheme}"
            )

    def _register_qparams(self, zero_point: Any) -> None:
        self._buffers += ["scale", "zero_point"]  # which are the observer's, as in torch

    @property
    def scale(self) -> F32:
        """The observer's scale."""
        value: F32 = self.activation_post_process.scale
        return value

    @scale.setter
    def scale(self, value: F32) -> None:
        self.activation_post_process.scale = value

    @property
    def zero_point(self) -> Array:
        """The observer's zero point."""
        value: Array = self.activation_post_process.zero_point
        return value

    @zero_point.setter
    def zero_point(self, value: Array) -> None:
        self.activation_post_process.zero_point = value

    def calculate_qparams(self) -> tuple[Array, Array]:
        """Return the fixed scale and zero point."""
        return self.scale, self.zero_point


class FusedMovingAvgObsFakeQuantize(FakeQuantize):
    """Observe by moving averages, choose scale and zero point, and round, as one operator.

    While training, scale and zero point are chosen by fbgemm's algorithm;
    ``calculate_qparams``, which conversion uses, is the observer's. Their bits differ: most of
    all where symmetric, where fbgemm takes ``max(-min / 128, max / 127)`` and the observer
    ``max(-min, max) / 127.5``.

    Parameters
    ----------
    observer : MovingAverageMinMaxObserver or MovingAveragePerChannelMinMaxObserver, or a factory
        Holds the moving averages.
    quant_min, quant_max : int
        Range of the quantized values.
    **observer_kwargs
        Further arguments of the observer.

    Raises
    ------
    VerifyError
        If the observer is of another class.

    Examples
    --------
    >>> fake_quant = default_fused_wt_fake_quant()
    >>> _ = fake_quant(np.float32([-1.0, 0.5]))
    >>> fake_quant.scale, fake_quant.calculate_qparams()[0]
    (array([0.0078125], dtype=float32), array([0.00784314], dtype=float32))
    """

    def __init__(
        self,
        observer: Callable[..., Any] = MovingAverageMinMaxObserver,
        quant_min: int = 0,
        quant_max: int = 255,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__(observer, quant_min, quant_max, **observer_kwargs)
        averaging = (MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver)
        if not isinstance(self.activation_post_process, averaging):
            raise VerifyError(
                "FusedMovingAvgObsFakeQuantize: the observer must be a "
                "MovingAverage(PerChannel)MinMaxObserver, "
                f"got {type(self.activation_post_process).__name__}"
            )
        self.register_buffer("fake_quant_enabled", np.array([1], np.int64))
        self.register_buffer("observer_enabled", np.array([1], np.int64))
        self.is_symmetric_quant: bool = self.qscheme.is_symmetric

    def forward(self, x: Array) -> Array:
        """Observe ``x`` and return it fake-quantized, as far as both are switched on."""
        observer = self.activation_post_process
        switches = bool(self.observer_enabled[0]), bool(self.fake_quant_enabled[0])
        if x.size == 0 or not any(switches):
            self.mask = None
            return x.copy(order="K")
        before = State(observer.min_val, observer.max_val, self.scale, self.zero_point)
        y, mask, after = fused_moving_avg_obs_fake_quant_compiled(
            x,
            before,
            float(observer.averaging_constant),
            observer.quant_min,
            observer.quant_max,
            self.ch_axis,
            self.is_per_channel,
            self.is_symmetric_quant,
            observer_on=switches[0],
            fake_quant_on=switches[1],
            target=self.target,
        )
        observer.min_val, observer.max_val, self.scale, self.zero_point = after
        self.mask = mask
        return y


def disable_fake_quant(module: Any) -> None:
    """Switch the rounding of a fake-quant off; anything else is left alone."""
    if isinstance(module, FakeQuantizeBase):
        module.disable_fake_quant()


def enable_fake_quant(module: Any) -> None:
    """Switch the rounding of a fake-quant on; anything else is left alone."""
    if isinstance(module, FakeQuantizeBase):
        module.enable_fake_quant()


def disable_observer(module: Any) -> None:
    """Switch the observing of a fake-quant off; anything else is left alone."""
    if isinstance(module, FakeQuantizeBase):
        module.disable_observer()


def enable_observer(module: Any) -> None:
    """Switch the observing of a fake-quant on; anything else is left alone."""
    if isinstance(module, FakeQuantizeBase):
        module.enable_observer()


default_fake_quant = FakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver,
    quant_min=0,
    quant_max=255,
    dtype=quint8,
    qscheme=per_tensor_affine,
    reduce_range=True,
)
default_weight_fake_quant = FakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver,
    quant_min=-128,
    quant_max=127,
    dtype=qint8,
    qscheme=per_tensor_symmetric,
    reduce_range=False,
)
default_dynamic_fake_quant = FakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver,
    quant_min=0,
    quant_max=255,
    is_dynamic=True,
    dtype=quint8,
    averaging_constant=1,
)
default_fixed_qparams_range_neg1to1_fake_quant = FixedQParamsFakeQuantize.with_args(
    observer=default_fixed_qparams_range_neg1to1_observer
)
default_fixed_qparams_range_0to1_fake_quant = FixedQParamsFakeQuantize.with_args(
    observer=default_fixed_qparams_range_0to1_observer
)
default_symmetric_fixed_qparams_fake_quant = default_fixed_qparams_range_neg1to1_fake_quant
default_affine_fixed_qparams_fake_quant = default_fixed_qparams_range_0to1_fake_quant
default_per_channel_weight_fake_quant = FakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver,
    quant_min=-128,
    quant_max=127,
    dtype=qint8,
    qscheme=per_channel_symmetric,
    reduce_range=False,
    ch_axis=0,
)
default_embedding_fake_quant = FakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver,
    qscheme=per_channel_affine_float_qparams,
    dtype=quint8,
    quant_min=0,
    quant_max=255,
    ch_axis=0,
    averaging_constant=1,
)
default_embedding_fake_quant_4bit = FakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver,
    qscheme=per_channel_affine_float_qparams,
    ch_axis=0,
    dtype=quint4x2,
    averaging_constant=1,
)
default_histogram_fake_quant = FakeQuantize.with_args(
    observer=HistogramObserver,
    quant_min=0,
    quant_max=255,
    dtype=quint8,
    qscheme=per_tensor_affine,
    reduce_range=True,
)
default_fused_act_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=quint8
)
default_fused_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver,
    quant_min=-128,
    quant_max=127,
    dtype=qint8,
    qscheme=per_tensor_symmetric,
)
default_fused_per_channel_wt_fake_quant = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver,
    quant_min=-128,
    quant_max=127,
    dtype=qint8,
    qscheme=per_channel_symmetric,
)
fused_wt_fake_quant_range_neg_127_to_127 = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAverageMinMaxObserver,
    quant_min=-127,
    quant_max=127,
    dtype=qint8,
    qscheme=per_tensor_symmetric,
    eps=2**-12,
)
fused_per_channel_wt_fake_quant_range_neg_127_to_127 = FusedMovingAvgObsFakeQuantize.with_args(
    observer=MovingAveragePerChannelMinMaxObserver,
    quant_min=-127,
    quant_max=127,
    dtype=qint8,
    qscheme=per_channel_symmetric,
    eps=2**-12,
)
