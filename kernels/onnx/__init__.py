"""Operators of ONNX and of onnxruntime's own domain: the table below is their registry.

Operands and attributes are those of the ONNX operator, as plain arrays: a quantized tensor here
is integers beside a scale and a zero point of their own. Shapes that ONNX passes as tensors are
attributes. Operators that ONNX shares with torch are not here: a model's Relu or Conv becomes
``aten::relu`` or ``aten::conv2d``.
"""

from refquant.ir.op import OPS

OPS.declare(
    __name__,
    {
        "gemm": ("onnx::Gemm",),
        "matmul": ("onnx::MatMul",),
        "local_response": ("onnx::Hardmax", "onnx::LRN"),
        "deform_conv": ("onnx::DeformConv",),
        "roi_align": ("onnx::RoiAlign",),
        "hard_sigmoid": ("onnx::HardSigmoid", "onnx::HardSwish"),
        "pools": (
            *("onnx::AveragePool", "onnx::GlobalAveragePool", "onnx::LpPool", "onnx::MaxPool"),
            *("onnx::MaxPool.indices", "onnx::MaxUnpool"),
        ),
        "recurrent": ("onnx::GRU", "onnx::RNN"),
        "lstm": ("onnx::LSTM",),
        "bitwise": (
            *("onnx::BitShift", "onnx::BitwiseAnd", "onnx::BitwiseNot"),
            *("onnx::BitwiseOr", "onnx::BitwiseXor"),
        ),
        "cast": ("onnx::BitCast", "onnx::Cast"),
        "classification": ("onnx::IsInf", "onnx::IsNaN"),
        "col2im": ("onnx::Col2Im",),
        "determinant": ("onnx::Det",),
        "fourier": ("onnx::DFT", "onnx::STFT"),
        "functions": (
            *("onnx::Acos", "onnx::Acosh", "onnx::Asin", "onnx::Asinh", "onnx::Atan"),
            *("onnx::Atanh", "onnx::Cosh", "onnx::Sinh", "onnx::Tan", "onnx::Tanh"),
        ),
        "grid_sample": ("onnx::GridSample",),
        "modulo": ("onnx::Mod",),
        "one_hot": ("onnx::OneHot",),
        "power": ("onnx::Pow",),
        "product": ("onnx::CumProd", "onnx::CumSum", "onnx::ReduceProd", "onnx::ReduceSum"),
        "resize": ("onnx::Resize",),
        "reverse_sequence": ("onnx::ReverseSequence",),
        "scatter": (
            *("onnx::GatherND", "onnx::ScatterElements", "onnx::ScatterND"),
            "onnx::TensorScatter",
        ),
        "quantize_linear": ("onnx::QuantizeLinear",),
        "dequantize_linear": ("onnx::DequantizeLinear",),
        "qlinear_add": ("com.microsoft::QLinearAdd",),
        "matmul_integer": ("onnx::MatMulInteger",),
        "qlinear_matmul": ("onnx::QLinearMatMul",),
        "dynamic_quantize_linear": ("onnx::DynamicQuantizeLinear",),
        "matmul_integer_to_float": (
            "com.microsoft::MatMulIntegerToFloat",
            "com.microsoft::DynamicQuantizeMatMul",
        ),
        "dynamic_quantize_lstm": ("com.microsoft::DynamicQuantizeLSTM",),
        "qattention": ("com.microsoft::QAttention",),
        "qgemm": ("com.microsoft::QGemm",),
        "conv_integer": ("onnx::ConvInteger",),
        "qlinear_conv": ("onnx::QLinearConv",),
        "qlinear_table": ("com.microsoft::QLinearSigmoid", "com.microsoft::QLinearLeakyRelu"),
        "qlinear_concat": ("com.microsoft::QLinearConcat", "com.microsoft::QLinearWhere"),
        "qlinear_softmax": ("com.microsoft::QLinearSoftmax",),
        "qlinear_global_average_pool": ("com.microsoft::QLinearGlobalAveragePool",),
        "qlinear_average_pool": ("com.microsoft::QLinearAveragePool",),
        "matmul_n_bits": ("com.microsoft::MatMulNBits",),
        "qlinear_reduce_mean": ("com.microsoft::QLinearReduceMean",),
        "qlinear_mul": ("com.microsoft::QLinearMul",),
    },
)
