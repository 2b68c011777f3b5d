"""Every case by name; split by topic into ``corpus_*.py``."""

from __future__ import annotations

import corpus_fusion
from flow import Case

CASES: dict[str, Case] = {}
for _topic in (corpus_fusion,):
    assert not CASES.keys() & _topic.CASES.keys()
    CASES |= _topic.CASES
