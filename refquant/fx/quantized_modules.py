"""Lowered modules: from a reference or float module to the quantized module that replaces it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.fx.pack import (
    conv_prepack,
    conv_transpose_prepack,
    embedding_prepack,
    linear_prepack,
    linear_prepack_fp16,
    quantize_per_tensor,
    quantized_weight,
)
from refquant.ir.errors import VerifyError
from refquant.ir.module import Module, Packed
from refquant.ir.packed_cell import PackedCell
from refquant.ir.qtensor import Array, Tensor
from refquant.ir.types import DType, float16, qint8, quint8
from refquant.observer_base import caller

NNQ = "torch.ao.nn.quantized"
NNQD = "torch.ao.nn.quantized.dynamic"
NNIQ = "torch.ao.nn.intrinsic.quantized"
NNIQD = "torch.ao.nn.intrinsic.quantized.dynamic"

Build = Callable[..., Module]


def from_reference(
    kind: str, module: Module, scale: Array | None = None, zero_point: Array | None = None
) -> Module:
    """Return the lowered module that replaces a reference, fused or float module.

    Parameters
    ----------
    kind : str
        Class of the lowered module.
    module : Module
        The reference module; a fused container with a reference module in it where ``kind`` is
        of an intrinsic package; the float module where the class has no weight to quantize.
    scale, zero_point : arrays of one element, optional
        Of the output; what is dynamic or weight-only has none.

    Raises
    ------
    VerifyError
        If the weight cannot be packed, as torch refuses it, or ``kind`` is not known.
    """
    if kind not in _BUILDERS:
        raise VerifyError(f"no lowered module {kind}")
    given = () if scale is None else (scale, zero_point)
    return _BUILDERS[kind](kind, module, *given)


def _new(kind: str, config: dict[str, Any], state: dict[str, Any] | None = None) -> Module:
    return Module(kind, config, state or {}, training=True)


def _output(scale: Array, zero_point: Array) -> dict[str, Any]:
    return {"scale": _number(scale), "zero_point": int(_number(zero_point))}


def _number(value: Array) -> float:
    return float(np.asarray(value).reshape(-1)[0])


# ---- products


def _linear(kind: str, reference: Any, scale: Array, zero_point: Array) -> Module:
    made = _linear_module(kind, reference, qint8)
    made.config |= _output(scale, zero_point)
    return made


def _linear_module(kind: str, reference: Any, dtype: DType) -> Module:
    config = {key: getattr(reference, key) for key in ("in_features", "out_features")}
    made = _new(kind, config)
    prepack = linear_prepack_fp16 if dtype == float16 else linear_prepack
    packed = prepack(quantized_weight(reference), reference.state["bias"])
    inner = _new(f"{NNQ}.LinearPackedParams", {"dtype": dtype}, {"_packed_params": packed})
    made.parts["_packed_params"] = inner
    return made


def _linear_leaky_relu(kind: str, fused: Any, scale: Array, zero_point: Array) -> Module:
    made = _linear(kind, fused[0], scale, zero_point)
    made.config["negative_slope"] = fused[1].negative_slope
    return made


def _dynamic_linear(kind: str, reference: Any) -> Module:
    if reference.weight_dtype not in (qint8, float16):
        raise VerifyError(
            f"a dynamic Linear has a qint8 or float16 weight, got {reference.weight_dtype}"
        )
    made = _linear_module(kind, reference, reference.weight_dtype)
    made.config |= {"scale": 1.0, "zero_point": 0, "version": 4}
    return made


_CONV = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    *("transposed", "output_padding", "groups", "padding_mode"),
)


def _conv(rank: int) -> Build:
    def build(kind: str, reference: Any, scale: Array, zero_point: Array) -> Module:
        config = {key: getattr(reference, key) for key in _CONV}
        mode = config["padding_mode"]
        accepted = ("zeros", "reflect") if rank < 3 else ("zeros",)
        if mode not in accepted:
            names = " or ".join(accepted)
            raise VerifyError(f"a quantized Conv{rank}d needs padding_mode {names}, got {mode!r}")
        padding = config["padding"] if mode == "zeros" else (0,) * max(rank, 2)
        packed = conv_prepack(rank)(
            *(quantized_weight(reference), reference.state["bias"], config["stride"], padding),
            *(config["dilation"], config["groups"]),
        )
        return _new(kind, config | _output(scale, zero_point), {"_packed_params": packed})

    return build


def _conv_transpose(rank: int) -> Build:
    def build(kind: str, reference: Any, scale: Array, zero_point: Array) -> Module:
        config = {key: getattr(reference, key) for key in _CONV}
        packed = conv_transpose_prepack(rank)(
            quantized_weight(reference),
            reference.state["bias"],
            *(
                config[key]
                for key in ("stride", "padding", "output_padding", "dilation", "groups")
            ),
        )
        return _new(kind, config | _output(scale, zero_point), {"_packed_params": packed})

    return build


def _of_first(build: Build) -> Build:
    """Return the builder from a fused container, of which the first part counts."""
    return lambda kind, fused, *output: build(kind, fused[0], *output)


# ---- embeddings and recurrent layers


def _embedding(kind: str, reference: Any) -> Module:
    dtype = reference.weight_dtype
    keys = ("num_embeddings", "embedding_dim")
    made = _new(kind, {key: getattr(reference, key) for key in keys} | {"dtype": dtype})
    packed = embedding_prepack(quantized_weight(reference))
    inner = _new(f"{NNQ}.EmbeddingPackedParams", {"dtype": dtype}, {"_packed_weight": packed})
    made.parts["_packed_params"] = inner
    return made


def _embedding_bag(kind: str, reference: Any) -> Module:
    made = _embedding(kind, reference)
    made.config |= {
        "mode": reference.mode,
        "pruned_weights": False,
        "include_last_offset": reference.include_last_offset,
    }
    return made


def _pack_linear(weight: Tensor, bias: Array | None, dtype: DType) -> Packed:
    return linear_prepack(weight, bias) if dtype == qint8 else linear_prepack_fp16(weight, bias)


def _cell(kind: str, reference: Any) -> Module:
    dtype = reference.config["weight_ih_dtype"]
    keys = ("input_size", "hidden_size", "bias", "nonlinearity")
    config = {key: reference.config[key] for key in keys if key in reference.config}
    made = _new(kind, config | {"weight_dtype": dtype})
    for part in ("ih", "hh"):
        weight, bias = (
            quantized_weight(reference, f"weight_{part}"),
            reference.state[f"bias_{part}"],
        )
        made.state[f"bias_{part}"] = bias
        made.state[f"_packed_weight_{part}"] = _pack_linear(weight, bias, dtype)
    return made


def _layers(kind: str, reference: Any) -> Module:
    keys = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first")
    config = {key: getattr(reference, key) for key in keys}
    config |= {"dropout": float(reference.dropout), "bidirectional": reference.bidirectional}
    config |= {"dtype": reference.config["weight_ih_l0_dtype"], "version": 2}
    made = Module(kind, config)
    cells = _new("torch.nn.ModuleList", {})
    for layer in range(reference.num_layers):
        for suffix in ("", "_reverse") if reference.bidirectional else ("",):
            cell = _packed_cell(reference, f"l{layer}{suffix}")
            part = _new(f"{NNQD}.PackedParameter", {}, {"param": cell})
            cells.parts[str(len(cells.parts))] = part
    made.parts["_all_weight_values"] = cells
    return made


def _packed_cell(reference: Any, place: str) -> PackedCell:
    packed: dict[str, Packed] = {}
    dtype = reference.config[f"weight_ih_{place}_dtype"]
    for part in ("ih", "hh"):
        if f"bias_{part}_{place}" not in reference.state:
            raise VerifyError(
                f"a dynamically quantized {reference.mode} must have a bias, got bias=False"
            )
        weight = quantized_weight(reference, f"weight_{part}_{place}")
        packed[part] = _pack_linear(weight, reference.state[f"bias_{part}_{place}"], dtype)
    return PackedCell(packed["ih"], packed["hh"], True if dtype == qint8 else None)


# ---- norms and activations


def _batch_norm(kind: str, norm: Any, scale: Array, zero_point: Array) -> Module:
    if norm.state["weight"] is None:
        raise VerifyError("a quantized BatchNorm must be affine, got affine=False")
    config = {key: getattr(norm, key) for key in ("num_features", "eps", "momentum")}
    keys = ("weight", "bias", "running_mean", "running_var")
    return _new(
        kind,
        config | {"affine": True, "track_running_stats": True},
        {key: norm.state[key] for key in keys}
        | {"num_batches_tracked": np.array(0)}
        | {"scale": scale, "zero_point": zero_point},
    )


def _buffers(scale: Array, zero_point: Array) -> dict[str, Array]:
    """Return scale and zero point as torch makes buffers of Python numbers."""
    return {
        "scale": np.array(_number(scale), np.float32),
        "zero_point": np.array(_number(zero_point), np.int64),
    }


def _layer_norm(kind: str, norm: Any, scale: Array, zero_point: Array) -> Module:
    keys = ("normalized_shape", "eps", "elementwise_affine")
    state = {key: norm.state[key] for key in ("weight", "bias")}
    config = {key: getattr(norm, key) for key in keys}
    return _new(kind, config, state | _buffers(scale, zero_point))


def _instance_norm(kind: str, norm: Any, scale: Array, zero_point: Array) -> Module:
    # torch hands on affine in the place of momentum, which nothing reads.
    config = {"num_features": norm.num_features, "eps": norm.eps, "momentum": norm.affine}
    state = {key: norm.state[key] for key in ("weight", "bias")}
    absent = dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"))
    return _new(
        kind,
        config | {"affine": False, "track_running_stats": False},
        state | absent | _buffers(scale, zero_point),
    )


def _hardswish(kind: str, module: Any, scale: Array, zero_point: Array) -> Module:
    return _new(kind, {"inplace": False}, dict(_buffers(scale, zero_point)))


def _leaky_relu(kind: str, module: Any, scale: Array, zero_point: Array) -> Module:
    config = {key: getattr(module, key) for key in ("negative_slope", "inplace")}
    return _new(kind, config, dict(_buffers(scale, zero_point)))


def _elu(kind: str, module: Any, scale: Array, zero_point: Array) -> Module:
    config = {"alpha": module.alpha, "inplace": False}
    return _new(kind, config | _output(scale, zero_point))


def _softmax(kind: str, module: Any, scale: Array, zero_point: Array) -> Module:
    return _new(kind, {"dim": module.dim} | _output(scale, zero_point))


def _dropout(kind: str, module: Any, scale: Array, zero_point: Array) -> Module:
    return _new(kind, {"p": module.p, "inplace": module.inplace})


def _prelu(kind: str, module: Any, scale: Array, zero_point: Array) -> Module:
    qconfig = module.config.get("qconfig")
    if qconfig is None:
        raise VerifyError("PReLU has no qconfig, whose weight observer quantizes its weight")
    observer = qconfig.weight()
    weight = module.state["weight"].astype(np.float32)
    observer(weight)
    if observer.dtype != quint8:
        warnings.warn(
            f"PReLU's weight observer should have dtype quint8 but got {observer.dtype}",
            UserWarning,
            stacklevel=caller(),
        )
    slope_scale, slope_zero_point = observer.calculate_qparams()
    quantized = quantize_per_tensor(weight, slope_scale, slope_zero_point, quint8)
    config = {"num_parameters": module.num_parameters} | _output(scale, zero_point)
    return _new(kind, config, {"weight": quantized})


_BUILDERS: dict[str, Build] = {
    f"{NNQ}.Linear": _linear,
    **{f"{NNQ}.Conv{rank}d": _conv(rank) for rank in (1, 2, 3)},
    **{f"{NNQ}.ConvTranspose{rank}d": _conv_transpose(rank) for rank in (1, 2, 3)},
    f"{NNIQ}.LinearReLU": _of_first(_linear),
    f"{NNIQ}.LinearTanh": _of_first(_linear),
    f"{NNIQ}.LinearLeakyReLU": _linear_leaky_relu,
    **{f"{NNIQ}.ConvReLU{rank}d": _of_first(_conv(rank)) for rank in (1, 2, 3)},
    f"{NNIQ}.ConvAdd2d": _of_first(_conv(2)),
    f"{NNIQ}.ConvAddReLU2d": _of_first(_conv(2)),
    f"{NNQD}.Linear": _dynamic_linear,
    f"{NNIQD}.LinearReLU": _of_first(_dynamic_linear),
    **{f"{NNQD}.{name}": _cell for name in ("RNNCell", "LSTMCell", "GRUCell")},
    **{f"{NNQD}.{name}": _layers for name in ("LSTM", "GRU")},
    f"{NNQ}.Embedding": _embedding,
    f"{NNQ}.EmbeddingBag": _embedding_bag,
    **{f"{NNQ}.BatchNorm{rank}d": _batch_norm for rank in (2, 3)},
    **{f"{NNIQ}.BNReLU{rank}d": _of_first(_batch_norm) for rank in (2, 3)},
    f"{NNQ}.LayerNorm": _layer_norm,
    **{f"{NNQ}.InstanceNorm{rank}d": _instance_norm for rank in (1, 2, 3)},
    f"{NNQ}.Hardswish": _hardswish,
    f"{NNQ}.LeakyReLU": _leaky_relu,
    f"{NNQ}.ELU": _elu,
    f"{NNQ}.Softmax": _softmax,
    f"{NNQ}.Dropout": _dropout,
    f"{NNQ}.PReLU": _prelu,
}
