"""Where compiled kernels are kept between processes: one folder for each state of the sources."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LOG = logging.getLogger("refquant")
_NAME = re.compile(r"[0-9a-f]{16}(-[a-z0-9]+)?")


class Kept(NamedTuple):
    """A folder of compiled kernels, and whether these sources use it."""

    folder: Path
    current: bool
    kernels: int
    bytes: int


def digest(sources: Path = Path(__file__).parent) -> str:
    """Return a hash of the contents of all kernel files.

    Numba notices a change of the file a kernel stands in, but not of an intrinsic or a callee
    in another file; in a folder of this name a changed source never meets an old machine code.
    """
    found = hashlib.sha256()
    for file in sorted(sources.glob("*.py")):
        content = file.read_bytes()
        found.update(f"{file.name} {len(content)} ".encode() + content)
    return found.hexdigest()[:16]


def homes() -> Iterator[Path]:
    """Yield where the folders may be: the user's cache, then a temporary folder."""
    given = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    root = Path(given) if given else Path(os.path.expanduser("~")) / ".cache"
    if root.is_absolute() or given:
        yield root / "refquant"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    yield Path(tempfile.gettempdir()) / f"refquant-{user}"


def _is_trusted(home: Path) -> bool:
    """Whether nobody else can have put machine code there."""
    if not hasattr(os, "getuid"):
        return True
    found = home.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def choose_folder(name: str) -> Path | None:
    """Return a folder to keep kernels in, made if need be; None where nothing can be written.

    A folder that was filled ahead and is read-only now, as in a container, is used as it is.
    """
    if forced := os.environ.get("REFQUANT_ISA"):
        name += f"-{forced}"
    refused = ""
    for index, home in enumerate(homes()):
        folder = home / name
        try:
            home.mkdir(mode=0o700 if index else 0o777, parents=not index, exist_ok=True)
            if index and not _is_trusted(home):
                raise PermissionError(f"{home} is not this user's alone")
            folder.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            if not index and _count(folder)[0]:
                return folder
            refused = refused or f"cannot keep compiled kernels in {home} ({error.strerror})"
            continue
        if refused:
            _LOG.warning("refquant: %s; they are kept in %s", refused, folder)
        return folder
    _LOG.warning("refquant: %s; every process compiles them", refused)
    return None


def _count(folder: Path) -> tuple[int, int]:
    """Return how many kernels a folder holds, and the bytes of all its files."""
    kernels = size = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                size += os.stat(os.path.join(path, file)).st_size
            except OSError:  # another process has just removed it
                continue
            kernels += file.endswith(".nbc")
    return kernels, size


def kept() -> list[Kept]:
    """Return every folder of compiled kernels, those of the sources as they are first."""
    name = digest()
    found = []
    for index, home in enumerate(homes()):
        try:
            if index and not _is_trusted(home):
                continue
            folders = [folder for folder in home.iterdir() if _NAME.fullmatch(folder.name)]
        except OSError:
            continue
        found += [Kept(path, path.name.startswith(name), *_count(path)) for path in folders]
    return sorted(found, key=lambda entry: (not entry.current, str(entry.folder)))


def clear() -> list[Kept]:
    """Remove every folder of compiled kernels; return what was removed."""
    removed = []
    for entry in kept():
        shutil.rmtree(entry.folder)
        removed.append(entry)
    return removed
