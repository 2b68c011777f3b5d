"""Rules for ``torch.ops.onednn``: what pt2e lowers quantized products to.

A weight is packed into a tensor of oneDNN's own layout, in the graph or before. In the graph it
is a :class:`Prepacked`; a packed tensor that the model holds is read as oneDNN shows it: that of
a linear with rows and columns exchanged, that of a 1-D convolution as one of height 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refquant.importers.builder import Rule
from refquant.importers.rules import Prepacked, TorchBuilder
from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Value

_FIRST = ("qx", "x_scale", "x_zero_point", "qw", "w_scale", "w_zero_point")
_OUTPUT = ("output_scale", "output_zero_point", "output_dtype")
_GEOMETRY = ("stride", "padding", "dilation", "groups")
_LINEAR = (*_FIRST, "bias", *_OUTPUT, "post_op_name", "post_op_args", "post_op_algorithm")
_LINEAR_BINARY = (
    *(*_FIRST, "other", "bias", *_OUTPUT, "other_scale", "other_zp", "binary_post_op"),
    *("binary_alpha", "unary_post_op", "unary_post_op_args", "unary_post_op_algorithm"),
)
_CONVOLUTION = (*_FIRST, "bias", *_GEOMETRY, *_OUTPUT, "attr", "scalars", "algorithm")
_CONVOLUTION_BINARY = (
    *(*_FIRST, "qaccum", "bias", *_GEOMETRY, *_OUTPUT, "accum_scale", "accum_zero_point"),
    *("binary_attr", "alpha", "unary_attr", "unary_scalars", "unary_algorithm"),
)
_TENSORS = ("qx", "qw", "w_scale", "w_zero_point", "other", "qaccum", "bias")
_SCALES = ("output_scale", "other_scale", "accum_scale", "eps")
_NUMBERS = {
    **dict.fromkeys(("x_scale", *_SCALES, "self_scale", "qx_scale"), float),
    **dict.fromkeys(("x_zero_point", "output_zero_point", "other_zp"), int),
    **dict.fromkeys(("accum_zero_point", "self_zero_point", "other_zero_point"), int),
    "qx_zero_point": int,
}


def _named(
    forms: Sequence[Sequence[str]], args: Sequence[Any], rest: Mapping[str, Any]
) -> dict[str, Any]:
    """Return arguments by name, of the form that has so many."""
    count = len(args) + len(rest)
    names = next((form for form in forms if len(form) == count), None)
    if names is None:
        raise UnsupportedError(f"an operator of oneDNN with {count} arguments")
    return {**dict(zip(names, args, strict=False)), **rest}


def _plain(b: TorchBuilder, key: str, value: Any) -> Any:
    """Return an attribute as the op takes it."""
    if key in _NUMBERS:
        return b.number(value, _NUMBERS[key])
    return tuple(value) if isinstance(value, list | tuple) else value


def _weight_of_linear(b: TorchBuilder, qw: Any, _rank: int) -> Value:
    if isinstance(qw, Prepacked):
        return qw.weight
    return b.parameter(f"{qw.name}.rows", np.ascontiguousarray(np.asarray(b.constant(qw)).T))


def _weight_of_convolution(b: TorchBuilder, qw: Any, rank: int) -> Value:
    if isinstance(qw, Prepacked):
        return qw.weight
    held = np.asarray(b.constant(qw))
    if held.ndim == rank:
        return qw  # type: ignore[no-any-return]
    return b.parameter(f"{qw.name}.line", held.squeeze(-2))


def _pointwise(op: str, forms: Sequence[Sequence[str]], weight_of: Any) -> Rule:
    """Return the rule of all overloads of a product."""

    def rule(b: TorchBuilder, *args: Any, **rest: Any) -> Value:
        given = _named(forms, args, rest)
        accumulator = given.get("qaccum", given.get("other"))
        name = f"onednn::{op}"
        form = "binary" if len(given) == len(forms[-1]) else ""
        operands = [given[key] for key in _TENSORS if key in given]
        operands[1] = weight_of(b, given["qw"], given["qx"].type.rank)
        numbers = [given[key] for key in ("x_scale", "x_zero_point")]
        attributes = {
            key: _plain(b, key, value)
            for key, value in given.items()
            if key not in (*_TENSORS, "x_scale", "x_zero_point")
        }
        try:
            keys = ("x_scale", "x_zero_point")
            known = {k: _plain(b, k, v) for k, v in zip(keys, numbers, strict=True)}
        except UnsupportedError:  # computed by the model
            form = f"{form}_tensor" if form else "tensor"
            operands[1:1] = numbers
            known = {}
        result = b.emit(f"{name}.{form}" if form else name, *operands, **known, **attributes)
        how = attributes.get("binary_attr", attributes.get("binary_post_op"))
        if how == "sum" and accumulator is not None:
            b.overwrite(accumulator)
        return result

    return rule


def _elementwise(op: str, names: Sequence[str], tensors: int) -> Rule:
    """Return the rule of an operator whose tensors are not packed."""

    def rule(b: TorchBuilder, *args: Any, **rest: Any) -> Value:
        given = _named([names], args, rest)
        keys = [key for key in names if key not in _NUMBERS and key != "output_dtype"]
        attributes = {k: _plain(b, k, v) for k, v in given.items() if k not in keys}
        return b.emit(f"onednn::{op}", *(given[key] for key in keys[:tensors]), **attributes)

    return rule


def qlinear_prepack(
    b: TorchBuilder, weight: Value, x_shape: Sequence[int] | None = None
) -> Prepacked:
    """``torch.ops.onednn.qlinear_prepack`` and ``linear_prepack_fp16``."""
    return Prepacked(weight, None, {})


def qconv_prepack(b: TorchBuilder, weight: Value, *args: Any, **rest: Any) -> Prepacked:
    """``torch.ops.onednn.qconv_prepack``; the operator is given the geometry again."""
    return Prepacked(weight, None, {})


def linear_fp16(op: str) -> Rule:
    """Return the rule of a linear whose weight is rounded to float16."""

    def rule(b: TorchBuilder, x: Value, w: Any, bias: Value | None) -> Value:
        if isinstance(w, Prepacked):
            weight = w.weight
        else:
            held = np.asarray(b.constant(w)).T.astype(np.float32)
            weight = b.parameter(f"{w.name}.rows", np.ascontiguousarray(held))
        return b.emit(f"onednn::{op}", x, weight, bias)

    return rule


_ARITHMETIC = (
    *("self", "self_scale", "self_zero_point", "other", "other_scale", "other_zero_point"),
    *_OUTPUT,
)
_BATCH_NORM = (
    *("qx", "qx_scale", "qx_zero_point", "weight", "bias", "mean", "var", "eps"),
    *_OUTPUT,
)
_LINEARS = _pointwise("qlinear_pointwise", (_LINEAR, _LINEAR_BINARY), _weight_of_linear)
_CONVOLUTIONS = {
    name: _pointwise(name, (_CONVOLUTION, _CONVOLUTION_BINARY), _weight_of_convolution)
    for name in ("qconv_pointwise", *(f"qconv{rank}d_pointwise" for rank in (1, 2, 3)))
}
_FORMS = ("", ".default", ".tensor", ".binary", ".binary_tensor")

ONEDNN: dict[str, Rule] = {
    "qlinear_prepack": qlinear_prepack,
    "qconv_prepack": qconv_prepack,
    **{f"qlinear_pointwise{form}": _LINEARS for form in _FORMS},
    **{f"{name}{form}": rule for name, rule in _CONVOLUTIONS.items() for form in _FORMS},
    **{
        f"{name}{form}": _elementwise(f"{name}.tensor", _ARITHMETIC, 2)
        for name in ("qadd", "qadd_relu", "qmul")
        for form in ("", ".tensor")
    },
    **{name: linear_fp16(name) for name in ("linear_dynamic_fp16", "linear_relu_dynamic_fp16")},
    "linear_prepack_fp16": qlinear_prepack,
    "qbatch_norm2d": _elementwise("qbatch_norm2d", _BATCH_NORM, 5),
}
