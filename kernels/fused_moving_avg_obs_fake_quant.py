"""``aten::fused_moving_avg_obs_fake_quant`` without its side effects: old state in, new out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.target import Target
from refquant.ir.types import format_shape
from refquant.kernels.choose_qparams import (
    choose_qparams_fbgemm,
    choose_qparams_fbgemm_per_channel,
)
from refquant.kernels.fake_quantize_per_channel import (
    fake_quantize_per_channel,
    fake_quantize_per_channel_compiled,
)
from refquant.kernels.fake_quantize_per_tensor import (
    Array,
    Mask,
    check_range,
    fake_quantize_per_tensor,
    fake_quantize_per_tensor_compiled,
    unchanged,
)
from refquant.kernels.min_max import (
    min_max,
    min_max_compiled,
    min_max_per_channel,
    min_max_per_channel_compiled,
)

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
_OP = "fused_moving_avg_obs_fake_quant"


class State(NamedTuple):
    """What a fused fake-quant remembers between batches.

    Parameters
    ----------
    running_min, running_max : float32
        One element, or one for each channel; infinite before the first batch. Per channel they
        may be empty, which stands for infinities.
    scale : float32
    zero_point : int32, or float32 for the qscheme with float qparams
    """

    running_min: F32
    running_max: F32
    scale: F32
    zero_point: I32

    @classmethod
    def initial(cls, channels: int | None = None) -> State:
        """Return the state before the first batch, per tensor or of so many channels.

        Examples
        --------
        >>> State.initial().running_min
        array([inf], dtype=float32)
        """
        size = 1 if channels is None else channels
        low, high = np.full(size, np.inf, np.float32), np.full(size, -np.inf, np.float32)
        return cls(low, high, np.ones(size, np.float32), np.zeros(size, np.int32))


class Result(NamedTuple):
    """The fake-quantized values, the mask of its gradient, and the state after the batch."""

    y: Array
    mask: Mask
    state: State


def fused_moving_avg_obs_fake_quant(
    x: Array,
    state: State,
    averaging_constant: float,
    quant_min: int,
    quant_max: int,
    ch_axis: int = -1,
    per_channel: bool = False,
    symmetric: bool = False,
    *,
    observer_on: bool = True,
    fake_quant_on: bool = True,
    target: Target = Target(),
) -> Result:
    r"""Observe a batch by moving averages, choose qparams, and fake-quantize.

    With the observer on, each of minimum and maximum, by itself, becomes that of the batch if it
    was infinite (of either sign), and otherwise

    .. math:: m \leftarrow m + c \cdot (m_{batch} - m)

    rounded to float32 after each of the three operations, under every instruction set. NaN stays.

    With the fake-quant on, scale and zero point are those of ``choose_qparams_fbgemm``, with
    ``preserve_sparsity`` where symmetric. They are *not* those that the Python observer computes
    from the same minimum and maximum when the module is converted. ``y`` and the mask are those
    of ``fake_quantize_per_tensor_affine`` or, per channel, ``fake_quantize_per_channel_affine``;
    where the state's zero points are float32, the whole numbers chosen are used as floats. Per
    tensor, a zero point that a NaN or infinite range has put at the smallest int32 is used as it
    is; per channel with integer zero points it is refused.

    With the fake-quant off, scale and zero point stay, ``y`` is a copy and the mask is true
    everywhere. The gradient by ``x`` is that of ``fake_quantize_backward``: ``grad * mask``.

    Parameters
    ----------
    x : float32, any shape
        The batch. With the observer off float64, float16 and bfloat16 too.
    state : State
        Not modified (torch's op writes into it). Empty per-channel arrays grow to the number of
        channels; with the fake-quant off the new scales are 1 and zero points 0, where torch
        leaves memory uninitialised.
    averaging_constant : float
        Weight of the batch, rounded to float32.
    quant_min, quant_max : int
        Range of the quantized values, int32.
    ch_axis : int
        The channel axis, used per channel only. With the observer on it must be 0.
    per_channel : bool
        One pair of qparams for each index of ``ch_axis``; needs rank 2 or more.
    symmetric : bool
        Symmetric quantization.
    observer_on, fake_quant_on : bool
        The switches of the module.
    target : Target
        With float zero points the bits depend on the instruction set.

    Returns
    -------
    Result
        ``(y, mask, state)``; ``y`` has dtype, shape and, where dense, strides of ``x``.

    Raises
    ------
    VerifyError
        If ``x`` is not float32 or empty and the observer is on, the state does not fit the number
        of channels, ``ch_axis`` is not 0, the range is empty or not int32, or, per channel, a zero
        point is out of range.

    Examples
    --------
    >>> x = np.float32([-1.0, 0.3, 3.0])
    >>> y, mask, state = fused_moving_avg_obs_fake_quant(x, State.initial(), 0.01, 0, 255)
    >>> state.running_max, state.scale, state.zero_point
    (array([3.], dtype=float32), array([0.01568628], dtype=float32), array([64], dtype=int32))
    >>> y
    array([-1.0039216 ,  0.29803923,  2.9960785 ], dtype=float32)
    """
    limits = quant_min, quant_max
    switches = observer_on, fake_quant_on
    where = ch_axis if per_channel else None
    return _run(_NUMPY, x, state, averaging_constant, limits, where, symmetric, switches, target)


def fused_moving_avg_obs_fake_quant_compiled(
    x: Array,
    state: State,
    averaging_constant: float,
    quant_min: int,
    quant_max: int,
    ch_axis: int = -1,
    per_channel: bool = False,
    symmetric: bool = False,
    *,
    observer_on: bool = True,
    fake_quant_on: bool = True,
    target: Target = Target(),
) -> Result:
    """Compute :func:`fused_moving_avg_obs_fake_quant`, compiled."""
    limits = quant_min, quant_max
    switches = observer_on, fake_quant_on
    where = ch_axis if per_channel else None
    return _run(
        _COMPILED, x, state, averaging_constant, limits, where, symmetric, switches, target
    )


def _choose_each(
    minimum: F32, maximum: F32, quant_min: int, quant_max: int, symmetric: bool
) -> tuple[F32, I32]:
    pairs = [
        choose_qparams_fbgemm(low, high, quant_min, quant_max, symmetric)
        for low, high in zip(minimum, maximum, strict=True)
    ]
    scale, zero_point = zip(*pairs, strict=True)
    return np.array(scale, np.float32), np.array(zero_point, np.int32)


class _Steps(NamedTuple):
    """The functions in which the two forms differ."""

    min_max: Callable[[Array], tuple[Any, Any]]
    min_max_per_channel: Callable[[Array, int], tuple[F32, F32]]
    choose: Callable[..., tuple[F32, I32]]
    per_tensor: Callable[..., tuple[Array, Mask]]
    per_channel: Callable[..., tuple[Array, Mask]]


_NUMPY = _Steps(
    min_max, min_max_per_channel, _choose_each, fake_quantize_per_tensor, fake_quantize_per_channel
)
_COMPILED = _Steps(
    min_max_compiled,
    min_max_per_channel_compiled,
    choose_qparams_fbgemm_per_channel,
    fake_quantize_per_tensor_compiled,
    fake_quantize_per_channel_compiled,
)


def _run(
    steps: _Steps,
    x: Array,
    state: State,
    averaging_constant: float,
    limits: tuple[int, int],
    axis: int | None,
    symmetric: bool,
    switches: tuple[bool, bool],
    target: Target,
) -> Result:
    observer_on, fake_quant_on = switches
    state = _fitted(x, state, axis)
    if observer_on:
        state = _observed(steps, x, state, np.float32(averaging_constant), axis)
    if not fake_quant_on:
        return Result(*unchanged(x), state)
    check_range(_OP, *limits)
    if limits[0] < -(2**31) or limits[1] >= 2**31:
        raise VerifyError(f"{_OP}: the range must be int32, got [{limits[0]}, {limits[1]}]")
    low, high = state.running_min.reshape(-1), state.running_max.reshape(-1)
    scale, zero_point = steps.choose(low, high, *limits, symmetric)
    if axis is None:
        y, mask = steps.per_tensor(x, scale[0], int(zero_point[0]), *limits)
    else:
        zero_point = zero_point.astype(state.zero_point.dtype)
        y, mask = steps.per_channel(x, scale, zero_point, axis, *limits, target)
    shape = state.scale.shape
    state = state._replace(scale=scale.reshape(shape), zero_point=zero_point.reshape(shape))
    return Result(y, mask, state)


def _fitted(x: Array, state: State, axis: int | None) -> State:
    """Return the state with as many elements as there are channels."""
    if axis is None:
        channels = 1
    else:
        if x.ndim < 2 or not 0 <= axis < x.ndim:
            shape = format_shape(x.shape)
            raise VerifyError(f"{_OP}: ch_axis {axis} needs rank 2 or more, got {shape}")
        channels = x.shape[axis]
        if state.running_min.size == 0 == state.running_max.size:
            grown = State.initial(channels)
            grown = grown._replace(zero_point=grown.zero_point.astype(state.zero_point.dtype))
            if state.scale.size == state.zero_point.size == channels:
                grown = grown._replace(scale=state.scale, zero_point=state.zero_point)
            state = grown
    for name, values in state._asdict().items():
        if values.size != channels:
            raise VerifyError(f"{_OP}: {name} must have {channels} elements, got {values.size}")
    return state


def _observed(
    steps: _Steps, x: Array, state: State, constant: np.float32, axis: int | None
) -> State:
    """Return the state with its minimum and maximum moved towards those of the batch."""
    if x.dtype != np.float32:
        raise VerifyError(f"{_OP}: the observer needs float32, got {x.dtype}")
    if axis not in (None, 0):
        raise VerifyError(f"{_OP}: the observer needs ch_axis 0, got {axis}")
    if x.size == 0:
        raise VerifyError(f"{_OP}: the observer needs elements, got {format_shape(x.shape)}")
    low, high = steps.min_max(x) if axis is None else steps.min_max_per_channel(x, axis)
    with np.errstate(invalid="ignore", over="ignore"):
        return state._replace(
            running_min=_moved(state.running_min, low, constant),
            running_max=_moved(state.running_max, high, constant),
        )


def _moved(running: F32, batch: Any, constant: np.float32) -> F32:
    moved = running + constant * (batch - running)
    return np.asarray(np.where(np.isinf(running), batch, moved), np.float32)
