"""What TensorRT quantizes: int8 only."""

from __future__ import annotations

from typing import Any

from refquant.backend_config import families
from refquant.backend_config.backend_config import BackendConfig
from refquant.backend_config.dtype_configs import (
    non_weighted_op_qint8_dtype_config,
    weighted_op_qint8_dtype_config,
)


def addmm(dtypes: families.DTypes) -> families.Entries:
    """Return ``torch.addmm(bias, input, weight)``."""
    return [families.entry("torch.addmm", dtypes, index={"bias": 0, "input": 1, "weight": 2})]


TENSORRT: families.Table = {
    families.conv: (weighted_op_qint8_dtype_config,),
    addmm: (weighted_op_qint8_dtype_config,),
    families.cat: (non_weighted_op_qint8_dtype_config,),
    families.linear: (weighted_op_qint8_dtype_config,),
    families.binary: (weighted_op_qint8_dtype_config,),
    families.share: (non_weighted_op_qint8_dtype_config,),
    families.tensor_info: (non_weighted_op_qint8_dtype_config,),
}


def get_tensorrt_backend_config() -> BackendConfig:
    """Return what TensorRT quantizes."""
    return families.backend("tensorrt", TENSORRT)


def get_tensorrt_backend_config_dict() -> dict[str, Any]:
    """Return ``get_tensorrt_backend_config()`` as a dictionary."""
    return get_tensorrt_backend_config().to_dict()
