"""How the modules of a match become one, and which of the matched nodes remain as its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from refquant.ir.names import canonical


@dataclass(frozen=True)
class Fuser:
    """A built-in rule of fusion, by name; the graph algorithm knows what each does.

    Parameters
    ----------
    kind : str
        torch's function without ``fuse_``, such as ``conv_bn_relu``; or ``sequential``, which puts
        the modules into ``fused_class`` as they are.
    fused_class : str, optional
        The container made by ``sequential``.

    Examples
    --------
    >>> Fuser("sequential", "nni.ConvReLU2d")
    Fuser(kind='sequential', fused_class='torch.ao.nn.intrinsic.ConvReLU2d')
    """

    kind: str
    fused_class: str | None = None

    def __post_init__(self) -> None:
        if self.fused_class is not None:
            object.__setattr__(self, "fused_class", canonical(self.fused_class))


FuserMethod = Fuser | Callable[..., Any]
NodeGetter = Callable[[Any], Any]


# A convolution, perhaps with batch norm, and any other node are added, perhaps with relu after:
# (relu, (add, (bn, conv), other)). The convolution is on the left or on the right.


def _operands(matched: Any) -> Any:
    _add, left, right = matched[1] if len(matched) == 2 else matched
    return left, right


def _convolution(branch: Any) -> Any:
    return branch[-1] if isinstance(branch, tuple | list) else branch


def root_node_getter_left(matched: Any) -> Any:
    """Return the convolution, the left operand of the addition.

    Examples
    --------
    >>> root_node_getter_left(("relu", ("add", ("bn", "conv"), "other")))
    'conv'
    """
    return _convolution(_operands(matched)[0])


def root_node_getter_right(matched: Any) -> Any:
    """Return the convolution, the right operand of the addition."""
    return _convolution(_operands(matched)[1])


def extra_inputs_getter_left(matched: Any) -> list[Any]:
    """Return what is added to a convolution on the left.

    Examples
    --------
    >>> extra_inputs_getter_left(("add", "conv", "other"))
    ['other']
    """
    return [_operands(matched)[1]]


def extra_inputs_getter_right(matched: Any) -> list[Any]:
    """Return what is added to a convolution on the right."""
    return [_operands(matched)[0]]
