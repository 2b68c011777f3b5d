"""docs/performance.md and its plot, from what was measured and nothing else."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import limits
import memory
from results import Result, geometric_mean, peak_rate
from startup import Start

PACKAGES = ("refquant", "numpy", "numba", "llvmlite", "torch", "onnxruntime", "onnx")
OF_PEAK = ("networks", "products", "batch", "size")
MANY = 12  # missed targets of a kind beyond which only the worst is listed
ORDER = ("fbgemm", "onednn", "x86", "qnnpack", "float32", "onnxruntime")
TITLES = {
    "networks": "Networks",
    "products": "Linears and convolutions",
    "pointwise": "Elementwise operators and pools",
    "observers": "Observers, quantizers and fake-quants",
    "peak": "Fraction of the peak",
    "batch": "Growing batch",
    "size": "Growing images",
    "onnx.reference": "onnx.reference",
}
INTRO = """\
# Performance

Written by `python benchmarks/performance.py`. Each number is a ratio: the other's time over
refquant's, so that more than 1 means that refquant is faster. Both run in turn in one process;
the ratio is of the fastest runs, and the median of all paired runs stands in brackets. Whatever
is meant to give torch's bits was compared bit for bit in the same run.
"""


def machine() -> dict[str, str]:
    """Return the machine and the versions."""
    import llvmlite.binding as llvm

    from refquant.kernels.registers import ISA

    info = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    if info.exists():
        pairs = (line.partition(":") for line in info.read_text().splitlines())
        facts = {key.strip(): value.strip() for key, _, value in pairs}
    name = facts.get("model name", platform.processor())
    family = f", family {facts['cpu family']} model {facts['model']}" if "model" in facts else ""
    found = {
        "CPU": f"{name}{family}; LLVM calls it {llvm.get_host_cpu_name()}",
        "cores": str(os.cpu_count()),
        "int8 tile": ISA,
        "system": platform.system(),
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _ratio(row: Result | None) -> str:
    if row is None:
        return ""
    text = f"{row.ratio:.2f} ({row.median:.2f})"
    if row.equal is False:
        text += " NOT EQUAL"
    return f"**{text}**" if row.missed else text


def matrix(results: list[Result], threads: int, peak: float) -> str:
    """Return names by others; a missed target is bold.

    ``peak`` is the products a second that are possible; 0 leaves the fraction out.
    """
    rows = [row for row in results if row.threads == threads]
    names = list(dict.fromkeys(row.name for row in rows))
    columns = [other for other in ORDER if any(row.other == other for row in rows)]
    columns += sorted({row.other for row in rows} - set(ORDER))
    found = {(row.name, row.other): row for row in rows}
    body = []
    for name in names:
        ours = min(row.ours for row in rows if row.name == name)
        cells = [_ratio(found.get((name, other))) for other in columns]
        macs = max(row.macs for row in rows if row.name == name)
        reached = [f"{macs / ours / peak / threads:.0%}" if macs else ""] if peak else []
        body.append([name, _time(ours), *reached, *cells])
    means = [
        f"{geometric_mean([row for row in rows if row.other == other]):.2f}" for other in columns
    ]
    more = ["of peak"] * bool(peak)
    last = ["geometric mean", "", *[""] * bool(peak), *means]
    return table(["", "refquant", *more, *columns], [*body, last])


def scaling(results: list[Result]) -> str:
    """Return how much faster refquant, and torch's fbgemm, are on two threads than on one."""
    ours: dict[tuple[str, int], float] = {}
    theirs: dict[tuple[str, int], float] = {}
    for row in results:
        key = row.name, row.threads
        ours[key] = min(row.ours, ours.get(key, row.ours))
        if row.other == "fbgemm":
            theirs[key] = row.theirs
    body = []
    for name in (name for name, threads in theirs if threads == 1 and (name, 2) in theirs):
        gains = [times[name, 1] / times[name, 2] for times in (ours, theirs)]
        body.append([name, *(f"{gain:.2f}" for gain in gains)])
    return table(["2 threads over 1", "refquant", "fbgemm"], body) if body else ""


