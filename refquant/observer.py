"""Observers, under the names of ``torch.ao.quantization.observer``.

The ones with statistics are in ``min_max_observer.py`` and ``histogram_observer.py``; here are
those without, and the predefined factories.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from refquant.histogram_observer import HistogramObserver
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.qtensor import Array
from refquant.ir.types import (
    DType,
    QScheme,
    float16,
    float32,
    per_channel_affine_float_qparams,
    per_channel_symmetric,
    per_tensor_affine,
    per_tensor_symmetric,
    qint8,
    quint4x2,
    quint8,
)
from refquant.kernels.calculate_qparams import F32, FLOAT32_EPS, determine_qparams
from refquant.min_max_observer import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from refquant.observer_base import ObserverBase, UniformQuantizationObserverBase, caller
from refquant.observer_state import get_observer_state_dict, load_observer_state_dict

__all__ = [
    "FixedQParamsObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "NoopObserver",
    "ObserverBase",
    "PerChannelMinMaxObserver",
    "PlaceholderObserver",
    "RecordingObserver",
    "ReuseInputObserver",
    "UniformQuantizationObserverBase",
    "default_affine_fixed_qparams_observer",
    "default_debug_observer",
    "default_dynamic_quant_observer",
    "default_fixed_qparams_range_0to1_observer",
    "default_fixed_qparams_range_neg1to1_observer",
    "default_float_qparams_observer",
    "default_float_qparams_observer_4bit",
    "default_histogram_observer",
    "default_observer",
    "default_per_channel_weight_observer",
    "default_placeholder_observer",
    "default_reuse_input_observer",
    "default_symmetric_fixed_qparams_observer",
    "default_weight_observer",
    "determine_qparams",
    "get_observer_state_dict",
    "load_observer_state_dict",
    "per_channel_weight_observer_range_neg_127_to_127",
    "weight_observer_range_neg_127_to_127",
]


class FixedQParamsObserver(ObserverBase):
    """Give a scale and a zero point that are known beforehand, as for sigmoid's 0 to 1.

    Parameters
    ----------
    scale : float
        Kept as float32.
    zero_point : int
        Kept as int32.
    dtype, qscheme, quant_min, quant_max
        The quantized type, per tensor, and its range.
    is_dynamic : bool
        Must be False.

    Examples
    --------
    >>> FixedQParamsObserver(scale=0.5, zero_point=3).calculate_qparams()
    (array([0.5], dtype=float32), array([3], dtype=int32))
    """

    scale: F32
    zero_point: Array

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: DType = quint8,
        qscheme: QScheme = per_tensor_affine,
        quant_min: int = 0,
        quant_max: int = 255,
        is_dynamic: bool = False,
    ) -> None:
        if is_dynamic:
            raise UnsupportedError("FixedQParamsObserver cannot be dynamic")
        super().__init__(dtype, is_dynamic)
        if not -(2**31) <= zero_point < 2**31:
            raise VerifyError(f"FixedQParamsObserver: zero_point must be int32, got {zero_point}")
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.qscheme = qscheme
        self.register_buffer("scale", np.array([scale], np.float32))
        self.register_buffer("zero_point", np.array([zero_point], np.int32))

    def forward(self, x: Array) -> Array:
        """Return ``x``."""
        return x

    def calculate_qparams(self) -> tuple[Array, Array]:
        """Return the fixed scale and zero point."""
        return self.scale, self.zero_point


class _WithoutQParams(ObserverBase):
    """Observers that have no scale and zero point to give."""

    def forward(self, x: Array) -> Array:
        """Return ``x``."""
        return x

    def calculate_qparams(self) -> tuple[Array, Array]:
        """Refuse: there are no statistics.

        Raises
        ------
        UnsupportedError
            Always.
        """
        raise UnsupportedError(
            f"{type(self).__name__} has no statistics to calculate_qparams from; "
            "use an observer such as MinMaxObserver where scale and zero point are needed"
        )


class PlaceholderObserver(_WithoutQParams):
    """Carry settings only: for float16, and for dynamic quantization.

    Parameters
    ----------
    dtype : DType
        What the operator's input is quantized to, if dynamically at run time.
    custom_op_name : str
        For operators that need no observation.
    compute_dtype : DType, optional
        Deprecated in torch; use ``is_dynamic``.
    quant_min, quant_max, qscheme, eps
        Settings of the quantization.
    is_dynamic : bool
        Whether scale and zero point are computed at run time.

    Examples
    --------
    >>> PlaceholderObserver(dtype=float16)
    PlaceholderObserver(dtype=refquant.float16, is_dynamic=False)
    """

    def __init__(
        self,
        dtype: DType = float32,
        custom_op_name: str = "",
        compute_dtype: DType | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: QScheme | None = None,
        eps: float | None = None,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        self.qscheme = per_tensor_affine if qscheme is None else qscheme
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.eps = FLOAT32_EPS if eps is None else eps
        self.custom_op = custom_op_name
        if compute_dtype is not None:
            warnings.warn(
                "PlaceholderObserver: compute_dtype is deprecated in torch and sets nothing; "
                "use is_dynamic=True",
                UserWarning,
                stacklevel=caller(),
            )

    def extra_repr(self) -> str:
        """Return dtype and whether dynamic."""
        return f"dtype={self.dtype!r}, is_dynamic={self.is_dynamic}"


class RecordingObserver(_WithoutQParams):
    """Keep a copy of everything that is observed, to look at.

    Parameters
    ----------
    dtype : DType
        Carried only.

    Examples
    --------
    >>> observer = RecordingObserver()
    >>> _ = observer(np.float32([1, 2]))
    >>> observer.get_tensor_value()
    [array([1., 2.], dtype=float32)]
    """

    def __init__(self, dtype: DType = quint8) -> None:
        super().__init__(dtype)
        self.tensor_val: list[Any] = []

    def forward(self, x: Array) -> Array:
        """Keep a copy of ``x`` and return ``x``."""
        self.tensor_val.append(np.array(x) if isinstance(x, np.ndarray) else x)
        return x

    def get_tensor_value(self) -> list[Any]:
        """Return all that was observed, in order."""
        return self.tensor_val


class NoopObserver(_WithoutQParams):
    """Carry settings only.

    Parameters
    ----------
    dtype : DType
        Quantized type.
    custom_op_name : str
        For operators that need no observation.
    """

    def __init__(self, dtype: DType = float16, custom_op_name: str = "") -> None:
        super().__init__(dtype)
        self.custom_op = custom_op_name


class ReuseInputObserver(_WithoutQParams):
    """Say that an operator's output is to share the observer of its input, as for reshape."""

    def __init__(self) -> None:
        super().__init__(quint8)


