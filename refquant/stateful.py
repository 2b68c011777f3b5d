"""Buffers with torch's names, and the ``state_dict`` that both sides can read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.qtensor import Array

# Attributes that torch's classes do not have.
_OWN = ("batches", "elements", "mask", "target")


class StateDict(OrderedDict[str, Array]):
    """Arrays under torch's names, with torch's record of the format's version."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._metadata: dict[str, dict[str, int]] = {}


class Stateful:
    """Something with named arrays as its state and possibly parts that have some too."""

    _version: ClassVar[int] = 1
    # Buffers that a state_dict may give another shape.
    _resizable: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        self._buffers: list[str] = []
        self._parts: list[str] = []

    @property
    def kind(self) -> str:
        """The public name of torch's class."""
        return torch_name(type(self))

    @property
    def role(self) -> str:
        """What a graph calls it for: ``observer`` or ``fake_quantize``."""
        return "observer"

    @property
    def config(self) -> dict[str, Any]:
        """Plain attributes."""
        hidden = {*self._buffers, *self._parts, *_OWN}
        return {
            name: value
            for name, value in vars(self).items()
            if not (name.startswith("_") or name in hidden or isinstance(value, np.ndarray))
        }

    @property
    def state(self) -> dict[str, Array]:
        """The buffers, and other arrays, by name."""
        others = [name for name, value in vars(self).items() if isinstance(value, np.ndarray)]
        names = dict.fromkeys((*self._buffers, *others))
        return {name: np.asarray(getattr(self, name)) for name in names if name not in _OWN}

    @property
    def parts(self) -> dict[str, Stateful]:
        """The observer in a fake-quant."""
        return {name: getattr(self, name) for name in self._parts}

    def register_buffer(self, name: str, value: Array) -> None:
        """Make ``value`` the attribute ``name`` and part of the state."""
        if name not in self._buffers:
            self._buffers.append(name)
        setattr(self, name, value)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Stateful]]:
        """Yield this object and its parts with their dotted names."""
        yield prefix, self
        for name in self._parts:
            yield from getattr(self, name).named_modules(f"{prefix}.{name}" if prefix else name)

    @contextmanager
    def unchanged_on_error(self) -> Iterator[None]:
        """Put all attributes back if the block fails: arrays are replaced, never written into."""
        before = [(module, dict(vars(module))) for _, module in self.named_modules()]
        try:
            yield
        except Exception:
            for module, attributes in before:
                vars(module).clear()
                vars(module).update(attributes)
            raise

    def state_dict(self) -> StateDict:
        """Return copies of all buffers under the names that torch gives them.

        ``refquant.importers.to_torch_state_dict`` turns it into what torch loads.
        """
        state = StateDict()
        for path, module in self.named_modules():
            prefix = f"{path}." if path else ""
            state._metadata[path] = {"version": module._version}
            for name in module._buffers:
                state[prefix + name] = np.array(getattr(module, name))
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Take over a state of refquant or of torch; all of it, or on an error nothing.

        Parameters
        ----------
        state_dict : mapping of str to arrays or torch tensors
            As ``state_dict()`` of this class or of torch's class returns it.
        strict : bool
            Refuse missing and unknown names.

        Raises
        ------
        VerifyError
            If a name is missing or unknown, or a shape does not fit.
        """
        metadata = getattr(state_dict, "_metadata", {})
        if strange := [key for key in state_dict if not isinstance(key, str)]:
            raise VerifyError(f"state_dict: names must be str, got {strange[0]!r}")
        unknown = dict.fromkeys(state_dict)
        missing: list[str] = []
        found: list[tuple[Stateful, str, Array]] = []
        for path, module in self.named_modules():
            prefix = f"{path}." if path else ""
            local = {
                key[len(prefix) :]: as_array(value)
                for key, value in state_dict.items()
                if key.startswith(prefix)
            }
            names = set(local)
            local = module._upgrade(local, metadata.get(path, {}).get("version"))
            for name in (*(names - set(local)), *module._buffers):
                unknown.pop(prefix + name, None)
            module._check_loaded(local)
            for name in module._buffers:
                if name in local:
                    found.append((module, name, module._fit(prefix + name, name, local[name])))
                else:
                    missing.append(prefix + name)
        if strict and (missing or unknown):
            raise VerifyError(
                f"state_dict of {type(self).__name__}: missing {missing}, unknown {list(unknown)}"
            )
        for module, name, value in found:
            setattr(module, name, value)

    def _upgrade(self, local: dict[str, Array], version: int | None) -> dict[str, Array]:
        """Return a state in today's format."""
        return local

    def _check_loaded(self, local: dict[str, Array]) -> None:
        """Refuse a state whose buffers do not fit together."""

    def _fit(self, key: str, name: str, value: Array) -> Array:
        """Return a loaded array with the dtype, and if it cannot change the shape, of a buffer."""
        buffer = getattr(self, name)
        if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
            raise VerifyError(f"state_dict: {key} must hold real numbers, got {value.dtype}")
        if buffer.ndim == 0 and value.shape == (1,):
            value = value[0]
        if value.shape != buffer.shape and name not in self._resizable:
            raise VerifyError(
                f"state_dict: {key} has shape {list(value.shape)}, "
                f"expected {list(buffer.shape)} of {type(self).__name__}"
            )
        return np.array(value, buffer.dtype)


def as_array(value: Any) -> Array:
    """Return an array; of a torch tensor a copy, for torch cannot resize what NumPy sees."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().clone()
    return np.asarray(tensor.float() if "bfloat16" in str(tensor.dtype) else tensor)


_TORCH_FILES = {
    "FakeQuantize": "torch.ao.quantization.fake_quantize",
    "EqualizationObserver": "torch.ao.quantization.fx._equalize",
    "Observer": "torch.ao.quantization.observer",
}


def torch_name(cls: type) -> str:
    """Return the name of torch's class that a class of ours is; its own name for a user's.

    Examples
    --------
    >>> from refquant.observer import MinMaxObserver
    >>> torch_name(MinMaxObserver)
    'torch.ao.quantization.observer.MinMaxObserver'
    """
    name = cls.__qualname__
    if not cls.__module__.startswith("refquant."):
        return f"{cls.__module__}.{name}"
    if name == "LearnableFakeQuantize":
        return f"torch.ao.quantization._learnable_fake_quantize._{name}"
    place = next(place for end, place in _TORCH_FILES.items() if name.endswith(end))
    return f"{place}.{name}"
