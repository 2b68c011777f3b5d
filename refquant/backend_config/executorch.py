"""What ExecuTorch's stack quantizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refquant.backend_config import families
from refquant.backend_config.backend_config import BackendConfig, BackendPatternConfig
from refquant.backend_config.dtype_configs import (
    default_dynamic_float16_dtype_config,
    default_dynamic_int8_dtype_config,
    default_dynamic_qint8_dtype_config,
    default_op_qint8_symmetric_dtype_config,
    default_op_quint8_dtype_config,
    weight_only_quint8_dtype_config,
    weighted_op_qint8_symmetric_dtype_config,
    weighted_op_quint8_dtype_config,
)
from refquant.backend_config.families import SHARED, DTypes, Entries, alone, entry, names, weighted


def linear(dtypes: DTypes) -> Entries:
    """Return linear, without fusion."""
    return weighted(dtypes, "Linear", "linear")


def conv2d(dtypes: DTypes) -> Entries:
    """Return two-dimensional convolution."""
    return families.conv_of(dtypes, 2)


def binary(dtypes: DTypes) -> Entries:
    """Return addition, subtraction and multiplication."""
    functions = (
        f"{place}.{op}" for op in ("add", "sub", "mul") for place in ("operator", "torch")
    )
    return families.binary_of(dtypes, functions)


_SHARE = (
    *("nn.Flatten", *names("F", "adaptive_avg_pool2d elu hardtanh max_pool2d pad relu relu6")),
    *names("F", "leaky_relu leaky_relu_"),
    *names("nn", "AdaptiveAvgPool2d ConstantPad2d ELU MaxPool2d ReLU6 Hardtanh LeakyReLU"),
    *names("torch", "clamp flatten mean permute permute_copy squeeze"),
    *("clamp", "mean", "permute", "reshape", "relu", "relu_", "squeeze", "squeeze_", "leaky_relu"),
)


def share(dtypes: DTypes) -> Entries:
    """Return ops whose output has the scale and zero point of the input."""
    return alone(_SHARE, dtypes, SHARED)


def batch_norm(dtypes: DTypes) -> Entries:
    """Return two-dimensional batch norm."""
    return alone(["nn.BatchNorm2d"], dtypes)


def cat(dtypes: DTypes) -> Entries:
    """Return concatenation under its three names."""
    return alone(names("torch", "cat concat concatenate"), dtypes, SHARED)


def embedding(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield embeddings, as a function too."""
    yield from weighted(dtypes, "Embedding")
    yield entry("F.embedding", dtypes, index={"weight": 1})
    yield from weighted(dtypes, "EmbeddingBag")


_WEIGHTED = (weighted_op_qint8_symmetric_dtype_config, weighted_op_quint8_dtype_config)
_DEFAULT = (default_op_qint8_symmetric_dtype_config, default_op_quint8_dtype_config)
EXECUTORCH: families.Table = {
    linear: (
        *_WEIGHTED,
        default_dynamic_int8_dtype_config,
        default_dynamic_qint8_dtype_config,
        default_dynamic_float16_dtype_config,
    ),
    conv2d: _WEIGHTED,
    # torch names a weight's dtype here too; it says nothing, as these ops have no weight.
    binary: (default_op_qint8_symmetric_dtype_config, weighted_op_quint8_dtype_config),
    share: _DEFAULT,
    batch_norm: _DEFAULT,
    cat: _DEFAULT,
    embedding: (weight_only_quint8_dtype_config,),
}


def get_executorch_backend_config() -> BackendConfig:
    """Return what ExecuTorch's stack quantizes."""
    return families.backend("executorch", EXECUTORCH)


def get_executorch_backend_config_dict() -> dict[str, Any]:
    """Return ``get_executorch_backend_config()`` as a dictionary."""
    return get_executorch_backend_config().to_dict()
