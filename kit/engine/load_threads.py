"""A few threads, started when they are needed, for work that waits for other processes."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

#: Where none has begun or ended for so long, one more begins, seconds.
STALL_S = 0.1


class LoadThreads:
    """Runs functions in their order, `usual` at once: more would only slow each other down.

    While those are slow, others begin one by one, up to `most` at once, so that a quick one doesn't wait for them.
    """

    def __init__(self, name: str, usual: int, most: int | None = None) -> None:
        self._name = name
        self._usual = self._limit = usual
        self._most = usual if most is None else most
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._running = self._free = 0  # threads that have a job, that have none
        self._moved_at = 0.0
        self._closed = False

    def run(self, job: Callable[[], None]) -> None:
        """Run a function in one of the threads; nothing once closed."""
        with self._changed:
            if not self._closed:
                self._jobs.append(job)
                self._keep_one_free()
                self._changed.notify()

    def _keep_one_free(self) -> None:
        """Have somebody wait for the next turn as long as there are jobs."""
        if self._jobs and not (self._free or self._closed) and len(self._threads) < self._most:
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            self._free += 1
            thread.start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException:  # the thread has to live on for the others
                traceback.print_exc()
            del job
            with self._changed:
                self._running, self._free, self._moved_at = self._running - 1, self._free + 1, time.monotonic()
                if self._running < self._usual:
                    self._limit = self._usual

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not (self._jobs and self._running < self._limit):
                if self._closed and not self._jobs:
                    return None
                self._changed.wait(STALL_S if self._jobs else None)
                if self._running >= self._limit and time.monotonic() - self._moved_at >= STALL_S:
                    self._limit = min(self._limit + 1, self._most)
            self._running, self._free, self._moved_at = self._running + 1, self._free - 1, time.monotonic()
            job = self._jobs.popleft()
            self._keep_one_free()
            return job

    def close(self) -> None:
        """End the threads once they have done what they were given; idempotent."""
        with self._changed:
            self._closed = True
            threads, self._threads = self._threads, []
            self._changed.notify_all()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(5)
