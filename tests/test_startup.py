"""Starting: what is imported, what compiles, and what a user sees of it; no times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graphs import chain, quantize

from refquant.progress import working
from refquant.warmup import common_work

ROOT = Path(__file__).parent.parent
HEAVY = ("numba", "llvmlite", "torch", "onnx", "onnxruntime", "rich", "typer", "matplotlib")
LOADED = """
import sys
print(*sorted(sys.modules))
"""
CONVOLUTION = """
import numpy as np
import refquant
from refquant.ir.op import OPS
x = refquant.QTensor(np.zeros((1, 4, 5, 5), np.uint8), 0.1, 0)
w = refquant.QTensor(np.zeros((8, 4, 3, 3), np.int8), 0.1, 0, None, refquant.qint8)
geometry = dict(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)
kernel = OPS["quantized::conv2d"].kernel("fbgemm")
assert kernel(x, w, None, **geometry, scale=1.0, zero_point=0).shape == (1, 8, 3, 3)
"""
# Files of operators that have nothing to do with a convolution.
OTHERS = ("embedding_bag", "histogram", "softmax", "upsample_bilinear", "layer_norm", "max_pool")


def modules(script: str) -> set[str]:
    """Return the modules that a fresh process has loaded after ``script``."""
    done = subprocess.run(
        [sys.executable, "-c", script + LOADED], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def refquant(*arguments: str, cache: Path | None, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command with a cache of its own, or with that of the other tests."""
    env = dict(os.environ) if cache is None else {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "refquant", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, **more)


def test_import_loads_nothing_heavy_and_no_kernel() -> None:
    found = modules("import refquant")
    assert "refquant.ir.graph" in found
    assert not found & set(HEAVY)
    loaded = {name for name in found if name.startswith(("refquant.kernels.", "refquant.imp"))}
    assert loaded <= {"refquant.kernels.onnx"}  # a table of names


def test_every_public_name_is_there_without_torch() -> None:
    script = """
import refquant
names = {*refquant.__all__, *refquant._SUBMODULES, *refquant._FUNCTIONS}
for name in sorted(names - {"onnx_backend", "export_onnx"}):  # which are about onnx
    getattr(refquant, name)
"""
    assert not modules(script) & {"torch", "onnx", "rich", "matplotlib"}


def test_a_convolution_loads_what_it_needs() -> None:
    found = modules(CONVOLUTION)
    assert "refquant.kernels.quantized_conv" in found
    assert not found & {"torch", "onnx", "rich", "typer", "matplotlib"}
    assert not found & {f"refquant.kernels.{name}" for name in OTHERS}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    chain(quantize(), ("aten::dequantize", {})).save(tmp_path / "model.rq")
    return tmp_path / "model.rq"


def test_warmup_compiles_what_a_file_needs(model: Path, tmp_path: Path) -> None:
    first = refquant("warmup", str(model), "--json", cache=tmp_path)
    report = json.loads(first.stdout)
    assert report["kernels"] >= 2
    assert report["steps"] == [str(model)]
    assert json.loads(refquant("warmup", str(model), "--json", cache=tmp_path).stdout) == {
        "kernels": 0,
        "steps": [str(model)],
    }
    done = refquant("run", str(model), cache=tmp_path)
    assert done.returncode == 0
    assert not done.stderr


def test_warmup_without_a_file_covers_an_imagenet_architecture(tmp_path: Path) -> None:
    """The second process compiles nothing, nor does a network of other shapes."""
    sys.path.append(str(ROOT / "benchmarks"))
    import nets

    from refquant.importers import from_fx

    from_fx(*nets.quantized_net("mobilenet_v2", 64)).save(tmp_path / "net.rq")
    first = refquant("warmup", "--json", cache=None)
    assert first.returncode == 0
    assert len(json.loads(first.stdout)["steps"]) > 10
    assert json.loads(refquant("warmup", "--json", cache=None).stdout)["kernels"] == 0
    net = refquant("warmup", str(tmp_path / "net.rq"), "--json", cache=None)
    assert json.loads(net.stdout)["kernels"] == 0


def test_common_work_is_there_for_each_engine() -> None:
    from refquant.ir.target import Target

    for engine in ("fbgemm", "qnnpack", "onednn", "x86"):
        assert len(common_work(Target(engine))) > 5


def test_a_wrong_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.rq").write_text("not a graph")
    done = refquant("warmup", "text.rq", cache=tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("refquant: error: text.rq: not a whole .rq file")
    assert done.stderr.count("\n") == 1


def test_a_log_file_is_told_once_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import refquant.progress as progress
    from refquant.kernels.jit import LOG

    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    with working("running") as shown:
        for name in ("one", "two", "three"):
            LOG.info("compiling %s", name)
        LOG.info("damaged: a file")
    LOG.info("compiling one more")
    assert shown.kernels == 3
    told, summary = capsys.readouterr().err.splitlines()
    assert told == "refquant: compiling kernels; later runs load them"
    assert summary.startswith("refquant: compiled 3 kernels, in ")


def test_a_quick_run_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    from refquant.kernels.jit import LOG

    with working("running"):
        LOG.info("compiling one")
    assert capsys.readouterr() == ("", "")


def test_a_library_is_quiet(tmp_path: Path) -> None:
    script = """
import numpy, refquant
refquant.dequantize(refquant.QTensor(numpy.zeros(3, numpy.uint8), 1.0, 0))
"""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(tmp_path.rglob("*.nbc"))
