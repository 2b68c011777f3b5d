"""What the fusion rules make of matched modules: folded weights, or containers for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refquant.backend_config.fuser import Fuser, FuserMethod
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.module import Module
from refquant.kernels.fuse_batch_norm import fuse_conv_bn_weights, fuse_linear_bn_weights

INTRINSIC = "torch.ao.nn.intrinsic."


def container(kind: str, *parts: Module, **config: Any) -> Module:
    """Return a fused module; like a new module of torch it is in training mode."""
    named = {str(i): part for i, part in enumerate(parts)}
    return Module(INTRINSIC + kind, config, {}, named, training=True)


def run_fuser(fuser: FuserMethod, is_qat: bool, matched: tuple[Any, ...]) -> Any:
    """Fuse the modules of a match, nested with the last node first.

    Raises
    ------
    VerifyError
        If the modules cannot be fused: where torch raises AssertionError.
    UnsupportedError
        Where torch raises NotImplementedError.
    """
    if not isinstance(fuser, Fuser):
        return fuser(is_qat, *matched)
    if fuser.kind == "sequential":
        assert fuser.fused_class is not None
        second, first = matched
        return _sequential(fuser.fused_class, first, second)
    return _METHODS[fuser.kind](is_qat, *matched)


def _sequential(kind: str, first: Any, second: Any) -> Module:
    name = kind.removeprefix(INTRINSIC)
    wanted = _SECOND.get(name)
    if not isinstance(first, Module) or not isinstance(second, Module):
        raise VerifyError(f"{name}: a function cannot be a part of a fused module, use a module")
    if wanted is not None and second.kind != wanted:
        raise VerifyError(f"{name}: expected {wanted} second, got {second.kind}")
    return container(name, first, second)


_SECOND = {"LinearLeakyReLU": "torch.nn.LeakyReLU", "LinearTanh": "torch.nn.Tanh"}


def same_mode(*modules: Module) -> None:
    """Refuse a mixture of training and evaluation."""
    if len({module.training for module in modules}) > 1:
        raise VerifyError(
            f"{modules[0].kind} and {modules[1].kind} must be in the same mode (train or eval)"
        )


def _trainable(module: Module, norm: Module, width: int) -> None:
    kinds = f"{module.kind} with {norm.kind}"
    if norm.config["num_features"] != width:
        raise VerifyError(
            f"{kinds}: {width} outputs must match num_features {norm.config['num_features']}"
        )
    for flag in ("affine", "track_running_stats"):
        if not norm.config[flag]:
            raise VerifyError(f"{kinds}: only fused in training with {flag}=True")


def fold(module: Module, norm: Module, *, transpose: bool = False) -> Module:
    """Return a convolution or linear with the batch norm after it folded in."""
    if module.training or norm.training:
        raise VerifyError(f"{module.kind} with {norm.kind}: only folded in eval mode")
    state = norm.state
    if state["running_mean"] is None or state["running_var"] is None:
        raise VerifyError(f"{module.kind} with {norm.kind}: no running statistics to fold")
    arguments = (
        *(module.state["weight"], module.state["bias"], state["running_mean"]),
        *(state["running_var"], norm.config["eps"], state["weight"], state["bias"]),
    )
    made = module.copy()
    if module.kind.rpartition(".")[2].startswith("Linear"):
        made.state["weight"], made.state["bias"] = fuse_linear_bn_weights(*arguments)
    else:
        made.state["weight"], made.state["bias"] = fuse_conv_bn_weights(*arguments, transpose)
    return made


def _rank(module: Module) -> str:
    name = module.kind.rpartition(".")[2]
    if not name.startswith("Conv") or not name[4:5].isdigit():
        raise UnsupportedError(f"cannot fuse {module.kind}")
    return name[4:]


def conv_bn(is_qat: bool, norm: Module, conv: Module) -> Module:
    """Convolution and batch norm."""
    same_mode(conv, norm)
    if not is_qat:
        return fold(conv, norm)
    _trainable(conv, norm, conv.config["out_channels"])
    return container(f"ConvBn{_rank(conv)}", conv, norm)


def conv_bn_relu(is_qat: bool, relu: Module, pair: tuple[Module, Module]) -> Module:
    """Convolution, batch norm and relu."""
    norm, conv = pair
    same_mode(conv, norm, relu)
    if not is_qat:
        return container(f"ConvReLU{_rank(conv)}", fold(conv, norm), relu)
    _trainable(conv, norm, conv.config["out_channels"])
    return container(f"ConvBnReLU{_rank(conv)}", conv, norm, relu)


def linear_bn(is_qat: bool, norm: Module, linear: Module) -> Module:
    """Linear and batch norm."""
    same_mode(linear, norm)
    if not is_qat:
        return fold(linear, norm)
    _trainable(linear, norm, linear.config["out_features"])
    return container("LinearBn1d", linear, norm)


def convtranspose_bn(is_qat: bool, norm: Module, conv: Module) -> Module:
    """Transposed convolution and batch norm."""
    same_mode(conv, norm)
    if is_qat:
        raise UnsupportedError("fusing ConvTranspose and BatchNorm in training is not supported")
    return fold(conv, norm, transpose=True)


def linear_bn_leaky_relu(is_qat: bool, leaky: Any, pair: tuple[Module, Module]) -> Module:
    """Linear, batch norm and leaky relu (onednn)."""
    norm, linear = pair
    if not isinstance(leaky, Module):
        raise VerifyError("LinearLeakyReLU: a function cannot be a part of a fused module")
    same_mode(linear, norm, leaky)
    _eval_only(is_qat, linear, norm, leaky)
    return _sequential(f"{INTRINSIC}LinearLeakyReLU", fold(linear, norm), leaky)


def _eval_only(is_qat: bool, *modules: Any) -> None:
    if is_qat:
        kinds = ", ".join(getattr(module, "kind", str(module)) for module in modules)
        raise UnsupportedError(f"cannot fuse train modules: {kinds}")


def _conv_add(folded: bool, relu: bool, left: bool) -> Callable[..., Module]:
    """Return the rule for a convolution that is added to another value (onednn)."""

    def rule(is_qat: bool, *matched: Any) -> Module:
        last, (add, *operands) = (matched[0], matched[1]) if relu else (None, matched)
        branch = operands[0] if left else operands[1]
        conv = branch
        if folded:
            norm, conv = branch
            _eval_only(is_qat, conv, norm, add)
            conv = fold(conv, norm)
        made = container("ConvAddReLU2d" if relu else "ConvAdd2d", conv, add=add)
        if relu:
            made.parts["relu"] = last
        return made

    return rule


_METHODS: dict[str, Callable[..., Module]] = {
    "conv_bn": conv_bn,
    "conv_bn_relu": conv_bn_relu,
    "linear_bn": linear_bn,
    "convtranspose_bn": convtranspose_bn,
    "linear_bn_leaky_relu": linear_bn_leaky_relu,
    **{
        f"conv{bn}_add{relu}_{side}": _conv_add(bool(bn), bool(relu), side == "left")
        for bn in ("", "_bn")
        for relu in ("", "_relu")
        for side in ("left", "right")
    },
}
