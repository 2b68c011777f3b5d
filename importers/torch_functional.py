"""Rules for ``torch.nn.functional``: activations, products, norms, pools and resampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refquant.importers.builder import Rule
from refquant.importers.rules import Ints, TorchBuilder, evaluation_only, ints, only, repeat
from refquant.importers.torch_tensors import cast, chunk
from refquant.ir.errors import VerifyError
from refquant.ir.graph import Value
from refquant.ir.types import DType

# ---- activations


def hardtanh(
    b: TorchBuilder,
    input: Value,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Value:
    """``F.hardtanh``."""
    return b.emit("aten::hardtanh", input, min_val=min_val, max_val=max_val)


def elu(b: TorchBuilder, input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """``F.elu``."""
    return b.emit("aten::elu", input, alpha=alpha)


def leaky_relu(
    b: TorchBuilder, input: Value, negative_slope: float = 0.01, inplace: bool = False
) -> Value:
    """``F.leaky_relu``."""
    return b.emit("aten::leaky_relu", input, negative_slope=negative_slope)


def celu(b: TorchBuilder, input: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    """``F.celu``."""
    return b.emit("aten::celu", input, alpha=alpha)


def selu(b: TorchBuilder, input: Value, inplace: bool = False) -> Value:
    """``F.selu``: an elu with the two constants of its paper."""
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return b.emit("aten::elu", input, alpha=alpha, scale=scale, input_scale=1.0)


def rrelu(
    b: TorchBuilder,
    input: Value,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Value:
    """``F.rrelu`` in evaluation: a leaky relu with the mean slope."""
    evaluation_only(training, "rrelu")
    input = b.emit("aten::contiguous", input, memory_format="contiguous_format")
    return b.emit("aten::leaky_relu", input, negative_slope=(lower + upper) / 2)


def softplus(b: TorchBuilder, input: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    """``F.softplus``."""
    return b.emit("aten::softplus", input, beta=beta, threshold=threshold)


def softsign(b: TorchBuilder, input: Value) -> Value:
    """``F.softsign``: x / (1 + |x|)."""
    size = b.emit("aten::add.Scalar", b.emit("aten::abs", input), other=1)
    return b.emit("aten::div", input, size)


def tanhshrink(b: TorchBuilder, input: Value) -> Value:
    """``F.tanhshrink``: x minus its hyperbolic tangent."""
    return b.emit("aten::sub", input, b.emit("aten::tanh", input))


def softmin(
    b: TorchBuilder,
    input: Value,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: DType | None = None,
) -> Value:
    """``F.softmin``: the softmax of -x."""
    return softmax(b, b.emit("aten::neg", input), dim, dtype=dtype)


def shrink(op: str) -> Rule:
    """Return the rule of ``F.hardshrink`` or ``F.softshrink``."""

    def rule(b: TorchBuilder, input: Value, lambd: float = 0.5) -> Value:
        return b.emit(op, input, lambd=lambd)

    return rule


def glu(b: TorchBuilder, input: Value, dim: int = -1) -> Value:
    """``F.glu``: one half times the logistic function of the other."""
    first, second = chunk(b, input, 2, dim)
    return b.emit("aten::mul", first, b.emit("aten::sigmoid", second))


def gelu(b: TorchBuilder, input: Value, approximate: str = "none") -> Value:
    """``F.gelu``."""
    return b.emit("aten::gelu", input, approximate=approximate)


def threshold(
    b: TorchBuilder, input: Value, threshold: float, value: float, inplace: bool = False
) -> Value:
    """``F.threshold``."""
    return b.emit("aten::threshold", input, threshold=threshold, value=value)


def prelu(b: TorchBuilder, input: Value, weight: Value) -> Value:
    """``F.prelu``."""
    return b.emit("aten::prelu", input, weight)


def softmax(
    b: TorchBuilder,
    input: Value,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: DType | None = None,
) -> Value:
    """``F.softmax``; without ``dim`` as torch chooses it."""
    if dtype is not None:
        input = cast(b, input, dtype)
    if dim is None:
        dim = 0 if input.type.rank in (0, 1, 3) else 1
    return b.emit("aten::softmax", input, dim=dim)


def log_softmax(
    b: TorchBuilder,
    input: Value,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: DType | None = None,
) -> Value:
    """``F.log_softmax``."""
    if dim is None:
        dim = 0 if input.type.rank in (0, 1, 3) else 1
    return b.emit("aten::log_softmax", input, dim=dim)


def dropout(
    b: TorchBuilder, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Value:
    """``F.dropout`` in evaluation: the identity."""
    evaluation_only(training and p > 0, "dropout")
    return b.emit("aten::dropout", input, p=p, train=False)


def stochastic_depth(
    b: TorchBuilder, input: Value, p: float, mode: str, training: bool = True
) -> Value:
    """``torchvision.ops.stochastic_depth`` in evaluation: the identity."""
    evaluation_only(training and p > 0, "stochastic_depth")
    return b.emit("aten::alias", input)


def normalize(
    b: TorchBuilder,
    input: Value,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: None = None,
) -> Value:
    """``F.normalize``: divide by the norm, at least ``eps``."""
    norm = b.emit("aten::linalg_vector_norm", input, ord=p, dim=(dim,), keepdim=True)
    floor = b.emit("aten::clamp", norm, min=eps, max=None)
    return b.emit("aten::div", input, b.emit("aten::expand", floor, size=input.type.shape))


# ---- products


def linear(b: TorchBuilder, input: Value, weight: Value, bias: Value | None = None) -> Value:
    """``F.linear``."""
    return b.emit("aten::linear", input, weight, bias)


def same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Return (before, after) per dimension for ``padding="same"``: the odd one goes after."""
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def convolution(
    b: TorchBuilder,
    input: Value,
    weight: Value,
    bias: Value | None,
    stride: Ints,
    padding: Any,
    dilation: Ints,
    groups: int,
) -> Value:
    """Emit a float convolution of any rank; ``padding`` may be ``same`` or ``valid``."""
    rank = weight.type.rank - 2
    dilation = repeat(dilation, rank)
    if padding == "valid":
        padding = 0
    if padding == "same":
        kernel = [k for k in weight.type.shape[2:] if isinstance(k, int)]
        sides = same_padding(kernel, dilation)
        padding = tuple(before for before, _ in sides)
        if any(before != after for before, after in sides):
            extra = [n for before, after in reversed(sides) for n in (0, after - before)]
            input = b.emit("aten::pad", input, pad=tuple(extra), mode="constant", value=0.0)
    batched = input.type.rank == rank + 2
    if not batched:
        input = b.emit("aten::unsqueeze", input, dim=0)
    result = b.emit(
        f"aten::conv{rank}d",
        input,
        weight,
        bias,
        stride=repeat(stride, rank),
        padding=repeat(padding, rank),
        dilation=dilation,
        groups=groups,
    )
    return result if batched else b.emit("aten::squeeze", result, dim=0)


