"""Object types: torch's classes and functions as names, one name for each."""

from __future__ import annotations

import operator
import re
import sys
from functools import cache
from typing import Any

from refquant.ir.errors import VerifyError

# The second public name of functions that torch exposes twice, and what FX writes for them.
_ALIASES = {
    **{
        f"torch.{name}": f"torch.nn.functional.{name}"
        for name in (
            *("adaptive_avg_pool1d", "avg_pool1d", "bilinear", "celu_", "channel_shuffle"),
            *("conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d"),
            *("conv_transpose3d", "cosine_similarity", "hardshrink", "native_channel_shuffle"),
            *("pairwise_distance", "pdist", "pixel_shuffle", "pixel_unshuffle", "prelu"),
            *("relu_", "rrelu_", "selu_", "threshold_"),
        )
    },
    **{
        f"torch._C._nn.{name}": f"torch.nn.functional.{name}"
        for name in (
            *("avg_pool2d", "avg_pool3d", "elu_", "gelu", "hardtanh_", "leaky_relu_", "linear"),
            *("one_hot", "scaled_dot_product_attention", "softplus", "softshrink"),
        )
    },
    "torch._C._nn.log_sigmoid": "torch.nn.functional.logsigmoid",
    "torch.dsmm": "torch.mm",
    "torch.spmm": "torch.mm",
    "getattr": "builtins.getattr",
}
_CLASS = re.compile(r"^(torch\.(?:ao\.)?nn(?:\.\w+)*?)\.modules(?:\.\w+)?\.(\w+)$")
_SHORT = {
    "nn": "torch.nn",
    "F": "torch.nn.functional",
    "nni": "torch.ao.nn.intrinsic",
    "nniq": "torch.ao.nn.intrinsic.quantized",
    "nniqat": "torch.ao.nn.intrinsic.qat",
    "nniqd": "torch.ao.nn.intrinsic.quantized.dynamic",
    "nnq": "torch.ao.nn.quantized",
    "nnqat": "torch.ao.nn.qat",
    "nnqatd": "torch.ao.nn.qat.dynamic",
    "nnqd": "torch.ao.nn.quantized.dynamic",
    "nnqr": "torch.ao.nn.quantized.reference",
    "nnqa": "torch.ao.nn.quantizable",
}


def canonical(name: str) -> str:
    """Return the one name of a class, function or method.

    Parameters
    ----------
    name : str
        Any name under which torch exposes it, also with torch's customary short prefixes.

    Examples
    --------
    >>> canonical("torch.nn.modules.linear.Linear"), canonical("nnqr.Conv2d")
    ('torch.nn.Linear', 'torch.ao.nn.quantized.reference.Conv2d')
    >>> canonical("torch.conv2d"), canonical("_operator.add"), canonical("reshape")
    ('torch.nn.functional.conv2d', 'operator.add', 'reshape')
    """
    prefix, _, rest = name.partition(".")
    if rest and prefix in _SHORT:
        name = f"{_SHORT[prefix]}.{rest}"
    if name.startswith("_operator."):
        name = name[1:]
    if name.startswith(("torch.nn.intrinsic", "torch.nn.quant", "torch.nn.qat")):
        name = f"torch.ao.{name.removeprefix('torch.')}"
    return _ALIASES.get(_CLASS.sub(r"\1.\2", name), _CLASS.sub(r"\1.\2", name))


def object_type(kind: Any) -> str:
    """Return the name of a class, function or method given as such or by name.

    Parameters
    ----------
    kind : str, class or function
        ``"torch.nn.Linear"``, ``torch.nn.Linear``, ``operator.add``, ``"reshape"``.

    Raises
    ------
    VerifyError
        If it is none of these.
    """
    if isinstance(kind, str):
        return canonical(kind)
    given = getattr(kind, "kind", None)
    if isinstance(given, str):
        return given
    if isinstance(kind, type):
        return canonical(f"{kind.__module__}.{kind.__qualname__}")
    if any(base.__name__ in ("OpOverload", "OpOverloadPacket") for base in type(kind).__mro__):
        return f"torch.ops.{kind}"
    if not callable(kind):
        raise VerifyError(f"expected a class, a function or a name, got {kind!r}")
    known = _function_names(sys.modules.get("torch")).get(kind)
    name = getattr(kind, "__qualname__", type(kind).__name__)
    return known or canonical(f"{getattr(kind, '__module__', '')}.{name}")


@cache
def _function_names(torch: Any) -> dict[Any, str]:
    """Return the public name of every function, by identity: torch's own do not know theirs.

    Whoever has a function of torch has loaded torch, so this need not import it.
    """
    names: dict[Any, str] = {getattr: "builtins.getattr"}
    places: list[tuple[str, Any]] = [("operator", operator)]
    if torch is not None:
        places = [("torch.nn.functional", torch.nn.functional), *places, ("torch", torch)]
    for prefix, module in places:
        public_first = sorted(vars(module).items(), key=lambda item: item[0].startswith("_"))
        for name, function in public_first:
            if callable(function) and not isinstance(function, type) and name[:2] != "__":
                try:
                    names.setdefault(function, canonical(f"{prefix}.{name}"))
                except TypeError:  # not hashable
                    continue
    return names
