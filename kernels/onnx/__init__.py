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
    },
)
