"""One thread that waits for sockets and clocks on behalf of a deployment."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

Action = Callable[[], None]


class Reactor:
    """Runs callbacks when descriptors become readable, when asked to, or at a time.

    Callbacks run in the reactor's thread and must not block. One that raises is reported on stderr
    and the loop goes on.
    """

    def __init__(self, name: str) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Action] = {}
        self._soon: deque[Action] = deque()
        self._timers: list[tuple[float, int, Action]] = []
        self._count = itertools.count()
        self._wake_read, self._wake_write = (
            os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()
        )
        self._poll.register(self._wake_read, select.POLLIN)
        self._stopped = False
        self._changes: deque[tuple[int, bool]] = deque()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def watch(self, fd: int, action: Action) -> None:
        """Run `action` whenever `fd` is readable or closed by the other side."""
        self._handlers[fd] = action
        self._changes.append((fd, True))
        self._wake()

    def forget(self, fd: int) -> None:
        """Stop watching; when this returns in the reactor's own thread, `fd` may be closed."""
        if self._handlers.pop(fd, None) is not None:
            self._changes.append((fd, False))
            if threading.current_thread() is self._thread:
                self._apply()
            else:
                self._wake()

    def soon(self, action: Action) -> None:
        """Run `action` in the reactor's thread."""
        self._soon.append(action)
        self._wake()

    def at(self, when: float, action: Action) -> None:
        """Run `action` at `when` (monotonic seconds)."""

        def add() -> None:
            heapq.heappush(self._timers, (when, next(self._count), action))

        if threading.current_thread() is self._thread:
            add()
        else:
            self.soon(add)

    def stop(self) -> None:
        """End the thread and wait for it; idempotent."""
        self._stopped = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)

    @property
    def inside(self) -> bool:
        """True in the reactor's own thread."""
        return threading.current_thread() is self._thread

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"x")
        except (BlockingIOError, OSError):
            return  # full means that it will wake; closed, that it has ended

    def _apply(self) -> None:
        while self._changes:
            fd, add = self._changes.popleft()
            if add:
                self._poll.register(fd, select.POLLIN)
            else:
                try:
                    self._poll.unregister(fd)
                except (KeyError, ValueError):
                    continue

    def _run(self) -> None:
        while not self._stopped:
            self._apply()
            timeout = None
            if self._timers:
                timeout = max(0.0, self._timers[0][0] - time.monotonic()) * 1000
            for fd, event in self._poll.poll(timeout):
                if fd == self._wake_read:
                    os.read(fd, 4096)
                    continue
                action = self._handlers.get(fd)
                if action is not None:
                    self._do(action)
                elif event & select.POLLNVAL:
                    self._poll.unregister(fd)
            while self._soon:
                self._do(self._soon.popleft())
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._do(heapq.heappop(self._timers)[2])
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._handlers.clear()
        self._soon.clear()
        self._timers.clear()

    def _do(self, action: Action) -> None:
        try:
            action()
        except Exception:
            traceback.print_exc()
