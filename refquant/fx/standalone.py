"""Standalone modules: prepared and converted by themselves, as one call of the model."""

from __future__ import annotations

from typing import Any

from refquant.backend_config import BackendConfig
from refquant.fx.custom_config import PrepareCustomConfig
from refquant.fx.fuse import fuse
from refquant.fx.prepare import prepare
from refquant.ir.errors import VerifyError
from refquant.ir.module import Module
from refquant.ir.program import Call
from refquant.qconfig_mapping import QConfigMapping


def prepare_standalone(
    call: Call,
    module: Any,
    mapping: QConfigMapping,
    custom: PrepareCustomConfig,
    backend: BackendConfig,
    is_qat: bool,
) -> Module:
    """Return the prepared form of a standalone module."""
    program = getattr(module, "program", None)
    if program is None:
        raise VerifyError(
            f"{call.target}: the calls in a standalone module are not known; give prepare_fx the "
            "torch module itself, not a graph in which it is already one call"
        )
    program = program.copy()
    program.keep_only_used()
    program = fuse(program, is_qat, backend)
    program.keep_only_used()
    try:
        prepare(program, mapping, is_qat, custom, QConfigMapping(), backend, is_standalone=True)
    except VerifyError as error:
        raise VerifyError(f"{call.target}: {error}") from None
    program.keep_only_used()
    program.root.program = program
    return program.root
