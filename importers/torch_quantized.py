"""Rules for torch's quantization functions and ``torch.ops.quantized``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refquant.importers.builder import Rule
from refquant.importers.rules import TorchBuilder, evaluation_only, is_tensor, only, repeat
from refquant.importers.torch_memory import write
from refquant.ir.graph import Value
from refquant.ir.types import DType


def quantize_per_tensor(
    b: TorchBuilder, input: Value, scale: Any, zero_point: Any, dtype: DType
) -> Value:
    """``torch.quantize_per_tensor``."""
    return b.emit(
        "aten::quantize_per_tensor",
        input,
        scale=b.number(scale, float),
        zero_point=b.number(zero_point, int),
        dtype=dtype,
    )


def quantize_per_channel(
    b: TorchBuilder, input: Value, scales: Value, zero_points: Value, axis: int, dtype: DType
) -> Value:
    """``torch.quantize_per_channel``."""
    return b.emit("aten::quantize_per_channel", input, scales, zero_points, axis=axis, dtype=dtype)


def fake_quantize_per_tensor(
    b: TorchBuilder, input: Value, scale: Any, zero_point: Any, quant_min: int, quant_max: int
) -> Value:
    """``torch.fake_quantize_per_tensor_affine`` with numbers or with tensors."""
    op = "aten::fake_quantize_per_tensor_affine"
    limits = {"quant_min": quant_min, "quant_max": quant_max}
    if isinstance(scale, Value) and isinstance(zero_point, Value):
        return b.emit(f"{op}.tensor_qparams", input, scale, zero_point, **limits)
    numbers = {"scale": b.number(scale, float), "zero_point": b.number(zero_point, int)}
    return b.emit(op, input, **numbers, **limits)


def fake_quantize_per_channel(
    b: TorchBuilder,
    input: Value,
    scale: Value,
    zero_point: Value,
    axis: int,
    quant_min: int,
    quant_max: int,
) -> Value:
    """``torch.fake_quantize_per_channel_affine``."""
    limits = {"axis": axis, "quant_min": quant_min, "quant_max": quant_max}
    return b.emit("aten::fake_quantize_per_channel_affine", input, scale, zero_point, **limits)


def quantize_per_tensor_dynamic(
    b: TorchBuilder, input: Value, dtype: DType, reduce_range: bool
) -> Value:
    """``torch.quantize_per_tensor_dynamic``."""
    return b.emit(
        "aten::quantize_per_tensor_dynamic", input, dtype=dtype, reduce_range=reduce_range
    )


def dequantize(b: TorchBuilder, input: Value) -> Value:
    """``x.dequantize()``."""
    return b.emit("aten::dequantize", input)


def quantized_binary(name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.add``, ``mul`` and their relu forms."""

    def rule(
        b: TorchBuilder, qa: Any, qb: Any, scale: Any = None, zero_point: Any = None
    ) -> Value:
        if is_tensor(qa) and is_tensor(qb):
            return b.emit(
                f"quantized::{name}",
                qa,
                qb,
                scale=b.number(scale, float),
                zero_point=b.number(zero_point, int),
            )
        return quantized_scalar(name)(b, qa, qb)  # type: ignore[no-any-return]

    return rule


def _scalar(name: str) -> str:
    stem, _, relu = name.partition("_")
    return f"{stem}_scalar" + ("_relu" if relu else "")


def quantized_scalar(name: str) -> Rule:
    """Return the rule of ``quantized::add`` and its relatives with a number in any form."""

    def rule(b: TorchBuilder, qa: Any, b_: Any = None, **rest: Any) -> Value:
        other = rest.get("b", rest.get("qb", b_))
        x, number = (qa, other) if is_tensor(qa) and qa.type.dtype.is_quantized else (other, qa)
        return b.emit(f"quantized::{_scalar(name)}", x, b=b.number(number, float))

    return rule


