"""What the x86 engine quantizes: fbgemm's patterns, of which two families ask for more."""

from __future__ import annotations

from typing import Any

from refquant.backend_config import families
from refquant.backend_config.backend_config import BackendConfig
from refquant.backend_config.dtype_configs import weighted_op_quint8_dtype_config
from refquant.backend_config.fbgemm import FBGEMM

# torch names a weight's dtype here too; it says nothing, as these ops have no weight.
X86 = FBGEMM | {
    families.binary: (weighted_op_quint8_dtype_config,),
    families.fixed_qparams: (weighted_op_quint8_dtype_config,),
}


def get_x86_backend_config() -> BackendConfig:
    """Return what the x86 engine quantizes."""
    return families.backend("x86", X86)


def get_x86_backend_config_dict() -> dict[str, Any]:
    """Return ``get_x86_backend_config()`` as a dictionary."""
    return get_x86_backend_config().to_dict()
