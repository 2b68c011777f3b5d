"""Rules for quantized, reference and training modules, by qualified name.

A rule gets the builder, the module, and the call's arguments; see ``torch_modules.py``.
"""

from __future__ import annotations

from typing import Any

from refquant.importers import torch_functional as f
from refquant.importers import torch_quantized as q
from refquant.importers.builder import Rule
from refquant.importers.rules import TorchBuilder, evaluation_only, only
from refquant.importers.torch_functions import COMMON
from refquant.importers.torch_modules import (
    Mod,
    batch_norm,
    call,
    conv_with,
    identity,
    sequential,
)
from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Value
from refquant.ir.names import canonical
from refquant.ir.types import TORCH_DTYPES

_RANKS = (1, 2, 3)

# ---- quantized


def _output(b: TorchBuilder, module: Mod) -> dict[str, Any]:
    return {
        "scale": b.number(module.scale, float),
        "zero_point": b.number(module.zero_point, int),
    }


def quantized_linear(op: str) -> Rule:
    """Return the rule of ``nnq.Linear`` and ``nniq.LinearReLU``."""

    def rule(b: TorchBuilder, module: Mod, input: Value) -> Value:
        weight, bias, _ = b.packed(module._packed_params._packed_params, module)
        return b.emit(op, input, weight, bias, **_output(b, module))

    return rule


def quantized_linear_dynamic(op: str) -> Rule:
    """Return the rule of ``nnqd.Linear`` and ``nniqd.LinearReLU``."""

    def rule(b: TorchBuilder, module: Mod, input: Value) -> Value:
        params = module._packed_params
        weight, bias, _ = b.packed(params._packed_params, module)
        if str(params.dtype) == "float16":
            return b.emit(f"{op}_fp16", input, weight, bias)
        only(str(params.dtype) == "qint8", f"dynamic Linear with {params.dtype}")
        return b.emit(op, input, weight, bias, reduce_range=True)

    return rule


def quantized_embedding(b: TorchBuilder, module: Mod, indices: Value) -> Value:
    """``nnq.Embedding``."""
    table, _, _ = b.packed(module._packed_params._packed_weight, module)
    return b.emit(f"quantized::embedding_{_bits(module)}", table, indices)


def quantized_embedding_bag(
    b: TorchBuilder,
    module: Mod,
    indices: Value,
    offsets: Value | None = None,
    per_sample_weights: Value | None = None,
    compressed_indices_mapping: Value | None = None,
) -> Value:
    """``nnq.EmbeddingBag``, which adds up whatever ``mode`` says."""
    table, _, _ = b.packed(module._packed_params._packed_weight, module)
    return b.emit(
        f"quantized::embedding_bag_{_bits(module)}",
        *(table, indices, offsets, per_sample_weights, compressed_indices_mapping),
        scale_grad_by_freq=False,
        mode=0,
        pruned_weights=module.pruned_weights,
        include_last_offset=module.include_last_offset,
    )


def _bits(module: Mod) -> str:
    return "4bit" if str(module.dtype) == "quint4x2" else "byte"


def quantized_conv(op: str) -> Rule:
    """Return the rule of ``nnq.Conv1d``, ``2d``, ``3d`` and their relu forms."""

    def rule(b: TorchBuilder, module: Mod, input: Value) -> Value:
        weight, bias, geometry = b.packed(module._packed_params, module, q.rank_of(op))
        if module.padding_mode != "zeros":
            sides = tuple(p for p in reversed(module.padding[: q.rank_of(op)]) for _ in range(2))
            input = b.emit("aten::pad", input, pad=sides, mode=module.padding_mode, value=0.0)
        return b.emit(op, input, weight, bias, **geometry, **_output(b, module))

    return rule


