"""Reading a stream's source beside its consumer, so that a source that stalls holds back nothing already read."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from kit.example_bytes import num_bytes


class Reader:
    """Reads examples in a thread of its own, only as many as it is asked for.

    The thread starts with the first `window`, sees the caller's context variables and torch gradient mode, and ends
    with the source or soon after `close`: at once, unless the source is just being waited for.

    Attributes:
        error: what the source raised, None when it didn't.
    """

    def __init__(self, source: Iterator[Any], largest_bytes: int) -> None:
        self.error: BaseException | None = None
        self._source = source
        self._largest_bytes = largest_bytes
        self._read: list[Any] = []
        self._most = 0  # examples that may lie in `_read`
        self._ended = False
        self._closed = False
        self._report = False  # the next example is to be told of
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def window(self, most: int, wait_s: float, interrupted: Callable[[], bool]) -> list[Any]:
        """Up to `most` examples: fewer when the source ends, or has given some and `wait_s` seconds are over.

        Empty at the source's end, or when the time is over, nothing was read, and `interrupted()` is true; it is
        asked again after `wake`.
        """
        until = time.monotonic() + wait_s
        with self._changed:
            self._most = self._bounded(most)
            self._report = not self._read  # how many more are wanted depends on its size
            self._changed.notify_all()
            self._start()
            while not self._ended and len(self._read) < self._most:
                left = until - time.monotonic()
                self._report = self._report or left <= 0
                if left <= 0 and (self._read or interrupted()):
                    break
                self._changed.wait(left if left > 0 else None)
            count, self._most = self._most, 0
        found = self._read[:count]
        del self._read[:count]
        return found

    @property
    def ended(self) -> bool:
        """True when the source has ended or failed, and all that it gave was handed out."""
        return self._ended and not self._read

    def wake(self) -> None:
        """Let a `window` that waits ask `interrupted` again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Read no more."""
        with self._changed:
            self._closed = True
            self._most = 0
            self._changed.notify_all()

    def _bounded(self, most: int) -> int:
        if self._read:
            most = min(most, self._largest_bytes // max(1, num_bytes(self._read[0])))
        return max(1, most)

    def _start(self) -> None:
        if self._thread is None and not self._ended:
            run = contextvars.copy_context().run
            self._thread = threading.Thread(
                target=run, args=(self._run, _gradient_mode()), name="kit-stream", daemon=True
            )
            self._thread.start()

    def _run(self, mode: Any) -> None:
        read = self._read
        append = read.append
        try:
            with mode:
                for example in self._source:
                    append(example)
                    # No lock is taken as long as nobody waits and more is wanted.
                    if (self._report or len(read) >= self._most) and not self._pause():
                        return
        except BaseException as error:
            self.error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _pause(self) -> bool:
        """Say what was read, and wait until more is wanted; False when none ever is."""
        with self._changed:
            self._report = False
            self._most = self._most and self._bounded(self._most)
            self._changed.notify_all()
            while len(self._read) >= self._most and not self._closed:
                self._changed.wait()
            return not self._closed


def _gradient_mode() -> Any:
    """A context in which tensors are made as they are in this thread now; torch keeps that by thread."""
    torch = sys.modules.get("torch")
    if torch is None or torch.is_grad_enabled():
        return contextlib.nullcontext()
    return torch.inference_mode() if torch.is_inference_mode_enabled() else torch.no_grad()
