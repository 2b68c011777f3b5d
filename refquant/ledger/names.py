"""What torch's operator names are that have no samples of their own.

Every name of the namespaces ``quantized``, ``_quantized``, ``onednn`` and
``quantized_decomposed``, and of the aten operators with a kernel for quantized tensors, has a
sampler or stands in exactly one table here. A name in ``FORMS`` or ``ACCESSORS`` counts
because a model that calls it imports and gives torch's bits: ``tests/test_names.py`` shows it.
"""

from __future__ import annotations

from refquant.ir.op import OPS

_RANKS = (1, 2, 3)
_BINARY = ("add", "add_relu", "mul", "mul_relu")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


def _scalar(name: str) -> str:
    stem, _, relu = name.partition("_")
    return f"quantized::{stem}_scalar" + ("_relu" if relu else "")


FORMS: dict[str, str] = {
    # numbers as scalars, tensors or first argument; results written to a given tensor
    **{
        f"quantized::{name}.{form}": _scalar(name)
        for name in _BINARY
        for form in ("Scalar", "Scalar2", "Scalar_out")
    },
    **{
        f"{_scalar(name)}{form}": _scalar(name)
        for name in _BINARY
        for form in (".Tensor", "_out", "_out.Tensor")
    },
    **{f"quantized::{name}_out": f"quantized::{name}.out" for name in _BINARY},
    "quantized::cat_out": "quantized::cat",
    "quantized::cat_relu_out": "quantized::cat_relu",
    # names of their own for an aten operator
    **{f"quantized::{name}": f"aten::{name}" for name in ("clamp", "relu6", "threshold")},
    **{f"quantized::max_pool{rank}d": f"aten::max_pool{rank}d" for rank in (1, 2)},
    # overloads
    **{
        f"quantized::conv{rank}d{relu}.new": f"quantized::conv{rank}d{relu}"
        for rank in (2, 3)
        for relu in ("", "_relu")
    },
    "_quantized::add": "quantized::add",
    # recurrent cells: products of the registry, and float arithmetic
    **{
        f"quantized::quantized_{cell}_cell_dynamic": "quantized::linear_dynamic"
        for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    },
    # aten: overloads
    **{f"aten::{name}.Tensor": f"aten::{name}" for name in _COMPARISONS},
    "aten::dequantize.self": "aten::dequantize",
    "aten::dequantize.tensors": "aten::dequantize",
    "aten::index.Tensor": "aten::index",
    "aten::mean.dim": "aten::mean",
    "aten::squeeze.dim": "aten::squeeze",
    "aten::squeeze.dims": "aten::squeeze",
    "aten::std.correction": "aten::std",
    # aten: written to a given tensor, or in place
    **{f"aten::{name}.Tensor_out": f"aten::{name}" for name in _COMPARISONS},
    **{f"aten::{name}.Scalar_out": f"aten::{name}.Scalar" for name in _COMPARISONS},
    "aten::adaptive_avg_pool3d.out": "aten::_adaptive_avg_pool3d",
    "aten::cat.out": "quantized::cat",
    "aten::hardsigmoid.out": "aten::hardsigmoid",
    "aten::hardtanh.out": "aten::hardtanh",
    "aten::index_select.out": "aten::index_select",
    "aten::max.unary_out": "aten::max",
    "aten::mean.out": "aten::mean",
    "aten::min.unary_out": "aten::min",
    "aten::reflection_pad1d.out": "aten::pad",
    "aten::reflection_pad2d": "aten::pad",
    "aten::reflection_pad2d.out": "aten::pad",
    "aten::std.correction_out": "aten::std",
    "aten::_index_put_impl_": "aten::index_put",
    "aten::fill_.Scalar": "aten::fill.Scalar",
    "aten::fill_.Tensor": "aten::fill.Tensor",
    "aten::gelu_": "aten::gelu",
    "aten::hardtanh_": "aten::hardtanh",
    "aten::leaky_relu_": "aten::leaky_relu.out",
    "aten::masked_fill_.Scalar": "aten::masked_fill.Scalar",
    "aten::masked_fill_.Tensor": "aten::masked_fill.Tensor",
    "aten::relu_": "aten::relu",
    "aten::resize_": "aten::as_strided",
    "aten::set_.source_Storage_storage_offset": "aten::as_strided",
    # aten: other names
    "aten::_adaptive_avg_pool2d": "aten::adaptive_avg_pool2d",
    "aten::_prelu_kernel": "quantized::prelu",
    "aten::_reshape_alias": "aten::as_strided",
    "aten::quantized_batch_norm": "quantized::batch_norm",
    **{f"aten::quantized_max_pool{rank}d": f"aten::max_pool{rank}d" for rank in _RANKS},
}