def quantized_linear_leaky_relu(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nniq.LinearLeakyReLU``."""
    weight, bias, _ = b.packed(module._packed_params._packed_params, module)
    attributes = {**_output(b, module), "negative_slope": module.negative_slope}
    return b.emit("quantized::linear_leaky_relu", input, weight, bias, **attributes)


def quantized_conv_add(op: str) -> Rule:
    """Return the rule of ``nniq.ConvAdd2d`` and ``ConvAddReLU2d``."""

    def rule(b: TorchBuilder, module: Mod, input: Value, extra_input: Value) -> Value:
        only(module.padding_mode == "zeros", f"{op} with padding_mode {module.padding_mode}")
        weight, bias, geometry = b.packed(module._packed_params, module, 2)
        b.spoil(extra_input)
        return b.emit(op, input, weight, bias, extra_input, **geometry, **_output(b, module))

    return rule


def quantized_conv_dynamic(op: str) -> Rule:
    """Return the rule of ``nnqd.Conv1d`` to ``ConvTranspose3d``."""

    def rule(b: TorchBuilder, module: Mod, input: Value, reduce_range: bool = True) -> Value:
        only(module.padding_mode == "zeros", f"{op} with padding_mode {module.padding_mode}")
        weight, bias, geometry = b.packed(module._packed_params, module, q.rank_of(op))
        attributes = {**geometry, "reduce_range": reduce_range}
        return b.emit(op, input, weight, bias, **attributes)

    return rule


def quantized_unary(op: str, **names: str) -> Rule:
    """Return the rule of a quantized activation; ``names`` maps attributes to the module's."""

    def rule(b: TorchBuilder, module: Mod, input: Value) -> Value:
        attributes = {name: getattr(module, attribute) for name, attribute in names.items()}
        output = {f"output_{key}": value for key, value in _output(b, module).items()}
        return b.emit(op, input, **attributes, **output)

    return rule


def quantized_elu(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nnq.ELU``."""
    return q.quantized_elu(b, input, module.scale, module.zero_point, module.alpha)


def quantized_dropout(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nnq.Dropout``: the identity."""
    return b.emit("aten::dropout", input, p=module.p, train=False)


def quantized_softmax(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nnq.Softmax``."""
    dim = module.dim
    if dim is None:
        dim = 0 if input.type.rank in (0, 1, 3) else 1
    output = {f"output_{key}": value for key, value in _output(b, module).items()}
    return b.emit("quantized::softmax", input, dim=dim, **output)


def quantized_prelu(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nnq.PReLU``."""
    output = {f"output_{key}": value for key, value in _output(b, module).items()}
    return b.emit("quantized::prelu", input, b.of(module, "weight"), **output)


def quantized_batch_norm(op: str) -> Rule:
    """Return the rule of ``nnq.BatchNorm2d``, ``3d`` and their relu forms."""

    def rule(b: TorchBuilder, module: Mod, input: Value) -> Value:
        operands = [b.of(module, n) for n in ("weight", "bias", "running_mean", "running_var")]
        output = {f"output_{key}": value for key, value in _output(b, module).items()}
        return b.emit(op, input, *operands, eps=module.eps, **output)

    return rule


def quantized_norm(op: str, name: str | None) -> Rule:
    """Return the rule of ``nnq.LayerNorm``, ``GroupNorm`` and ``InstanceNorm``."""

    def rule(b: TorchBuilder, module: Mod, input: Value) -> Value:
        shape = {}
        if name is not None:
            given = getattr(module, name)
            shape[name] = given if isinstance(given, int) else tuple(given)
        weight, bias = b.of(module, "weight"), b.of(module, "bias")
        output = {f"output_{key}": value for key, value in _output(b, module).items()}
        return b.emit(op, input, weight, bias, **shape, eps=module.eps, **output)

    return rule


def quantize(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nnq.Quantize``."""
    dtype = module.dtype
    return q.quantize_per_tensor(b, input, module.scale, module.zero_point, dtype)


def dequantize(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nnq.DeQuantize``."""
    return q.dequantize(b, input)


def reference_weight(b: TorchBuilder, module: Mod, name: str = "weight") -> Value:
    """Quantize and dequantize a weight of a reference module, as its forward does."""
    weight = b.of(module, name)
    if weight is None:
        raise UnsupportedError(f"{b.path(module)} has no {name}")
    scheme = str(getattr(module, f"{name}_qscheme"))
    if scheme == "None":
        return weight
    dtype = getattr(module, f"{name}_dtype")
    decomposed = bool(module.is_decomposed)
    if "per_channel" in scheme:
        scale, zero = b.of(module, f"{name}_scale"), b.of(module, f"{name}_zero_point")
        axis = int(getattr(module, f"{name}_axis_int"))
        if decomposed:
            limits = _weight_range(module, name)
            integers = b.emit(
                "quantized_decomposed::quantize_per_channel",
                weight,
                scale,
                zero,
                axis=axis,
                **limits,
            )
            return b.emit(
                "quantized_decomposed::dequantize_per_channel",
                integers,
                scale,
                zero,
                axis=axis,
                **limits,
            )
        integers = b.emit(
            "aten::quantize_per_channel", weight, scale, zero, axis=axis, dtype=dtype
        )
    else:
        number = (
            b.number(getattr(module, f"{name}_scale"), float),
            b.number(getattr(module, f"{name}_zero_point"), int),
        )
        if decomposed:
            limits = _weight_range(module, name) | {"scale": number[0], "zero_point": number[1]}
            integers = b.emit("quantized_decomposed::quantize_per_tensor", weight, **limits)
            return b.emit("quantized_decomposed::dequantize_per_tensor", integers, **limits)
        integers = q.quantize_per_tensor(b, weight, *number, dtype)
    return q.dequantize(b, integers)


def _weight_range(module: Mod, weight: str) -> dict[str, Any]:
    names = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}
    name = str(getattr(module, f"{weight}_dtype"))
    return {
        "quant_min": getattr(module, f"{weight}_quant_min"),
        "quant_max": getattr(module, f"{weight}_quant_max"),
        "dtype": TORCH_DTYPES[names.get(name, name)],
    }


def reference_linear(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nnqr.Linear``."""
    return f.linear(b, input, reference_weight(b, module), b.of(module, "bias"))


def reference_conv(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nnqr.Conv1d``, ``2d``, ``3d``, which pad with zeros whatever ``padding_mode`` says."""
    return f.convolution(
        b,
        input,
        reference_weight(b, module),
        b.of(module, "bias"),
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
    )


def reference_conv_transpose(
    b: TorchBuilder, module: Mod, input: Value, output_size: Any = None
) -> Value:
    """``nnqr.ConvTranspose1d``, ``2d``, ``3d``."""
    only(output_size is None, "ConvTranspose with output_size")
    return f.conv_transpose(
        b,
        input,
        reference_weight(b, module),
        b.of(module, "bias"),
        module.stride,
        module.padding,
        module.output_padding,
        module.groups,
        module.dilation,
    )


# ---- observers, fake-quants and training modules


def observe(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """Return the node of an observer: the identity, with its state."""
    return b.emit("observer::observe", input, module=b.stateful(module))


def fake_quantize(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """Return the node of a fake-quant, with its state."""
    return b.emit("observer::fake_quantize", input, module=b.stateful(module))


def fake_quantized_weight(b: TorchBuilder, module: Mod) -> Value:
    """Return the weight of a QAT module after its fake-quant."""
    weight = b.weight(module)
    return fake_quantize(b, module.weight_fake_quant, weight)


def qat_linear(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nnqat.Linear`` and ``nniqat.LinearReLU``."""
    return f.linear(b, input, fake_quantized_weight(b, module), b.of(module, "bias"))


def qat_conv(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nnqat.Conv1d``, ``2d``, ``3d`` and their relu forms."""
    return conv_with(b, module, input, fake_quantized_weight(b, module), b.of(module, "bias"))


def with_relu(rule: Rule) -> Rule:
    """Return the rule followed by a relu."""

    def module_rule(b: TorchBuilder, module: Mod, input: Value) -> Value:
        return b.emit("aten::relu", rule(b, module, input))

    return module_rule


def qat_conv_bn(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nniqat.ConvBn1d``, ``2d``, ``3d`` in evaluation.

    The weight is scaled by gamma / sqrt(var + eps) before its fake-quant, and the result of the
    convolution is divided by it before the batch norm.
    """
    norm = module.bn
    evaluation_only(norm.training, "ConvBn")
    variance, gamma = b.of(norm, "running_var"), b.of(norm, "weight")
    std = b.emit("aten::sqrt", b.emit("aten::add.Scalar", variance, other=norm.eps))
    factor = b.emit("aten::div", gamma, std)
    weight = b.weight(module)
    rank = weight.type.rank
    channels = weight.type.shape[0]
    rows = b.emit("aten::reshape", factor, shape=(channels, *(1,) * (rank - 1)))
    scaled = fake_quantize(b, module.weight_fake_quant, b.emit("aten::mul", weight, rows))
    result = conv_with(b, module, input, scaled, None)
    columns = b.emit("aten::reshape", factor, shape=(1, channels, *(1,) * (rank - 2)))
    result = b.emit("aten::div", result, columns)
    bias = b.of(module, "bias")
    if bias is not None:
        shaped = b.emit("aten::reshape", bias, shape=(1, channels, *(1,) * (rank - 2)))
        result = b.emit("aten::add", result, shaped)
    return batch_norm(b, norm, result)


# ---- tables


def _in(module: str, table: dict[str, Rule]) -> dict[str, Rule]:
    return {f"{module}.{name}": rule for name, rule in table.items()}


_NNQ: dict[str, Rule] = {
    "linear.Linear": quantized_linear("quantized::linear"),
    **{f"conv.Conv{r}d": quantized_conv(f"quantized::conv{r}d") for r in _RANKS},
    **{
        f"conv.ConvTranspose{r}d": quantized_conv(f"quantized::conv_transpose{r}d") for r in _RANKS
    },
    **{
        f"batchnorm.BatchNorm{r}d": quantized_batch_norm(f"quantized::batch_norm{r}d")
        for r in (2, 3)
    },
    "normalization.LayerNorm": quantized_norm("quantized::layer_norm", "normalized_shape"),
    "normalization.GroupNorm": quantized_norm("quantized::group_norm", "num_groups"),
    **{
        f"normalization.InstanceNorm{r}d": quantized_norm("quantized::instance_norm", None)
        for r in _RANKS
    },
    "activation.Hardswish": quantized_unary("quantized::hardswish"),
    "activation.LeakyReLU": quantized_unary(
        "quantized::leaky_relu", negative_slope="negative_slope", inplace="inplace"
    ),
    "activation.Sigmoid": quantized_unary("quantized::sigmoid"),
    "activation.ReLU6": call(COMMON["relu6"]),
    "activation.ELU": quantized_elu,
    "activation.Softmax": quantized_softmax,
    "activation.PReLU": quantized_prelu,
    "dropout.Dropout": quantized_dropout,
    "embedding_ops.Embedding": quantized_embedding,
    "embedding_ops.EmbeddingBag": quantized_embedding_bag,
}

_REFERENCE: dict[str, Rule] = {
    "linear.Linear": reference_linear,
    **{f"conv.Conv{r}d": reference_conv for r in _RANKS},
    **{f"conv.ConvTranspose{r}d": reference_conv_transpose for r in _RANKS},
}

_QAT: dict[str, Rule] = {
    "torch.ao.nn.qat.modules.linear.Linear": qat_linear,
    **{f"torch.ao.nn.qat.modules.conv.Conv{r}d": qat_conv for r in _RANKS},
    "torch.ao.nn.intrinsic.qat.modules.linear_relu.LinearReLU": with_relu(qat_linear),
    **{
        f"torch.ao.nn.intrinsic.qat.modules.conv_fused.ConvReLU{r}d": with_relu(qat_conv)
        for r in _RANKS
    },
    **{f"torch.ao.nn.intrinsic.qat.modules.conv_fused.ConvBn{r}d": qat_conv_bn for r in _RANKS},
    **{
        f"torch.ao.nn.intrinsic.qat.modules.conv_fused.ConvBnReLU{r}d": with_relu(qat_conv_bn)
        for r in _RANKS
    },
}

_FUSED = "torch.ao.nn.intrinsic.modules.fused"
_NNIQ = "torch.ao.nn.intrinsic.quantized.modules"

_ALL: dict[str, Rule] = {
    **_in("torch.ao.nn.quantized.modules", _NNQ),
    "torch.ao.nn.quantized.modules.Quantize": quantize,
    "torch.ao.nn.quantized.modules.DeQuantize": dequantize,
    **_in("torch.ao.nn.quantized.reference.modules", _REFERENCE),
    "torch.ao.nn.quantized.dynamic.modules.linear.Linear": quantized_linear_dynamic(
        "quantized::linear_dynamic"
    ),
    "torch.ao.nn.intrinsic.quantized.dynamic.modules.linear_relu.LinearReLU": (
        quantized_linear_dynamic("quantized::linear_relu_dynamic")
    ),
    **{
        f"torch.ao.nn.quantized.dynamic.modules.conv.{name}{r}d": quantized_conv_dynamic(
            f"quantized::{op}{r}d_dynamic"
        )
        for r in _RANKS
        for name, op in (("Conv", "conv"), ("ConvTranspose", "conv_transpose"))
    },
    f"{_NNIQ}.linear_relu.LinearReLU": quantized_linear("quantized::linear_relu"),
    f"{_NNIQ}.linear_relu.LinearLeakyReLU": quantized_linear_leaky_relu,
    f"{_NNIQ}.linear_relu.LinearTanh": quantized_linear("quantized::linear_tanh"),
    f"{_NNIQ}.conv_add.ConvAdd2d": quantized_conv_add("quantized::conv2d_add"),
    f"{_NNIQ}.conv_add.ConvAddReLU2d": quantized_conv_add("quantized::conv2d_add_relu"),
    **{
        f"{_NNIQ}.conv_relu.ConvReLU{r}d": quantized_conv(f"quantized::conv{r}d_relu")
        for r in _RANKS
    },
    **{
        f"{_NNIQ}.bn_relu.BNReLU{r}d": quantized_batch_norm(f"quantized::batch_norm{r}d_relu")
        for r in (2, 3)
    },
    **{
        f"{_FUSED}.{name}": sequential
        for name in (
            *(f"ConvReLU{r}d" for r in _RANKS),
            *(f"ConvBn{r}d" for r in _RANKS),
            *(f"ConvBnReLU{r}d" for r in _RANKS),
            *("LinearReLU", "LinearBn1d", "LinearLeakyReLU", "LinearTanh", "BNReLU2d", "BNReLU3d"),
        )
    },
    **_QAT,
    "torch.ao.quantization.stubs.QuantStub": identity,
    "torch.ao.quantization.stubs.DeQuantStub": identity,
}

QUANTIZED_MODULES = {canonical(name): rule for name, rule in _ALL.items()}
