"""What a command does meanwhile, on standard error: a spinner, and the kernels that compile."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

_LOG = logging.getLogger("refquant.jit")
_PATIENCE = 1.0  # seconds of compiling after which a log file is told


class Compiling(logging.Handler):
    """Counts the kernels that compile, and shows the one that does.

    A terminal sees each of them; a file gets one line if they take long, and one at the end.
    """

    def __init__(self, what: str, status: Status, terminal: bool) -> None:
        super().__init__(logging.INFO)
        self.what, self.status, self.terminal = what, status, terminal
        self.kernels, self.began, self.told = 0, 0.0, False

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of one kernel."""
        if not str(record.msg).startswith("compiling"):
            return
        self.began = self.began or time.perf_counter()
        self.kernels += 1
        self.status.update(f"{self.what}: {record.getMessage()} (kernel {self.kernels})")
        if not self.terminal and not self.told and self.seconds > _PATIENCE:
            self.told = True
            self._say("compiling kernels; later runs load them")

    def step(self, what: str) -> None:
        """Show what is being done now."""
        self.what = what
        self.status.update(what)

    @property
    def seconds(self) -> float:
        """Time since the first kernel."""
        return time.perf_counter() - self.began

    def _say(self, line: str) -> None:
        self.status.console.print(f"refquant: {line}", highlight=False, soft_wrap=True)

    def finish(self) -> None:
        """Say how many there were, if that was worth a word."""
        if self.kernels and self.seconds > _PATIENCE:
            self._say(f"compiled {self.kernels} kernels, in {self.seconds:.1f} s with the run")


@contextmanager
def working(what: str) -> Iterator[Compiling]:
    """Show what is being done until it is."""
    console = Console(stderr=True)
    level = _LOG.level
    with console.status(what) as status:
        handler = Compiling(what, status, console.is_terminal)
        _LOG.addHandler(handler)
        _LOG.setLevel(logging.INFO)
        try:
            yield handler
        finally:
            _LOG.removeHandler(handler)
            _LOG.setLevel(level)
    handler.finish()
