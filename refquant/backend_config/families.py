"""Families of patterns that back-ends share, and how a back-end is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypedDict

from refquant.backend_config.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    DTypeWithConstraints,
    ObservationType,
)
from refquant.backend_config.dtype_configs import (
    fixed_qparams_0to1_constraints,
    fixed_qparams_neg1to1_constraints,
)
from refquant.backend_config.fuser import Fuser

DTypes = list[DTypeConfig]
Entries = Iterable[BackendPatternConfig]
Family = Callable[[DTypes], Entries]
Table = dict[Family, tuple[DTypeConfig, ...]]

DIFFERENT = ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT
SHARED = ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT
UNOBSERVED = ObservationType.INPUT_OUTPUT_NOT_OBSERVED
RELU = ("nn.ReLU", "F.relu")


def backend(name: str, table: Table) -> BackendConfig:
    """Return the back-end of a table: its families in order, each with its dtypes."""
    config = BackendConfig(name)
    for family, dtypes in table.items():
        config.set_backend_pattern_configs(list(family(list(dtypes))))
    return config


def entry(
    pattern: Any,
    dtypes: DTypes,
    observation: ObservationType = DIFFERENT,
    *,
    root: str | None = None,
    reference: str | None = None,
    qat: str | None = None,
    fused: str | None = None,
    fuser: Fuser | None = None,
    index: dict[str, int] | None = None,
) -> BackendPatternConfig:
    """Return the config of a pattern; ``index`` says which argument is weight and bias."""
    return (
        BackendPatternConfig(pattern)
        .set_observation_type(observation)
        .set_dtype_configs(dtypes)
        .set_root_module(root)
        .set_reference_quantized_module(reference)
        .set_qat_module(qat)
        .set_fused_module(fused)
        .set_fuser_method(fuser)
        ._set_input_type_to_index(index or {})
    )


def alone(
    kinds: Iterable[str], dtypes: DTypes, observation: ObservationType = DIFFERENT
) -> Iterator[BackendPatternConfig]:
    """Yield object types without anything special."""
    for kind in kinds:
        yield entry(kind, dtypes, observation)


def names(prefix: str, words: str) -> tuple[str, ...]:
    """Return ``("nn.A", "nn.B")`` for ``("nn", "A B")``."""
    return tuple(f"{prefix}.{word}" for word in words.split())


# ---- with weights


class Reference(TypedDict):
    """A module with a weight, and what it becomes in the reference model."""

    root: str
    reference: str


def referenced(module: str) -> Reference:
    """Return root and reference of a module, named as in torch.nn."""
    return {"root": f"nn.{module}", "reference": f"nnqr.{module}"}


def weighted(
    dtypes: DTypes, module: str, function: str | None = None
) -> Iterator[BackendPatternConfig]:
    """Yield a module with its variant for training and its function."""
    yield entry(f"nn.{module}", dtypes, **referenced(module), qat=f"nnqat.{module}")
    yield entry(f"nnqat.{module}", dtypes, **referenced(module))
    if function is not None:
        yield entry(f"F.{function}", dtypes, index={"weight": 1, "bias": 2})


def followed(
    dtypes: DTypes,
    module: str,
    function: str,
    post: tuple[str, str],
    fused: str,
    *containers: BackendPatternConfig,
) -> Iterator[BackendPatternConfig]:
    """Yield a module and its function followed by another op, and the fused containers."""
    for op in post:
        sequential = Fuser("sequential", fused)
        yield entry((f"nn.{module}", op), dtypes, fuser=sequential, fused=fused)
    yield from containers
    for op in post:
        yield entry((f"F.{function}", op), dtypes)


def conv_of(dtypes: DTypes, rank: int) -> Iterator[BackendPatternConfig]:
    """Yield the convolution of one rank with relu and batch norm."""
    module, function = f"Conv{rank}d", f"conv{rank}d"
    reference = referenced(module)
    root, norm = f"nn.{module}", f"nn.BatchNorm{rank}d"
    relu, bn, bn_relu = f"ConvReLU{rank}d", f"ConvBn{rank}d", f"ConvBnReLU{rank}d"
    yield from weighted(dtypes, module, function)
    yield from followed(
        *(dtypes, module, function, RELU, f"nni.{relu}"),
        entry(f"nni.{relu}", dtypes, qat=f"nniqat.{relu}"),
        entry(f"nniqat.{relu}", dtypes, **reference),
    )
    folded, both = Fuser("conv_bn"), Fuser("conv_bn_relu")
    yield entry((root, norm), dtypes, fuser=folded, fused=f"nni.{bn}")
    yield entry((root, norm, "nn.ReLU"), dtypes, fuser=both, fused=f"nni.{bn_relu}")
    yield entry((root, norm, "F.relu"), dtypes, fuser=both, fused=f"nni.{bn_relu}", root=root)
    yield entry(f"nni.{bn}", dtypes, qat=f"nniqat.{bn}")
    yield entry(f"nni.{bn_relu}", dtypes, qat=f"nniqat.{bn_relu}")
    yield entry(f"nniqat.{bn}", dtypes, **reference)
    yield entry(f"nniqat.{bn_relu}", dtypes, **reference)


def conv_transpose_of(dtypes: DTypes, rank: int) -> Iterator[BackendPatternConfig]:
    """Yield the transposed convolution of one rank."""
    module = f"ConvTranspose{rank}d"
    pair = (f"nn.{module}", f"nn.BatchNorm{rank}d")
    yield entry(f"nn.{module}", dtypes, **referenced(module))
    yield entry(pair, dtypes, **referenced(module), fuser=Fuser("convtranspose_bn"))
    yield entry(f"F.conv_transpose{rank}d", dtypes, index={"weight": 1, "bias": 2})


def conv(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield convolutions of 1 to 3 dimensions."""
    for rank in (1, 2, 3):
        yield from conv_of(dtypes, rank)
        yield from conv_transpose_of(dtypes, rank)


