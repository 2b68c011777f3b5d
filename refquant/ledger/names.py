"""What torch's operator names are that have no samples of their own."""

from __future__ import annotations

FORMS: dict[str, str] = {}
ACCESSORS: dict[str, str] = {}
NO_ARITHMETIC: dict[str, str] = {}
NOT_COVERED: dict[str, str] = {}
