"""Importers: models of other frameworks into the IR."""

from typing import Any

_HOME = {
    "from_fx": "fx",
    "from_onnx": "onnx",
    "from_torch_config": "torch_config",
    "to_torch_state_dict": "fx_torch",
}
__all__ = ["from_fx", "from_onnx", "from_torch_config", "to_torch_state_dict"]


def __getattr__(name: str) -> Any:
    """Import an importer when it is first asked for: torch and onnx are slow to load."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
