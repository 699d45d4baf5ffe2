"""What serving processes print: kept for `logs()` and passed on to the notebook as it comes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kit.engine.process import Process
    from kit.engine.reactor import Reactor

KEPT_LINES = 5000


class Line(NamedTuple):
    """A line that a process printed; `time` is seconds since the epoch."""

    time: float
    role: str
    pid: int
    text: str


def show(role: str, pid: int, text: str) -> None:
    """Print here what a serving process printed, at once: as it comes, also where a script's output goes to a pipe."""
    out = sys.stdout
    with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
        out.write(f"[{role} {pid}] {text}\n")  # in one piece: other threads print, too
        if isinstance(out, io.TextIOWrapper):  # a notebook's flushes by itself, and would make this thread wait
            out.flush()


class Logs:
    """The last lines of all processes of a deployment."""

    def __init__(self, *, echo: bool = True) -> None:
        self.lines: deque[Line] = deque(maxlen=KEPT_LINES)
        self.echo = echo
        #: Called with each line too, in the reactor's thread or the one that watches.
        self.on_line: Callable[[Line], None] | None = None
        self._open: set[int] = set()

    def follow(self, process: Process, reactor: Reactor) -> None:
        """Read the pipe `process.output` until the process and its children close it."""
        fd = process.output
        os.set_blocking(fd, False)
        rest = bytearray()
        self._open.add(fd)

        def read() -> None:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            rest.extend(data)
            *lines, tail = bytes(rest).split(b"\n")
            if not data:
                reactor.forget(fd)
                self._open.discard(fd)
                os.close(fd)
                lines = [*lines, tail] if tail else lines
                tail = b""
            rest[:] = tail
            for line in lines:
                self.add(process, line.decode("utf-8", "replace"))

        reactor.watch(fd, read)

    def add(self, process: Process, text: str) -> None:
        """Take a line as one that the process has printed."""
        self.lines.append(Line(time.time(), process.role, process.pid, text))
        if self.echo:
            show(process.role, process.pid, text)
        if self.on_line is not None:
            self.on_line(self.lines[-1])

    def close(self) -> None:
        """Close pipes that are still open; the reactor has stopped."""
        for fd in self._open:
            os.close(fd)
        self._open.clear()
