"""Ending a comparison from another thread, whatever it is measuring."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Protocol

from kit.metrics import LatencyHistogram


class Served(Protocol):
    """A model that is being served, in whatever way, and can be measured."""

    weights_bytes: int

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
        """End what it computes, from another thread; that fails with an error of ours."""


class Cancel:
    """Lets another thread end a comparison: `cancel()`, and `kit.compare` raises CancelledError."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._current: Served | None = None

    def cancel(self) -> None:
        """End it; what is being measured is stopped at once, what is being started once it has started."""
        with self._lock:
            self._cancelled = True
            if self._current is not None:
                self._current.abort()

    @contextmanager
    def watching(self, served: Served | None) -> Iterator[None]:
        """Have `served` stopped by `cancel` within the `with`."""
        with self._lock:
            self.check()
            self._current = served
        try:
            yield
        finally:
            with self._lock:
                self._current = None
            self.check()

    def check(self) -> None:
        """Raise CancelledError once it was cancelled."""
        if self._cancelled:
            raise CancelledError("the comparison was cancelled.")
