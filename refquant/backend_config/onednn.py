"""What oneDNN quantizes: the native patterns, and conv with add, linear with more activations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from refquant.backend_config import families, fuser
from refquant.backend_config.backend_config import BackendConfig, BackendPatternConfig
from refquant.backend_config.dtype_configs import (
    default_dynamic_int8_dtype_config,
    weight_only_qint8_dtype_config,
    weighted_op_quint8_dtype_config,
)
from refquant.backend_config.families import DTypes, entry, followed, referenced
from refquant.backend_config.fuser import Fuser
from refquant.backend_config.native import NATIVE
from refquant.backend_config.pattern import MATCH_ALL

_LEFT = (fuser.root_node_getter_left, fuser.extra_inputs_getter_left)
_RIGHT = (fuser.root_node_getter_right, fuser.extra_inputs_getter_right)


def conv_add(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield a convolution to which something is added, with and without relu."""
    for relu, container in (("", "ConvAdd2d"), ("_relu", "ConvAddReLU2d")):
        for side, bn, function in product(
            ("left", "right"), ("_bn", ""), ("torch.add", "operator.add")
        ):
            branch: Any = ("nn.BatchNorm2d", "nn.Conv2d") if bn else "nn.Conv2d"
            operands = (branch, MATCH_ALL) if side == "left" else (MATCH_ALL, branch)
            add = (function, *operands)
            root_of, extra_inputs_of = _LEFT if side == "left" else _RIGHT
            yield (
                entry(
                    None,
                    dtypes,
                    fuser=Fuser(f"conv{bn}_add{relu}_{side}"),
                    fused=f"nni.{container}",
                )
                ._set_pattern_complex_format(("nn.ReLU", add) if relu else add)
                ._set_root_node_getter(root_of)
                ._set_extra_inputs_getter(extra_inputs_of)
            )
        yield entry(f"nni.{container}", dtypes, **referenced("Conv2d"))


def linear_activation(dtypes: DTypes) -> Iterator[BackendPatternConfig]:
    """Yield linear with leaky relu, also after batch norm, and with tanh."""
    for post, container in (
        (("nn.LeakyReLU", "F.leaky_relu"), "nni.LinearLeakyReLU"),
        (("nn.Tanh", "torch.tanh"), "nni.LinearTanh"),
    ):
        fused = entry(container, dtypes, **referenced("Linear"))
        yield from followed(dtypes, "Linear", "linear", post, container, fused)
        if container == "nni.LinearLeakyReLU":
            triple = ("nn.Linear", "nn.BatchNorm1d", "nn.LeakyReLU")
            yield entry(triple, dtypes, fuser=Fuser("linear_bn_leaky_relu"), fused=container)


_LINEAR = (weighted_op_quint8_dtype_config, default_dynamic_int8_dtype_config)
ONEDNN: families.Table = {
    families.conv: NATIVE[families.conv],
    conv_add: NATIVE[families.conv],
    families.linear: _LINEAR,
    linear_activation: _LINEAR,
    families.binary: NATIVE[families.binary],
    families.cat: NATIVE[families.cat],
    families.default_ops: NATIVE[families.default_ops],
    families.fixed_qparams: NATIVE[families.fixed_qparams],
    families.share: NATIVE[families.share],
    families.batch_norm: NATIVE[families.batch_norm],
    families.layer_norm: NATIVE[families.layer_norm],
    families.rnn: (default_dynamic_int8_dtype_config,),
    families.embedding: (weight_only_qint8_dtype_config,),
}


def get_onednn_backend_config() -> BackendConfig:
    """Return what oneDNN quantizes."""
    return families.backend("onednn", ONEDNN)


def get_onednn_backend_config_dict() -> dict[str, Any]:
    """Return ``get_onednn_backend_config()`` as a dictionary."""
    return get_onednn_backend_config().to_dict()