def _goal(name: str, wanted: float, rows: list[Result], reached: float | None = None) -> list[str]:
    worst = min(rows, key=lambda row: row.ratio)
    value = worst.ratio if reached is None else reached
    missed = [row for row in rows if row.ratio < wanted]
    if value >= wanted:
        verdict = "reached"
    elif reached is not None:
        verdict = "missed"
    else:
        verdict = f"missed by {len(missed)} of {len(rows)}; worst {worst.name}"
    return [name, f"{wanted:g}", f"{value:.2f}", verdict]


def goals(found: dict[str, Any], results: list[Result]) -> str:
    """Return every target and whether it was reached."""
    body = []
    one = [row for row in results if row.threads == 1]

    def of(section: str, other: str) -> list[Result]:
        return [row for row in one if (row.section, row.other) == (section, other)]

    products = of("products", "fbgemm")
    dense = [row for row in products if not row.name.startswith("depthwise")]
    deep = [row for row in products if row.name.startswith("depthwise")]
    if dense:
        body.append(_goal("fbgemm, each dense shape", 1.0, dense))
        mean = geometric_mean(dense)
        body.append(_goal("fbgemm, geometric mean of dense shapes", 1.5, dense, mean))
    if deep:
        body.append(_goal("fbgemm, each depthwise shape", 1.5, deep))
    for title, section, other in (
        ("qnnpack, each shape", "products", "qnnpack"),
        ("networks, fbgemm", "networks", "fbgemm"),
        ("networks, onnxruntime int8", "networks", "onnxruntime"),
        ("networks, qnnpack", "networks", "qnnpack"),
        ("fraction of the peak, sums of 256 and more", "peak", "peak"),
        ("onnx.reference", "onnx.reference", "onnx.reference"),
    ):
        rows = [row for row in of(section, other) if row.wanted is not None]
        if rows:
            wanted = rows[0].wanted
            assert wanted is not None
            body.append(_goal(title, wanted, rows))
    for start in (Start(*row) for row in found["startup"]):
        if start.wanted < float("inf"):
            verdict = "reached" if start.seconds <= start.wanted else "missed"
            reached = f"{start.seconds:.2f} s"
            body.append([start.what, f"at most {start.wanted:g} s", reached, verdict])
    if found["memory"]:
        held = memory.Memory(*found["memory"])
        verdict = "reached" if held.ratio <= memory.WANTED else "missed"
        what = "ResNet-50: memory over weights and two activations"
        body.append([what, f"at most {memory.WANTED}", f"{held.ratio:.2f}", verdict])
    return table(["target, 1 thread", "wanted", "reached", ""], body)


def _missed(results: list[Result]) -> str:
    """Return a row for each missed target, or one for many of a kind."""
    kinds: dict[tuple[str, str], list[Result]] = {}
    peak = peak_rate(results)
    for row in results:
        if row.missed:
            kinds.setdefault((row.section, row.other), []).append(row)
    body = []
    for rows in kinds.values():
        rows.sort(key=lambda row: row.ratio)
        for row in rows if len(rows) <= MANY else rows[:1]:
            name = row.name if len(rows) <= MANY else f"{len(rows)} shapes; worst {row.name}"
            short = f"{1 - row.ratio / (row.wanted or 1):.0%}"
            cells = [name, row.other, f"{row.wanted:g}", f"{row.ratio:.2f}", short]
            why = limits.reason_of(row.section, row.other, row.name)
            beyond = sum(_bound(each, peak) < (each.wanted or 0) for each in rows)
            if len(rows) > MANY:
                why = "; ".join(
                    [f"{beyond} are beyond the peak"] * bool(beyond)
                    + [f"the worst: {why}"] * bool(why)
                )
            body.append([*cells, _bounded(row, peak), why])
    head = ["", "other", "wanted", "reached", "short by", "the peak allows", "what limits it"]
    return table(head, body) if body else "None.\n"


