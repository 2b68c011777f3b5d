"""One OpenMP policy, Hypothesis profiles, and NumPy in doctests."""

import os
from typing import Any

# torch and Numba in one process must not spin against each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("dev", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("sweep", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(autouse=True)
def _numpy_in_doctests(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["np"] = np