def conv(
    b: TorchBuilder,
    input: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Ints = 1,
    padding: Any = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Value:
    """``F.conv1d``, ``F.conv2d``, ``F.conv3d``: the rank is the weight's."""
    return convolution(b, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose(
    b: TorchBuilder,
    input: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Value:
    """``F.conv_transpose1d``, ``2d``, ``3d``."""
    rank = weight.type.rank - 2
    return b.emit(
        f"aten::conv_transpose{rank}d",
        input,
        weight,
        bias,
        stride=repeat(stride, rank),
        padding=repeat(padding, rank),
        output_padding=repeat(output_padding, rank),
        groups=groups,
        dilation=repeat(dilation, rank),
    )


def einsum(b: TorchBuilder, equation: str, *operands: Any) -> Value:
    """``torch.einsum``."""
    return b.emit("aten::einsum", *ints(operands), equation=equation)


def attention(
    b: TorchBuilder,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """``F.scaled_dot_product_attention`` in evaluation."""
    evaluation_only(dropout_p > 0, "scaled_dot_product_attention with dropout")
    only(not enable_gqa, "scaled_dot_product_attention with enable_gqa")
    return b.emit(
        "aten::scaled_dot_product_attention",
        query,
        key,
        value,
        attn_mask,
        dropout_p=0.0,
        is_causal=is_causal,
        scale=scale,
    )


def grid_sample(
    b: TorchBuilder,
    input: Value,
    grid: Value,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Value:
    """``F.grid_sample`` of a quantized image."""
    only(input.type.dtype.is_quantized, "grid_sample of a tensor that is not quantized")
    only(mode == "bilinear", f"grid_sample with mode {mode!r}")
    return b.emit(
        "aten::grid_sampler_2d",
        *(input, grid),
        interpolation_mode=0,
        padding_mode=("zeros", "border", "reflection").index(padding_mode),
        align_corners=bool(align_corners),
    )


def embedding(
    b: TorchBuilder,
    input: Value,
    weight: Value,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value:
    """``F.embedding``."""
    only(max_norm is None, "embedding with max_norm")
    return b.emit("aten::embedding", weight, input)


# ---- norms


def batch_norm(
    b: TorchBuilder,
    input: Value,
    running_mean: Value | None,
    running_var: Value | None,
    weight: Value | None = None,
    bias: Value | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    """``F.batch_norm`` in evaluation."""
    evaluation_only(training, "batch_norm")
    return b.emit(
        "aten::batch_norm",
        *(input, weight, bias, running_mean, running_var),
        training=False,
        momentum=momentum,
        eps=eps,
        cudnn_enabled=True,
    )


def layer_norm(
    b: TorchBuilder,
    input: Value,
    normalized_shape: Ints,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
) -> Value:
    """``F.layer_norm``."""
    shape = repeat(normalized_shape, 1)
    return b.emit("aten::layer_norm", input, weight, bias, normalized_shape=shape, eps=eps)


def group_norm(
    b: TorchBuilder,
    input: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
) -> Value:
    """``F.group_norm``."""
    return b.emit("aten::group_norm", input, weight, bias, num_groups=num_groups, eps=eps)


def instance_norm(
    b: TorchBuilder,
    input: Value,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    weight: Value | None = None,
    bias: Value | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    """``F.instance_norm``; with running statistics it is a batch norm."""
    if not use_input_stats:
        return batch_norm(b, input, running_mean, running_var, weight, bias, eps=eps)
    return b.emit(
        "aten::instance_norm",
        *(input, weight, bias, None, None),
        use_input_stats=True,
        momentum=momentum,
        eps=eps,
        cudnn_enabled=True,
    )


# ---- pools and resampling


def max_pool(rank: int) -> Rule:
    """Return the rule of ``F.max_pool1d``, ``2d`` or ``3d``."""

    def rule(
        b: TorchBuilder,
        input: Value,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Value:
        only(not return_indices, "max_pool with return_indices")
        kernel = repeat(kernel_size, rank)
        return b.emit(
            f"aten::max_pool{rank}d",
            input,
            kernel_size=kernel,
            stride=repeat(stride, rank) if stride else kernel,
            padding=repeat(padding, rank),
            dilation=repeat(dilation, rank),
            ceil_mode=ceil_mode,
        )

    return rule


def avg_pool(rank: int) -> Rule:
    """Return the rule of ``F.avg_pool1d``, ``2d`` or ``3d``."""

    def rule(
        b: TorchBuilder,
        input: Value,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        kernel = repeat(kernel_size, rank)
        divisor = {} if divisor_override is None else {"divisor_override": divisor_override}
        return b.emit(
            f"aten::avg_pool{rank}d",
            input,
            kernel_size=kernel,
            stride=repeat(stride, rank) if stride else kernel,
            padding=repeat(padding, rank),
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            **divisor,
        )

    return rule


def adaptive_avg_pool(rank: int) -> Rule:
    """Return the rule of ``F.adaptive_avg_pool1d``, ``2d`` or ``3d``."""

    def rule(b: TorchBuilder, input: Value, output_size: Any) -> Value:
        spatial = input.type.shape[-rank:]
        wanted = repeat(output_size, rank)
        size = tuple(
            given if want is None else want for want, given in zip(wanted, spatial, strict=True)
        )
        return b.emit(f"aten::adaptive_avg_pool{rank}d", input, output_size=size)

    return rule


def adaptive_max_pool(rank: int) -> Rule:
    """Return the rule of ``F.adaptive_max_pool1d``, ``2d`` or ``3d``."""

    def rule(
        b: TorchBuilder, input: Value, output_size: Any, return_indices: bool = False
    ) -> Value:
        only(not return_indices, "adaptive_max_pool with return_indices")
        spatial = input.type.shape[-rank:]
        wanted = repeat(output_size, rank)
        size = tuple(
            given if want is None else want for want, given in zip(wanted, spatial, strict=True)
        )
        return b.emit(f"aten::adaptive_max_pool{rank}d", input, output_size=size)

    return rule


def unfold(
    b: TorchBuilder,
    input: Value,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Ints = 0,
    stride: Ints = 1,
) -> Value:
    """``F.unfold``."""
    geometry = {"kernel_size": kernel_size, "dilation": dilation, "padding": padding}
    pairs = {name: repeat(value, 2) for name, value in (geometry | {"stride": stride}).items()}
    return b.emit("aten::im2col", input, **pairs)


def local_response_norm(
    b: TorchBuilder,
    input: Value,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Value:
    """``F.local_response_norm``: divide by a power of the mean square of near channels."""
    n, channels, *spatial = input.type.shape
    squares = b.emit("aten::unsqueeze", b.emit("aten::mul", input, input), dim=1)
    rank = len(spatial)
    if rank > 1:
        squares = b.emit("aten::view", squares, size=(n, 1, channels, spatial[0], -1))
    around = (*(0,) * (2 if rank == 1 else 4), size // 2, (size - 1) // 2)
    squares = b.emit("aten::pad", squares, pad=around, mode="constant", value=0.0)
    flat = 1 if rank == 1 else 2
    mean = avg_pool(flat + 1)(b, squares, (size, *(1,) * flat), 1)
    if rank > 1:
        mean = b.emit("aten::view", mean, size=(n, 1, channels, *spatial))
    mean = b.emit("aten::squeeze", mean, dim=1)
    mean = b.emit("aten::mul.Scalar", mean, other=alpha)
    mean = b.emit("aten::add.Scalar", mean, other=k)
    return b.emit("aten::div", input, b.emit("aten::pow.Tensor_Scalar", mean, exponent=beta))


def lp_pool(rank: int) -> Rule:
    """Return the rule of ``F.lp_pool1d`` or ``2d``: a power, a mean, a root."""

    def rule(
        b: TorchBuilder,
        input: Value,
        norm_type: float,
        kernel_size: Ints,
        stride: Ints | None = None,
        ceil_mode: bool = False,
    ) -> Value:
        kernel = repeat(kernel_size, rank)
        count = 1
        for k in kernel:
            count *= k
        powers = b.emit("aten::pow.Tensor_Scalar", input, exponent=norm_type)
        mean = avg_pool(rank)(b, powers, kernel_size, stride, 0, ceil_mode)
        positive = b.emit("aten::relu", b.emit("aten::abs", mean))
        signed = b.emit("aten::mul", b.emit("aten::sign", mean), positive)
        total = b.emit("aten::mul.Scalar", signed, other=count)
        return b.emit("aten::pow.Tensor_Scalar", total, exponent=1.0 / norm_type)

    return rule


_RESAMPLE = {
    "nearest": "aten::upsample_nearest{}d",
    "nearest-exact": "aten::_upsample_nearest_exact{}d",
    "linear": "aten::upsample_linear1d",
    "bilinear": "aten::upsample_bilinear2d",
    "bicubic": "aten::upsample_bicubic2d",
    "trilinear": "aten::upsample_trilinear3d",
}


def interpolate(
    b: TorchBuilder,
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """``F.interpolate``."""
    only(not antialias, "interpolate with antialias")
    rank = input.type.rank - 2
    spatial = input.type.shape[2:]
    if size is not None:
        size = repeat(size, rank)
    elif scale_factor is None:
        raise VerifyError("interpolate: give either size or scale_factor")
    factors = (
        None
        if scale_factor is None
        else (float(scale_factor),) * rank
        if isinstance(scale_factor, int | float)
        else tuple(map(float, scale_factor))
    )
    if factors is not None and (recompute_scale_factor or mode == "area"):
        size = tuple(int(s * f) for s, f in zip(spatial, factors, strict=True))  # type: ignore[operator]
        factors = None
    if mode == "area":
        return adaptive_avg_pool(rank)(b, input, size)
    only(mode in _RESAMPLE, f"interpolate mode {mode!r}")
    corners = {} if mode.startswith("nearest") else {"align_corners": bool(align_corners)}
    return b.emit(
        _RESAMPLE[mode].format(rank), input, output_size=size, scale_factors=factors, **corners
    )


def upsample(
    b: TorchBuilder,
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Any:
    """``F.upsample``."""
    return interpolate(b, input, size, scale_factor, mode, align_corners)


def pad(
    b: TorchBuilder, input: Value, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Value:
    """``F.pad``."""
    return b.emit("aten::pad", input, pad=tuple(pad), mode=mode, value=float(value or 0.0))
