"""The command line: what it prints, its exit codes, and one line for every error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import chain, quantize

from refquant.ir import load

ROOT = Path(__file__).parent.parent

FACTORY = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.ReLU()).eval(), (torch.ones(2, 3, 4),)

def model_only():
    return nn.ReLU()

def broken():
    raise RuntimeError("no luck\\nsecond line")

def strange():
    return nn.Sequential(nn.FractionalMaxPool2d(2, 3), nn.LPPool3d(2, 2)).eval(), (torch.ones(2),)
"""


def refquant(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "refquant", *arguments], capture_output=True, text=True, cwd=cwd
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    (path / "factory.py").write_text(FACTORY)
    chain(quantize(), ("aten::dequantize", {})).save(path / "chain.rq")
    np.save(path / "x.npy", np.array([[0.1, 0.5, 1.0, 900.0]], np.float32))
    np.save(path / "wrong.npy", np.zeros((1, 5), np.float32))
    (path / "text.npy").write_text("not an array")
    (path / "text.rq").write_text("not a graph")
    torch.save({"a": 1}, path / "dict.pt")
    return path


def test_demo_prints_the_table_and_the_verdict() -> None:
    result = refquant("demo", cwd=ROOT)
    assert result.returncode == 0
    assert "accuracy 0.98" in result.stdout
    assert "bit-exact 4500/4500" in result.stdout
    assert result.stdout.count("yes") == 16


def test_demo_does_not_need_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['refquant', 'demo', '--json']; "
        "from refquant.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    report = json.loads(result.stdout)
    assert report["bit_exact"] is True
    assert report["equal_logits"] == report["total_logits"] == 4500


def test_show(folder: Path) -> None:
    table = refquant("show", "chain.rq", cwd=folder).stdout
    assert "quantize_per_tensor" in table
    text = refquant("show", "chain.rq", "--text", cwd=folder).stdout
    assert text == str(load(folder / "chain.rq"))
    rows = json.loads(refquant("show", "chain.rq", "--json", cwd=folder).stdout)["nodes"]
    assert [row["node"] for row in rows] == ["v0", "v1"]
    assert rows[0]["scale"] == 0.5


def test_run_prints_and_saves(folder: Path) -> None:
    printed = refquant("run", "chain.rq", "--input", "x.npy", cwd=folder).stdout
    assert "v1: float32[N, 4]" in printed
    assert "124." in printed
    out = refquant(
        *("run", "chain.rq", "--input", "x.npy", "--record", "--output", "y.npz", "--json"),
        cwd=folder,
    )
    assert json.loads(out.stdout)["values"]["v0"] == {"shape": [1, 4], "dtype": "uint8"}
    saved = np.load(folder / "y.npz")
    np.testing.assert_array_equal(saved["v1"], [[0.0, 0.5, 1.0, 124.0]])
    assert set(saved) == {"x", "v0", "v1"}


def test_import_and_compare(folder: Path) -> None:
    done = refquant("import", "factory.py:small", "small.rq", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len(load(folder / "small.rq").nodes) == 2
    for options in ((), ("--model", "small.rq"), ("--executor", "fast")):
        result = refquant("compare", "factory.py:small", *options, cwd=folder)
        assert result.returncode == 0, result.stderr
        assert "bit-exact: 2 values" in result.stdout
    report = json.loads(refquant("compare", "factory.py:small", "--json", cwd=folder).stdout)
    assert [part["executor"] for part in report] == ["reference", "fast"]
    assert all(part["bit_exact"] for part in report)


def test_a_saved_graph_module(folder: Path) -> None:
    model = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU()))
    torch.save(model, folder / "saved.pt")
    done = refquant("import", "saved.pt", "saved.rq", "--shape", "1,3,4", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert str(load(folder / "saved.rq").inputs[0].type) == "float32[N, 3, 4]"


def test_compare_of_a_wrong_model_fails(folder: Path) -> None:
    result = refquant("compare", "factory.py:small", "--model", "chain.rq", cwd=folder)
    assert result.returncode == 2
    assert "input x: expected shape" in result.stderr


def test_onnx_in_and_out(folder: Path) -> None:
    model = ROOT / "examples/data/digits_mlp.onnx"
    shown = json.loads(refquant("show", str(model), "--json", cwd=folder).stdout)
    assert [row["op"] for row in shown["nodes"]].count("aten::linear") == 3
    done = refquant("import", str(model), "mlp.rq", "--engine", "ort", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert load(folder / "mlp.rq").target.engine == "ort"
    result = refquant("export", "mlp.rq", "mlp.onnx", "--format", "qoperator", cwd=folder)
    assert result.stdout.startswith("3 of 6 nodes are reproduced bit for bit")
    both = [
        json.loads(refquant("run", name, "--json", cwd=folder).stdout)["values"]
        for name in ("mlp.rq", "mlp.onnx")
    ]
    assert both[0] == both[1] == {"y": {"shape": [1, 10], "dtype": "float32"}}


def test_doctor() -> None:
    facts = json.loads(refquant("doctor", "--json", cwd=ROOT).stdout)
    assert facts["numpy"] == np.__version__
    assert "fbgemm" in facts["torch engines"]
    assert facts["OMP_WAIT_POLICY"] == "passive"
    assert "jit cache" in facts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "missing.rq"), "missing.rq"),
        (("show", "text.rq"), "text.rq: not a whole .rq file"),
        (
            ("run", "chain.rq", "--input", "wrong.npy"),
            "input x: expected shape [N, 4]",
        ),
        (("run", "chain.rq", "--input", "text.npy"), "text.npy: not a .npy array"),
        (("run", "chain.rq", "--engine", "mkl"), "engine 'mkl' is not one of fbgemm"),
        (("run", "chain.rq", "--executor", "slow"), "--executor must be fast or reference"),
        (("import", "factory.py:small", "x.txt"), "x.txt: the file must end in .rq"),
        (("import", "factory.py:nothing", "x.rq"), "AttributeError"),
        (("import", "factory.py:broken", "x.rq"), "RuntimeError: no luck"),
        (("import", "factory.py:model_only", "x.rq"), "must return (model, example_inputs)"),
        (("import", "factory.py:strange", "x.rq"), "2 nodes are not supported: 0: module"),
        (("import", "nowhere.py:f", "x.rq"), "no file 'nowhere.py'"),
        (("import", "dict.pt", "x.rq"), "dict.pt: give --shape"),
        (("import", "dict.pt", "x.rq", "--shape", "1,a"), "expected whole numbers"),
        (("import", "dict.pt", "x.rq", "--shape", "1,2"), "holds dict, expected a GraphModule"),
        (("import", "text.rq", "x.rq"), "text.rq: not a whole .rq file"),
    ],
)
def test_an_error_is_one_line_and_nothing_is_written(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = sorted(p.name for p in folder.iterdir() if p.name != "__pycache__")
    result = refquant(*arguments, cwd=folder)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("refquant: error: ")
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == before


def test_help_names_every_command() -> None:
    help_text: Any = refquant("--help", cwd=ROOT).stdout
    for command in ("demo", "show", "import", "run", "compare", "warmup", "doctor"):
        assert command in help_text