def quantized_binary_out(name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.add_out`` and its relatives.

    A product with a positive number, clamped at 0, is returned as another tensor: ``out`` stays
    as it is.
    """

    def rule(b: TorchBuilder, qa: Value, qb: Any = None, out: Any = None, **rest: Any) -> Value:
        other = rest.get("b", qb)
        if is_tensor(other) and other.type.dtype.is_quantized:
            b.overwrite(out)
            return b.emit(f"quantized::{name}.out", qa, other, out)
        result: Value = quantized_scalar(name)(b, qa, other)
        is_new = name == "mul_relu" and b.number(other, float) > 0
        return result if is_new else write(b, result, out)

    return rule


def quantized_cat_out(name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.cat_out`` and ``cat_relu_out``."""

    def rule(b: TorchBuilder, qx: Sequence[Value], dim: int, out: Value) -> Value:
        scale, zero_point = out.type.per_tensor()
        return write(b, quantized_cat(name)(b, qx, dim, scale, zero_point), out)

    return rule


def quantized_relu6(b: TorchBuilder, qx: Value, inplace: bool = False) -> Value:
    """``torch.ops.quantized.relu6``."""
    result = b.emit("aten::relu6", qx)
    return write(b, result, qx) if inplace else result


def quantized_cat(name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.cat`` and ``cat_relu``."""

    def rule(
        b: TorchBuilder, qx: Sequence[Value], dim: int, scale: Any = None, zero_point: Any = None
    ) -> Value:
        return b.emit(
            f"quantized::{name}",
            *qx,
            dim=dim,
            scale=None if scale is None else b.number(scale, float),
            zero_point=None if zero_point is None else b.number(zero_point, int),
        )

    return rule


def quantized_unary(name: str, **names: str) -> Rule:
    """Return the rule of a quantized op with an output scale and zero point.

    ``names`` renames torch's arguments to attributes.
    """

    def rule(
        b: TorchBuilder,
        x: Value,
        output_scale: Any,
        output_zero_point: Any,
        *args: Any,
        **rest: Any,
    ) -> Value:
        attributes = dict(zip(names.values(), args, strict=False))
        attributes |= {names[key]: value for key, value in rest.items() if key in names}
        return b.emit(
            f"quantized::{name}",
            x,
            **attributes,
            output_scale=b.number(output_scale, float),
            output_zero_point=b.number(output_zero_point, int),
        )

    return rule


def quantized_activation(name: str, *leading: str) -> Rule:
    """Return the rule of a quantized activation whose own arguments come before the output's."""

    def rule(b: TorchBuilder, x: Value, *args: Any, **rest: Any) -> Value:
        given = dict(zip((*leading, "output_scale", "output_zero_point"), args, strict=False))
        given |= rest
        operands = [given.pop(key) for key in leading if is_tensor(given[key])]
        given["output_scale"] = b.number(given["output_scale"], float)
        given["output_zero_point"] = b.number(given["output_zero_point"], int)
        return b.emit(f"quantized::{name}", x, *operands, **given)

    return rule


def quantized_elu(
    b: TorchBuilder,
    self: Value,
    output_scale: Any,
    output_zero_point: Any,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
) -> Value:
    """``torch.ops.quantized.elu``."""
    return b.emit(
        "quantized::elu",
        self,
        output_scale=b.number(output_scale, float),
        output_zero_point=b.number(output_zero_point, int),
        alpha=alpha,
        scale=scale,
        input_scale=input_scale,
    )


def quantized_dropout(
    b: TorchBuilder,
    self: Value,
    output_scale: Any,
    output_zero_point: Any,
    p: float = 0.5,
    training: bool = False,
) -> Value:
    """``torch.ops.quantized.dropout`` in evaluation: the identity."""
    evaluation_only(training and p > 0, "dropout")
    return b.emit(
        "quantized::dropout",
        self,
        output_scale=b.number(output_scale, float),
        output_zero_point=b.number(output_zero_point, int),
        p=p,
        training=False,
    )


def quantized_batch_norm(name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.batch_norm`` and its relatives."""

    def rule(
        b: TorchBuilder,
        qx: Value,
        weight: Value | None,
        bias: Value | None,
        mean: Value,
        var: Value,
        eps: float,
        output_scale: Any,
        output_zero_point: Any,
    ) -> Value:
        only(weight is not None and bias is not None, f"{name} without weight or bias")
        return b.emit(
            f"quantized::{name}",
            *(qx, weight, bias, mean, var),
            eps=eps,
            output_scale=b.number(output_scale, float),
            output_zero_point=b.number(output_zero_point, int),
        )

    return rule


def quantized_norm(name: str, leading: str) -> Rule:
    """Return the rule of a quantized layer, group or instance norm.

    ``leading`` names the argument before weight and bias, empty if there is none.
    """

    def rule(b: TorchBuilder, input: Value, *args: Any, **rest: Any) -> Value:
        names = [*([leading] if leading else []), "weight", "bias", "eps"]
        names += ["output_scale", "output_zero_point"]
        call = dict(zip(names, args, strict=False)) | rest
        attributes = {}
        if leading:
            given = call[leading]
            attributes[leading] = tuple(given) if isinstance(given, tuple | list) else given
        return b.emit(
            f"quantized::{name}",
            input,
            call.get("weight"),
            call.get("bias"),
            **attributes,
            eps=call["eps"],
            output_scale=b.number(call["output_scale"], float),
            output_zero_point=b.number(call["output_zero_point"], int),
        )

    return rule


def quantized_linear(name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.linear`` and ``linear_relu``."""

    def rule(b: TorchBuilder, x: Value, packed_weight: Any, scale: Any, zero_point: Any) -> Value:
        weight, bias, _ = b.packed(packed_weight)
        return b.emit(
            f"quantized::{name}",
            x,
            weight,
            bias,
            scale=b.number(scale, float),
            zero_point=b.number(zero_point, int),
        )

    return rule


def quantized_linear_dynamic(name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.linear_dynamic`` and ``linear_relu_dynamic``."""

    def rule(b: TorchBuilder, x: Value, packed_weight: Any, reduce_range: bool = False) -> Value:
        weight, bias, _ = b.packed(packed_weight)
        return b.emit(f"quantized::{name}", x, weight, bias, reduce_range=reduce_range)

    return rule


def quantized_linear_leaky_relu(
    b: TorchBuilder,
    x: Value,
    packed_weight: Any,
    scale: Any,
    zero_point: Any,
    negative_slope: float,
) -> Value:
    """``torch.ops.quantized.linear_leaky_relu``."""
    weight, bias, _ = b.packed(packed_weight)
    numbers = {"scale": b.number(scale, float), "zero_point": b.number(zero_point, int)}
    return b.emit(
        "quantized::linear_leaky_relu", x, weight, bias, **numbers, negative_slope=negative_slope
    )


def quantized_linear_fp16(name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.linear_dynamic_fp16`` and its relu form."""

    def rule(b: TorchBuilder, x: Value, packed_weight: Any) -> Value:
        weight, bias, _ = b.packed(packed_weight)
        return b.emit(f"quantized::{name}", x, weight, bias)

    return rule


def _table(b: TorchBuilder, packed: Any) -> Value:
    """Return the table of packed parameters, or what was packed in the same graph."""
    return packed if is_tensor(packed) else b.packed(packed)[0]  # type: ignore[no-any-return]


def quantized_embedding(name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.embedding_byte`` and ``embedding_4bit``."""

    def rule(b: TorchBuilder, weight: Any, indices: Value, pruned_weights: bool = False) -> Value:
        table = _table(b, weight)
        return b.emit(f"quantized::{name}", table, indices, pruned_weights=pruned_weights)

    return rule


def quantized_embedding_bag(name: str) -> Rule:
    """Return the rule of ``torch.ops.quantized.embedding_bag_*``, with any form of the table."""

    def rule(
        b: TorchBuilder,
        weight: Any,
        indices: Value,
        offsets: Value | None = None,
        scale_grad_by_freq: bool = False,
        mode: int = 0,
        pruned_weights: bool = False,
        per_sample_weights: Value | None = None,
        compressed_indices_mapping: Value | None = None,
        include_last_offset: bool = False,
    ) -> Value:
        return b.emit(
            f"quantized::{name}",
            *(_table(b, weight), indices, offsets),
            *(per_sample_weights, compressed_indices_mapping),
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            pruned_weights=pruned_weights,
            include_last_offset=include_last_offset,
        )

    return rule


def embedding_prepack(name: str) -> Rule:
    """Return the rule of packing and unpacking a table to and from bytes."""
    minimum = ("rowwise_min_max",) if name.endswith("min_max") else ()
    names = (*minimum, "optimized_qparams", "nbins", "ratio")

    def rule(b: TorchBuilder, weight: Value, *args: Any, **rest: Any) -> Value:
        given = dict(zip(names, args, strict=False)) | rest
        tensors = [given.pop(key) for key in minimum]
        return b.emit(f"quantized::{name}", weight, *tensors, **given)

    return rule


def embedding_unpack(b: TorchBuilder, packed: Any) -> Value:
    """``torch.ops.quantized.embedding_bag_unpack``."""
    return b.emit("quantized::embedding_bag_unpack", _table(b, packed))


def rank_of(name: str) -> int:
    """Return 2 for ``conv2d_relu``.

    Examples
    --------
    >>> rank_of("quantized::conv_transpose3d")
    3
    """
    return next(rank for rank in (1, 2, 3) if f"{rank}d" in name)


def quantized_conv(name: str) -> Rule:
    """Return the rule of a quantized convolution with packed parameters."""

    def rule(
        b: TorchBuilder, qx: Value, packed_weight: Any, output_scale: Any, output_zero_point: Any
    ) -> Value:
        weight, bias, geometry = b.packed(packed_weight, rank=rank_of(name))
        return b.emit(
            f"quantized::{name}",
            qx,
            weight,
            bias,
            **geometry,
            scale=b.number(output_scale, float),
            zero_point=b.number(output_zero_point, int),
        )

    return rule


def quantized_conv_dynamic(name: str) -> Rule:
    """Return the rule of a convolution of float activations, quantized by their own range."""

    def rule(b: TorchBuilder, qx: Value, packed_weight: Any, reduce_range: bool = False) -> Value:
        weight, bias, geometry = b.packed(packed_weight, rank=rank_of(name))
        return b.emit(
            f"quantized::{name}", qx, weight, bias, **geometry, reduce_range=reduce_range
        )

    return rule


def quantized_conv_add(name: str) -> Rule:
    """Return the rule of a convolution whose result is added to a tensor.

    torch writes to that tensor if it is channels-last.
    """

    def rule(
        b: TorchBuilder,
        qx: Value,
        qaccum: Value,
        packed_weight: Any,
        output_scale: Any,
        output_zero_point: Any,
    ) -> Value:
        weight, bias, geometry = b.packed(packed_weight, rank=rank_of(name))
        b.spoil(qaccum)
        return b.emit(
            f"quantized::{name}",
            *(qx, weight, bias, qaccum),
            **geometry,
            scale=b.number(output_scale, float),
            zero_point=b.number(output_zero_point, int),
        )

    return rule


def quantized_linear_to_float(name: str) -> Rule:
    """Return the rule of ``linear_with_input_q_dq_qweight_dq_output_fp32`` and its relu form."""

    def rule(b: TorchBuilder, x: Value, scale: Any, zero_point: Any, packed_weight: Any) -> Value:
        weight, bias, _ = b.packed(packed_weight)
        return b.emit(
            f"quantized::{name}",
            *(x, weight, bias),
            X_scale=b.number(scale, float),
            X_zero_point=b.number(zero_point, int),
        )

    return rule


def quantized_max_pool(rank: int) -> Rule:
    """Return the rule of ``torch.ops.quantized.max_pool1d`` and ``max_pool2d``."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def rule(b: TorchBuilder, qx: Value, *args: Any, **rest: Any) -> Value:
        given: dict[str, Any] = {"stride": (), "padding": 0, "dilation": 1, "ceil_mode": False}
        given |= dict(zip(names, args, strict=False)) | rest
        geometry = {name: repeat(given[name], rank) for name in names[:4]}
        geometry["stride"] = geometry["stride"] or geometry["kernel_size"]
        ceil_mode = given["ceil_mode"]
        return b.emit(f"aten::max_pool{rank}d", qx, **geometry, ceil_mode=ceil_mode)

    return rule


def quantized_matmul(
    b: TorchBuilder, qa: Value, qb: Value, scale: Any = None, zero_point: Any = None
) -> Value:
    """``torch.ops.quantized.matmul``."""
    return b.emit(
        "quantized::matmul",
        qa,
        qb,
        scale=b.number(scale, float),
        zero_point=b.number(zero_point, int),
    )


_SCALARS, _OUTS = ("Scalar", "Scalar2"), ("out", "Scalar_out")
_BINARY = ("add", "add_relu", "mul", "mul_relu")
_BATCH_NORMS = tuple(f"batch_norm{form}" for form in ("", "1d", "2d", "3d"))

QUANTIZED: dict[str, Rule] = {
    **{name: quantized_binary(name) for name in _BINARY},
    **{f"{name}.{form}": quantized_scalar(name) for name in _BINARY for form in _SCALARS},
    **{_scalar(name): quantized_scalar(name) for name in _BINARY},
    **{f"{name}_out": quantized_binary_out(name) for name in _BINARY},
    **{f"{name}.{form}": quantized_binary_out(name) for name in _BINARY for form in _OUTS},
    **{f"{_scalar(name)}_out": quantized_binary_out(name) for name in _BINARY},
    # torch forgets the relu of a sum with a number in a tensor
    "add_scalar_relu.Tensor": quantized_scalar("add"),
    "add_scalar_relu_out.Tensor": quantized_binary_out("add"),
    **{name: quantized_cat(name) for name in ("cat", "cat_relu")},
    **{f"{name}_out": quantized_cat_out(name) for name in ("cat", "cat_relu")},
    **{
        name: quantized_batch_norm(name)
        for norm in _BATCH_NORMS
        for name in (norm, f"{norm}_relu")
    },
    **{name: quantized_linear(name) for name in ("linear", "linear_relu", "linear_tanh")},
    "linear_leaky_relu": quantized_linear_leaky_relu,
    **{
        name: quantized_linear_to_float(name)
        for relu in ("", "_relu")
        for name in (f"linear_with_input_q_dq_qweight_dq{relu}_output_fp32",)
    },
    **{
        name: quantized_conv_dynamic(name)
        for rank in (1, 2, 3)
        for name in (f"conv{rank}d_dynamic", f"conv_transpose{rank}d_dynamic")
    },
    **{name: quantized_conv_add(name) for name in ("conv2d_add", "conv2d_add_relu")},
    **{name: quantized_linear_dynamic(name) for name in ("linear_dynamic", "linear_relu_dynamic")},
    **{
        name: quantized_conv(name)
        for rank in (1, 2, 3)
        for name in (f"conv{rank}d", f"conv{rank}d_relu", f"conv_transpose{rank}d")
    },
    **{
        name: quantized_linear_fp16(name)
        for name in ("linear_dynamic_fp16", "linear_relu_dynamic_fp16")
    },
    "linear_dynamic_fp16_unpacked_weight": lambda b, x, weight, bias: b.emit(
        "quantized::linear_dynamic_fp16_unpacked_weight", x, weight, bias
    ),
    **{name: quantized_embedding(name) for name in ("embedding_byte", "embedding_4bit")},
    **{
        name: quantized_embedding_bag(name)
        for name in (
            *("embedding_bag_byte", "embedding_bag_4bit"),
            *(f"embedding_bag_{bits}_rowwise_offsets" for bits in ("byte", "4bit", "2bit")),
        )
    },
    **{
        f"embedding_bag_{form}": embedding_prepack(f"embedding_bag_{form}")
        for form in (
            "prepack",
            *(
                f"{bits}_{what}"
                for bits in ("byte", "4bit", "2bit")
                for what in ("prepack", "prepack_with_rowwise_min_max", "unpack")
            ),
        )
    },
    "embedding_bag_unpack": embedding_unpack,
    "matmul": quantized_matmul,
    "clamp": lambda b, qx, min=None, max=None: b.emit("aten::clamp", qx, min=min, max=max),
    "relu6": quantized_relu6,
    "threshold": lambda b, qx, threshold, value: b.emit(
        "aten::threshold", qx, threshold=threshold, value=value
    ),
    **{f"max_pool{rank}d": quantized_max_pool(rank) for rank in (1, 2)},
    "hardswish": quantized_unary("hardswish"),
    "sigmoid": quantized_unary("sigmoid"),
    "celu": quantized_unary("celu", alpha="alpha"),
    "leaky_relu": quantized_activation("leaky_relu", "negative_slope", "inplace"),
    "prelu": quantized_activation("prelu", "weight"),
    "softmax": quantized_activation("softmax", "dim"),
    "elu": quantized_elu,
    "dropout": quantized_dropout,
    "layer_norm": quantized_norm("layer_norm", "normalized_shape"),
    "group_norm": quantized_norm("group_norm", "num_groups"),
    "instance_norm": quantized_norm("instance_norm", ""),
}
