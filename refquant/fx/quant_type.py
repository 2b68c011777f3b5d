"""The dtypes of quantization, and whether a QConfig quantizes statically or dynamically."""

from __future__ import annotations

from refquant.fx.custom_config import QuantType
from refquant.fx.node_qconfigs import QConfigAny, qconfig_dtypes
from refquant.ir.errors import VerifyError
from refquant.ir.types import (
    DType,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    int8,
    int16,
    int32,
    qint8,
    qint32,
    quint4x2,
    quint8,
    uint8,
)

# The dtypes that observers quantize to with fixed parameters.
QUANTIZED_DTYPES: tuple[DType, ...] = (
    *(quint8, qint8, qint32, uint8, int8, int16, int32),
    *(float8_e5m2, float8_e4m3fn),
)
OBSERVABLE = (*QUANTIZED_DTYPES, float16)


def quant_type(qconfig: QConfigAny) -> QuantType:
    """Return whether a QConfig quantizes statically, dynamically, or only the weight.

    Raises
    ------
    VerifyError
        If its dtypes are none of these.
    """
    activation, weight, is_dynamic = qconfig_dtypes(qconfig)
    if weight in (*QUANTIZED_DTYPES, quint4x2):
        if is_dynamic:
            return QuantType.DYNAMIC
        in_static = activation in (*QUANTIZED_DTYPES, quint4x2)
        return QuantType.STATIC if in_static else QuantType.WEIGHT_ONLY
    if weight == float16:
        if is_dynamic:
            return QuantType.DYNAMIC
        if activation == float16:
            return QuantType.STATIC
    raise VerifyError(f"no quantization type has activation {activation} and weight {weight}")


def is_static(qconfig: QConfigAny) -> bool:
    """Whether activations are quantized with fixed parameters."""
    activation, _, is_dynamic = qconfig_dtypes(qconfig)
    return activation in OBSERVABLE and not is_dynamic
