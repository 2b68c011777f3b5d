"""How every kernel is compiled and cached: one decorator, and the exact fused multiply-add."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba as nb
import numpy as np
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

from refquant.kernels.rounding import fma as numpy_fma

F = TypeVar("F", bound=Callable[..., Any])


def _cache_folder() -> str:
    """Return a folder named by the contents of all kernel files.

    Numba notices a change of the file a kernel stands in, but not of an intrinsic or a callee
    in another file; with this name a changed source never meets an old machine code.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    home = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    root = Path(home) if home else Path.home() / ".cache"
    return str(root / "refquant" / digest.hexdigest()[:16])


CACHE_FOLDER = _cache_folder()


class _CheckedCache(FunctionCache):
    """Numba's disk cache, which does not take machine code of other argument types.

    Two processes that compile at the same time can write to one data file, and then the index
    gives one signature the code of another. That is compiled again.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the stored code if it is for this signature."""
        found = super().load_overload(sig, target_context)
        if found is None or tuple(found.signature.args) == tuple(sig):
            return found
        return None


def jit(function: F) -> F:
    """Compile with a disk cache, without the GIL and with C's rules for division by zero.

    Never with fastmath: contraction or reordering would change bits.
    """
    compiled = nb.njit(nogil=True, error_model="numpy")(function)
    if nb.config.DISABLE_JIT:
        return cast(F, compiled)
    others = nb.config.CACHE_DIR
    nb.config.CACHE_DIR = CACHE_FOLDER
    try:
        compiled._cache = _CheckedCache(function)
    finally:
        nb.config.CACHE_DIR = others
    return cast(F, compiled)


@intrinsic
def _llvm_fma(_typing: Any, _a: Any, _b: Any, _c: Any) -> Any:
    f32 = nb.types.float32

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return f32(f32, f32, f32), codegen


if nb.config.DISABLE_JIT:  # intrinsics exist only in compiled code

    def fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
        """Return ``a * b + c`` with one rounding."""
        return np.float32(numpy_fma(a, b, c))

else:

    @jit
    def fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
        """Return ``a * b + c`` with one rounding."""
        return _llvm_fma(np.float32(a), np.float32(b), np.float32(c))  # type: ignore[no-any-return]
