"""Every case of the corpus at every stage: the calls are torch's, and so are the outputs."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from corpus import CASES
from flow import SUMS_FLOATS, Case, Flow
from ledger import Ledger

from refquant.ir.errors import UnsupportedError


@cache
def flow(name: str) -> Flow:
    return Flow(CASES[name])


STAGES = [(name, stage) for name, case in CASES.items() for stage in case.stages]


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_stage(name: str, stage: Any, ledger: Ledger) -> None:
    flow(name).check(stage)
    ledger.run(f"graph mode corpus, {stage}", True)


def runnable(case: Case) -> bool:
    return "lowered" in case.stages and "lowered" not in case.raises


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if runnable(case)])
def test_outputs(name: str, ledger: Ledger) -> None:
    case = CASES[name]
    if case.runs == SUMS_FLOATS and "run" not in case.raises:
        flow(name).check_all_but_float_sums()
        ledger.run("graph mode corpus, nodes of the lowered model", True)
    elif case.runs and "run" not in case.raises:
        with pytest.raises(UnsupportedError, match=re.escape(case.runs)):
            flow(name).run_ours()
    else:
        flow(name).check_outputs()
        ledger.run("graph mode corpus, outputs of the lowered model", True)


@pytest.mark.parametrize("name", CASES)
def test_defects_of_torch(name: str) -> None:
    for stage in CASES[name].stages:
        flow(name).both(stage)
    flow(name).check_defects()


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.own])
def test_own_calibration(name: str, ledger: Ledger) -> None:
    Flow(CASES[name], exact=True).check_own_calibration()
    ledger.run("graph mode corpus, calibrated by us", True)
