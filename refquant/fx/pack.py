"""Quantizing and packing weights, as torch's ``_prepack`` operators do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.module import Packed
from refquant.ir.op import OPS
from refquant.ir.qtensor import Array, QTensor, Tensor, type_of
from refquant.ir.target import Target
from refquant.ir.types import (
    DType,
    float16,
    per_channel_affine,
    per_channel_affine_float_qparams,
    per_tensor_affine,
    qint8,
    qint32,
    quint4x2,
    quint8,
)
from refquant.kernels.rounding import half as half
from refquant.kernels.rounding import half_saturated

_BY_TENSOR = (quint8, qint8, qint32)
_BY_CHANNEL = (*_BY_TENSOR, quint4x2)


def quantize_per_tensor(weight: Array, scale: Any, zero_point: Any, dtype: DType) -> QTensor:
    """Quantize a constant with one scale and zero point, numbers or arrays of one element."""
    op = OPS["aten::quantize_per_tensor"].bind(Target(), fast=True)
    scale, zero_point = (np.asarray(value).reshape(-1)[0] for value in (scale, zero_point))
    made: QTensor = op(weight, scale=float(scale), zero_point=int(zero_point), dtype=dtype)
    return made


def quantize_per_channel(
    weight: Array, scales: Array, zero_points: Array, axis: int, dtype: DType
) -> QTensor:
    """Quantize a constant with a scale and zero point for each index of an axis."""
    op = OPS["aten::quantize_per_channel"].bind(Target(), fast=True)
    made: QTensor = op(weight, scales=scales, zero_points=zero_points, axis=axis, dtype=dtype)
    return made


def quantized_weight(module: Any, name: str = "weight") -> Tensor:
    """Return a weight of a reference module as integers, or as float16.

    Parameters
    ----------
    module : Module
        Made by :func:`~refquant.fx.reference_modules.reference_module`.
    name : str
        Of the weight; recurrent modules have several.

    Raises
    ------
    VerifyError
        If dtype and scheme do not go together.
    """
    weight, scheme = module.state[name], module.config[f"{name}_qscheme"]
    dtype = module.config[f"{name}_dtype"]
    if dtype == float16:
        return half(weight)
    scale, zero_point = module.state[f"{name}_scale"], module.state[f"{name}_zero_point"]
    if scheme == per_tensor_affine and dtype in _BY_TENSOR:
        return quantize_per_tensor(weight, scale, zero_point, dtype)
    by_channel = (per_channel_affine, per_channel_affine_float_qparams)
    if scheme in by_channel and dtype in _BY_CHANNEL:
        axis = module.config[f"{name}_axis_int"]
        return quantize_per_channel(weight, scale, zero_point, axis, dtype)
    raise VerifyError(f"a weight cannot be {dtype} with the scheme {scheme}")


def linear_prepack(weight: Any, bias: Array | None = None) -> Packed:
    """Pack ``quantized::linear``'s weight, which must be qint8."""
    _check_weight("linear_prepack", weight, 2)
    _check_bias("linear_prepack", bias, weight.shape[0])
    if weight.axis is not None:
        weight = _rows(weight)
    return Packed(_single(weight), bias, {})


def _rows(weight: QTensor) -> QTensor:
    """Return the weight with its parameters taken for rows, whatever their axis is."""
    rows = weight.shape[0]
    scale, zero_point = np.asarray(weight.scale), np.asarray(weight.zero_point)
    if len(scale) < rows:
        raise VerifyError(
            f"linear_prepack: {rows} rows need as many scales, got {len(scale)} along axis "
            f"{weight.axis}; observe the weight along axis 0"
        )
    return QTensor(weight.int_repr, scale[:rows], zero_point[:rows], 0, weight.dtype)


def linear_prepack_fp16(weight: Any, bias: Array | None = None) -> Packed:
    """Pack a float weight rounded to float16; what is out of range saturates."""
    if isinstance(weight, QTensor):
        raise VerifyError(f"linear_prepack_fp16: the weight must be float, got {weight.dtype}")
    return Packed(half_saturated(weight), bias, {})


