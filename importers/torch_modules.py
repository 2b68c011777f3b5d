"""Rules for torch modules: one entry for each leaf class, by its qualified name.

A rule gets the builder, the module, and the call's arguments; it reads the module's attributes
and returns what the call returns. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Any

from refquant.importers import torch_functional as f
from refquant.importers import torch_tensors as t
from refquant.importers.builder import Rule
from refquant.importers.rules import TorchBuilder, evaluation_only, only
from refquant.importers.torch_functions import COMMON, FUNCTIONS
from refquant.ir.graph import Value
from refquant.ir.names import canonical

Mod = Any


def call(rule: Rule, *names: str, **renamed: str) -> Rule:
    """Return the module rule that calls a function rule with the module's attributes.

    ``names`` are attributes passed under their own name, ``renamed`` maps the function's
    argument to the module's attribute.
    """

    def module_rule(b: TorchBuilder, module: Mod, *inputs: Any, **rest: Any) -> Any:
        arguments = {name: getattr(module, name) for name in names}
        arguments |= {name: getattr(module, attribute) for name, attribute in renamed.items()}
        return rule(b, *inputs, **arguments, **rest)

    return module_rule


def dropout(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.Dropout`` of any rank."""
    return f.dropout(b, input, module.p, module.training)


def identity(b: TorchBuilder, module: Mod, input: Value, *unused: Any) -> Value:
    """``nn.Identity`` and stubs."""
    return b.emit("aten::alias", input)


# ---- products


