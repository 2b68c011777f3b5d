"""The ledger as a page for readers and as JSON for programs."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refquant.ir.target import TORCH_ENGINES, Isa, Target
from refquant.ir.types import DTYPES
from refquant.ledger.cell import Cell
from refquant.ledger.check import Outcome
from refquant.ledger.known import cause_of
from refquant.ledger.names import ACCESSORS, FORMS, NO_ARITHMETIC, NOT_COVERED

Found = Mapping[Cell, Outcome]

HEADER = """# Ledger: every quantized operator of torch, compared

Written by `python -m refquant.ledger`; nothing is entered by hand. A *cell* is an operator under
an engine, an instruction set and a dtype. Its samples are drawn so that values lie at rounding
ties; torch and refquant run them, and all bits are compared: integers, scales, zero points (NaN
equals NaN, -0 equals 0). Each instruction set is a process of its own:

* `avx512_vnni`: the machine as it is;
* `avx512`: `FBGEMM_ENABLE_INSTRUCTIONS=AVX512`, `ONEDNN_MAX_CPU_ISA=AVX512_CORE`;
* `avx2`: also `ATEN_CPU_CAPABILITY=avx2`, and the other two at `AVX2`;
* `default`: `ATEN_CPU_CAPABILITY=default`.

"""
_SAMPLE = "    python -m refquant.ledger --reproduce '{cell}' --sample {first} --seed {seed}"


def covered_names(found: Found, names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Return for each namespace what is known of each name: how it is covered, or why not.

    A name counts without its overload, except in ``quantized_decomposed``; it is covered if all
    its overloads are.
    """
    ran: dict[str, Counter[str]] = defaultdict(Counter)
    for cell, outcome in found.items():
        ran[cell.name][outcome.status] += 1

    def state(name: str) -> str:
        bare = name.removesuffix(".default")
        if ran[name]["equal"] + ran[name]["partial"] + ran[name]["differs"]:
            return "compared"
        if name in FORMS:
            return f"form of {FORMS[name]}"
        if name in ACCESSORS:
            return ACCESSORS[name]
        if name in NO_ARITHMETIC:
            return f"no arithmetic: {NO_ARITHMETIC[name]}"
        if name in NOT_COVERED:
            return f"not covered: {NOT_COVERED[name]}"
        if ran[name]["refused"] and not ran[name]["missing"]:
            return "refused by torch"
        return state(bare) if bare != name else "not covered: no sample runs"

    result: dict[str, dict[str, str]] = {}
    for namespace, group in names.items():
        states: dict[str, str] = {}
        for name in group:
            key = name if namespace == "quantized_decomposed" else name.partition(".")[0]
            told = state(name)
            if not states.get(key, "").startswith("not covered"):
                states[key] = told
        result[namespace] = states
    return result


def is_covered(state: str) -> bool:
    """Whether what is told of a name means that it is covered."""
    return not state.startswith("not covered")


def as_json(
    found: Found, names: Mapping[str, Sequence[str]], facts: Mapping[str, Any], seed: int
) -> str:
    """Return the ledger as JSON: machine, names, and a row for each cell."""
    fields = list(Outcome().as_dict())
    rows = [
        [
            *(cell.name, str(cell.target.engine), str(cell.target.isa), cell.dtype.name),
            *outcome.as_dict().values(),
        ]
        for cell, outcome in found.items()
    ]
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = {
        "machine": dict(facts),
        "seed": seed,
        "names": covered_names(found, names),
        "columns": ["name", "engine", "isa", "dtype", *fields],
    }
    return json.dumps(head, indent=1)[:-2] + f',\n "cells": [\n{lines}\n]}}\n'


def read(text: str) -> dict[Cell, Outcome]:
    """Return the cells that a ledger in JSON holds."""
    data = json.loads(text)
    found = {}
    for name, engine, isa, dtype, *rest in data["cells"]:
        values = dict(zip(data["columns"][4:], rest, strict=True))
        values["unsupported"] = Counter(values["unsupported"])
        found[Cell(name, Target(engine, isa), DTYPES[dtype])] = Outcome(**values)
    return found


def as_page(
    found: Found, names: Mapping[str, Sequence[str]], facts: Mapping[str, Any], seed: int
) -> str:
    """Return the ledger as Markdown."""
    states = covered_names(found, names)
    lines = [HEADER + ", ".join(f"{key} {value}" for key, value in facts.items()) + "."]
    lines += ["", "## Summary", "", *_summary(found), "", *_names_summary(states)]
    lines += ["", "## Cells that differ", "", *_differing(found, seed)]
    lines += ["", "## What is refused here only", "", *_refused(found)]
    lines += ["", "## Names that are not covered", "", *_not_covered(states)]
    lines += ["", "## Every operator", "", *_table(found)]
    lines += ["", "## Names without samples of their own", "", *_others(states)]
    return "\n".join(lines) + "\n"


