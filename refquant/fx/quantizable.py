"""torch's own custom modules: the LSTM and attention that are quantized gate by gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OBSERVED: dict[str, Callable[[Any], Any]] = {}
QUANTIZED: dict[str, Callable[[Any], Any]] = {}
