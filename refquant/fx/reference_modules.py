"""Reference modules: float modules that carry the quantization parameters of their weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.module import Module
from refquant.ir.qtensor import Array
from refquant.ir.types import (
    per_channel_affine,
    per_channel_affine_float_qparams,
    per_tensor_affine,
    qint8,
    qint32,
    quint4x2,
    quint8,
)

FLOAT = "torch.nn"
REFERENCE = "torch.ao.nn.quantized.reference"

_CONV = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"),
    *("transposed", "output_padding", "groups", "padding_mode"),
    "_reversed_padding_repeated_twice",
)
_EMBEDDING = (
    *("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type"),
    *("scale_grad_by_freq", "sparse"),
)
_CELL = ("input_size", "hidden_size", "bias")
_LAYERS = (
    *("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"),
    "bidirectional",
)
# What a reference module takes over from the float module of the same name.
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "Linear": ("in_features", "out_features"),
    **{f"Conv{rank}d": _CONV for rank in (1, 2, 3)},
    **{f"ConvTranspose{rank}d": _CONV for rank in (1, 2, 3)},
    "Embedding": _EMBEDDING,
    "EmbeddingBag": (*_EMBEDDING, "mode", "include_last_offset"),
    "RNNCell": (*_CELL, "nonlinearity"),
    "LSTMCell": _CELL,
    "GRUCell": _CELL,
    "LSTM": _LAYERS,
    "GRU": _LAYERS,
}
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
LAYERS = ("LSTM", "GRU")
_INTEGERS = (quint8, qint8, quint4x2, qint32)
_SCHEMES = (None, per_tensor_affine, per_channel_affine)
_ZERO = np.array(0, np.int32)


def reference_module(module: Module, weight_qparams: Mapping[str, Any]) -> Module:
    """Return the reference module of a float module, which shares its weights.

    Parameters
    ----------
    module : Module
        Linear, Conv1d to 3d, ConvTranspose1d to 3d, Embedding, EmbeddingBag, LSTM, GRU or one of
        their cells, of ``torch.nn``.
    weight_qparams : mapping
        Of the weight: ``qscheme`` (None for a weight that is only cast), ``dtype``, ``scale``,
        ``zero_point``, ``axis``, ``quant_min``, ``quant_max``, ``is_decomposed``. For cells and
        recurrent layers ``is_decomposed`` and such a mapping for each weight by its name.

    Raises
    ------
    VerifyError
        If the module has no reference module, or the scheme cannot be one of its weight.

    Examples
    --------
    >>> weight = np.float32([[0.5, -1.0]])
    >>> sizes = {"in_features": 2, "out_features": 1}
    >>> linear = Module("torch.nn.Linear", sizes, {"weight": weight, "bias": None})
    >>> qparams = {"qscheme": per_tensor_affine, "dtype": qint8, "scale": 0.01, "zero_point": 0}
    >>> made = reference_module(linear, qparams)
    >>> made.kind, made.weight_scale
    ('torch.ao.nn.quantized.reference.Linear', array(0.01, dtype=float32))
    """
    package, _, name = module.kind.rpartition(".")
    if package != FLOAT or name not in _ATTRIBUTES:
        accepted = ", ".join(f"{FLOAT}.{known}" for known in _ATTRIBUTES)
        raise VerifyError(f"{module.kind} has no reference module; use {accepted}")
    config = {key: getattr(module, key) for key in _ATTRIBUTES[name]}
    made = Module(f"{REFERENCE}.{name}", config, training=True)
    if name in CELLS:
        keys = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        made.state = {key: module.state.get(key) for key in keys}
        _set_each(made, weight_qparams)
    elif name in LAYERS:
        config["proj_size"] = 0
        made.state = {key: value for key, value in module.state.items() if value is not None}
        _set_each(made, weight_qparams, as_int32=True)
    else:
        made.state["weight"] = module.weight
        if not name.startswith("Embedding"):
            made.state["bias"] = module.state.get("bias")
        _set(made, weight_qparams)
    return made


def _set(made: Module, qparams: Mapping[str, Any]) -> None:
    """Add the quantization parameters of the one weight."""
    scheme, dtype = qparams["qscheme"], qparams["dtype"]
    _check_scheme(made, scheme, (*_SCHEMES, per_channel_affine_float_qparams))
    scale, zero_point, axis = np.array(1.0, np.float32), _ZERO.copy(), _ZERO.copy()
    if dtype in _INTEGERS:
        scale, zero_point = _tensor(qparams["scale"]), _tensor(qparams["zero_point"])
        if scheme in (per_channel_affine, per_channel_affine_float_qparams):
            axis = np.array(qparams["axis"], np.int32)
    made.config |= {"weight_qscheme": scheme, "weight_dtype": dtype}
    made.state |= {"weight_scale": scale, "weight_zero_point": zero_point, "weight_axis": axis}
    made.config |= {
        "is_decomposed": qparams.get("is_decomposed", False),
        "weight_axis_int": int(axis),
        "weight_quant_min": qparams.get("quant_min"),
        "weight_quant_max": qparams.get("quant_max"),
    }


def _set_each(made: Module, qparams: Mapping[str, Any], *, as_int32: bool = False) -> None:
    """Add the quantization parameters of each weight of a recurrent module."""
    made.config["is_decomposed"] = qparams["is_decomposed"]
    for name, given in qparams.items():
        if name == "is_decomposed":
            continue
        scheme = given["qscheme"]
        made.config |= {f"{name}_qscheme": scheme, f"{name}_dtype": given["dtype"]}
        _check_scheme(made, scheme, _SCHEMES)
        if scheme is None:
            continue
        zero_point = _tensor(given["zero_point"])
        axis = given["axis"] if scheme == per_channel_affine else 0
        made.state |= {
            f"{name}_scale": _tensor(given["scale"]),
            f"{name}_zero_point": zero_point.astype(np.int32) if as_int32 else zero_point,
            f"{name}_axis": np.array(axis, np.int32),
        }
        made.config[f"{name}_axis_int"] = int(axis)


def _check_scheme(made: Module, scheme: Any, accepted: tuple[Any, ...]) -> None:
    if scheme not in accepted:
        names = ", ".join(map(str, accepted))
        raise VerifyError(f"{made.kind}: the weight's scheme is one of {names}, got {scheme}")


def _tensor(value: Any) -> Array:
    """Return a buffer: a copy of an array, and of a number what torch makes of it."""
    if isinstance(value, np.ndarray):
        return value.copy()
    return np.array(value, np.float32 if isinstance(value, float) else np.int32)
