"""``aten::pad``: elements around a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import Size, TensorType
from refquant.kernels import quantize_per_tensor
from refquant.kernels.checks import known_length
from refquant.kernels.layout import c_order, channels_last, is_channels_last
from refquant.kernels.movement import example, move, moved, movement

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def reference(x: Tensor, pad: tuple[int, ...], mode: str = "constant", value: float = 0.0) -> Any:
    """Add elements before and after the last dimensions; negative numbers cut off.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    pad : tuple of int
        Before and after, for the last dimension, then the one before it, and so on.
    mode : str
        ``constant``, ``reflect`` (without the edge), ``replicate`` or ``circular``.
    value : float
        The constant; a quantized tensor gets its quantized value, as by
        ``aten::quantize_per_tensor``.

    Returns
    -------
    Tensor, channels-last where ``x`` is and the mode is constant, or a plain ``x`` is not wrapped

    Raises
    ------
    VerifyError
        If the mode is unknown or ``pad`` does not fit.

    Examples
    --------
    >>> reference(np.array([1, 2, 3]), (2, 1), "reflect")
    array([3, 2, 1, 2, 3, 2])
    """
    fill: Any = value
    if isinstance(x, QTensor):
        real = np.array([value], np.float32)
        scale, zero_point = float(x.scale), int(x.zero_point)
        fill = quantize_per_tensor.reference(real, scale, zero_point, x.dtype).int_repr[0]

    keeps_format = mode == "constant" or (mode != "circular" and not isinstance(x, QTensor))

    def surround(array: Array) -> Array:
        sides = [(pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)][::-1]
        sides = [(0, 0)] * (array.ndim - len(sides)) + sides
        kept = tuple(
            slice(max(0, -before), length - max(0, -after))
            for (before, after), length in zip(sides, array.shape, strict=True)
        )
        grown = [(max(0, before), max(0, after)) for before, after in sides]
        options: dict[str, Any] = {"constant_values": fill} if mode == "constant" else {}
        result = np.pad(array[kept], grown, _MODES[mode], **options)  # type: ignore[call-overload]
        if is_channels_last(array) and keeps_format:
            return channels_last(result)
        return c_order(result)

    return move(x, surround)


def infer(
    x: TensorType, pad: tuple[int, ...], mode: str = "constant", value: float = 0.0
) -> TensorType:
    """Add to the lengths."""
    if mode not in _MODES:
        raise VerifyError(f"pad: mode must be one of {', '.join(_MODES)}, got {mode!r}")
    if len(pad) % 2 or len(pad) > 2 * x.rank:
        raise VerifyError(f"pad: {len(pad)} numbers do not fit {x.rank} dimensions")
    shape: list[Size] = list(x.shape)
    for i in range(len(pad) // 2):
        before, after = pad[2 * i], pad[2 * i + 1]
        if before or after:
            at = x.rank - 1 - i
            length = known_length("pad", x.shape[at], at)
            if mode == "reflect" and max(before, after) >= length:
                raise VerifyError(f"pad: reflect needs padding below {length}, got {pad}")
            shape[at] = length + before + after
            if length + before + after < 0:
                raise VerifyError(f"pad: {pad} cuts off more than {length}")
    return moved(x, shape, "pad")


_X = example(1, 3)

OPS = (
    movement(
        "aten::pad",
        reference,
        infer,
        Case("constant", (_X,), {"pad": (1, 0), "value": 9.0}, [[9, 0, 1, 2]], "last dim first"),
        Case("cut", (_X,), {"pad": (-1, 1)}, [[1, 2, 0]], "negative cuts off"),
        Case("reflect", (_X,), {"pad": (2, 0), "mode": "reflect"}, [[2, 1, 0, 1, 2]], "no edge"),
        Case("replicate", (_X,), {"pad": (0, 2), "mode": "replicate"}, [[0, 1, 2, 2, 2]], "edge"),
        Case("circular", (_X,), {"pad": (1, 1), "mode": "circular"}, [[2, 0, 1, 2, 0]], "around"),
        Case(
            "quantized",
            (QTensor(np.array([3], np.uint8), 0.5, 1),),
            {"pad": (1, 0), "value": 0.75},
            [2, 3],
            "0.75 / 0.5 + 1 = 2.5 goes to even",
        ),
        source="pytorch/aten/src/ATen/native/PadNd.cpp",
    ),
)
