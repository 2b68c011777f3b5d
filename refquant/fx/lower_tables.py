"""What lowering replaces by what: modules by class, functions and methods by name."""

from __future__ import annotations

from refquant.fx.quantized_modules import NNIQ, NNIQD, NNQ, NNQD
from refquant.fx.reference_modules import FLOAT, REFERENCE
from refquant.ir.types import DType, float16, qint8, quint8

FUSED = "torch.ao.nn.intrinsic"
_F = "torch.nn.functional"
_Q = "torch.ops.quantized"
_RANKS = (1, 2, 3)

RELU_MODULE = f"{FLOAT}.ReLU"
RELU_FUNCTIONS = (f"{_F}.relu", "torch.relu")
LINEAR = f"{_F}.linear"
CONV_1D = f"{_F}.conv1d"
CONV_TRANSPOSE_1D = f"{_F}.conv_transpose1d"
CONVOLUTIONS = frozenset(f"{_F}.conv{rank}d" for rank in _RANKS)
TRANSPOSED = frozenset(f"{_F}.conv_transpose{rank}d" for rank in _RANKS)

# Reference module to quantized module.
STATIC = {
    f"{REFERENCE}.{name}": f"{NNQ}.{name}" for name in ("Linear", "Conv1d", "Conv2d", "Conv3d")
}
DYNAMIC = {
    f"{REFERENCE}.{name}": f"{NNQD}.{name}"
    for name in ("Linear", "GRUCell", "LSTMCell", "RNNCell", "LSTM", "GRU")
}
WEIGHT_ONLY = {f"{REFERENCE}.{name}": f"{NNQ}.{name}" for name in ("Embedding", "EmbeddingBag")}
# Fused container to the reference module that must be its first part, and quantized module.
STATIC_FUSED = {
    **{
        f"{FUSED}.{name}": (f"{REFERENCE}.Linear", f"{NNIQ}.{name}")
        for name in ("LinearReLU", "LinearLeakyReLU", "LinearTanh")
    },
    **{
        f"{FUSED}.ConvReLU{rank}d": (f"{REFERENCE}.Conv{rank}d", f"{NNIQ}.ConvReLU{rank}d")
        for rank in _RANKS
    },
}
STATIC_FUSED_TWO_INPUTS = {
    f"{FUSED}.{name}": (f"{REFERENCE}.Conv2d", f"{NNIQ}.{name}")
    for name in ("ConvAdd2d", "ConvAddReLU2d")
}
DYNAMIC_FUSED = {f"{FUSED}.LinearReLU": (f"{REFERENCE}.Linear", f"{NNIQD}.LinearReLU")}
# Modules without a reference form, and those that torch lowers with them.
SPECIAL = {
    **{
        f"{FLOAT}.{name}": f"{NNQ}.{name}"
        for name in (
            *("BatchNorm2d", "BatchNorm3d", "ELU", "LeakyReLU", "Hardswish", "InstanceNorm1d"),
            *("InstanceNorm2d", "InstanceNorm3d", "LayerNorm", "Dropout", "Softmax", "PReLU"),
        )
    },
    **{f"{REFERENCE}.ConvTranspose{rank}d": f"{NNQ}.ConvTranspose{rank}d" for rank in _RANKS},
    **{f"{FUSED}.BNReLU{rank}d": f"{NNIQ}.BNReLU{rank}d" for rank in (2, 3)},
}

# Function to the quantized function, and its form with relu where there is one.
STATIC_FUNCTIONS: dict[str, tuple[str, str | None]] = {
    LINEAR: (f"{_Q}.linear", f"{_Q}.linear_relu"),
    **{f"{_F}.conv{rank}d": (f"{_Q}.conv{rank}d", f"{_Q}.conv{rank}d_relu") for rank in _RANKS},
    **{f"{_F}.conv_transpose{rank}d": (f"{_Q}.conv_transpose{rank}d", None) for rank in _RANKS},
}
# Function, and dtypes of activation and weight, likewise. Dynamic convolutions are in torch's
# table too, but it skips whatever has no form with relu.
DYNAMIC_FUNCTIONS: dict[str, dict[tuple[DType, DType], tuple[str, str | None]]] = {
    LINEAR: {
        (quint8, qint8): (f"{_Q}.linear_dynamic", f"{_Q}.linear_relu_dynamic"),
        (float16, float16): (f"{_Q}.linear_dynamic_fp16", f"{_Q}.linear_relu_dynamic_fp16"),
    },
    **{
        f"{_F}.conv{rank}d": {(quint8, qint8): (f"{_Q}.conv{rank}d_dynamic", None)}
        for rank in _RANKS
    },
}
BINARY = {
    "operator.add": f"{_Q}.add",
    "torch.add": f"{_Q}.add",
    "operator.mul": f"{_Q}.mul",
    "torch.mul": f"{_Q}.mul",
    "torch.matmul": f"{_Q}.matmul",
}
BINARY_RELU = {
    name: f"{function}_relu" for name, function in BINARY.items() if name != "torch.matmul"
}
LINEAR_PREPACK = {qint8: f"{_Q}.linear_prepack", float16: f"{_Q}.linear_prepack_fp16"}
CONV_PREPACK = {
    name: f"{_Q}.{name.rpartition('.')[2]}_prepack" for name in CONVOLUTIONS | TRANSPOSED
}

