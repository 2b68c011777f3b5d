"""Kernels: one op (or family of one formula), one file; the table below is the registry.

Files that are not in the table are shared by several ops:

* arithmetic: ``rounding``, ``rounding_jit``, ``elementary``, ``elementary_jit``, ``requantize``,
  ``choose_qparams``, ``float_sum``, ``tanh_float``, ``promotion``, ``eager``,
  ``learnable_gradients``;
* modules with a state: ``fused_moving_avg_obs_fake_quant``;
* observers: ``min_max``, ``calculate_qparams``, ``histc``, ``histogram``,
  ``histogram_search``, ``fuse_batch_norm``;
* families: ``activations``, ``averages``, ``decomposed``, ``norms``, ``qnnpack_average``,
  ``qnnpack_softmax``, ``pool_averages``, ``resample``, ``windows``,
  ``products``, ``float_product``;
* compiled loops apart from their op: ``group_norm_loops``, ``max_pool_loops``, ``softmax_loops``;
* tables of embeddings: ``rowwise``;
* memory and loops: ``layout``, ``tensor_iterator``, ``pointwise``, ``movement``, ``lookup``
  (tables of 256 entries), ``row_blocks`` and ``row_sums`` (rows of bytes in registers), ``llvm``;
* int8 products: ``accumulate`` (the reference's sums), ``packing``, ``registers``, ``tile``,
  ``tile_numpy``, ``convolve``;
* the operators of ONNX: the folder ``onnx``, with a table of its own;
* ``jit`` compiles, ``jit_cache`` says where the result is kept, ``checks`` refuses.
"""

from refquant.ir.op import OPS
from refquant.kernels import onnx as onnx

_RANKS = (1, 2, 3)
_BITS = ("byte", "4bit", "2bit")
_BINARY = ("add", "sub", "mul", "div", "floor_divide", "remainder")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_UNARY = (
    *("neg", "abs", "sign", "square", "floor", "ceil", "round", "reciprocal", "rsqrt", "sqrt"),
    *("exp", "log", "log1p", "expm1", "sin", "cos", "erf", "trunc", "logical_not"),
)
_REDUCTIONS = (
    *("sum", "amax", "amin", "argmax", "argmin", "var", "linalg_vector_norm", "cumsum", "topk"),
    *("log_softmax", "max.dim", "min.dim"),
)

