"""One OpenMP policy and Hypothesis profile for all tests."""

import os

# torch and Numba in one process must not spin against each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from hypothesis import settings  # noqa: E402

settings.register_profile("dev", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("sweep", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
