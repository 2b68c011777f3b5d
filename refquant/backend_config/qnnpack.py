"""What QNNPACK quantizes: uint8, and before it int8 as XNNPACK takes it."""

from __future__ import annotations

from typing import Any

from refquant.backend_config import families
from refquant.backend_config.backend_config import BackendConfig
from refquant.backend_config.dtype_configs import (
    default_op_qint8_symmetric_dtype_config,
    default_op_quint8_dtype_config,
    weighted_op_qint8_symmetric_dtype_config,
    weighted_op_quint8_dtype_config,
)
from refquant.backend_config.native import DYNAMIC, NATIVE

_WEIGHTED = (weighted_op_qint8_symmetric_dtype_config, weighted_op_quint8_dtype_config)
_DEFAULT = (default_op_qint8_symmetric_dtype_config, default_op_quint8_dtype_config)
QNNPACK: families.Table = {
    families.conv: _WEIGHTED,
    families.linear: (*_WEIGHTED, *DYNAMIC),
    families.binary: _DEFAULT,
    families.cat: _DEFAULT,
    families.default_ops: _DEFAULT,
    families.fixed_qparams: _DEFAULT,
    families.share: _DEFAULT,
    families.batch_norm: _DEFAULT,
    families.rnn: NATIVE[families.rnn],
    families.embedding: NATIVE[families.embedding],
}


def get_qnnpack_backend_config() -> BackendConfig:
    """Return what QNNPACK quantizes."""
    return families.backend("qnnpack", QNNPACK)


def get_qnnpack_backend_config_dict() -> dict[str, Any]:
    """Return ``get_qnnpack_backend_config()`` as a dictionary."""
    return get_qnnpack_backend_config().to_dict()