def _bound(row: Result, peak: float) -> float:
    """Return the ratio of an operator that does nothing but its products, at the peak."""
    if not (peak and row.macs) or row.other == "peak":
        return float("inf")
    return row.theirs / (row.macs / peak)


def _bounded(row: Result, peak: float) -> str:
    bound = _bound(row, peak)
    if bound == float("inf"):
        return ""
    return f"{bound:.2f}" if bound < 100 else "over 100"


def page(found: dict[str, Any]) -> str:
    """Return the page."""
    results = [Result._make(row) for row in found["results"]]
    parts = [INTRO, table(["", ""], [[k, v] for k, v in found["machine"].items()])]
    peak = peak_rate(results)
    if peak:
        parts.append(
            f"A loop of int8 products in registers does {peak / 1e9:.0f} GMAC/s on one thread: "
            "the peak.\n"
        )
    checked = [row for row in results if row.equal is not None]
    unequal = sum(row.equal is False for row in checked)
    parts.append(
        f"{len(results)} pairs; {len(checked)} of them compared bit for bit: {unequal} differ.\n"
    )
    parts += ["## Targets\n", goals(found, results), "![ratios](performance.svg)\n"]
    parts += ["## Missed targets\n", _missed(results)]
    for section, title in TITLES.items():
        rows = [row for row in results if row.section == section]
        for threads in sorted({row.threads for row in rows}):
            parts += [f"## {title}, {threads} thread{'s' * (threads > 1)}\n"]
            parts.append(matrix(rows, threads, peak if section in OF_PEAK else 0.0))
        parts += [f"* {note}\n" for note in _notes(rows)]
        if section in ("networks", "products"):
            parts.append(scaling(rows))
    if found["startup"]:
        starts = map(Start._make, found["startup"])
        body = [[row.what, f"{row.seconds:.2f} s", f"{row.cpu:.2f} s"] for row in starts]
        parts += ["## Start-up\n", table(["fresh process", "fastest", "CPU time in it"], body)]
    if found["memory"]:
        rows_of_memory = memory.rows(memory.Memory(*found["memory"]))
        parts += ["## Memory of ResNet-50\n", table(["", "", "target"], rows_of_memory)]
    return "\n".join(part for part in parts if part)


def _notes(rows: list[Result]) -> list[str]:
    noted = {f"{row.name}: {row.note}" for row in rows if row.note and row.threads == 1}
    return sorted(noted)


def plot(results: list[Result], path: Path) -> None:
    """Draw every ratio on one thread, by section and other."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    rows = [row for row in results if row.threads == 1 and row.section in TITLES]
    groups: dict[str, list[float]] = {}
    for row in rows:
        what = "depthwise" if row.name.startswith("depthwise") else row.section
        if what not in ("peak", "batch", "size", "onnx.reference"):
            groups.setdefault(f"{what}: {row.other}", []).append(row.ratio)
    with mpl.rc_context({"svg.hashsalt": "refquant", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(9, 0.8 + 0.27 * max(1, len(groups))))
        for height, (name, ratios) in enumerate(sorted(groups.items(), reverse=True)):
            axes.plot(ratios, [height] * len(ratios), "o", alpha=0.5, markersize=4)
            axes.annotate(
                name,
                (0.0, height),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                xytext=(-6, 0),
                textcoords="offset points",
            )
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yticks([])
        axes.set_xlabel(
            "the other's time over refquant's on 1 thread; right of the line refquant is faster"
        )
        axes.grid(axis="x", which="both", linewidth=0.3)
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)


def write(found: dict[str, Any], folder: Path) -> None:
    """Write the page and the plot."""
    (folder / "performance.md").write_text(page(found))
    plot([Result._make(row) for row in found["results"]], folder / "performance.svg")
