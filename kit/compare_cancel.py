"""Ending a comparison from another thread, whatever it is measuring."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Protocol

from kit.metrics import LatencyHistogram


class Served(Protocol):
    """A model that is being served, in whatever way, and can be measured."""

    weights_bytes: int

    def start(self) -> None:
        """Load the model, and answer the first example."""

    def pids(self) -> list[int]:
        """All processes whose memory it takes."""

    def warm_up(self, seconds: float) -> None:
        """Run until everything that is made at first use is made, for about `seconds`."""

    def throughput(self, seconds: float) -> float:
        """Elements a second of the whole job, passes repeated for at least `seconds`."""

    def latency(self, seconds: float) -> LatencyHistogram:
        """Latencies of requests of one example, measured for about `seconds`."""

    def close(self) -> None:
        """End all its processes."""

    def abort(self) -> None:
        """End what it loads or computes, from another thread; that fails with an error of ours."""


class Cancel:
    """Lets another thread end a comparison: `cancel()`, and `kit.compare` raises CancelledError."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._abort: Callable[[], None] | None = None

    def cancel(self) -> None:
        """End it; what is being started or measured is stopped at once."""
        with self._lock:
            self._cancelled = True
            if self._abort is not None:
                self._abort()

    @contextmanager
    def watching(self, abort: Callable[[], None]) -> Iterator[None]:
        """Have `cancel` call `abort` within the `with`, which then ends with CancelledError, whatever it met."""
        with self._lock:
            self.check()
            self._abort = abort
        try:
            yield
        finally:
            with self._lock:
                self._abort = None
            self.check()

    def check(self) -> None:
        """Raise CancelledError once it was cancelled."""
        if self._cancelled:
            raise CancelledError("the comparison was cancelled.")
