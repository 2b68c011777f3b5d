"""Kernels: one op (or family that differs in rank only), one file; this table is the registry."""

from refquant.ir.op import OPS

_BINARY = ("add", "sub", "mul", "div", "floor_divide", "remainder")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_UNARY = (
    *("neg", "abs", "sign", "square", "floor", "ceil", "round", "reciprocal", "rsqrt", "sqrt"),
    *("exp", "log", "sin", "cos", "erf", "logical_not"),
)

OPS.declare(
    __name__,
    {
        "adaptive_avg_pool": (
            *("aten::adaptive_avg_pool1d"),
            *("aten::adaptive_avg_pool2d", "aten::adaptive_avg_pool3d"),
        ),
        "arithmetic": (
            *(f"aten::{name}{form}" for name in _BINARY for form in ("", ".Scalar")),
            *("aten::rsub.Scalar", "aten::maximum", "aten::minimum"),
            *(f"aten::pow.{form}" for form in ("Scalar", "Tensor_Scalar", "Tensor_Tensor")),
        ),
        "cast": ("aten::to",),
        "comparison": tuple(
            f"aten::{name}{form}" for name in _COMPARISONS for form in ("", ".Scalar")
        ),
        "unary": tuple(f"aten::{name}" for name in _UNARY),
        "avg_pool": ("aten::avg_pool1d", "aten::avg_pool2d", "aten::avg_pool3d"),
        "contiguous": ("aten::alias", "aten::clone", "aten::contiguous"),
        "dequantize": ("aten::dequantize",),
        "expand": ("aten::expand", "aten::repeat"),
        "fake_quantize": ("observer::fake_quantize",),
        "max_pool": ("aten::max_pool1d", "aten::max_pool2d", "aten::max_pool3d"),
        "mean": ("aten::mean",),
        "observe": ("observer::observe",),
        "permute": ("aten::permute", "aten::transpose"),
        "quantize_per_channel": ("aten::quantize_per_channel",),
        "quantize_per_tensor": ("aten::quantize_per_tensor",),
        "quantize_per_tensor_dynamic": ("aten::quantize_per_tensor_dynamic",),
        "quantized_add": ("quantized::add", "quantized::add_relu"),
        "quantized_add_scalar": ("quantized::add_scalar", "quantized::add_scalar_relu"),
        "quantized_cat": ("quantized::cat", "quantized::cat_relu"),
        "quantized_conv": (
            *("quantized::conv1d", "quantized::conv2d", "quantized::conv3d"),
            *("quantized::conv1d_relu", "quantized::conv2d_relu", "quantized::conv3d_relu"),
        ),
        "quantized_conv_transpose": (
            *("quantized::conv_transpose1d", "quantized::conv_transpose2d"),
            "quantized::conv_transpose3d",
        ),
        "quantized_linear": ("quantized::linear", "quantized::linear_relu"),
        "quantized_linear_dynamic": (
            *("quantized::linear_dynamic", "quantized::linear_relu_dynamic"),
        ),
        "quantized_mul": ("quantized::mul", "quantized::mul_relu"),
        "quantized_mul_scalar": ("quantized::mul_scalar", "quantized::mul_scalar_relu"),
        "reshape": ("aten::flatten", "aten::reshape", "aten::view"),
        "select": ("aten::select", "aten::slice", "aten::split_with_sizes", "aten::unbind"),
        "squeeze": ("aten::squeeze", "aten::unsqueeze"),
    },
)
