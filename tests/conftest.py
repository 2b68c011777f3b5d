"""The ledger: ``pytest --ledger`` prints what was compared with torch, and how much."""

from pathlib import Path
from typing import Any

import pytest
from ledger import Ledger

LEDGER = pytest.StashKey[Ledger]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what the long comparisons with torch need."""
    parser.addoption("--ledger", action="store_true", help="print what was compared with torch")
    parser.addoption("--ledger-json", type=Path, help="write what was compared to this file")
    parser.addoption("--sweep", action="store_true", help="run the comparisons at full length")
    parser.addoption("--mutants", type=int, default=10_000, help="damaged models to import")
    parser.addoption("--first-mutant", type=int, default=0, help="seed of the first of them")


def pytest_configure(config: pytest.Config) -> None:
    """Open the ledger of this run."""
    config.stash[LEDGER] = Ledger(sweep=config.getoption("--sweep"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print and write the ledger where that was asked for."""
    ledger = config.stash[LEDGER]
    if config.getoption("--ledger"):
        terminalreporter.section("compared with torch")
        terminalreporter.write_line("\n".join(ledger.lines()))
    if config.getoption("--ledger-json"):
        ledger.write(config.getoption("--ledger-json"))


@pytest.fixture
def ledger(pytestconfig: pytest.Config) -> Ledger:
    """Return the ledger of this run."""
    return pytestconfig.stash[LEDGER]
