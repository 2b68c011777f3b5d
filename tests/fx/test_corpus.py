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


@pytest.mark.parametrize("name", CALIBRATED)
def test_own_calibration(name: str, ledger: Ledger) -> None:
    own, reason = Flow(CASES[name], exact=True), NOT_CALIBRATED.get(name, "")
    if reason in ("", ROUNDS):
        own.check_own_calibration(rounds=bool(reason))
        ledger.run(f"graph mode corpus, calibrated by us{reason and ', but for roundings'}", True)
        return
    with pytest.raises(UnsupportedError, match=re.escape(reason)):
        own.check_own_calibration()


# What converts, but has no kernel or no rule to run it. The list can only become shorter.
NOT_RUN = {
    *("ConvAdd", "LinearLeakyReLU", "torch.ao.nn.intrinsic.quantized.LinearTanh"),
    *("torch.ao.nn.quantized.Embedding", "torch.ao.nn.quantized.EmbeddingBag"),
    *("a recurrent module with float16 weights", "dynamic Linear with float16"),
    *("torch.ops.quantized.linear_dynamic_fp16", "linear_prepack", "quantized::matmul"),
    *("no kernel for engine qnnpack", "torch.nn.TransformerEncoderLayer"),
    # Modules of the user, of which nothing is known.
    *("Untraceable", "FloatScale", "ObservedScale", "QuantizedScale", "DynamicScale"),
}


def test_what_is_not_run() -> None:
    assert {case.runs for case in CASES.values()} == {"", SUMS_FLOATS, *NOT_RUN}
    counts = [sum(case.runs == reason for case in CASES.values()) for reason in NOT_RUN]
    assert sum(counts) <= 40
    assert len(CASES) >= 500
    assert sum(name in NOT_CALIBRATED for name in CALIBRATED) <= 40


def test_every_defect_is_met() -> None:
    met = {name for case in CASES.values() for name in case.defects}
    assert met == set(DEFECTS)
