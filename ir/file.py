"""``.rq`` files: a zip that holds the graph's text and its arrays as ``.npy``; no pickle."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.graph import Absent, Graph
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.text import digest, format_graph, parse
from refquant.ir.types import TensorType

FORMAT = 1
_MANIFEST, _TEXT = "manifest.json", "graph.txt"


def _stored_tensors(graph: Graph) -> Iterator[tuple[str, Tensor | Absent]]:
    yield from graph.parameters.items()
    for path, module in graph.modules.items():
        for key, array in module.state.items():
            yield f"{path}/{key}", array


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array).reshape(array.shape))
    return buffer.getvalue()


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write ``graph`` to ``path``, whole or not at all.

    Members are stored uncompressed, so that no file can unpack to more than its own size.

    Raises
    ------
    VerifyError
        If the graph holds no data for a parameter.
    """
    graph.verify()
    text = format_graph(graph).encode()
    arrays = []
    for name, tensor in _stored_tensors(graph):
        if isinstance(tensor, Absent):
            raise VerifyError(f"{path}: {name} has no data to save")
        arrays.append(tensor.int_repr if isinstance(tensor, QTensor) else tensor)
    manifest = {"format": FORMAT, "text_sha256": digest(np.frombuffer(text, np.uint8))}
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        _write(archive, _MANIFEST, json.dumps(manifest).encode())
        _write(archive, _TEXT, text)
        for index, array in enumerate(arrays):
            _write(archive, f"tensors/{index}.npy", _npy(array))


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file that appears whole at the end, or not at all."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add a member with a fixed date, so that equal graphs give equal files."""
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


def load(path: str | os.PathLike[str]) -> Graph:
    """Read a ``.rq`` file.

    Raises
    ------
    VerifyError
        Naming the file, if it is truncated, altered, of a newer format, or not a ``.rq`` file.
    FileNotFoundError
        If there is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, os.path.getsize(path))
    except zipfile.BadZipFile as error:
        raise VerifyError(f"{path}: not a whole .rq file ({error})") from None
    except (VerifyError, KeyError, ValueError, EOFError, NotImplementedError) as error:
        message = error.args[0] if error.args else error
        raise VerifyError(f"{path}: {message}") from None


def _read(archive: zipfile.ZipFile, size: int) -> Graph:
    members = archive.infolist()
    names = [member.filename for member in members]
    if names[:2] != [_MANIFEST, _TEXT]:
        raise VerifyError(f"a .rq file starts with {_MANIFEST} and {_TEXT}, got {names[:2]}")
    for index, name in enumerate(names[2:]):
        if name != f"tensors/{index}.npy":
            raise VerifyError(f"unexpected member {name!r}, expected tensors/{index}.npy")
    if any(
        m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members
    ):
        raise VerifyError("members must be stored uncompressed")
    if sum(member.file_size for member in members) > size:
        raise VerifyError("members overlap: they add up to more than the file")
    manifest = json.loads(archive.read(_MANIFEST))
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise VerifyError(f"format {version!r} is not known; this refquant reads format {FORMAT}")
    text = archive.read(_TEXT)
    if digest(np.frombuffer(text, np.uint8)) != manifest.get("text_sha256"):
        raise VerifyError(f"{_TEXT} does not have its digest (altered?)")
    skeleton = parse(text.decode())
    stored = list(_stored_tensors(skeleton))
    if len(stored) != len(names) - 2:
        raise VerifyError(f"{len(stored)} tensors are declared, {len(names) - 2} are stored")
    tensors = {
        name: _tensor(archive, f"tensors/{index}.npy", declared, name)
        for index, (name, declared) in enumerate(stored)
        if isinstance(declared, Absent)
    }
    graph = parse(text.decode(), tensors)
    graph.verify()
    return graph


def _tensor(archive: zipfile.ZipFile, member: str, declared: Absent, name: str) -> Tensor:
    with archive.open(member) as stored:
        array = np.lib.format.read_array(stored, allow_pickle=False)
        if stored.read(1):
            raise VerifyError(f"{name}: {member} is longer than its array")
    kind: TensorType = declared.type
    if array.dtype.kind == "V":  # ml_dtypes are written as raw bytes
        array = array.view(kind.dtype.storage)
    if array.dtype != kind.dtype.storage or array.shape != kind.shape:
        raise VerifyError(f"{name}: stored {array.dtype}{list(array.shape)}, declared {kind}")
    if kind.qparams is None:
        return array
    q = kind.qparams
    scale: Any = q.scale if q.axis is None else np.asarray(q.scale, np.float64)
    zero_point: Any = q.zero_point
    if q.axis is not None:
        whole = all(isinstance(z, int) for z in q.zero_point)  # type: ignore[union-attr]
        zero_point = np.asarray(zero_point, np.int32 if whole else np.float64)
    return QTensor(array, scale, zero_point, q.axis, kind.dtype, q.group_size)