default_observer = MinMaxObserver.with_args(quant_min=0, quant_max=127)
default_placeholder_observer = PlaceholderObserver
default_debug_observer = RecordingObserver
default_weight_observer = MinMaxObserver.with_args(dtype=qint8, qscheme=per_tensor_symmetric)
weight_observer_range_neg_127_to_127 = MinMaxObserver.with_args(
    dtype=qint8, qscheme=per_tensor_symmetric, quant_min=-127, quant_max=127, eps=2**-12
)
default_histogram_observer = HistogramObserver.with_args(quant_min=0, quant_max=127)
default_per_channel_weight_observer = PerChannelMinMaxObserver.with_args(
    dtype=qint8, qscheme=per_channel_symmetric
)
per_channel_weight_observer_range_neg_127_to_127 = PerChannelMinMaxObserver.with_args(
    dtype=qint8, qscheme=per_channel_symmetric, quant_min=-127, quant_max=127, eps=2**-12
)
default_dynamic_quant_observer = PlaceholderObserver.with_args(
    dtype=quint8, quant_min=0, quant_max=255, is_dynamic=True
)
default_float_qparams_observer = PerChannelMinMaxObserver.with_args(
    dtype=quint8, qscheme=per_channel_affine_float_qparams, ch_axis=0
)
default_float_qparams_observer_4bit = PerChannelMinMaxObserver.with_args(
    dtype=quint4x2, qscheme=per_channel_affine_float_qparams, ch_axis=0
)
default_fixed_qparams_range_neg1to1_observer = FixedQParamsObserver.with_args(
    scale=2.0 / 256.0, zero_point=128, dtype=quint8, quant_min=0, quant_max=255
)
default_fixed_qparams_range_0to1_observer = FixedQParamsObserver.with_args(
    scale=1.0 / 256.0, zero_point=0, dtype=quint8, quant_min=0, quant_max=255
)
default_symmetric_fixed_qparams_observer = default_fixed_qparams_range_neg1to1_observer
default_affine_fixed_qparams_observer = default_fixed_qparams_range_0to1_observer
default_reuse_input_observer = ReuseInputObserver
