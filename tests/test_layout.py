"""The folders at the top are the packages below refquant, once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from refquant.ir import OPS, Graph

ROOT = Path(__file__).parent.parent


def test_the_three_links() -> None:
    for name in ("ir", "kernels", "importers"):
        link = ROOT / "refquant" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name


def test_a_module_has_one_name() -> None:
    assert Graph.__module__ == "refquant.ir.graph"


def test_imports_only_go_down() -> None:
    allowed = {
        "ir": ("refquant.ir",),
        "kernels": ("refquant.ir", "refquant.kernels"),
        "importers": ("refquant.ir", "refquant.kernels", "refquant.importers"),
    }
    for folder, prefixes in allowed.items():
        for file in (ROOT / folder).glob("*.py"):
            for line in file.read_text().splitlines():
                words = line.split()
                if words[:1] in (["from"], ["import"]) and words[1].startswith("refquant"):
                    assert words[1].startswith(prefixes), f"{file.name}: {line}"


def test_importing_refquant_loads_neither_torch_nor_onnx_nor_numba() -> None:
    code = "import sys, refquant; print(sorted({'torch', 'onnx', 'numba'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_every_declared_op_is_defined_in_its_file() -> None:
    assert len(OPS) > 100
    for name in OPS:
        assert OPS[name].name == name


def test_the_coverage_page_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "coverage.md").read_text()
    named = re.findall(r"`((?:fx/)?test_\w+\.py)(?:::(\w+))?`", page)
    assert named
    for file, function in named:
        text = (ROOT / "tests" / file).read_text()
        assert f"def {function or 'test_'}" in text, f"{file}::{function}"
    rows = re.findall(r"^\| ([A-J]\d+) \|", page, re.MULTILINE)
    assert len(rows) == len(set(rows)) == 123
