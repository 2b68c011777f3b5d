"""Prepare: fuse, find what is to be quantized, and insert observers."""

from __future__ import annotations

import copy

from refquant.backend_config import BackendConfig
from refquant.fx.custom_config import PrepareCustomConfig
from refquant.fx.custom_module import custom_kinds
from refquant.fx.fuse import fuse
from refquant.fx.match import Match, find_matches
from refquant.fx.node_qconfigs import (
    flattened,
    generate_node_name_to_qconfig,
    propagate,
    update_for_fusion,
    update_for_qat,
)
from refquant.fx.observed import Observed
from refquant.fx.observer_insertion import ObserverInsertion
from refquant.fx.qat import swap_for_training
from refquant.fx.standalone import standalone_config
from refquant.ir.errors import VerifyError
from refquant.ir.module import Module
from refquant.ir.program import Call, Program
from refquant.qconfig_mapping import QConfigMapping


def prepare(
    program: Program,
    qconfig_mapping: QConfigMapping,
    is_qat: bool,
    custom: PrepareCustomConfig,
    equalization: QConfigMapping,
    backend: BackendConfig,
) -> Program:
    """Return the program fused and observed; the given one is used up.

    Its ``meta["observed"]`` holds what convert needs.

    Raises
    ------
    VerifyError
        Where torch raises AssertionError; the call is named.
    """
    program.keep_only_used()
    program = fuse(program, is_qat, backend)
    program.keep_only_used()
    mapping, equalization = copy.deepcopy(qconfig_mapping), copy.deepcopy(equalization)
    update_for_fusion(program, mapping)
    update_for_fusion(program, equalization)
    propagate(
        program.root,
        flattened(mapping),
        custom.non_traceable_module_names,
        custom.non_traceable_module_classes,
    )
    if is_qat:
        swap_for_training(program, mapping, backend)
        update_for_qat(mapping, backend)
    scaled = generate_node_name_to_qconfig(program, equalization)
    qconfigs = generate_node_name_to_qconfig(program, mapping)
    matches = find_matches(
        program,
        backend,
        custom.standalone_module_names,
        custom.standalone_module_classes,
        custom_kinds(custom),
    )
    for name, match in matches.items():
        matches[name] = copy.copy(match)
        matches[name].qconfig = qconfigs[name]
    observed = Observed(qconfigs, scaled, mapping, custom, is_qat)
    for match in matches.values():
        if match.is_standalone_module:
            made = _prepare_standalone(program, match, custom, backend, is_qat)
            program.root.set(match.root.target, made)
    ObserverInsertion(program, matches, observed, backend).run()
    program.meta["observed"] = observed
    program.keep_only_used()
    return program


def _prepare_standalone(
    outer: Program,
    match: Match,
    custom: PrepareCustomConfig,
    backend: BackendConfig,
    is_qat: bool,
) -> Module:
    """Return the prepared form of a standalone module."""
    path = match.root.target
    module = outer.root.get(path)
    if getattr(module, "program", None) is None:
        raise VerifyError(
            f"{path}: the calls in a standalone module are not known; give prepare_fx the "
            "torch module itself, not a graph in which it is already one call"
        )
    mapping, inner, own = standalone_config(
        match.root, module.kind, custom, match.qconfig, backend
    )
    try:
        program = prepare(module.program.copy(), mapping, is_qat, inner, QConfigMapping(), own)
        if not isinstance(program.output.args[0], Call):
            raise VerifyError("a standalone module must return one value, not a tuple or dict")
    except VerifyError as error:
        raise VerifyError(f"{path}: {error}") from None
    program.root.program = program
    return program.root
