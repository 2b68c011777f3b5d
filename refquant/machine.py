"""What ``refquant doctor`` tells about the machine and the installation."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("refquant", "numpy", "numba", "llvmlite", "onnx", "torch")
_FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "avxvnni", "avx512vbmi")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def describe() -> dict[str, str | list[str]]:
    """Return facts by name: versions, CPU features, JIT cache, torch's engines and threads."""
    import llvmlite.binding as llvm
    import numba as nb

    from refquant.ir.target import Target
    from refquant.kernels.jit import CACHE_FOLDER

    features = dict(llvm.get_host_cpu_features())
    cache = Path(CACHE_FOLDER)
    files = list(cache.rglob("*.nbc"))
    facts: dict[str, str | list[str]] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{package: _version(package) for package in _PACKAGES},
        "cpu": llvm.get_host_cpu_name(),
        "cpu features": [name for name in _FEATURES if features.get(name)],
        "cpu count": str(os.cpu_count()),
        "default target": str(Target()),
        "jit": "disabled (NUMBA_DISABLE_JIT)" if nb.config.DISABLE_JIT else "enabled",
        "jit cache": str(cache),
        "jit cache entries": f"{len(files)} kernels, {sum(f.stat().st_size for f in files)} bytes",
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
