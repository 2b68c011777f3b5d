"""Quantization-aware training: modules that fake-quantize their weight, and the way back."""

from __future__ import annotations

import re
from typing import Any

from refquant.backend_config import BackendConfig
from refquant.backend_config.lookup import get_module_to_qat_module
from refquant.defects import reproduce
from refquant.fx.fuser_methods import INTRINSIC, container
from refquant.fx.node_qconfigs import QConfigAny, is_fused, sample
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.module import Module
from refquant.ir.program import Program
from refquant.ir.types import per_channel_affine_float_qparams
from refquant.kernels.fuse_batch_norm import fuse_conv_bn_weights, fuse_linear_bn_weights
from refquant.qconfig_mapping import QConfigMapping

_QAT = INTRINSIC + "qat."


def swap_for_training(program: Program, mapping: QConfigMapping, backend: BackendConfig) -> None:
    """Replace modules that have a QConfig by their training twins, in place.

    A module with two names is replaced under its first one only.
    """
    trained = get_module_to_qat_module(backend)
    seen: set[int] = set()

    def excluded(path: str) -> bool:
        first = next((q for r, q in by_regex.items() if re.match(r, path)), ...)
        return first is None and path not in mapping.module_name_qconfigs

    def visit(module: Module, prefix: str) -> None:
        for name, part in list(module.parts.items()):
            path = f"{prefix}{name}"
            if id(part) in seen or not isinstance(part, Module):
                continue
            seen.add(id(part))
            if not is_fused(part):
                visit(part, f"{path}.")
            if part.config.get("qconfig") is None or part.kind not in trained:
                continue
            if excluded(path) and not reproduce("regex-none-in-training", path):
                continue
            module.parts[name] = training_module(part, trained[part.kind])

    by_regex = mapping.module_name_regex_qconfigs
    visit(program.root, "")


def training_module(module: Module, kind: str) -> Module:
    """Return the training twin of a float module; it shares the arrays.

    Raises
    ------
    VerifyError
        If the QConfig does not fit the module.
    UnsupportedError
        If the class is not one of torch's.
    """
    qconfig = module.config["qconfig"]
    norm = None
    if is_fused(module):
        parts = list(module.parts.values())
        norm = parts[1] if len(parts) > 1 and "BatchNorm" in parts[1].kind else None
        module = parts[0]
        if norm is None:
            qconfig = module.config.get("qconfig")
            if qconfig is None:
                raise VerifyError(f"{kind}: the module inside must have a qconfig")
    elif "Embedding" in module.kind:
        _check_embedding(qconfig)
    elif not kind.startswith("torch.ao.nn"):
        raise UnsupportedError(f"no training module {kind}")
    made = Module(kind, dict(module.config), dict(module.state), training=True)
    made.config["qconfig"] = qconfig
    if norm is not None:
        made.config["freeze_bn"] = False
        made.parts["bn"] = _fresh_norm(norm)
    made.parts["weight_fake_quant"] = qconfig.weight()
    return made


def _fresh_norm(norm: Module) -> Module:
    config = {key: norm.config[key] for key in ("num_features", "eps", "momentum")}
    config |= {"affine": True, "track_running_stats": True}
    return Module(norm.kind, config, dict(norm.state), training=True)


def _check_embedding(qconfig: QConfigAny) -> None:
    qscheme = sample(qconfig.weight).qscheme
    if qscheme != per_channel_affine_float_qparams:
        raise VerifyError(
            f"embedding weights need a qscheme of per_channel_affine_float_qparams, got {qscheme}"
        )


def float_module(module: Module) -> Module:
    """Return what a training module was made from, with a batch norm folded in."""
    name = module.kind.rpartition(".")[2]
    stem = name.replace("BnReLU", "").replace("ReLU", "").replace("Bn", "")
    stem = "Linear" if stem.startswith("Linear") else stem
    hidden = ("freeze_bn", "qconfig")
    config = {key: value for key, value in module.config.items() if key not in hidden}
    state = {"weight": module.state["weight"], "bias": module.state.get("bias")}
    if "Embedding" in name:
        state.pop("bias")
    norm = module.parts.get("bn")
    if norm is not None:
        folded = (
            *(state["weight"], state["bias"], norm.running_mean, norm.running_var),
            *(norm.eps, norm.weight, norm.bias),
        )
        fold = fuse_linear_bn_weights if stem == "Linear" else fuse_conv_bn_weights
        state["weight"], state["bias"] = fold(*folded)
    made = Module(f"torch.nn.{stem}", config, state, training=_keeps_mode(name, module.training))
    if "ReLU" not in name:
        return made
    relu = Module("torch.nn.ReLU", {"inplace": False}, training=True)
    fused = container("LinearReLU" if stem == "Linear" else f"ConvReLU{stem[4:]}", made, relu)
    if stem != "Linear":
        for part in (fused, made, relu):
            part.training = module.training
    return fused


def _keeps_mode(name: str, training: bool) -> bool:
    """Return the mode of the float module: torch makes some anew, in training mode."""
    plain = name in ("Conv1d", "Conv2d", "Conv3d", "LinearBn1d", "LinearReLU")
    return True if plain else training


def is_training_module(module: Any) -> bool:
    """Whether a module fake-quantizes its weight."""
    return isinstance(module, Module) and "weight_fake_quant" in module.parts
