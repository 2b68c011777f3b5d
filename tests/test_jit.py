"""The disk cache of compiled kernels: never stale, never trusted blindly, never in the way."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core.caching import FunctionCache

from refquant.kernels import jit, jit_cache

ROOT = Path(__file__).parent.parent
# Quantizes one number, and prints what compiled and the result.
SCRIPT = """
import logging, sys
import numpy as np
import refquant
class Names(logging.Handler):
    def emit(self, record):
        names.append(record.getMessage())
names = []
logging.getLogger("refquant.jit").addHandler(Names(logging.INFO))
logging.getLogger("refquant.jit").setLevel(logging.INFO)
x = np.full(70, 0.26, np.float32)
q = refquant.quantize_per_tensor(x, 0.1, 10, refquant.quint8)
compiled = [name for name in names if name.startswith("compiling")]
print(len(compiled), q.int_repr[0], refquant.__file__)
"""


def obey_permissions() -> None:
    """Take from root the right to write what is read-only."""
    if sys.platform == "linux":
        drop, override = 24, 1  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
        ctypes.CDLL(None).prctl(drop, override, 0, 0, 0)


def make_read_only(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    script = f"open({str(folder / 'new')!r}, 'w')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, preexec_fn=obey_permissions
    )
    assert b"PermissionError" in done.stderr


def quantize(
    cache: Path | str, package: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Quantize 0.26 in a fresh process that keeps its kernels in ``cache``."""
    variables = {"PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(cache), **variables}
    done = subprocess.run(
        [sys.executable, "-B", "-c", SCRIPT],
        **{"capture_output": True, "text": True, "cwd": "/", "preexec_fn": obey_permissions},
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done


def compiled_and_result(done: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    kernels, result, _ = done.stdout.split()
    return int(kernels), int(result)


@pytest.fixture
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package, to be edited."""
    skip = shutil.ignore_patterns("__pycache__", "ledger", "backend_config", "fx", "data")
    install = tmp_path_factory.mktemp("install")
    shutil.copytree(ROOT / "refquant", install / "refquant", ignore=skip)
    return install


def test_stored_code_of_other_argument_types_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that compile at once can leave an index that gives the wrong code."""

    def total(x: Any) -> Any:
        result = 0
        for i in range(x.size):
            result += x[i]
        return result

    first: Any = jit.jit(total)
    dense, repeated = np.arange(40), np.broadcast_to(np.arange(1), 40)
    assert first(dense) == dense.sum()
    (wrong,) = first.overloads.values()  # for contiguous memory
    stored = wrong._replace(metadata=None)  # as it is loaded
    monkeypatch.setattr(FunctionCache, "load_overload", lambda *_: stored)
    second: Any = jit.jit(total)
    assert second(dense) == dense.sum()
    assert second(repeated) == 0
    assert len(second.signatures) == 2


def test_an_edited_intrinsic_of_another_file_is_seen(copy: Path, tmp_path: Path) -> None:
    assert compiled_and_result(quantize(tmp_path, package=copy)) == (3, 13)
    again = quantize(tmp_path, package=copy)
    assert compiled_and_result(again) == (0, 13)
    assert str(copy) in again.stdout
    intrinsic = copy / "refquant" / "kernels" / "jit.py"
    text = intrinsic.read_text()
    doubled = text.replace("builder.fma(*args)", "builder.fadd(builder.fma(*args), args[2])")
    assert doubled != text
    intrinsic.write_text(doubled)
    assert compiled_and_result(quantize(tmp_path, package=copy)) == (3, 23)
    intrinsic.write_text(text)
    assert compiled_and_result(quantize(tmp_path, package=copy)) == (0, 13)
    assert len(list((tmp_path / "refquant").iterdir())) == 2


def test_a_source_edited_while_a_process_runs_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def successor(x: Any) -> Any:
        return x + 1

    first: Any = jit.jit(successor)
    monkeypatch.setattr(jit, "digest", lambda: "another")
    assert first(1) == 2
    second: Any = jit.jit(successor)
    assert second(1) == 2
    assert sum(second.stats.cache_misses.values()) == 1


def test_files_cut_short_are_compiled_again(tmp_path: Path) -> None:
    assert compiled_and_result(quantize(tmp_path)) == (3, 13)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 6
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    assert compiled_and_result(quantize(tmp_path)) == (3, 13)
    assert compiled_and_result(quantize(tmp_path)) == (0, 13)
    for file in files:
        os.truncate(file, 0)
    assert compiled_and_result(quantize(tmp_path)) == (3, 13)


def test_a_forced_instruction_set_has_its_own_folder(tmp_path: Path) -> None:
    quantize(tmp_path)
    quantize(tmp_path, REFQUANT_ISA="generic")
    names = sorted(folder.name for folder in (tmp_path / "refquant").iterdir())
    assert names == [jit_cache.digest(), jit_cache.digest() + "-generic"]


@pytest.mark.parametrize("obstacle", ["read-only folder", "file"])
def test_where_the_cache_cannot_be_written_a_temporary_folder_is(
    tmp_path: Path, obstacle: str
) -> None:
    cache = tmp_path / "cache"
    if obstacle == "file":
        cache.write_text("")
    else:
        cache.mkdir()
        make_read_only(cache)
    for expected in (3, 0):
        done = quantize(cache, TMPDIR=str(tmp_path))
        assert compiled_and_result(done) == (expected, 13)
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"refquant: cannot keep compiled kernels in {cache}/refquant (")
    (home,) = tmp_path.glob("refquant-*")
    assert home.stat().st_mode & 0o777 == 0o700


def test_without_a_home_nothing_goes_astray(tmp_path: Path) -> None:
    done = quantize("", TMPDIR=str(tmp_path), HOME="/dev/null/none", XDG_CACHE_HOME="")
    assert compiled_and_result(done) == (3, 13)
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.glob("refquant-*/*"))


def test_a_temporary_folder_of_others_is_not_trusted(tmp_path: Path) -> None:
    home = tmp_path / f"refquant-{os.getuid()}"
    home.mkdir()
    home.chmod(0o777)
    for expected in (3, 3):
        done = quantize("/dev/null/none", TMPDIR=str(tmp_path))
        assert compiled_and_result(done) == (expected, 13)
        (line,) = done.stderr.splitlines()
        assert line.endswith("every process compiles them")
    assert not list(home.iterdir())


def test_a_cache_that_was_filled_ahead_may_be_read_only(tmp_path: Path) -> None:
    assert compiled_and_result(quantize(tmp_path)) == (3, 13)
    make_read_only(tmp_path / "refquant")
    before = sorted(tmp_path.rglob("*"))
    done = quantize(tmp_path)
    assert compiled_and_result(done) == (0, 13)
    assert not done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FunctionCache, "save_overload", refuse)

    def predecessor(x: Any) -> Any:
        return x - 1

    assert jit.jit(predecessor)(1) == 0


