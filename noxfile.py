"""The door to every check: ``nox --list`` shows the sessions."""

import nox

nox.options.sessions = ["lint", "types", "tests", "nojit"]
nox.options.reuse_existing_virtualenvs = True
SMALL = ["tests/test_cases.py", "tests/test_text.py", "tests/test_graph.py"]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install("ruff>=0.11")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    session.install("-e", ".", "mypy>=1.15")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests, with torch as the oracle."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def nojit(session: nox.Session) -> None:
    """Run the small cases as plain Python."""
    session.install("-e", ".[test]")
    session.run("pytest", *SMALL, *session.posargs, env={"NUMBA_DISABLE_JIT": "1"})


@nox.session
def oracle(session: nox.Session) -> None:
    """Run the long sweeps against torch: many Hypothesis examples, whole networks."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs, env={"HYPOTHESIS_PROFILE": "sweep"})
    for net in ("resnet18", "resnet50", "mobilenet_v2"):
        session.run("python", "-m", "refquant", "compare", f"benchmarks/nets.py:{net}")


@nox.session
def exactness(session: nox.Session) -> None:
    """Compare quantization parameters and fake-quants at full length; write docs/exactness.md."""
    session.install("-e", ".[test]")
    session.run("python", "tests/exactness.py", *session.posargs)


@nox.session
def ledger(session: nox.Session) -> None:
    """Compare every quantized operator at full length; write docs/ledger.md and ledger.json."""
    session.install("-e", ".[test]")
    command = ("python", "-m", "refquant.ledger", "--write", "docs")
    session.run(*command, *(session.posargs or ["--long"]))


@nox.session
def exhaustive(session: nox.Session) -> None:
    """Compare quantize_per_tensor with torch for every float32."""
    session.install("-e", ".[test]")
    session.run("pytest", "tests/exhaustive.py", "--ledger", *session.posargs)


@nox.session
def graph_mode(session: nox.Session) -> None:
    """Compare graph mode with torch at full length: 20,000 random networks."""
    session.install("-e", ".[test]")
    session.run("pytest", "tests/fx", "--sweep", "--ledger", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Import and run 10,000 damaged ONNX models (``-- --mutants 500`` for fewer)."""
    session.install("-e", ".[test,bench]")
    session.run("pytest", "tests/onnx/fuzz.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; broken links fail."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict")


@nox.session
def onnx_differences(session: nox.Session) -> None:
    """Count where ONNX, onnxruntime and torch part; write docs/onnx_numerics.md."""
    session.install("-e", ".[test]")
    session.run("python", "tests/onnx/differences.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time everything against others; write docs/performance.md and the table of docs/onnx.md."""
    session.install("-e", ".[test,bench]")
    session.run("python", "benchmarks/performance.py", *session.posargs)
    session.run("python", "benchmarks/onnx_models.py", "--write")