def linear(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield linear with relu and batch norm."""
    reference = referenced("Linear")
    yield from weighted(dtypes, "Linear", "linear")
    yield from followed(
        *(dtypes, "Linear", "linear", RELU, "nni.LinearReLU"),
        entry("nni.LinearReLU", dtypes, **reference, qat="nniqat.LinearReLU"),
        entry("nniqat.LinearReLU", dtypes, **reference),
    )
    pair = ("nn.Linear", "nn.BatchNorm1d")
    yield entry(pair, dtypes, fuser=Fuser("linear_bn"), fused="nni.LinearBn1d")
    yield entry("nni.LinearBn1d", dtypes, **reference, qat="nniqat.LinearBn1d")
    yield entry("nniqat.LinearBn1d", dtypes, **reference)


def rnn(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield recurrent modules."""
    for module in ("GRUCell", "LSTMCell", "RNNCell", "LSTM", "GRU"):
        yield entry(f"nn.{module}", dtypes, **referenced(module))


def embedding(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield embeddings."""
    yield from weighted(dtypes, "Embedding")
    yield from weighted(dtypes, "EmbeddingBag")


# ---- two operands


def binary_of(dtypes: DTypes, functions: Iterable[str]) -> Iterator[BackendPatternConfig]:
    """Yield arithmetic of two tensors, or of one and a number, with and without relu."""
    for function in functions:
        for relu in (*RELU, "torch.relu", None):
            pattern = function if relu is None else (function, relu)
            yield entry(pattern, dtypes)._set_num_tensor_args_to_observation_type(
                {0: DIFFERENT, 1: SHARED, 2: DIFFERENT}
            )


def binary(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield addition, multiplication and matmul."""
    yield from binary_of(dtypes, ("operator.add", "torch.add", "operator.mul", "torch.mul"))
    yield entry("torch.matmul", dtypes)


def cat(dtypes: DTypes) -> Entries:
    """Return concatenation."""
    return alone(["torch.cat"], dtypes, SHARED)


# ---- one operand


def default_ops(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield activations and norms with an output range of their own."""
    modules = "ELU LeakyReLU Hardswish InstanceNorm1d InstanceNorm2d InstanceNorm3d Dropout PReLU"
    yield from alone(names("nn", modules), dtypes)
    yield from alone(names("F", "elu hardswish leaky_relu dropout"), dtypes)
    yield entry("F.group_norm", dtypes, index={"weight": 2, "bias": 3})
    yield entry("F.instance_norm", dtypes, index={"weight": 3, "bias": 4})


FIXED_QPARAMS_0TO1 = (
    *("nn.Hardsigmoid", "F.hardsigmoid", "hardsigmoid", "hardsigmoid_"),
    *("nn.Sigmoid", "torch.sigmoid", "sigmoid", "sigmoid_", "nn.Softmax"),
)
FIXED_QPARAMS_NEG1TO1 = ("nn.Tanh", "torch.tanh", "tanh", "tanh_")


def fixed_qparams(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield ops whose output has a range, and so a scale and a zero point, known beforehand."""
    for kinds, required in (
        (FIXED_QPARAMS_0TO1, fixed_qparams_0to1_constraints),
        (FIXED_QPARAMS_NEG1TO1, fixed_qparams_neg1to1_constraints),
    ):
        for kind in kinds:
            yield entry(kind, [_fixed(dtype, required) for dtype in dtypes])


def _fixed(dtypes: DTypeConfig, required: DTypeWithConstraints) -> DTypeConfig:
    def constrain(given: DTypeWithConstraints) -> DTypeWithConstraints:
        return replace(required if given.dtype == required.dtype else given)

    return DTypeConfig(
        constrain(dtypes.input_dtype_with_constraints),
        constrain(dtypes.output_dtype_with_constraints),
        replace(dtypes.weight_dtype_with_constraints),
        dtypes.bias_dtype,
        dtypes.is_dynamic,
    )


_SHARE = (
    *names("nn", "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d"),
    *names("nn", "AvgPool1d AvgPool2d AvgPool3d Hardtanh Identity MaxPool1d MaxPool2d MaxPool3d"),
    *names("nn", "PixelShuffle PixelUnshuffle ReLU ReLU6"),
    *names("F", "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    *names("F", "hardtanh hardtanh_ interpolate max_pool1d max_pool2d max_pool3d"),
    *names("F", "pixel_shuffle pixel_unshuffle relu relu6 avg_pool1d avg_pool2d avg_pool3d"),
    *names("torch", "clamp flatten mean narrow repeat_interleave transpose squeeze stack"),
    *("torch.unsqueeze", "operator.floordiv", "contiguous", "clamp", "detach", "detach_", "mean"),
    *("permute", "repeat", "repeat_interleave", "reshape", "resize_", "relu", "relu_"),
    *("squeeze", "squeeze_", "transpose", "unsqueeze", "unsqueeze_", "view"),
)


def share(dtypes: DTypes) -> Entries:
    """Return ops whose output has the scale and zero point of the input."""
    return alone(_SHARE, dtypes, SHARED)


def tensor_info(dtypes: DTypes) -> Entries:
    """Return what asks for a tensor's shape."""
    return alone(("shape", "size"), dtypes, UNOBSERVED)


def batch_norm(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield batch norm with and without relu."""
    fused = {rank: f"nni.BNReLU{rank}d" for rank in (2, 3)}
    for rank, container in fused.items():
        for relu in RELU:
            pair, fuser = (f"nn.BatchNorm{rank}d", relu), Fuser("sequential", container)
            yield entry(pair, dtypes, fuser=fuser, fused=container)
        yield entry(f"nn.BatchNorm{rank}d", dtypes)
    yield from alone(fused.values(), dtypes)


def layer_norm(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield layer norm."""
    yield entry("nn.LayerNorm", dtypes)
    yield entry("F.layer_norm", dtypes, index={"weight": 2, "bias": 3})
