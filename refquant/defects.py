"""torch's own defects in graph mode: reproduced with a warning, fixed, or refused.

``quirks="torch"`` (the default of every function that has it) gives torch's graph and warns once
per place; ``"fixed"`` does what the documentation of torch promises; ``"reject"`` stops. Each
defect has an entry in ``DEFECTS``, which the documentation page of the defects is checked against.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from refquant.ir.errors import VerifyError
from refquant.observer_base import caller

Quirks = Literal["torch", "fixed", "reject"]
P = ParamSpec("P")
R = TypeVar("R")


class TorchDefectWarning(UserWarning):
    """The result is torch's, and torch is wrong here."""


@dataclass(frozen=True)
class Defect:
    """What torch does, and what it should do."""

    name: str
    torch: str
    fixed: str


DEFECTS = {
    defect.name: defect
    for defect in (
        Defect(
            "dropped-alpha",
            "torch.add(a, b, alpha=...) is lowered to a quantized add without alpha",
            "the add stays in float",
        ),
        Defect(
            "shared-module-fusion",
            "a module called twice is fused with what follows one call, for both calls",
            "the module is not fused",
        ),
        Defect(
            "declared-not-observed",
            "an input counts as quantized because its producer's qconfig says so, although no "
            "observer is there; the layer keeps a float input",
            "the input is observed",
        ),
        Defect(
            "fixed-qparams-ignored",
            "an op with fixed qparams whose qconfig is refused is lowered all the same; its "
            "output has the kernel's qparams, not the calibrated ones",
            "the op stays in float",
        ),
        Defect(
            "fixed-qparams-input",
            "the input of an op with fixed qparams is observed with the op's output qparams, "
            "which squeezes it into their range",
            "the input is observed by the global qconfig",
        ),
        Defect(
            "float-module-between-quantizers",
            "a module whose weight dtype the back-end cannot do is observed, but stays float",
            "the module is not observed",
        ),
        Defect(
            "equalized-shared-observer",
            "equalization overwrites the range of an observer that another value shares",
            "the input gets an observer of its own",
        ),
        Defect(
            "dynamic-custom-module",
            "from_float of a custom module is not called unless the qconfig is static",
            "it is called",
        ),
        Defect(
            "regex-none-in-training",
            "a module that a regex excludes still fake-quantizes its weight during training",
            "the module stays float",
        ),
        Defect(
            "tuple-counts-as-tensor",
            "size arithmetic with a tuple of numbers counts as an op on tensors and is observed; "
            "the model then fails in calibration",
            "it is not observed",
        ),
        Defect(
            "observed-tuple",
            "the result of a module that returns a tuple is observed; the model then fails in "
            "calibration",
            "it is not observed",
        ),
    )
}


@dataclass
class _State:
    mode: Quirks = "torch"
    warned: set[tuple[str, str]] = field(default_factory=set)


_STATE: ContextVar[_State] = ContextVar("quirks")


@contextmanager
def quirks_mode(mode: Quirks) -> Iterator[None]:
    """Decide what happens where torch has a defect.

    Raises
    ------
    VerifyError
        If the mode is not one of the three.
    """
    if mode not in get_args(Quirks):
        raise VerifyError(f"quirks must be 'torch', 'fixed' or 'reject', got {mode!r}")
    token = _STATE.set(_State(mode))
    try:
        yield
    finally:
        _STATE.reset(token)


def fixes() -> bool:
    """Whether defects are to be fixed."""
    return (_STATE.get(None) or _State()).mode == "fixed"


def takes_quirks(function: Callable[P, R]) -> Callable[P, R]:
    """Give effect to the argument ``quirks`` of a function."""

    @wraps(function)
    def with_quirks(*args: Any, **kwargs: Any) -> R:
        with quirks_mode(kwargs.get("quirks", "torch")):
            return function(*args, **kwargs)

    return with_quirks


def reproduce(name: str, where: str) -> bool:
    """Whether to do as torch does at a place that has a defect.

    Parameters
    ----------
    name : str
        Of the defect, in ``DEFECTS``.
    where : str
        The call or module.

    Raises
    ------
    VerifyError
        If defects are refused.
    """
    defect = DEFECTS[name]
    state = _STATE.get(None) or _State()
    if state.mode == "reject":
        raise VerifyError(
            f"{where}: torch has a defect here ({name}): {defect.torch}. quirks='torch' gives "
            f"torch's result, quirks='fixed' another: {defect.fixed}"
        )
    if state.mode == "torch" and (name, where) not in state.warned:
        state.warned.add((name, where))
        warnings.warn(
            f"{where}: reproducing a defect of torch ({name}): {defect.torch}. "
            f"With quirks='fixed' {defect.fixed}.",
            TorchDefectWarning,
            stacklevel=caller(),
        )
    return state.mode == "torch"
