"""Back-end configs, under the names of ``torch.ao.quantization.backend_config``."""

from refquant.backend_config.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    DTypeWithConstraints,
    ObservationType,
)
from refquant.backend_config.executorch import (
    get_executorch_backend_config,
    get_executorch_backend_config_dict,
)
from refquant.backend_config.fbgemm import (
    get_fbgemm_backend_config,
    get_fbgemm_backend_config_dict,
)
from refquant.backend_config.fuser import Fuser
from refquant.backend_config.native import (
    get_native_backend_config,
    get_native_backend_config_dict,
    get_test_only_legacy_native_backend_config,
    get_test_only_legacy_native_backend_config_dict,
)
from refquant.backend_config.onednn import (
    get_onednn_backend_config,
    get_onednn_backend_config_dict,
)
from refquant.backend_config.pattern import MATCH_ALL
from refquant.backend_config.qnnpack import (
    get_qnnpack_backend_config,
    get_qnnpack_backend_config_dict,
)
from refquant.backend_config.tensorrt import (
    get_tensorrt_backend_config,
    get_tensorrt_backend_config_dict,
)
from refquant.backend_config.x86 import get_x86_backend_config, get_x86_backend_config_dict

__all__ = [
    "MATCH_ALL",
    "BackendConfig",
    "BackendPatternConfig",
    "DTypeConfig",
    "DTypeWithConstraints",
    "Fuser",
    "ObservationType",
    "get_executorch_backend_config",
    "get_executorch_backend_config_dict",
    "get_fbgemm_backend_config",
    "get_fbgemm_backend_config_dict",
    "get_native_backend_config",
    "get_native_backend_config_dict",
    "get_onednn_backend_config",
    "get_onednn_backend_config_dict",
    "get_qnnpack_backend_config",
    "get_qnnpack_backend_config_dict",
    "get_tensorrt_backend_config",
    "get_tensorrt_backend_config_dict",
    "get_test_only_legacy_native_backend_config",
    "get_test_only_legacy_native_backend_config_dict",
    "get_x86_backend_config",
    "get_x86_backend_config_dict",
]
