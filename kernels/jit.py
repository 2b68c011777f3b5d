"""How every kernel is compiled and cached: one decorator, and the exact fused multiply-add."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba as nb
import numpy as np
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache
from numba.extending import intrinsic

from refquant.kernels.jit_cache import choose_folder, digest
from refquant.kernels.rounding import fma as numpy_fma

LOG = logging.getLogger("refquant.jit")
F = TypeVar("F", bound=Callable[..., Any])

_DIGEST = digest()
CACHE_FOLDER = None if nb.config.DISABLE_JIT else choose_folder(_DIGEST)


@functools.cache
def _content(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


class _Locator:
    """Tells Numba where a function's machine code is; Numba's own would try each folder anew."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._py_file = file
        self._line = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _Locator:
        return cls(function, file)

    def get_cache_path(self) -> str:
        path = Path(self._py_file).resolve().parent
        if path == Path(__file__).resolve().parent:  # wherever the package is installed
            return os.path.join(str(CACHE_FOLDER), "kernels")
        name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        return os.path.join(str(CACHE_FOLDER), f"{path.name}_{name}")

    def ensure_cache_path(self) -> None:
        os.makedirs(self.get_cache_path(), exist_ok=True)

    def get_source_stamp(self) -> str:
        return _content(self._py_file)

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Files(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


def _compiles(function: Callable[..., Any]) -> None:
    LOG.info("compiling %s.%s", function.__module__.rpartition(".")[2], function.__name__)


class _Unsaved(NullCache):
    """No cache, where no folder can be written."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def load_overload(self, _sig: Any, _target_context: Any) -> Any:
        """Find nothing."""
        _compiles(self._function)


class _CheckedCache(FunctionCache):
    """Numba's disk cache, which does not trust what it finds nor rely on being able to write.

    Two processes that compile at the same time can write to one data file, and then the index
    gives one signature the code of another. A machine that went down can leave files cut short.
    Both are compiled again.
    """

    _impl_class = _Files

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the stored code if it is whole and for this signature."""
        try:
            found = super().load_overload(sig, target_context)
        except Exception as error:  # what a damaged pickle raises is not limited
            LOG.info("damaged: %s (%s)", self._cache_file._index_path, error)
            found = None
            self._try(self.flush)
        if found is not None and tuple(found.signature.args) == tuple(sig):
            return found
        _compiles(self._py_func)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store the code, unless the disk is full or the folder is read-only.

        Nor is it stored if a source was edited since this process began: the folder is named by
        what the sources were.
        """
        if digest() == _DIGEST:
            self._try(lambda: super(_CheckedCache, self).save_overload(sig, data))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            LOG.info("not kept: %s (%s)", self._name, error)


def jit(function: F) -> F:
    """Compile with a disk cache, without the GIL and with C's rules for division by zero.

    Never with fastmath: contraction or reordering would change bits.
    """
    compiled = nb.njit(nogil=True, error_model="numpy")(function)
    if not nb.config.DISABLE_JIT:
        compiled._cache = (_CheckedCache if CACHE_FOLDER else _Unsaved)(function)
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
