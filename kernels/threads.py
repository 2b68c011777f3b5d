"""Work shared by threads: for speed only, the bits do not depend on it.

Compiled kernels run without the interpreter's lock, so plain threads work at the same time. They
wait without spinning and belong to no OpenMP runtime that another library may keep busy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from refquant.ir.errors import VerifyError

# Products that are worth waking another thread for.
LEAST_WORK = 8_000_000

_Task = tuple[Callable[..., None], tuple[Any, ...], "SimpleQueue[BaseException | None]"]
_tasks: SimpleQueue[_Task] = SimpleQueue()
_lock = threading.Lock()
_workers: list[threading.Thread] = []


def _usable() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_count = _usable()


def set_num_threads(count: int) -> None:
    """Choose how many threads large linear and convolution layers use.

    The results are the same, to the bit; what torch computes differently with several threads is
    chosen by ``Target.threads``. By default all CPUs that the process may use.

    Parameters
    ----------
    count : int, >= 1
        Threads, the calling one included.

    Raises
    ------
    VerifyError
        If ``count`` is not a positive integer.

    Examples
    --------
    >>> before = get_num_threads()
    >>> set_num_threads(2)
    >>> get_num_threads()
    2
    >>> set_num_threads(before)
    """
    global _count
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise VerifyError(f"set_num_threads: expected an integer >= 1, got {count!r}")
    _count = count


def get_num_threads() -> int:
    """Return how many threads large layers use."""
    return _count


def parts(work: int) -> int:
    """Return into how many parts ``work`` products are divided."""
    return min(_count, max(1, work // LEAST_WORK))


def run(function: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
    """Call a compiled function once for each tuple of arguments, at the same time.

    The first call is made here. If one raises, so does this, after all have ended.
    """
    _start_workers(len(arguments) - 1)
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    for some in arguments[1:]:
        _tasks.put((function, some, done))
    try:
        function(*arguments[0])
    finally:
        raised = [done.get() for _ in arguments[1:]]
    for error in raised:
        if error is not None:
            raise error


def _start_workers(count: int) -> None:
    if len(_workers) >= count:
        return
    with _lock:
        while len(_workers) < count:
            worker = threading.Thread(target=_work, name="refquant", daemon=True)
            worker.start()
            _workers.append(worker)


def _work() -> None:
    while True:
        function, arguments, done = _tasks.get()
        error: BaseException | None = None
        try:
            function(*arguments)
        except BaseException as raised:
            error = raised
        done.put(error)


def _forget() -> None:
    """Start anew in a forked process, which has none of the threads."""
    global _tasks, _lock
    _workers.clear()
    _tasks, _lock = SimpleQueue(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
