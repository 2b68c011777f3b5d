"""Every case by name; split by topic into ``corpus_*.py``."""

from __future__ import annotations

import corpus_backends
import corpus_custom
import corpus_defects
import corpus_equalization
import corpus_fusion
import corpus_mappings
import corpus_ops
from flow import Case

CASES: dict[str, Case] = {}
for _topic in (corpus_backends, corpus_custom, corpus_defects, corpus_equalization, corpus_fusion, corpus_mappings, corpus_ops):
    assert not CASES.keys() & _topic.CASES.keys()
    CASES |= _topic.CASES
