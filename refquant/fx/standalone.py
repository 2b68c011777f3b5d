"""The configuration of standalone modules, which are prepared by themselves."""

from __future__ import annotations

from refquant.backend_config import BackendConfig
from refquant.fx.custom_config import PrepareCustomConfig, StandaloneModuleConfigEntry
from refquant.fx.node_qconfigs import QConfigAny
from refquant.ir.program import Call
from refquant.qconfig_mapping import QConfigMapping


def standalone_config(
    call: Call, kind: str, custom: PrepareCustomConfig, qconfig: QConfigAny, backend: BackendConfig
) -> tuple[QConfigMapping, PrepareCustomConfig, BackendConfig]:
    """Return mapping, custom config and back-end of a standalone module; its name wins."""
    entry = custom.standalone_module_names.get(
        call.target,
        custom.standalone_module_classes.get(
            kind, StandaloneModuleConfigEntry(None, (), None, None)
        ),
    )
    return (
        entry.qconfig_mapping or QConfigMapping().set_global(qconfig),
        entry.prepare_custom_config or PrepareCustomConfig(),
        entry.backend_config or backend,
    )
