"""What fbgemm quantizes: the native patterns without layer norm."""

from __future__ import annotations

from typing import Any

from refquant.backend_config import families
from refquant.backend_config.backend_config import BackendConfig
from refquant.backend_config.native import NATIVE

FBGEMM = {family: dtypes for family, dtypes in NATIVE.items() if family != families.layer_norm}


def get_fbgemm_backend_config() -> BackendConfig:
    """Return what fbgemm quantizes."""
    return families.backend("fbgemm", FBGEMM)


def get_fbgemm_backend_config_dict() -> dict[str, Any]:
    """Return ``get_fbgemm_backend_config()`` as a dictionary."""
    return get_fbgemm_backend_config().to_dict()
