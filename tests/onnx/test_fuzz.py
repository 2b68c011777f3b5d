"""A few damaged models; ``nox -s fuzz`` runs 10,000."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fuzz import failure, run
from mutants import mutant, sources


def test_damaged_models_run_or_are_refused(tmp_path: Path) -> None:
    reports, _ = run(tmp_path, range(50_000, 50_150))
    failures = [failure(report) for report in reports if report.outcome == "failed"]
    assert not failures, "\n".join(failures)
    counts = Counter(report.outcome for report in reports)
    assert counts["ran"] > 10
    assert counts["refused at import"] > 10


def test_a_seed_gives_its_mutant_again(tmp_path: Path) -> None:
    known = sources(tmp_path)[:4]
    for seed in range(40):
        assert mutant(known, seed)[1:] == mutant(known, seed)[1:]
