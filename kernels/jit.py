"""How every kernel is compiled: one decorator, and the exact fused multiply-add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba as nb
import numpy as np
from numba.extending import intrinsic

from refquant.kernels.rounding import fma as numpy_fma

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """Compile with a disk cache, without the GIL and with C's rules for division by zero.

    Never with fastmath: contraction or reordering would change bits.
    """
    return cast(F, nb.njit(cache=True, nogil=True, error_model="numpy")(function))


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