def _number(count: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _summary(found: Found) -> Iterator[str]:
    statuses = Counter(outcome.status for outcome in found.values())
    meaning = {
        "equal": "every bit of every sample",
        "partial": "every bit; some samples are refused here that torch runs",
        "differs": "see below",
        "missing": "torch runs it, refquant refuses it",
        "refused": "torch refuses every sample",
        "undefined": "torch corrupts memory and is not run; refquant refuses it",
        "broken": "refquant fails with an error that is not its own",
        "crash": "torch's process died",
    }
    yield "| cells | | elements compared | mismatches |"
    yield "|---|---|---:|---:|"
    for status, text in meaning.items():
        some = [outcome for outcome in found.values() if outcome.status == status]
        elements = sum(outcome.elements for outcome in some)
        wrong = sum(outcome.mismatches for outcome in some)
        yield f"| {statuses[status]:,} {status} | {text} | {elements:,} | {wrong:,} |"


def _names_summary(states: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    yield "| namespace | names | covered | |"
    yield "|---|---:|---:|---:|"
    total = have = 0
    for namespace, group in states.items():
        covered = sum(map(is_covered, group.values()))
        total, have = total + len(group), have + covered
        yield f"| {namespace} | {len(group)} | {covered} | {covered / len(group):.1%} |"
    yield f"| all | {total} | {have} | {have / total:.1%} |"


def _differing(found: Found, seed: int) -> Iterator[str]:
    some = {cell: outcome for cell, outcome in found.items() if outcome.status == "differs"}
    if not some:
        yield "None."
        return
    yield "| cell | elements | mismatches | worst step | cause |"
    yield "|---|---:|---:|---:|---|"
    for cell, outcome in some.items():
        known = cause_of(cell)
        yield (
            f"| {cell} | {outcome.elements:,} | {outcome.mismatches} | {outcome.worst:g} "
            f"| {known.cause if known else 'not known'} |"
        )
    cell, outcome = next(iter(some.items()))
    yield from ("", "To reproduce the first mismatch of a cell, for example:", "")
    yield _SAMPLE.format(cell=cell, first=outcome.first, seed=seed)


def _refused(found: Found) -> Iterator[str]:
    """Yield reasons, those that differ in numbers only once, with the machines they hold for."""
    where: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    example: dict[tuple[str, str], str] = {}
    for cell, outcome in found.items():
        for reason in outcome.unsupported:
            key = cell.name, re.sub(r"-?[0-9]+", "#", reason)
            example.setdefault(key, reason.replace("|", "/"))
            where[key][f"{cell.target.engine}/{cell.target.isa}"] = None
    if not where:
        yield "Nothing."
        return
    yield "| operator | engines and instruction sets | reason, for example |"
    yield "|---|---|---|"
    for key, machines in where.items():
        yield f"| {key[0]} | {', '.join(machines)} | {example[key]} |"


def _not_covered(states: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    some = [
        (name, state)
        for group in states.values()
        for name, state in group.items()
        if not is_covered(state)
    ]
    if not some:
        yield "None."
        return
    yield "| name | why |"
    yield "|---|---|"
    for name, state in some:
        yield f"| {name} | {state.removeprefix('not covered: ')} |"


def _table(found: Found) -> Iterator[str]:
    yield f"| operator | dtype | {' | '.join(TORCH_ENGINES)} |"
    yield "|---|---|" + "---|" * len(TORCH_ENGINES)
    rows: dict[tuple[str, str], dict[str, dict[str, Outcome]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for cell, outcome in found.items():
        engine, isa = str(cell.target.engine), str(cell.target.isa)
        rows[cell.name, cell.dtype.name][engine][isa] = outcome
    for (name, dtype), engines in sorted(rows.items()):
        entries = " | ".join(_entry(engines[engine]) for engine in TORCH_ENGINES)
        yield f"| {name} | {dtype} | {entries} |"


def _entry(outcomes: Mapping[str, Outcome]) -> str:
    """Return one entry for all instruction sets of an engine."""
    statuses = {outcome.status for outcome in outcomes.values()}
    if len(statuses) == 1 and statuses <= {"refused", "undefined"}:
        return str(*statuses)
    elements = sum(outcome.elements for outcome in outcomes.values())
    if statuses == {"equal"}:
        return _number(elements)
    parts = []
    for status in ("partial", "differs", "missing", "refused", "broken", "crash"):
        some = [isa for isa in Isa if isa in outcomes and outcomes[isa].status == status]
        if some:
            parts.append(status if len(some) == len(outcomes) else f"{status} {', '.join(some)}")
    return "; ".join([_number(elements)] * (elements > 0) + parts)


def _others(states: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    yield "Shown by `tests/test_names.py`: a model with each one imports and gives torch's bits."
    yield ""
    yield "| name | what it is |"
    yield "|---|---|"
    for group in states.values():
        for name, state in group.items():
            if is_covered(state) and state != "compared":
                yield f"| {name} | {state} |"
