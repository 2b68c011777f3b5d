"""Rules for packed parameters: packing, unpacking and looking at them.

An engine packs weight, bias and geometry into an object of its own. Here nothing is rearranged
until a graph is compiled: what was packed in a graph is a :class:`Prepacked` of its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refquant.importers.builder import Rule
from refquant.importers.rules import Prepacked, PrepackedCell, TorchBuilder, only
from refquant.ir.graph import Value
from refquant.ir.types import DType, float16, float32, qint8, quint8
from refquant.kernels.fbgemm_linear import quantize_weight

Ints = Sequence[int]
_FP16_MAX = 65504.0


def linear_prepack(b: TorchBuilder, W: Value, B: Value | None = None) -> Prepacked:  # noqa: N803
    """``torch.ops.quantized.linear_prepack``."""
    return Prepacked(_float_scale(b, W), B, {})


def _float_scale(b: TorchBuilder, weight: Value) -> Value:
    """Return a weight with its scale as it is packed: rounded to float32."""
    qparams = weight.type.qparams
    if qparams is None or not isinstance(qparams.scale, float):
        return weight
    scale = float(np.float32(qparams.scale))
    if scale == qparams.scale:
        return weight
    place = b.emit(
        "aten::_empty_affine_quantized",
        size=weight.type.shape,
        scale=scale,
        zero_point=qparams.zero_point,
        dtype=weight.type.dtype,
    )
    return b.emit("memory::write", weight, place, keep_qparams=True)


def linear_prepack_fp16(b: TorchBuilder, W: Value, B: Value | None = None) -> Prepacked:  # noqa: N803
    """``torch.ops.quantized.linear_prepack_fp16``: what does not fit into float16 saturates."""
    limited = b.emit("aten::clamp", W, min=-_FP16_MAX, max=_FP16_MAX)
    half = b.emit("aten::to", limited, dtype=float16)
    return Prepacked(b.emit("aten::to", half, dtype=float32), B, {})


def _quantize(b: TorchBuilder, x: Value, scale: Any, zero_point: Any, dtype: DType) -> Value:
    numbers = {"scale": b.number(scale, float), "zero_point": b.number(zero_point, int)}
    return b.emit("aten::quantize_per_tensor", x, **numbers, dtype=dtype)


def wrapped_prepack(b: TorchBuilder, W: Value, W_scale: Any, W_zero_point: Any, B: Value) -> Any:  # noqa: N803
    """``torch.ops._quantized._wrapped_linear_prepack``: quantizes the weight first."""
    return linear_prepack(b, _quantize(b, W, W_scale, W_zero_point, qint8), B)


def wrapped_linear_prepacked(
    b: TorchBuilder,
    X: Value,  # noqa: N803  torch's names
    X_scale: Any,  # noqa: N803
    X_zero_point: Any,  # noqa: N803
    W_prepack: Prepacked,  # noqa: N803
    output_scale: Any,
    output_zero_point: Any,
    out_channel: int,
) -> Value:
    """``torch.ops._quantized._wrapped_quantized_linear_prepacked``."""
    weight, bias, _ = b.packed(W_prepack)
    q = b.emit(
        "quantized::linear",
        *(_quantize(b, X, X_scale, X_zero_point, quint8), weight, bias),
        scale=b.number(output_scale, float),
        zero_point=b.number(output_zero_point, int),
    )
    return b.emit("aten::dequantize", q)


def wrapped_linear(
    b: TorchBuilder,
    X: Value,  # noqa: N803  torch's names
    X_scale: Any,  # noqa: N803
    X_zero_point: Any,  # noqa: N803
    W: Value,  # noqa: N803
    W_scale: Any,  # noqa: N803
    W_zero_point: Any,  # noqa: N803
    B: Value,  # noqa: N803
    output_scale: Any,
    output_zero_point: Any,
    out_channel: int,
) -> Value:
    """``torch.ops._quantized.wrapped_quantized_linear``: from float to float."""
    packed = wrapped_prepack(b, W, W_scale, W_zero_point, B)
    output = (output_scale, output_zero_point, out_channel)
    return wrapped_linear_prepacked(b, X, X_scale, X_zero_point, packed, *output)


def wrapped_linear_fp16(
    b: TorchBuilder,
    X: Value,  # noqa: N803  torch's names
    W: Prepacked,  # noqa: N803
    B: Value,  # noqa: N803
    out_channel: int,
) -> Value:
    """``torch.ops._quantized.wrapped_fbgemm_linear_fp16_weight``."""
    return b.emit("quantized::linear_dynamic_fp16", X, b.packed(W)[0], B)


def conv_prepack(rank: int) -> Rule:
    """Return the rule of ``torch.ops.quantized.conv*_prepack``."""

    def rule(
        b: TorchBuilder,
        weight: Value,
        bias: Value | None,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        groups: int,
    ) -> Prepacked:
        only(weight.type.rank == rank + 2, f"conv{rank}d_prepack of {weight.type}")
        geometry: dict[str, Any] = {"stride": tuple(stride), "padding": tuple(padding)}
        geometry["dilation"] = tuple(dilation)
        return Prepacked(_float_scale(b, weight), bias, {**geometry, "groups": groups})

    return rule


def conv_transpose_prepack(rank: int) -> Rule:
    """Return the rule of ``torch.ops.quantized.conv_transpose*_prepack``."""

    def rule(
        b: TorchBuilder,
        weight: Value,
        bias: Value | None,
        stride: Ints,
        padding: Ints,
        output_padding: Ints,
        dilation: Ints,
        groups: int,
    ) -> Prepacked:
        packed: Prepacked = conv_prepack(rank)(b, weight, bias, stride, padding, dilation, groups)
        geometry = {**packed.geometry, "output_padding": tuple(output_padding)}
        return packed._replace(geometry=geometry)

    return rule


def unpack(rank: int = 0, *, transposed: bool = False) -> Rule:
    """Return the rule of ``torch.ops.quantized.*_unpack``: weight and bias.

    A convolution's weight comes back as fbgemm holds it: with the channels of a group last.
    """

    def rule(b: TorchBuilder, packed: Any) -> tuple[Value, Value | None]:
        weight, bias, _ = b.packed(packed, rank=rank)
        if not rank or not isinstance(packed, Prepacked):
            return weight, bias
        last = 0 if transposed else 1
        order = (*(d for d in range(rank + 2) if d != last), last)
        back = tuple(order.index(d) for d in range(rank + 2))
        moved = b.emit("aten::permute", weight, dims=order)
        dense = b.emit("aten::contiguous", moved, memory_format="contiguous_format")
        return b.emit("aten::permute", dense, dims=back), bias

    return rule


def geometry_of(rank: int, name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.conv2d_stride`` and its relatives."""

    def rule(b: TorchBuilder, packed_weights: Any) -> Any:
        _, _, geometry = b.packed(packed_weights, rank=rank)
        if name == "transpose":
            return int("output_padding" in geometry)
        found = geometry.get(name, (0,) * rank)  # output_padding of a convolution
        return list(found) if isinstance(found, tuple) else found

    return rule


