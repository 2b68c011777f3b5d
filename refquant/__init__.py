"""The executable truth of PyTorch's quantization: bit for bit, without torch."""

from importlib import import_module
from typing import Any

from refquant import kernels
from refquant.ir import (
    Graph,
    QTensor,
    RefquantError,
    Target,
    UnsupportedError,
    VerifyError,
    load,
    parse,
)
from refquant.ir.types import (
    DType,
    QScheme,
    bfloat16,
    bool_,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    per_channel_affine,
    per_channel_affine_float_qparams,
    per_channel_symmetric,
    per_tensor_affine,
    per_tensor_symmetric,
    qint8,
    qint32,
    quint4x2,
    quint8,
    uint8,
    uint16,
)

__version__ = "0.1.0"
__all__ = [
    "DType",
    "Graph",
    "QScheme",
    "QTensor",
    "RefquantError",
    "Target",
    "UnsupportedError",
    "VerifyError",
    "__version__",
    "bfloat16",
    "bool_",
    "float8_e4m3fn",
    "float8_e5m2",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "kernels",
    "load",
    "parse",
    "per_channel_affine",
    "per_channel_affine_float_qparams",
    "per_channel_symmetric",
    "per_tensor_affine",
    "per_tensor_symmetric",
    "qint8",
    "qint32",
    "quint4x2",
    "quint8",
    "uint8",
    "uint16",
]


_SUBMODULES = (
    *("backend_config", "compare", "equalization", "fake_quantize", "functional", "importers"),
    *("observer", "onnx_backend", "ops", "qconfig", "qconfig_mapping", "quantize_fx"),
)
_FUNCTIONS = {
    **dict.fromkeys(
        (
            *("quantize_per_tensor", "quantize_per_channel", "quantize_per_tensor_dynamic"),
            *("dequantize", "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"),
        ),
        "functional",
    ),
    **dict.fromkeys(
        ("QConfigMapping", "get_default_qconfig_mapping", "get_default_qat_qconfig_mapping"),
        "qconfig_mapping",
    ),
    **dict.fromkeys(("QConfig", "get_default_qconfig", "get_default_qat_qconfig"), "qconfig"),
    "GraphModule": "graph_module",
    "export_onnx": "onnx_export",
    "saturation_report": "saturation",
    "set_num_threads": "kernels.threads",
    "get_num_threads": "kernels.threads",
}


def __getattr__(name: str) -> Any:
    """Import the larger submodules when first asked for."""
    if name in _SUBMODULES:
        return import_module(f"refquant.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(f"refquant.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'refquant' has no attribute {name!r}")
