"""The command line: ``refquant demo | show | import | run | compare | warmup | doctor ...``."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

# Before torch or Numba start a thread pool: two spinning OpenMP runtimes slow each other down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import typer
from rich.console import Console
from rich.table import Table

from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.file import load, whole_file
from refquant.ir.graph import Graph
from refquant.ir.target import Target
from refquant.progress import working

app = typer.Typer(
    help="PyTorch's quantization, bit for bit, without torch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(width=None if sys.stdout.isatty() else 160)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Engine = Annotated[str, typer.Option("--engine", help="Target: engine[/isa[/threads=n]].")]
Executor = Annotated[str, typer.Option("--executor", help="fast or reference.")]
Shapes = Annotated[
    list[str] | None, typer.Option("--shape", help="Input shape of a saved GraphModule: 1,3,8,8.")
]


def main() -> None:
    """Run the command line; expected errors are one line and exit code 2."""
    try:
        app()
    except (RefquantError, OSError) as error:
        print(f"refquant: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _emit(data: Any) -> None:
    print(json.dumps(data, indent=2))


def _check_executor(executor: str) -> Any:
    if executor not in ("fast", "reference"):
        raise VerifyError(f"--executor must be fast or reference, got {executor!r}")
    return executor


def _graph_of(spec: str, shapes: list[str] | None, engine: str | None = None) -> Graph:
    """Read a ``.rq`` file, or import a torch or an ONNX model."""
    if spec.endswith(".rq"):
        return load(spec)
    if spec.endswith(".onnx"):
        from refquant.sources import read_onnx

        with working(f"importing {spec}"):
            return read_onnx(spec, shapes or [], engine or "onnx")
    from refquant.importers.fx import from_fx
    from refquant.sources import read_source

    with working(f"importing {spec}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = read_source(spec, shapes or [])
        return from_fx(source.model, source.inputs, target=engine or "fbgemm")


@app.command()
def demo(json_: Json = False, executor: Executor = "fast") -> None:
    """Run a network that torch quantized on 450 real images and compare with torch's bits."""
    from refquant.demo import run_demo

    started = time.perf_counter()
    with working("running 450 images"):
        report = run_demo(_check_executor(executor))
    seconds = time.perf_counter() - started
    if json_:
        _emit(report.as_dict())
    else:
        table = Table(title="digits cnn, quantized by torch 2.13.0 for fbgemm")
        for column in ("node", "op", "type", "equal to torch"):
            table.add_column(column)
        for row in report.rows:
            table.add_row(row.name, row.op, row.type, "yes" if row.equal else "NO")
        out.print(table)
        exact, total = report.equal_logits, report.total_logits
        word = "bit-exact" if exact == total and all(r.equal for r in report.rows) else "NOT exact"
        out.print(f"accuracy {report.accuracy:.2f} on {report.images} images")
        out.print(f"{word} {exact}/{total} logits, without torch, in {seconds:.1f} s")
        out.print("next: [bold]refquant show[/bold], [bold]refquant compare[/bold]; see README.md")
    if not report.bit_exact:
        raise SystemExit(1)


@app.command()
def show(
    source: Annotated[
        str, typer.Argument(help=".rq, .onnx, module.py:factory or saved GraphModule.")
    ],
    text: Annotated[bool, typer.Option("--text", help="Print the graph's text form.")] = False,
    json_: Json = False,
    shape: Shapes = None,
) -> None:
    """Show a model: a table of its layers, or its text."""
    from refquant.summary import summarize

    graph = _graph_of(source, shape)
    if text:
        print(graph, end="")
        return
    rows = summarize(graph)
    if json_:
        _emit({"provenance": graph.provenance, "nodes": rows})
        return
    table = Table(title=f"{source} ({', '.join(f'{k} {v}' for k, v in graph.provenance.items())})")
    for column in ("node", "op", "output", "scale", "zero point", "parameters", "module"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(row[key]) for key in row))
    out.print(table)


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(help="module.py:factory, saved GraphModule or .onnx file.")
    ],
    output: Annotated[Path, typer.Argument(help="The .rq file to write.")],
    engine: Annotated[
        str | None, typer.Option("--engine", help="Target; fbgemm, or onnx for ONNX.")
    ] = None,
    json_: Json = False,
    shape: Shapes = None,
) -> None:
    """Import a torch or ONNX model and save it as a .rq file."""
    if output.suffix != ".rq":
        raise VerifyError(f"{output}: the file must end in .rq")
    graph = _graph_of(source, shape, str(Target.parse(engine)) if engine else None)
    graph.save(output)
    report = {"file": str(output), "nodes": len(graph.nodes), "parameters": len(graph.parameters)}
    if json_:
        _emit(report)
    else:
        out.print(f"{output}: {report['nodes']} nodes, {report['parameters']} parameters")


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(help=".rq, .onnx, module.py:factory or saved GraphModule.")
    ],
    output: Annotated[Path, typer.Argument(help="The .onnx file to write.")],
    format: Annotated[str, typer.Option("--format", help="qdq or qoperator.")] = "qdq",
    json_: Json = False,
    shape: Shapes = None,
) -> None:
    """Write a model as ONNX and print which nodes a runtime reproduces bit for bit."""
    from refquant.onnx_export import export_onnx

    contract = export_onnx(_graph_of(source, shape), output, format)  # type: ignore[arg-type]
    if json_:
        _emit({"file": str(output), "nodes": [promise._asdict() for promise in contract]})
    else:
        print(contract)