def unpack_sizes(b: TorchBuilder, packed_weights: Any) -> tuple[Any, ...]:
    """``torch.ops.quantized.conv2d_unpack_sizes``: of weight and bias, then the geometry."""
    weight, bias, geometry = b.packed(packed_weights, rank=2)
    sizes = list(weight.type.shape), None if bias is None else list(bias.type.shape)
    lists = (list(geometry[key]) for key in ("stride", "padding", "dilation"))
    return (*sizes, *lists, geometry["groups"])


def cell_params(
    b: TorchBuilder, w_ih: Value, w_hh: Value, b_ih: Value, b_hh: Value
) -> PrepackedCell:
    """``torch.ops.quantized.make_quantized_cell_params``: quantizes float weights by itself."""
    ih, hh = (
        Prepacked(_quantized(b, weight), bias, {}) for weight, bias in ((w_ih, b_ih), (w_hh, b_hh))
    )
    return PrepackedCell(ih, hh, False, "aten::fbgemm_linear_int8_weight_fp32_activation")


def _quantized(b: TorchBuilder, weight: Value) -> Value:
    return b.parameter(f"{weight.name}.quantized", quantize_weight(np.asarray(b.constant(weight))))


def cell_params_dynamic(
    b: TorchBuilder,
    w_ih: Any,
    w_hh: Any,
    bias_ih: Any,
    bias_hh: Any,
    reduce_range: bool = False,
) -> PrepackedCell:
    """``torch.ops.quantized.make_quantized_cell_params_dynamic``.

    The biases are those that were packed; the given ones are not used.
    """
    return PrepackedCell(w_ih, w_hh, reduce_range)


def cell_params_fp16(b: TorchBuilder, w_ih: Any, w_hh: Any) -> PrepackedCell:
    """``torch.ops.quantized.make_quantized_cell_params_fp16``."""
    return PrepackedCell(w_ih, w_hh, None)


_FIELDS = ("stride", "padding", "output_padding", "dilation", "groups", "transpose")

PACKED: dict[str, Rule] = {
    "linear_prepack": linear_prepack,
    "linear_prepack_fp16": linear_prepack_fp16,
    "linear_unpack": unpack(),
    "linear_unpack_fp16": unpack(),
    "conv_prepack": conv_prepack(2),
    "conv_unpack": unpack(2),
    **{f"conv{rank}d_prepack": conv_prepack(rank) for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d_prepack": conv_transpose_prepack(rank) for rank in (1, 2, 3)},
    **{f"conv{rank}d_unpack": unpack(rank) for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d_unpack": unpack(rank, transposed=True) for rank in (1, 2, 3)},
    **{
        f"conv{form}{rank}d_{name}": geometry_of(rank, name)
        for form in ("", "_transpose")
        for rank in (2, 3)
        for name in _FIELDS
    },
    "conv2d_unpack_sizes": unpack_sizes,
    "make_quantized_cell_params": cell_params,
    "make_quantized_cell_params_dynamic": cell_params_dynamic,
    "make_quantized_cell_params_fp16": cell_params_fp16,
}

WRAPPED: dict[str, Rule] = {
    "_wrapped_linear_prepack": wrapped_prepack,
    "_wrapped_quantized_linear_prepacked": wrapped_linear_prepacked,
    "wrapped_quantized_linear": wrapped_linear,
    "wrapped_fbgemm_pack_gemm_matrix_fp16": linear_prepack_fp16,
    "wrapped_fbgemm_linear_fp16_weight": wrapped_linear_fp16,
}
