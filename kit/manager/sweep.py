"""The thread that unloads models which nobody has used for a while."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kit.manager.core import ModelManager


class Sweeper:
    """Sweeps when the next model is due. It doesn't keep its manager alive, and ends with it."""

    def __init__(self, manager: ModelManager, keep_alive_s: float) -> None:
        self._stop = threading.Event()
        self._finalizer = weakref.finalize(manager, self._stop.set)
        self._finalizer.atexit = False
        self._thread = threading.Thread(
            target=_sweep, args=(weakref.ref(manager), keep_alive_s, self._stop), name="kit-keep-alive", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Have the thread end after what it does just now; idempotent."""
        self._stop.set()

    def stop(self) -> None:
        """End the thread; idempotent."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


def _sweep(reference: weakref.ref[ModelManager], keep_alive_s: float, stop: threading.Event) -> None:
    wait_s = keep_alive_s
    while not stop.wait(wait_s):
        manager = reference()
        if manager is None:
            return
        due = manager.sweep(keep_alive_s)
        del manager
        # Nothing loaded now: whatever is loaded next can't be due any earlier than this.
        wait_s = keep_alive_s if due is None else max(0.01, due)
