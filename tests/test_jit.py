"""The disk cache of compiled kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba.core.caching import FunctionCache

from refquant.kernels import jit


def test_stored_code_of_other_argument_types_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that compile at once can leave an index that gives the wrong code."""

    def total(x: Any) -> Any:
        result = 0
        for i in range(x.size):
            result += x[i]
        return result

    first: Any = jit.jit(total)
    dense, repeated = np.arange(40), np.broadcast_to(np.arange(1), 40)
    assert first(dense) == dense.sum()
    (wrong,) = first.overloads.values()  # for contiguous memory
    stored = wrong._replace(metadata=None)  # as it is loaded
    monkeypatch.setattr(FunctionCache, "load_overload", lambda *_: stored)
    second: Any = jit.jit(total)
    assert second(dense) == dense.sum()
    assert second(repeated) == 0
    assert len(second.signatures) == 2