@app.command()
def run(
    source: Annotated[
        str, typer.Argument(help=".rq, .onnx, module.py:factory or saved GraphModule.")
    ],
    input_: Annotated[
        list[str] | None, typer.Option("--input", help="A .npy file for each input.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="A .npz file to write.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write every intermediate value.")
    ] = False,
    batch: Annotated[int, typer.Option("--batch", help="Batch of random inputs.")] = 1,
    engine: Annotated[str | None, typer.Option("--engine", help="Target to reproduce.")] = None,
    executor: Executor = "fast",
    json_: Json = False,
    shape: Shapes = None,
) -> None:
    """Run a model on arrays (or seeded random ones) and print or save what it returns."""
    import numpy as np

    from refquant.sources import read_inputs

    graph = _graph_of(source, shape)
    inputs = read_inputs(input_ or [], graph, batch)
    target = Target.parse(engine) if engine else graph.target
    with working("running"):
        result = graph.run(*inputs, target=target, executor=_check_executor(executor), record=True)
    wanted = result.values if record else {value.name for value in graph.outputs}
    arrays: dict[str, Any] = {
        name: getattr(value, "int_repr", value)
        for name, value in result.values.items()
        if name in wanted
    }
    if output is not None:
        with whole_file(output) as file:
            np.savez(file, **arrays)
    report = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in arrays.items()}
    if json_:
        _emit({"target": str(target), "values": report, "file": str(output) if output else None})
        return
    for value in graph.outputs:
        out.print(f"{value.name}: {value.type}", highlight=False)
        out.print(str(arrays[value.name]), highlight=False)


@app.command()
def compare(
    source: Annotated[str, typer.Argument(help="module.py:factory or a saved GraphModule.")],
    model: Annotated[
        str | None, typer.Option("--model", help="A .rq file to run instead of a fresh import.")
    ] = None,
    engine: Engine = "fbgemm",
    executor: Annotated[str, typer.Option("--executor", help="fast, reference or both.")] = "both",
    json_: Json = False,
    shape: Shapes = None,
) -> None:
    """Run a model here and in torch, and compare every node to the last bit."""
    from refquant.compare import run_diff
    from refquant.importers.fx import from_fx
    from refquant.sources import read_source

    target = Target.parse(engine)
    executors = ["reference", "fast"] if executor == "both" else [executor]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with working("importing"):
            found = read_source(source, shape or [])
            if model:
                graph = load(model)
            else:
                graph = from_fx(found.model, found.inputs, target=str(target))
        reports = []
        for name in executors:
            with working(f"running torch and the {name} executor"):
                reports.append(
                    run_diff(graph, found.model, found.inputs, target, _check_executor(name))
                )
    if json_:
        _emit([report.as_dict() for report in reports])
    else:
        for report in reports:
            print(report)
    if not all(report.bit_exact for report in reports):
        raise SystemExit(1)


@app.command()
def saturation(
    source: Annotated[
        str, typer.Argument(help=".rq, .onnx, module.py:factory or saved GraphModule.")
    ],
    input_: Annotated[
        list[str] | None, typer.Option("--input", help="A .npy file for each input.")
    ] = None,
    engine: Engine = "fbgemm/avx2",
    json_: Json = False,
    shape: Shapes = None,
) -> None:
    """Tell which int8 layers saturate in 16 bits: a proof, and with inputs a count.

    Exit code 1 if a layer is not proven safe.
    """
    from refquant.saturation import saturation_report
    from refquant.sources import read_inputs

    graph = _graph_of(source, shape, str(Target.parse(engine)))
    inputs = read_inputs(input_, graph, 1) if input_ else None
    report = saturation_report(graph, inputs, engine)
    if json_:
        _emit(report.as_dict())
    else:
        print(report)
    if not report.safe:
        raise SystemExit(1)


@app.command()
def warmup(
    files: Annotated[
        list[str] | None, typer.Argument(help="Models; without one, what most models need.")
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="Target to reproduce.")] = None,
    json_: Json = False,
    shape: Shapes = None,
) -> None:
    """Compile ahead, so that the first run of a model does not have to."""
    from refquant.warmup import common_work, work_of

    target = Target.parse(engine) if engine else None
    if files:
        work = [work_of(file, _graph_of(file, shape), target) for file in files]
    else:
        work = common_work(target or Target())
    with working("compiling ahead") as progress:
        for number, (name, call) in enumerate(work, 1):
            progress.step(f"{number}/{len(work)} {name}")
            call()
    if json_:
        _emit({"kernels": progress.kernels, "steps": [name for name, _ in work]})
    else:
        out.print(f"{progress.kernels} kernels compiled; the others were there")


@app.command()
def doctor(
    clear_cache: Annotated[
        bool, typer.Option("--clear-cache", help="Remove all compiled kernels.")
    ] = False,
    json_: Json = False,
) -> None:
    """Tell what this machine has: versions, vector instructions, JIT cache, torch's engines."""
    if clear_cache:
        _clear_cache(json_)
        return
    from refquant.machine import describe

    facts = describe()
    if json_:
        _emit(facts)
        return
    table = Table(show_header=False)
    for key, value in facts.items():
        table.add_row(key, ", ".join(value) if isinstance(value, list) else str(value))
    out.print(table)


def _clear_cache(json_: bool) -> None:
    from refquant.kernels.jit_cache import clear

    removed = clear()
    if json_:
        _emit({"removed": [entry._asdict() | {"folder": str(entry.folder)} for entry in removed]})
        return
    for entry in removed:
        which = "current" if entry.current else "stale"
        size = f"{entry.kernels} kernels, {entry.bytes / 1e6:.1f} MB"
        print(f"removed {entry.folder} ({which}): {size}")
    if not removed:
        print("no compiled kernels to remove")
