"""Rules for ``torch.ops.quantized_decomposed``: the ops of an exported, converted program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refquant.importers.builder import Rule
from refquant.importers.rules import TorchBuilder, is_tensor
from refquant.ir.graph import Value


def decomposed(name: str, *names: str, operands: tuple[str, ...] = ()) -> Rule:
    """Return the rule of a ``quantized_decomposed`` op.

    The arguments after the input are tensors called ``operands``, then the attributes ``names``.
    """

    def rule(b: TorchBuilder, input: Value, *args: Any, **rest: Any) -> Any:
        given = dict(zip((*operands, *names), args, strict=False)) | rest
        tensors = [given.pop(operand) for operand in operands]
        kinds: dict[str, Callable[[Any], Any]] = {"scale": float, "zero_point": int}
        attributes = {
            key: b.number(value, kinds[key]) if key in kinds else value
            for key, value in given.items()
        }
        values = b.emit_all(f"quantized_decomposed::{name}", input, *tensors, **attributes)
        return values if len(values) > 1 else values[0]

    return rule


def overloaded(name: str) -> Rule:
    """Return the rule of ``quantize_per_tensor`` or its inverse without an overload's name."""

    def rule(b: TorchBuilder, input: Value, *args: Any, **rest: Any) -> Any:
        given = dict(zip(("scale", "zero_point", "quant_min"), args, strict=False)) | rest
        form = "tensor" if is_tensor(given["scale"]) else "default"
        form = "tensor2" if is_tensor(given["quant_min"]) else form
        return DECOMPOSED[f"{name}.{form}"](b, input, *args, **rest)

    return rule


_QPARAMS = ("scale", "zero_point")
_LIMITS = ("quant_min", "quant_max")
_CHANNELS = ("scales", "zero_points")
_RANGE = ("quant_min", "quant_max", "dtype")

_BY_NAME: dict[str, Rule] = {
    **{
        name: decomposed(name, "axis", *_RANGE, operands=_CHANNELS)
        for name in ("quantize_per_channel", "dequantize_per_channel")
    },
    **{
        name: decomposed(name, "dtype")
        for name in (
            *("choose_qparams_per_token", "choose_qparams_per_token_asymmetric"),
            "_choose_qparams_per_token_asymmetric_impl",
        )
    },
    "quantize_per_token": decomposed("quantize_per_token", *_RANGE, operands=_CHANNELS),
    "dequantize_per_token": decomposed(
        "dequantize_per_token", *_RANGE, "output_dtype", operands=_CHANNELS
    ),
    "quantize_per_channel_group": decomposed(
        "quantize_per_channel_group", *_RANGE, "group_size", operands=_CHANNELS
    ),
    "dequantize_per_channel_group": decomposed(
        *("dequantize_per_channel_group", *_RANGE, "group_size", "output_dtype"),
        operands=_CHANNELS,
    ),
    "fake_quant_per_channel": decomposed(
        "fake_quant_per_channel", "axis", *_LIMITS, operands=_CHANNELS
    ),
}
_SINGLE_OVERLOADS: dict[str, Rule] = {
    **{
        f"{name}.tensor": decomposed(f"{name}.tensor", *_LIMITS, "eps", "dtype")
        for name in ("choose_qparams", "choose_qparams_symmetric")
    },
    "convert_element_type.no_fuse": decomposed("convert_element_type.no_fuse", "dtype"),
}

DECOMPOSED: dict[str, Rule] = {
    **_BY_NAME,
    **{f"{name}.default": rule for name, rule in _BY_NAME.items()},
    **_SINGLE_OVERLOADS,
    **{name.partition(".")[0]: rule for name, rule in _SINGLE_OVERLOADS.items()},
    **{
        key: rule
        for name in ("quantize_per_tensor", "dequantize_per_tensor")
        for key, rule in (
            (name, overloaded(name)),
            (f"{name}.default", decomposed(name, *_QPARAMS, *_RANGE)),
            (f"{name}.tensor", decomposed(f"{name}.tensor", *_RANGE, operands=_QPARAMS)),
            (
                f"{name}.tensor2",
                decomposed(f"{name}.tensor2", "dtype", operands=(*_QPARAMS, *_LIMITS)),
            ),
        )
    },
}
