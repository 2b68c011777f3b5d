"""Every case of the corpus at every stage: the calls are torch's, and so are the outputs."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from corpus import CALIBRATED, CASES, NOT_CALIBRATED, ROUNDS
from flow import SUMS_FLOATS, Case, Flow
from ledger import Ledger

from refquant.defects import DEFECTS
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


@pytest.mark.parametrize("name", [name for name in CALIBRATED if name in NOT_CALIBRATED])
def test_what_we_cannot_calibrate(name: str, ledger: Ledger) -> None:
    reason = NOT_CALIBRATED[name]
    if reason == ROUNDS:
        Flow(CASES[name], exact=True).check_own_calibration(rounds=True)
        ledger.run("graph mode corpus, calibrated by us, but for roundings", True)
        return
    with pytest.raises(UnsupportedError, match=re.escape(reason)):
        Flow(CASES[name], exact=True).check_own_calibration()


PARTS = 10


@pytest.mark.parametrize("part", range(PARTS))
def test_own_calibration(part: int, ledger: Ledger) -> None:
    """Every second case, and in the long run all of them."""
    exact = [name for name in CALIBRATED if name not in NOT_CALIBRATED]
    names = exact[part::PARTS]
    for i, name in enumerate(names[: ledger.size(len(names) // 2, len(names))]):
        try:
            # Equal states convert alike: that live observers do, too, is seen on every third.
            Flow(CASES[name], exact=True).check_own_calibration(convert=i % 3 == 0)
        except Exception as error:
            raise AssertionError(name) from error
        ledger.run("graph mode corpus, calibrated by us", True)


# What converts, but has no kernel or no rule to run it. The list can only become shorter.
NOT_RUN = {
    *("a weight quantized at run time", "writes to it in channels-last memory only"),
    "torch.nn.TransformerEncoderLayer",
    # Modules of the user, of which nothing is known.
    *("Untraceable", "FloatScale", "ObservedScale", "QuantizedScale", "DynamicScale"),
}


def test_what_is_not_run() -> None:
    assert {case.runs for case in CASES.values()} == {"", SUMS_FLOATS, *NOT_RUN}
    counts = [sum(case.runs == reason for case in CASES.values()) for reason in NOT_RUN]
    assert sum(counts) <= 40
    assert len(CASES) >= 500
    assert sum(name in NOT_CALIBRATED for name in CALIBRATED) <= len(CALIBRATED) // 3


def test_every_defect_is_met() -> None:
    met = {name for case in CASES.values() for name in case.defects}
    assert met == set(DEFECTS)