def conv_prepack(rank: int) -> Callable[..., Packed]:
    """Return the function that packs the weight of a quantized convolution.

    Parameters
    ----------
    rank : int
        1, 2 or 3; a convolution of one dimension is packed as one of height 1.
    """
    name = f"conv{rank}d_prepack"

    def prepack(
        weight: Any, bias: Array | None, stride: Any, padding: Any, dilation: Any, groups: Any
    ) -> Packed:
        given = {"stride": stride, "padding": padding, "dilation": dilation}
        geometry = _geometry(name, rank, given, groups)
        _check_weight(name, weight, rank + 2)
        if weight.shape[0] % geometry["groups"]:
            raise VerifyError(
                f"{name}: {geometry['groups']} groups do not divide {weight.shape[0]} channels"
            )
        if weight.axis not in (None, 0):
            raise VerifyError(f"{name}: the scales must be along axis 0, got {weight.axis}")
        _check_bias(name, bias, weight.shape[0])
        return Packed(_with_height(_single(weight), rank), bias, geometry)

    return prepack


def conv_transpose_prepack(rank: int) -> Callable[..., Packed]:
    """Return the function that packs the weight of a quantized transposed convolution."""
    name = f"conv_transpose{rank}d_prepack"

    def prepack(
        weight: Any,
        bias: Array | None,
        stride: Any,
        padding: Any,
        output_padding: Any,
        dilation: Any,
        groups: Any,
    ) -> Packed:
        given = {"stride": stride, "padding": padding, "dilation": dilation}
        given["output_padding"] = output_padding
        geometry = _geometry(name, rank, given, groups)
        _check_weight(name, weight, rank + 2)
        if weight.axis is not None:
            raise VerifyError(
                f"{name}: the weight must be quantized per tensor, got per channel; use a "
                "per tensor weight observer for transposed convolutions"
            )
        _check_bias(name, bias, weight.shape[1] * geometry["groups"])
        return Packed(_with_height(_single(weight), rank), bias, geometry)

    return prepack


def embedding_prepack(weight: Tensor) -> Packed:
    """Pack the table of a quantized embedding, of quint8 or quint4x2 rows."""
    OPS["quantized::embedding_bag_prepack"].infer(type_of(weight))
    assert isinstance(weight, QTensor)
    bits = 4 if weight.dtype == quint4x2 else 8
    return Packed(weight, None, {"bits": bits})


PREPACK: dict[str, Callable[..., Packed]] = {
    "linear_prepack": linear_prepack,
    "linear_prepack_fp16": linear_prepack_fp16,
    **{f"conv{rank}d_prepack": conv_prepack(rank) for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d_prepack": conv_transpose_prepack(rank) for rank in (1, 2, 3)},
}


def _check_weight(name: str, weight: Any, rank: int) -> None:
    if not isinstance(weight, QTensor) or weight.dtype != qint8:
        raise VerifyError(f"{name}: the weight must be qint8, got {weight.dtype}")
    if len(weight.shape) != rank:
        raise VerifyError(
            f"{name}: the weight must have {rank} dimensions, got {len(weight.shape)}"
        )


def _check_bias(name: str, bias: Array | None, channels: int) -> None:
    if bias is not None and bias.shape != (channels,):
        raise VerifyError(f"{name}: the bias must have shape [{channels}], got {list(bias.shape)}")


def _geometry(name: str, rank: int, given: Mapping[str, Any], groups: Any) -> dict[str, Any]:
    """Check and return the geometry; of one dimension with that of a height of 1 before it."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        if not isinstance(value, tuple | list) or not all(isinstance(n, int) for n in value):
            raise VerifyError(
                f"{name}: {key} must be a tuple of {rank} ints, got {value!r}; write it so, "
                "quantized convolutions take no other form"
            )
        ints = tuple(map(int, value))
        if rank == 1:
            if not ints:
                raise VerifyError(f"{name}: {key} must have an entry, got none")
            height = 1 if key in ("stride", "dilation") else 0
            ints = (height, ints[0] if len(ints) == 1 else ints[1])
        elif len(ints) != rank:
            raise VerifyError(f"{name}: {key} must have {rank} entries, got {len(ints)}")
        found[key] = ints
    if not isinstance(groups, int):
        raise VerifyError(f"{name}: groups must be an int, got {groups!r}")
    output_padding = found.pop("output_padding", None)
    found["groups"] = int(groups)
    return found if output_padding is None else {**found, "output_padding": output_padding}


def _single(weight: QTensor) -> QTensor:
    """Return the weight with its scales rounded to float32, as packed memory holds them."""
    scale: Any = np.asarray(weight.scale).astype(np.float32).astype(np.float64)
    if weight.axis is None:
        scale = float(scale)
    return QTensor(weight.int_repr, scale, weight.zero_point, weight.axis, weight.dtype)


def _with_height(weight: QTensor, rank: int) -> QTensor:
    return weight.with_int_repr(weight.int_repr[..., None, :]) if rank == 1 else weight