def linear(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.Linear``."""
    return f.linear(b, input, b.weight(module), b.of(module, "bias"))


def pad_mode(b: TorchBuilder, module: Mod, input: Value) -> tuple[Value, Any]:
    """Apply a padding mode other than zeros; return the input and the padding still to do."""
    if module.padding_mode == "zeros":
        return input, module.padding
    pads = tuple(module._reversed_padding_repeated_twice)
    padded = b.emit("aten::pad", input, pad=pads, mode=module.padding_mode, value=0.0)
    return padded, 0


def conv_with(
    b: TorchBuilder, module: Mod, input: Value, weight: Value | None, bias: Value | None
) -> Value:
    """Emit the float convolution of a module with another weight or bias."""
    input, padding = pad_mode(b, module, input)
    assert weight is not None
    return f.convolution(
        b, input, weight, bias, module.stride, padding, module.dilation, module.groups
    )


def conv(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.Conv1d``, ``2d``, ``3d``."""
    return conv_with(b, module, input, b.weight(module), b.of(module, "bias"))


def conv_transpose(b: TorchBuilder, module: Mod, input: Value, output_size: Any = None) -> Value:
    """``nn.ConvTranspose1d``, ``2d``, ``3d``."""
    only(output_size is None, "ConvTranspose with output_size")
    return f.conv_transpose(
        b,
        input,
        b.weight(module),
        b.of(module, "bias"),
        module.stride,
        module.padding,
        module.output_padding,
        module.groups,
        module.dilation,
    )


def embedding(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.Embedding``."""
    return f.embedding(b, input, b.weight(module), max_norm=module.max_norm)


def multihead_attention(
    b: TorchBuilder,
    module: Mod,
    query: Value,
    key: Value,
    value: Value,
    key_padding_mask: Value | None = None,
    need_weights: bool = True,
    attn_mask: Value | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Value, Value | None]:
    """``nn.MultiheadAttention`` in evaluation: projections, softmax of scores, weighted sum."""
    only(key_padding_mask is None, "MultiheadAttention with key_padding_mask")
    only(module.bias_k is None and not module.add_zero_attn, "MultiheadAttention with bias_k")
    only(not is_causal or attn_mask is not None, "MultiheadAttention is_causal without mask")
    evaluation_only(module.training and module.dropout > 0, "MultiheadAttention")
    only(query.type.rank == 3, "MultiheadAttention without a batch dimension")
    width, heads = module.embed_dim, module.num_heads
    operands = []
    for index, (name, tensor) in enumerate(
        (("q_proj_weight", query), ("k_proj_weight", key), ("v_proj_weight", value))
    ):
        rows = slice(index * width, (index + 1) * width)
        if module._qkv_same_embed_dim:
            weight = b.of(module, "in_proj_weight", rows)
        else:
            weight = b.of(module, name)
        assert weight is not None
        projected = f.linear(b, tensor, weight, b.of(module, "in_proj_bias", rows))
        first, second = projected.type.shape[:2]
        split = b.emit("aten::reshape", projected, shape=(first, second, heads, width // heads))
        order = (0, 2, 1, 3) if module.batch_first else (1, 2, 0, 3)
        operands.append(b.emit("aten::permute", split, dims=order))
    q, k, v = operands
    scaled = b.emit("aten::mul.Scalar", q, other=float((width // heads) ** -0.5))
    scores = b.emit("aten::matmul", scaled, b.emit("aten::transpose", k, dim0=-2, dim1=-1))
    if attn_mask is not None:
        scores = b.emit("aten::add", scores, attn_mask)
    weights = b.emit("aten::softmax", scores, dim=-1)
    mixed = b.emit("aten::matmul", weights, v)
    order = (0, 2, 1, 3) if module.batch_first else (2, 0, 1, 3)
    mixed = b.emit("aten::permute", mixed, dims=order)
    first, second = mixed.type.shape[:2]
    mixed = b.emit("aten::reshape", mixed, shape=(first, second, width))
    out = module.out_proj
    result = f.linear(b, mixed, b.weight(out), b.of(out, "bias"))
    if not need_weights:
        return result, None
    if average_attn_weights:
        weights = b.emit("aten::mean", weights, dim=(1,), keepdim=False)
    return result, weights


# ---- norms


def batch_norm(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.BatchNorm1d``, ``2d``, ``3d`` in evaluation."""
    evaluation_only(module.training, "BatchNorm")
    only(module.running_mean is not None, "BatchNorm without running statistics")
    mean, var = b.of(module, "running_mean"), b.of(module, "running_var")
    weight, bias = b.of(module, "weight"), b.of(module, "bias")
    return f.batch_norm(b, input, mean, var, weight, bias, eps=module.eps)


def layer_norm(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.LayerNorm``."""
    shape = tuple(module.normalized_shape)
    return f.layer_norm(b, input, shape, b.of(module, "weight"), b.of(module, "bias"), module.eps)


def group_norm(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.GroupNorm``."""
    weight, bias = b.of(module, "weight"), b.of(module, "bias")
    return f.group_norm(b, input, module.num_groups, weight, bias, module.eps)


def instance_norm(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.InstanceNorm1d``, ``2d``, ``3d``."""
    only(not module.track_running_stats, "InstanceNorm with running statistics")
    weight, bias = b.of(module, "weight"), b.of(module, "bias")
    return f.instance_norm(b, input, weight=weight, bias=bias, eps=module.eps)


def prelu(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.PReLU``."""
    return b.emit("aten::prelu", input, b.weight(module))


def flatten(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.Flatten``."""
    return t.flatten(b, input, module.start_dim, module.end_dim)


def unflatten(b: TorchBuilder, module: Mod, input: Value) -> Value:
    """``nn.Unflatten``."""
    return t.unflatten(b, input, module.dim, tuple(module.unflattened_size))


def padding(mode: str) -> Rule:
    """Return the rule of ``nn.ZeroPad2d`` and its relatives."""

    def rule(b: TorchBuilder, module: Mod, input: Value) -> Value:
        pads = tuple(module.padding)
        return f.pad(b, input, pads, mode, getattr(module, "value", 0.0))

    return rule


def sequential(b: TorchBuilder, module: Mod, input: Any) -> Any:
    """Fused float containers: their parts in order."""
    for part in module:
        input = b.rule_of(part)(b, part, input)
    return input


# ---- tables

_ACTIVATION: dict[str, Rule] = {
    "ReLU": call(COMMON["relu"]),
    "ReLU6": call(COMMON["relu6"]),
    "SiLU": call(COMMON["silu"]),
    "Sigmoid": call(COMMON["sigmoid"]),
    "Tanh": call(COMMON["tanh"]),
    "Hardswish": call(COMMON["hardswish"]),
    "Hardsigmoid": call(COMMON["hardsigmoid"]),
    "Hardtanh": call(f.hardtanh, "min_val", "max_val"),
    "ELU": call(f.elu, "alpha"),
    "LeakyReLU": call(f.leaky_relu, "negative_slope"),
    "GELU": call(f.gelu, "approximate"),
    "Softmax": call(f.softmax, "dim"),
    "LogSoftmax": call(f.log_softmax, "dim"),
    "CELU": call(f.celu, "alpha"),
    "SELU": call(f.selu),
    "RReLU": call(f.rrelu, "lower", "upper", "training"),
    "GLU": call(f.glu, "dim"),
    "Mish": call(COMMON["mish"]),
    "Softplus": call(f.softplus, "beta", "threshold"),
    "Softsign": call(f.softsign),
    "Softmin": call(f.softmin, "dim"),
    "Softmax2d": lambda b, module, input: f.softmax(b, input, -3),
    "Tanhshrink": call(f.tanhshrink),
    "Hardshrink": call(FUNCTIONS["torch.nn.functional.hardshrink"], "lambd"),
    "Softshrink": call(FUNCTIONS["torch.nn.functional.softshrink"], "lambd"),
    "LogSigmoid": call(FUNCTIONS["torch.nn.functional.logsigmoid"]),
    "Threshold": call(f.threshold, "threshold", "value"),
    "PReLU": prelu,
    "MultiheadAttention": multihead_attention,
}
_POOL = ("kernel_size", "stride", "padding", "ceil_mode")
_RANKS = (1, 2, 3)


def _in(module: str, table: dict[str, Rule]) -> dict[str, Rule]:
    return {f"{module}.{name}": rule for name, rule in table.items()}


_FLOAT: dict[str, Rule] = {
    **_in("activation", _ACTIVATION),
    **_in("linear", {"Linear": linear, "NonDynamicallyQuantizableLinear": linear}),
    **_in("linear", {"Identity": identity}),
    **{f"conv.Conv{r}d": conv for r in _RANKS},
    **{f"conv.ConvTranspose{r}d": conv_transpose for r in _RANKS},
    **{f"batchnorm.BatchNorm{r}d": batch_norm for r in _RANKS},
    **{f"instancenorm.InstanceNorm{r}d": instance_norm for r in _RANKS},
    **_in("normalization", {"LayerNorm": layer_norm, "GroupNorm": group_norm}),
    **{
        f"pooling.MaxPool{r}d": call(f.max_pool(r), *_POOL, "dilation", "return_indices")
        for r in _RANKS
    },
    **{
        f"pooling.AvgPool{r}d": call(
            f.avg_pool(r), *_POOL, "count_include_pad", *(("divisor_override",) if r > 1 else ())
        )
        for r in _RANKS
    },
    **{
        f"pooling.AdaptiveAvgPool{r}d": call(f.adaptive_avg_pool(r), "output_size") for r in _RANKS
    },
    **{
        f"pooling.AdaptiveMaxPool{r}d": call(
            f.adaptive_max_pool(r), "output_size", "return_indices"
        )
        for r in _RANKS
    },
    "fold.Unfold": call(f.unfold, "kernel_size", "dilation", "padding", "stride"),
    "normalization.LocalResponseNorm": call(f.local_response_norm, "size", "alpha", "beta", "k"),
    **{
        f"pooling.LPPool{r}d": call(
            f.lp_pool(r), "norm_type", "kernel_size", "stride", "ceil_mode"
        )
        for r in (1, 2)
    },
    **{f"dropout.Dropout{r}": dropout for r in ("", "1d", "2d", "3d")},
    "dropout.AlphaDropout": dropout,
    "dropout.FeatureAlphaDropout": dropout,
    **_in("flatten", {"Flatten": flatten, "Unflatten": unflatten}),
    "pixelshuffle.PixelShuffle": call(FUNCTIONS["torch.pixel_shuffle"], value="upscale_factor"),
    "pixelshuffle.PixelUnshuffle": call(
        FUNCTIONS["torch.pixel_unshuffle"], value="downscale_factor"
    ),
    "channelshuffle.ChannelShuffle": call(FUNCTIONS["torch.channel_shuffle"], value="groups"),
    "sparse.Embedding": embedding,
    **{
        f"upsampling.{name}": call(
            f.interpolate, "size", "scale_factor", "mode", "align_corners", **extra
        )
        for name, extra in {
            "Upsample": {"recompute_scale_factor": "recompute_scale_factor"},
            "UpsamplingNearest2d": {},
            "UpsamplingBilinear2d": {},
        }.items()
    },
    **{
        f"padding.{name}Pad{r}d": padding(mode)
        for name, mode in (
            ("Zero", "constant"),
            ("Constant", "constant"),
            ("Reflection", "reflect"),
            ("Replication", "replicate"),
            ("Circular", "circular"),
        )
        for r in _RANKS
    },
}

MODULES: dict[str, Rule] = {
    canonical(f"torch.nn.modules.{name}"): rule for name, rule in _FLOAT.items()
}
