"""``.rq`` files: whole or refused, with one line that names the file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from graphs import chain, quantize

from refquant.ir import Graph, Module, QTensor, VerifyError, load
from refquant.ir.types import DTYPES, qint8


@pytest.fixture
def graph() -> Graph:
    graph = chain(quantize())
    scales = np.array([0.5, 0.25])
    weight = QTensor(np.array([[1, -2], [3, 4]], np.int8), scales, np.zeros(2, np.int64), 0, qint8)
    graph.parameters["w"] = weight
    graph.parameters["half"] = np.array([1.5], DTYPES["bfloat16"].storage)
    graph.modules["obs"] = Module("Observer", {"bins": 3}, {"min_val": np.float32([1.0])})
    graph.provenance = {"torch": "2.13.0", "target": "fbgemm"}
    return graph


def rewrite(path: Path, change: dict[str, bytes | None], compression: int = 0) -> None:
    """Write the archive again with some members replaced, added or dropped."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members.update({name: data for name, data in change.items() if data is not None})
    for name in [name for name, data in change.items() if data is None]:
        del members[name]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_saved_graph_loads_equal_and_runs(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g.rq"
    graph.save(path)
    again = load(path)
    assert again == graph
    x = np.array([[0.1, 0.5, 1.0, 9.0]], np.float32)
    np.testing.assert_array_equal(again(x).int_repr, graph(x).int_repr)
    assert again.parameter("half").dtype == DTYPES["bfloat16"].storage  # type: ignore[union-attr]
    assert again.target.engine == "fbgemm"


def test_equal_graphs_give_equal_files(graph: Graph, tmp_path: Path) -> None:
    for name in ("a.rq", "b.rq"):
        graph.save(tmp_path / name)
    assert (tmp_path / "a.rq").read_bytes() == (tmp_path / "b.rq").read_bytes()


def test_every_truncation_is_refused(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g.rq"
    graph.save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(VerifyError, match=r"g\.rq: "):
            load(path)


def test_every_altered_byte_of_the_contents_is_refused(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g.rq"
    graph.save(path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        offsets = [
            member.header_offset + 30 + len(member.filename) + place
            for member in archive.infolist()
            for place in (member.file_size // 2, member.file_size - 1)
        ]
    for offset in offsets:
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(VerifyError, match=r"g\.rq: "):
            load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifest.json": json.dumps({"format": 2}).encode()}, "format 2 is not known"),
        ({"manifest.json": b"[]"}, "format None is not known"),
        ({"manifest.json": None}, "starts with manifest.json"),
        ({"graph.txt": b"refquant 1\n"}, "does not have its digest"),
        ({"tensors/../../evil.npy": b""}, "unexpected member"),
        ({"/etc/evil": b""}, "unexpected member"),
        ({"tensors/0.npy": None}, "unexpected member"),
        ({"tensors/0.npy": b"\x93NUMPY"}, "g.rq: "),
    ],
)
def test_a_changed_archive_is_refused(
    graph: Graph, tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    path = tmp_path / "g.rq"
    graph.save(path)
    rewrite(path, change)
    with pytest.raises(VerifyError, match=message):
        load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["g.rq"]


def test_a_compressed_archive_is_refused_before_it_is_unpacked(
    graph: Graph, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.rq"
    graph.save(path)
    rewrite(path, {"graph.txt": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    with pytest.raises(VerifyError, match="members must be stored uncompressed"):
        load(path)


def test_a_pickle_is_not_opened(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g.rq"
    graph.save(path)
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    rewrite(path, {"tensors/0.npy": buffer.getvalue()})
    with pytest.raises(VerifyError, match=r"g\.rq: .*allow_pickle"):
        load(path)


def test_what_is_not_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.rq"
    path.write_text("hello")
    with pytest.raises(VerifyError, match=r"x\.rq: not a whole \.rq file"):
        load(path)


def test_a_failed_save_leaves_the_old_file(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g.rq"
    graph.save(path)
    before = path.read_bytes()

    def fail(*_: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr("refquant.ir.file._npy", fail)
    with pytest.raises(OSError, match="disk full"):
        graph.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["g.rq"]