def test_a_read_only_install_works_and_stays_as_it_is(copy: Path, tmp_path: Path) -> None:
    make_read_only(copy)
    before = sorted(copy.rglob("*"))
    for expected in (3, 0):
        done = quantize(tmp_path, copy)
        assert compiled_and_result(done) == (expected, 13)
        assert not done.stderr
    assert sorted(copy.rglob("*")) == before


def test_doctor_counts_and_clears(tmp_path: Path) -> None:
    quantize(tmp_path)
    stale = tmp_path / "refquant" / "0123456789abcdef"
    (stale / "kernels").mkdir(parents=True)
    (stale / "kernels" / "f.1.nbc").write_bytes(b"1234")
    (tmp_path / "refquant" / "not ours").mkdir()
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "refquant", "doctor", "--json"]

    def doctor(*more: str) -> Any:
        done = subprocess.run([*command, *more], capture_output=True, check=True, env=env)
        return json.loads(done.stdout)

    facts = doctor()
    assert facts["jit cache"] == str(tmp_path / "refquant" / jit_cache.digest())
    assert facts["jit cache size"].startswith("3 kernels, ")
    assert facts["jit cache, stale"] == "1 folders of other sources: 1 kernels, 0.0 MB"
    current, old = doctor("--clear-cache")["removed"]
    assert (current["current"], current["kernels"]) == (True, 3)
    assert old == {"folder": str(stale), "current": False, "kernels": 1, "bytes": 4}
    assert [path.name for path in (tmp_path / "refquant").iterdir()] == ["not ours"]
    assert doctor("--clear-cache") == {"removed": []}


def test_the_log_names_what_compiles(caplog: pytest.LogCaptureFixture) -> None:
    def half(x: Any) -> Any:
        return x / 2

    with caplog.at_level(logging.INFO, "refquant.jit"):
        assert jit.jit(half)(3) == 1.5
    assert caplog.messages == ["compiling test_jit.half"]