_PACK = "packs parameters: read by the importer"
_LOOK = "looks at packed parameters: read by the importer"
_MEMORY = "makes memory: an import refuses to read what was not written to it"
_QPARAMS = "reads quantization parameters: a constant for the importer"

ACCESSORS: dict[str, str] = {
    **{f"quantized::conv{rank}d_{what}pack": _PACK for rank in _RANKS for what in ("pre", "un")},
    **{
        f"quantized::conv_transpose{rank}d_{what}pack": _PACK
        for rank in _RANKS
        for what in ("pre", "un")
    },
    **{f"quantized::{name}": _PACK for name in ("conv_prepack", "conv_unpack")},
    **{
        f"quantized::linear_{what}pack{form}": _PACK
        for what in ("pre", "un")
        for form in ("", "_fp16")
    },
    **{
        f"quantized::make_quantized_cell_params{form}": _PACK for form in ("", "_dynamic", "_fp16")
    },
    **{
        f"quantized::conv{form}{rank}d_{name}": _LOOK
        for form in ("", "_transpose")
        for rank in (2, 3)
        for name in ("stride", "padding", "output_padding", "dilation", "groups", "transpose")
    },
    "quantized::conv2d_unpack_sizes": _LOOK,
    "quantized::embedding_bag_prepack": _PACK,
    **{
        f"aten::{name}": _MEMORY
        for name in (
            *("empty.memory_format", "empty_like", "empty_quantized"),
            *("_empty_affine_quantized", "_empty_per_channel_affine_quantized"),
        )
    },
    **{
        f"_quantized::{name}_prepack": _PACK
        for name in (
            *("conv2d", "conv3d", "linear"),
            *(f"conv_transpose{rank}d" for rank in _RANKS),
        )
    },
    "_quantized::linear_prepack_fp16": _PACK,
    "onednn::qlinear_prepack": _PACK,
    "onednn::qconv_prepack": _PACK,
    "onednn::linear_prepack_fp16": _PACK,
    "_quantized::_wrapped_linear_prepack": _PACK,
    "_quantized::wrapped_fbgemm_pack_gemm_matrix_fp16": _PACK,
    **{
        f"aten::{name}": _QPARAMS
        for name in (
            *("q_scale", "q_zero_point", "qscheme", "q_per_channel_axis"),
            *("q_per_channel_scales", "q_per_channel_zero_points"),
        )
    },
}

_LEGACY = "torch refuses every call: it was for parameters packed into a tensor"

NO_ARITHMETIC: dict[str, str] = {
    **{
        f"{space}::linear_prepack{form}_legacy": _LEGACY
        for space in ("quantized", "_quantized")
        for form in ("", "_fp16")
    },
    **{f"quantized::linear_unpack{form}.legacy": _LEGACY for form in ("", "_fp16")},
    **{f"_quantized::conv3d{relu}": "torch has no kernel for it" for relu in ("", "_relu")},
    "aten::empty_strided": "torch refuses every call with a quantized dtype",
}


def _waiting(namespace: str, names: str, reason: str) -> dict[str, str]:
    """Return names and reason, without those that have become ops of the registry."""
    full = (f"{namespace}::{name}" for name in names.split())
    return {name: reason for name in full if name not in OPS}


NOT_COVERED: dict[str, str] = {
    **_waiting(
        "quantized",
        "int4mm_packed_weight_cpu",
        "4-bit weights of groups: float sums in an order of the machine's own",
    ),
}
