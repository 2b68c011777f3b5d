"""What torch's own engines quantize, fbgemm's and qnnpack's together: the default."""

from __future__ import annotations

from typing import Any

from refquant.backend_config import families
from refquant.backend_config.backend_config import BackendConfig
from refquant.backend_config.dtype_configs import (
    default_dynamic_float16_dtype_config,
    default_dynamic_int8_dtype_config,
    default_op_fp16_dtype_config,
    default_op_quint8_dtype_config,
    input_output_only_quint8_dtype_config,
    weight_only_quint4x2_dtype_config,
    weight_only_quint8_dtype_config,
    weighted_op_quint8_dtype_config,
)

__all__ = [
    "default_dynamic_float16_dtype_config",
    "default_dynamic_int8_dtype_config",
    "default_op_fp16_dtype_config",
    "default_op_quint8_dtype_config",
    "get_native_backend_config",
    "get_native_backend_config_dict",
    "get_test_only_legacy_native_backend_config",
    "get_test_only_legacy_native_backend_config_dict",
    "input_output_only_quint8_dtype_config",
    "weight_only_quint4x2_dtype_config",
    "weight_only_quint8_dtype_config",
]

DYNAMIC = (default_dynamic_int8_dtype_config, default_dynamic_float16_dtype_config)
NATIVE: families.Table = {
    families.conv: (weighted_op_quint8_dtype_config,),
    families.linear: (weighted_op_quint8_dtype_config, *DYNAMIC),
    families.binary: (default_op_quint8_dtype_config,),
    families.cat: (default_op_quint8_dtype_config,),
    families.default_ops: (default_op_quint8_dtype_config,),
    families.fixed_qparams: (default_op_quint8_dtype_config,),
    families.share: (default_op_quint8_dtype_config,),
    families.tensor_info: (default_op_quint8_dtype_config,),
    families.batch_norm: (default_op_quint8_dtype_config,),
    families.layer_norm: (input_output_only_quint8_dtype_config,),
    families.rnn: DYNAMIC,
    families.embedding: (weight_only_quint8_dtype_config, weight_only_quint4x2_dtype_config),
}
_WITH_FLOAT16 = (families.linear, families.binary, families.fixed_qparams, families.share)
_LEGACY = NATIVE | {
    family: (*NATIVE[family], default_op_fp16_dtype_config) for family in _WITH_FLOAT16
}


def get_native_backend_config() -> BackendConfig:
    """Return what torch's own engines quantize.

    Examples
    --------
    >>> len(get_native_backend_config().configs)
    194
    """
    return families.backend("native", NATIVE)


def get_native_backend_config_dict() -> dict[str, Any]:
    """Return ``get_native_backend_config()`` as a dictionary."""
    return get_native_backend_config().to_dict()


def get_test_only_legacy_native_backend_config() -> BackendConfig:
    """Return the native config with static float16 besides."""
    return families.backend("_native_and_fp16", _LEGACY)


def get_test_only_legacy_native_backend_config_dict() -> dict[str, Any]:
    """Return ``get_test_only_legacy_native_backend_config()`` as a dictionary."""
    return get_test_only_legacy_native_backend_config().to_dict()