# Ops that are lowered wherever they stand between dequantize and quantize: the qparams of the
# result are the op's own,
_SIGMOIDS = {
    *(f"{_F}.hardsigmoid", f"{_F}.sigmoid", "torch.sigmoid"),
    *("hardsigmoid", "hardsigmoid_", "sigmoid", "sigmoid_"),
    *(f"{FLOAT}.Hardsigmoid", f"{FLOAT}.Sigmoid"),
}
_TANHS = {"torch.tanh", "tanh", "tanh_", f"{FLOAT}.Tanh"}
OWN_QPARAMS = {
    **dict.fromkeys(_SIGMOIDS, (1 / 256, 0)),
    **dict.fromkeys(_TANHS, (2 / 256, 128)),
}
_FIXED_QPARAMS = {*OWN_QPARAMS, f"{FLOAT}.Softmax"}
# those of the quantize,
DEFAULT_FUNCTIONS = {
    f"{_F}.{name}": f"{_Q}.{name}"
    for name in ("elu", "hardswish", "instance_norm", "layer_norm", "leaky_relu", "dropout")
}
_DEFAULT = {*DEFAULT_FUNCTIONS, *SPECIAL} - {f"{FLOAT}.Softmax"}
# or those of the operand.
_COPY = {
    *(f"{_F}.adaptive_avg_pool2d", f"{_F}.adaptive_avg_pool3d", f"{_F}.hardtanh"),
    *(f"{_F}.hardtanh_", f"{_F}.interpolate", f"{_F}.max_pool1d", f"{_F}.max_pool2d"),
    *(f"{_F}.max_pool3d", f"{_F}.relu", f"{_F}.relu6", f"{_F}.adaptive_avg_pool1d"),
    *(f"{_F}.avg_pool1d", f"{_F}.avg_pool2d", f"{_F}.avg_pool3d", f"{_F}.channel_shuffle"),
    *("torch.clamp", "torch.flatten", "torch.mean"),
    *("operator.floordiv", "clamp", "mean", "relu", "relu_"),
    *(f"{FLOAT}.{kind}Pool{rank}d" for kind in ("AdaptiveAvg", "Avg", "Max") for rank in _RANKS),
    *(f"{FLOAT}.{name}" for name in ("Hardtanh", "ReLU", "ReLU6", "ChannelShuffle")),
}
_SHAPE = {
    *(f"torch.{name}" for name in ("narrow", "transpose", "repeat_interleave", "squeeze")),
    *("torch.stack", "torch.unsqueeze", f"{_F}.pixel_shuffle", f"{_F}.pixel_unshuffle"),
    *("contiguous", "detach", "detach_", "permute", "repeat", "repeat_interleave", "reshape"),
    *("resize_", "shape", "size", "squeeze", "squeeze_", "transpose", "unsqueeze"),
    *("unsqueeze_", "view"),
    *(f"{FLOAT}.{name}" for name in ("Identity", "PixelShuffle", "PixelUnshuffle")),
}
# Also between dequantize and a cast to float16.
KEEPING = frozenset(_COPY | _SHAPE | {"torch.cat"})
ANYWHERE = frozenset(_FIXED_QPARAMS | _DEFAULT | KEEPING)
# Arguments of the float function that the quantized one does not take.
DROPPED_ARGUMENTS = {
    f"{_Q}.hardswish": ("inplace",),
    f"{_Q}.elu": ("inplace",),
    f"{_Q}.dropout": ("inplace",),
    f"{_Q}.instance_norm": ("running_mean", "running_var", "use_input_stats", "momentum"),
}
