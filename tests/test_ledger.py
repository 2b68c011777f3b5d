"""The ledger: it finds planted wrong formulas, reports what it sees, and reproduces a sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import this_machine

from refquant.ir.op import OPS
from refquant.ir.target import Engine, Isa, Target
from refquant.ir.types import DType, qint32, quint8
from refquant.kernels import accumulate, quantized_conv, requantize, rounding
from refquant.ledger import check, known, oracle, page
from refquant.ledger.cell import Cell
from refquant.ledger.check import Outcome
from refquant.ledger.draw import SAMPLERS
from refquant.ledger.plan import ENVIRONMENTS, cells, dtypes_of
from refquant.ledger.run import run_all

ISA = this_machine().isa


def cell(name: str, dtype: DType = quint8, engine: Engine = Engine.FBGEMM) -> Cell:
    return Cell(name, Target(engine, ISA), dtype)


def reference_of(chosen: Cell, elements: int = 40_000) -> Outcome:
    return check.run(chosen, elements, executors=("reference",))


# ---- five wrong formulas


def divided(x: Any, scale: float, zero_point: int, dtype: DType) -> Any:
    with np.errstate(all="ignore"):
        real = x / np.float32(scale) + np.float64(zero_point)
        return rounding.saturate(np.rint(np.minimum(real, 2.0**31 - 128)), dtype)


def not_saturating(
    x: Any, zero_point: int, weight: Any, weight_zero_point: Any, _seen: Any = None
) -> Any:
    return accumulate.dot(x, zero_point, weight, weight_zero_point)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Cell]] = {
    "fma for mul and add": (
        lambda patch: patch.setattr(rounding, "round_before", rounding.round_fused),
        cell("aten::index_put"),
    ),
    "divide for reciprocal": (
        lambda patch: patch.setattr(rounding, "quantize_fused", divided),
        cell("aten::quantize_per_tensor"),
    ),
    "zero point after rounding": (
        lambda patch: patch.setattr(rounding, "round_before", rounding.round_after),
        cell("aten::index_put"),
    ),
    "bias through int32": (
        lambda patch: patch.setitem(requantize.LINEAR, Engine.FBGEMM, requantize.INTEGER_BIAS),
        cell("quantized::linear"),
    ),
    "no saturation": (
        lambda patch: patch.setattr(quantized_conv, "dot_saturating", not_saturating),
        cell("quantized::conv2d"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_formula_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, chosen = FAULTS[fault]
    assert reference_of(chosen).status in ("equal", "partial")
    plant(monkeypatch)
    found = reference_of(chosen)
    assert found.status == "differs"
    assert found.mismatches > 0
    assert found.first is not None
    _, call = check.sample(chosen, found.first)  # can be drawn again, and differs again
    actual = check.by_refquant(chosen, call, fast=False)
    assert check.different(actual, check.by_torch(chosen, call))[1] > 0


# ---- cells


def test_every_sampler_draws_an_op_and_its_dtypes() -> None:
    for name in SAMPLERS:
        assert name in OPS
        assert dtypes_of(name)


def test_the_same_sample_is_drawn_again_and_another_seed_draws_another() -> None:
    chosen = cell("quantized::add")
    (_, one), (_, same), (_, other) = (check.sample(chosen, 3, seed) for seed in (0, 0, 1))
    assert check.different(one.operands, same.operands)[1] == 0
    assert one.attributes == same.attributes
    assert one.attributes != other.attributes


@pytest.mark.parametrize("name", ["quantized::add", "quantized::linear", "aten::mean"])
def test_samples_lie_at_ties(name: str) -> None:
    """A scale three units in the last place away changes an integer of many results."""
    chosen, moved = cell(name), 0
    op = OPS[name]
    for index in range(20):
        _, call = check.sample(chosen, index)
        if "scale" not in call.attributes:
            moved += 1  # averages lie on ties by themselves
            continue
        bits = np.float32(call.attributes["scale"]).view(np.int32)
        results = []
        for ulps in (-3, 3):
            scale = float((bits + np.int32(ulps)).view(np.float32))
            attributes = {**call.attributes, "scale": scale}
            results.append(op.bind(chosen.target, fast=True)(*call.operands, **attributes))
        moved += bool((results[0].int_repr != results[1].int_repr).any())
    assert moved >= 12


def test_what_torch_refuses_and_what_refquant_refuses() -> None:
    refused = check.run(cell("aten::channel_shuffle", qint32), 1000)
    assert refused.status == "refused"
    assert "works only on QUInt8" in refused.refusal
    missing = Outcome(unsupported=check.Counter({"why": 3})).close()
    assert missing.status == "missing"
    assert known.is_expected(cell("aten::mean"), refused)


def test_an_error_that_is_not_our_own_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise IndexError("off by one")

    monkeypatch.setattr(rounding, "quantize_fused", broken)
    chosen = cell("aten::quantize_per_tensor")
    found = reference_of(chosen)
    assert (found.status, found.error) == ("broken", "IndexError: off by one")
    assert not known.is_expected(chosen, found)


def test_a_known_limit_is_expected_and_more_is_not() -> None:
    chosen, limit = cell("quantized::matmul"), known.INEXACT["quantized::matmul *"]
    within = Outcome(elements=10**6, mismatches=1, worst=limit.worst, samples=1).close()
    beyond = Outcome(elements=10**6, mismatches=1, worst=limit.worst + 1, samples=1).close()
    assert known.is_expected(chosen, within)
    assert not known.is_expected(chosen, beyond)
    assert not known.is_expected(cell("quantized::add"), within)


def test_differences_are_counted() -> None:
    one, other = np.float32([1, np.nan, 2]), np.float32([1, np.nan, 3])
    assert check.different(one, one) == (3, 0, 0.0)
    compared, mismatches, worst = check.different(one, other)
    assert (compared, mismatches) == (3, 1)
    assert worst == pytest.approx(2**22)
    assert check.different(np.uint8([1]), np.uint8([9]))[2] == 8
    assert check.different(np.uint8([1]), np.uint8([1, 1]))[1] == 2
    assert check.different(np.int8([1]), np.uint8([1]))[1] == 1


# ---- processes


def test_cells_run_in_processes_of_their_own_machine() -> None:
    chosen = list(cells("quantized::add_scalar *bgemm/* quint8"))
    assert {c.target.isa for c in chosen} == {Isa.AVX512_VNNI, Isa.AVX2, Isa.DEFAULT}
    seen: list[Cell] = []
    found = run_all(chosen, 2000, 0, 2, lambda c, _: seen.append(c))
    assert set(seen) == set(found) == set(chosen)
    assert {outcome.status for outcome in found.values()} == {"equal"}
    assert all(outcome.elements >= 2000 for outcome in found.values())


def test_a_dead_process_is_a_crash_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, threading, time\n"
        "def die():\n"
        "    import refquant.ledger.check as check\n"
        "    run = check.run\n"
        "    check.run = lambda cell, *a: os._exit(9) if 'relu' in cell.name else run(cell, *a)\n"
        "if sys.argv[0] == '-m' or 'worker' in ' '.join(sys.orig_argv):\n"
        "    die()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    chosen = [cell("aten::relu"), cell("aten::clone")]
    found = run_all(chosen, 500, 0, 1, lambda *_: None)
    assert found[chosen[0]].status == "crash"
    assert found[chosen[1]].status == "equal"
    assert not known.is_expected(chosen[0], found[chosen[0]])


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "refquant.ledger", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    options = ("--only", "aten::flip fbgemm/* quint8", "--elements", "1000")
    done = command(*options, "--write", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "3 cells" in done.stdout
    data = json.loads((tmp_path / "ledger.json").read_text())
    assert {row[0] for row in data["cells"]} == {"aten::flip"}
    status = data["columns"].index("status")
    assert {row[status] for row in data["cells"]} == {"equal"}
    again = command(
        "--only",
        "aten::clone fbgemm/default quint8",
        "--elements",
        "1000",
        "--write",
        str(tmp_path),
    )
    assert again.returncode == 0, again.stderr
    kept = page.read((tmp_path / "ledger.json").read_text())
    assert {c.name for c in kept} == {"aten::flip", "aten::clone"}
    text = (tmp_path / "ledger.md").read_text()
    assert "| aten::flip | quint8 |" in text
    assert text.count("\n## ") == 6


@pytest.mark.parametrize("isa", ["avx512_vnni", "avx2"])
def test_a_sample_is_reproduced_on_its_machine(isa: str) -> None:
    done = command("--reproduce", f"aten::mean fbgemm/{isa} qint8", "--sample", "3")
    assert done.returncode == 0, done.stderr
    assert "reference: 0 of" in done.stdout
    assert f"aten::mean fbgemm/{isa}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "nothing"), "no cell matches"),
        (("--reproduce", "aten::mean"), "expected 'operator engine/isa dtype'"),
        (("--reproduce", "aten::nothing fbgemm/avx2 quint8"), "no samples for 'aten::nothing'"),
    ],
)
def test_bad_arguments_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# ---- the page


def test_a_difference_is_shown_with_its_cause_and_how_to_see_it() -> None:
    chosen = cell("quantized::add")
    found = {chosen: Outcome(samples=1, elements=10, mismatches=2, worst=1, first=7).close()}
    text = page.as_page(found, {"quantized": ["quantized::add"]}, {"cpu": "x"}, 5)
    assert f"| {chosen} | 10 | 2 | 1 | not known |" in text
    assert f"--reproduce '{chosen}' --sample 7 --seed 5" in text


def test_names_are_covered_or_not() -> None:
    ran = {cell("quantized::add"): Outcome(samples=1, elements=1).close()}
    listed = {"quantized": ["quantized::add", "quantized::nothing", "quantized::add_out"]}
    states = page.covered_names(ran, listed)["quantized"]
    assert [page.is_covered(states[name]) for name in listed["quantized"]] == [True, False, True]


def test_the_ledger_in_the_documentation_covers_the_names_and_has_no_unknown_difference() -> None:
    data = json.loads((Path(__file__).parent.parent / "docs" / "ledger.json").read_text())
    states = [state for group in data["names"].values() for state in group.values()]
    assert sum(map(page.is_covered, states)) >= 0.95 * len(states)
    assert len(states) == sum(map(len, page.covered_names({}, oracle.names()).values()))
    for chosen, outcome in page.read(
        (Path(__file__).parent.parent / "docs" / "ledger.json").read_text()
    ).items():
        assert known.is_expected(chosen, outcome), chosen


def test_the_environments_are_those_of_the_targets() -> None:
    assert set(ENVIRONMENTS) == set(Isa)
