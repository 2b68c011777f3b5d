"""What ``refquant doctor`` tells about the machine and the installation."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refquant.kernels.jit_cache import Kept

_PACKAGES = ("refquant", "numpy", "numba", "llvmlite", "onnx", "torch")
_FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "avxvnni", "avx512vbmi")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _size(folders: list[Kept]) -> str:
    kernels, size = sum(entry.kernels for entry in folders), sum(e.bytes for e in folders)
    return f"{kernels} kernels, {size / 1e6:.1f} MB"


def describe() -> dict[str, str | list[str]]:
    """Return facts by name: versions, CPU features, JIT cache, torch's engines and threads."""
    import llvmlite.binding as llvm
    import numba as nb

    from refquant.ir.target import Target
    from refquant.kernels.jit import CACHE_FOLDER
    from refquant.kernels.jit_cache import kept

    features = dict(llvm.get_host_cpu_features())
    folders = kept()
    current = [entry for entry in folders if entry.current]
    stale = [entry for entry in folders if not entry.current]
    facts: dict[str, str | list[str]] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{package: _version(package) for package in _PACKAGES},
        "cpu": llvm.get_host_cpu_name(),
        "cpu features": [name for name in _FEATURES if features.get(name)],
        "cpu count": str(os.cpu_count()),
        "default target": str(Target()),
        "jit": "disabled (NUMBA_DISABLE_JIT)" if nb.config.DISABLE_JIT else "enabled",
        "jit cache": str(CACHE_FOLDER) if CACHE_FOLDER else "none",
        "jit cache size": _size(current),
        "jit cache, stale": f"{len(stale)} folders of other sources: {_size(stale)}",
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }
    if facts["torch"] != "not installed":
        import importlib

        torch = importlib.import_module("torch")
        facts["torch engines"] = list(torch.backends.quantized.supported_engines)
        facts["torch engine"] = str(torch.backends.quantized.engine)
        facts["torch threads"] = str(torch.get_num_threads())
        facts["torch capability"] = str(torch.backends.cpu.get_cpu_capability())
    return facts