OPS.declare(
    __name__,
    {
        "adaptive_avg_pool": (
            "aten::adaptive_avg_pool1d",
            *("aten::adaptive_avg_pool2d", "aten::adaptive_avg_pool3d"),
            "aten::_adaptive_avg_pool3d",
        ),
        "adaptive_max_pool": (
            "aten::adaptive_max_pool1d",
            *("aten::adaptive_max_pool2d", "aten::adaptive_max_pool3d"),
        ),
        "arithmetic": (
            *(f"aten::{name}{form}" for name in _BINARY for form in ("", ".Scalar")),
            *("aten::rsub.Scalar", "aten::maximum", "aten::minimum"),
            *(f"aten::pow.{form}" for form in ("Scalar", "Tensor_Scalar", "Tensor_Tensor")),
        ),
        "as_strided": ("aten::as_strided",),
        "attention": ("aten::scaled_dot_product_attention",),
        "avg_pool": ("aten::avg_pool1d", "aten::avg_pool2d", "aten::avg_pool3d"),
        "batch_norm": (
            *("quantized::batch_norm", "quantized::batch_norm_relu", "quantized::batch_norm1d"),
            *("quantized::batch_norm1d_relu", "quantized::batch_norm2d"),
            *("quantized::batch_norm2d_relu", "quantized::batch_norm3d"),
            *("quantized::batch_norm3d_relu", "aten::batch_norm"),
        ),
        "cast": ("aten::to",),
        "cat": ("aten::cat", "aten::stack"),
        "choose_qparams_optimized": ("aten::choose_qparams_optimized",),
        "clamp": ("aten::clamp", "aten::hardtanh", "aten::relu6"),
        "comparison": tuple(
            f"aten::{name}{form}" for name in _COMPARISONS for form in ("", ".Scalar")
        )
        + tuple(f"aten::logical_{name}" for name in ("and", "or", "xor")),
        "contiguous": ("aten::alias", "aten::clone", "aten::contiguous"),
        "conv": tuple(
            f"aten::{name}{rank}d" for rank in _RANKS for name in ("conv", "conv_transpose")
        ),
        "decomposed_convert": ("quantized_decomposed::convert_element_type.no_fuse",),
        "decomposed_dequantize_per_tensor": tuple(
            f"quantized_decomposed::dequantize_per_tensor{form}"
            for form in ("", ".tensor", ".tensor2")
        ),
        "decomposed_fake_quant": ("quantized_decomposed::fake_quant_per_channel",),
        "decomposed_per_channel": (
            "quantized_decomposed::dequantize_per_channel",
            "quantized_decomposed::quantize_per_channel",
        ),
        "decomposed_per_group": (
            "quantized_decomposed::dequantize_per_channel_group",
            "quantized_decomposed::quantize_per_channel_group",
        ),
        "decomposed_per_token": tuple(
            f"quantized_decomposed::{name}"
            for name in (
                *("choose_qparams_per_token", "choose_qparams_per_token_asymmetric"),
                "_choose_qparams_per_token_asymmetric_impl",
                *("quantize_per_token", "dequantize_per_token"),
            )
        ),
        "decomposed_qparams": (
            "quantized_decomposed::choose_qparams.tensor",
            "quantized_decomposed::choose_qparams_symmetric.tensor",
        ),
        "decomposed_quantize_per_tensor": tuple(
            f"quantized_decomposed::quantize_per_tensor{form}"
            for form in ("", ".tensor", ".tensor2")
        ),
        "dequantize": ("aten::dequantize",),
        "dropout": ("aten::dropout", "quantized::dropout"),
        "elu": ("quantized::elu", "quantized::celu", "aten::elu", "aten::celu"),
        "embedding_bag": (
            *("quantized::embedding_byte", "quantized::embedding_4bit"),
            *("quantized::embedding_bag_byte", "quantized::embedding_bag_4bit"),
            *(f"quantized::embedding_bag_{bits}_rowwise_offsets" for bits in _BITS),
        ),
        "embedding_prepack": (
            *(f"quantized::embedding_bag_{bits}_prepack" for bits in _BITS),
            *(f"quantized::embedding_bag_{bits}_prepack_with_rowwise_min_max" for bits in _BITS),
            *(f"quantized::embedding_bag_{bits}_unpack" for bits in _BITS),
            *("quantized::embedding_bag_prepack", "quantized::embedding_bag_unpack"),
        ),
        "empty": (
            *("aten::empty.memory_format", "aten::empty_like", "aten::empty_quantized"),
            *("aten::_empty_affine_quantized", "aten::_empty_per_channel_affine_quantized"),
        ),
        "equal": ("aten::equal",),
        "expand": ("aten::expand", "aten::repeat"),
        "extreme": ("aten::max", "aten::min"),
        "fake_quantize": ("observer::fake_quantize",),
        "fake_quantize_backward": tuple(
            f"aten::fake_quantize_per_{what}_affine_cachemask_backward"
            for what in ("tensor", "channel")
        ),
        "fake_quantize_per_channel": (
            "aten::fake_quantize_per_channel_affine",
            "aten::fake_quantize_per_channel_affine_cachemask",
        ),
        "fake_quantize_per_tensor": (
            "aten::fake_quantize_per_tensor_affine",
            "aten::fake_quantize_per_tensor_affine.tensor_qparams",
            "aten::fake_quantize_per_tensor_affine_cachemask",
            "aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
        ),
        "fbgemm_linear": ("aten::fbgemm_linear_int8_weight_fp32_activation",),
        "fill": ("aten::fill.Scalar", "aten::fill.Tensor", "aten::masked_fill.Tensor"),
        "gelu": ("aten::gelu",),
        "grid_sampler": ("aten::grid_sampler_2d",),
        "group_norm": ("quantized::group_norm", "quantized::instance_norm"),
        "group_norm_float": ("aten::group_norm", "aten::instance_norm"),
        "hardsigmoid": ("aten::hardsigmoid",),
        "hardswish": ("quantized::hardswish", "aten::hardswish"),
        "index": ("aten::embedding", "aten::gather", "aten::index", "aten::index_select"),
        "index_put": ("aten::index_put",),
        "int_repr": ("aten::int_repr",),
        "layer_norm": ("quantized::layer_norm", "aten::layer_norm"),
        "learnable_fake_quantize": tuple(
            f"aten::_fake_quantize_learnable_per_{what}_affine" for what in ("tensor", "channel")
        ),
        "learnable_fake_quantize_backward": tuple(
            f"aten::_fake_quantize_learnable_per_{what}_affine_backward"
            for what in ("tensor", "channel")
        ),
        "leaky_relu": ("aten::leaky_relu", "quantized::leaky_relu", "aten::leaky_relu.out"),
        "linear": ("aten::linear",),
        "masked": ("aten::masked_fill.Scalar", "aten::tril", "aten::triu", "aten::where"),
        "matmul": ("aten::bmm", "aten::einsum", "aten::matmul"),
        "max_pool": ("aten::max_pool1d", "aten::max_pool2d", "aten::max_pool3d"),
        "mean": ("aten::mean",),
        "new_full": ("aten::new_full",),
        "observe": ("observer::observe",),
        "onednn_arithmetic": tuple(
            f"onednn::{name}.tensor" for name in ("qadd", "qadd_relu", "qmul")
        ),
        "onednn_batch_norm": ("onednn::qbatch_norm2d",),
        "onednn_linear_fp16": (
            *("onednn::linear_dynamic_fp16", "onednn::linear_relu_dynamic_fp16"),
        ),
        "pad": ("aten::pad",),
        "permute": ("aten::permute", "aten::transpose"),
        "pixel_shuffle": (
            *("aten::channel_shuffle", "aten::pixel_shuffle", "aten::pixel_unshuffle"),
        ),
        "prelu": ("quantized::prelu", "aten::prelu"),
        "qconv_pointwise": tuple(
            f"onednn::{name}_pointwise{form}"
            for name, forms in (
                ("qconv", ("", ".tensor")),
                ("qconv1d", ("",)),
                ("qconv2d", ("", ".tensor", ".binary", ".binary_tensor")),
                ("qconv3d", ("",)),
            )
            for form in forms
        ),
        "qlinear_pointwise": tuple(
            f"onednn::qlinear_pointwise{form}"
            for form in ("", ".tensor", ".binary", ".binary_tensor")
        ),
        "quantize_per_channel": ("aten::quantize_per_channel",),
        "quantize_per_tensor": (
            "aten::quantize_per_tensor",
            *("aten::quantize_per_tensor.tensor_qparams", "aten::quantize_per_tensor.tensors"),
        ),
        "quantize_per_tensor_dynamic": ("aten::quantize_per_tensor_dynamic",),
        "quantized_add": (
            *("quantized::add", "quantized::add_relu"),
            *("quantized::add.out", "quantized::add_relu.out"),
        ),
        "quantized_add_scalar": ("quantized::add_scalar", "quantized::add_scalar_relu"),
        "quantized_cat": ("quantized::cat", "quantized::cat_relu"),
        "quantized_conv": (
            *("quantized::conv1d", "quantized::conv2d", "quantized::conv3d"),
            *("quantized::conv1d_relu", "quantized::conv2d_relu", "quantized::conv3d_relu"),
            *("_quantized::conv2d", "_quantized::conv2d_relu"),
        ),
        "quantized_conv_add": ("quantized::conv2d_add", "quantized::conv2d_add_relu"),
        "quantized_conv_dynamic": (
            *("quantized::conv1d_dynamic", "quantized::conv_transpose1d_dynamic"),
            *("quantized::conv2d_dynamic", "quantized::conv_transpose2d_dynamic"),
            *("quantized::conv3d_dynamic", "quantized::conv_transpose3d_dynamic"),
        ),
        "quantized_conv_transpose": (
            *("quantized::conv_transpose1d", "quantized::conv_transpose2d"),
            *("quantized::conv_transpose3d", "_quantized::conv_transpose1d"),
            "_quantized::conv_transpose2d",
        ),
        "quantized_linear": (
            *("quantized::linear", "quantized::linear_relu", "_quantized::linear"),
        ),
        "quantized_linear_dynamic": (
            *("quantized::linear_dynamic", "quantized::linear_relu_dynamic"),
            "_quantized::linear_dynamic",
        ),
        "quantized_linear_dynamic_fp16": (
            *("quantized::linear_dynamic_fp16", "quantized::linear_relu_dynamic_fp16"),
            "quantized::linear_dynamic_fp16_unpacked_weight",
            "_quantized::wrapped_fbgemm_linear_fp16_weight",
        ),
        "quantized_linear_fused": ("quantized::linear_leaky_relu", "quantized::linear_tanh"),
        "quantized_linear_q_dq": (
            "quantized::linear_with_input_q_dq_qweight_dq_output_fp32",
            "quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32",
        ),
        "quantized_matmul": ("quantized::matmul",),
        "quantized_mul": (
            *("quantized::mul", "quantized::mul_relu"),
            *("quantized::mul.out", "quantized::mul_relu.out"),
        ),
        "quantized_mul_scalar": ("quantized::mul_scalar", "quantized::mul_scalar_relu"),
        "quantized_std": ("aten::std",),
        "reduce": tuple(f"aten::{name}" for name in _REDUCTIONS),
        "relu": ("aten::relu",),
        "reshape": ("aten::flatten", "aten::reshape", "aten::view"),
        "roll": ("aten::flip", "aten::roll"),
        "select": ("aten::select", "aten::slice", "aten::split_with_sizes", "aten::unbind"),
        "shrink": ("aten::hardshrink", "aten::softshrink"),
        "sigmoid": ("aten::sigmoid", "quantized::sigmoid"),
        "silu": ("aten::silu",),
        "softmax": ("quantized::softmax", "aten::softmax"),
        "softplus": ("aten::softplus", "aten::log_sigmoid", "aten::mish"),
        "sort": ("aten::sort.stable",),
        "squeeze": ("aten::squeeze", "aten::unsqueeze"),
        "tanh": ("aten::tanh",),
        "threshold": ("aten::threshold",),
        "unary": tuple(f"aten::{name}" for name in _UNARY),
        "unfold": ("aten::unfold", "aten::im2col"),
        "upsample_bicubic": ("aten::upsample_bicubic2d",),
        "upsample_bilinear": ("aten::upsample_bilinear2d",),
        "upsample_nearest": (
            *("aten::upsample_nearest1d", "aten::upsample_nearest2d", "aten::upsample_nearest3d"),
            *("aten::_upsample_nearest_exact1d", "aten::_upsample_nearest_exact2d"),
            "aten::_upsample_nearest_exact3d",
        ),
        "wrapped_linear": (
            "_quantized::wrapped_quantized_linear",
            "_quantized::_wrapped_quantized_linear_prepacked",
        ),
        "write": ("memory::write",),
    },
)
