"""Kernels: one op (or family that differs in rank only), one file; this table is the registry."""

from refquant.ir.op import OPS

OPS.declare(
    __name__,
    {
        "dequantize": ("aten::dequantize",),
        "quantize_per_channel": ("aten::quantize_per_channel",),
        "fake_quantize": ("observer::fake_quantize",),
        "observe": ("observer::observe",),
        "quantize_per_tensor": ("aten::quantize_per_tensor",),
        "quantized_add": ("quantized::add", "quantized::add_relu"),
        "quantized_add_scalar": ("quantized::add_scalar", "quantized::add_scalar_relu"),
        "quantized_cat": ("quantized::cat", "quantized::cat_relu"),
        "quantized_conv": (
            *("quantized::conv1d", "quantized::conv2d", "quantized::conv3d"),
            *("quantized::conv1d_relu", "quantized::conv2d_relu", "quantized::conv3d_relu"),
        ),
        "quantized_linear": ("quantized::linear", "quantized::linear_relu"),
        "quantized_mul": ("quantized::mul", "quantized::mul_relu"),
        "quantized_mul_scalar": ("quantized::mul_scalar", "quantized::mul_scalar_relu"),
    },
)
