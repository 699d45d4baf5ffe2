"""A few threads, started when they are needed, for work that waits for other processes."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable


class LoadThreads:
    """Runs functions in their order, `most` at once."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def run(self, job: Callable[[], None]) -> None:
        """Run a function in one of the threads; nothing once closed."""
        with self._lock:
            if self._closed:
                return
            self._jobs.put(job)
            self._idle -= 1
            if self._idle < 0 and len(self._threads) < self._most:
                name = f"{self._name}-{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException:  # the thread has to live on for the others
                traceback.print_exc()
            del job

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            self._idle += 1
        return self._jobs.get()

    def close(self) -> None:
        """End the threads once they have done what they were given; idempotent."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(5)
