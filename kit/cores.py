"""Torch's threads for what this process computes itself: as many as its own busy deployments leave cores for.

A pool of threads that waits at a barrier for one whose core a worker has just taken crawls: several times slower
than one thread alone.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kit.machine import cpu_count

if TYPE_CHECKING:
    from kit.engine.core import Engine

#: A user who sets one of these has decided.
DECIDED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def free_cores() -> int:
    """Cores that the deployments of this process don't need at the moment; at least one."""
    core = sys.modules.get("kit.engine.core")
    engines = [] if core is None else list(core.running)
    return max(1, _cores() - sum(map(_taken, engines)))


def _taken(engine: Engine) -> int:
    """Cores that an engine computes on; none while it has nothing to do."""
    busy = engine.dispatcher.counters.in_flight > 0 or engine.history.last().get("elements_per_s", 0.0) > 0.0
    settings = engine.settings
    if not busy:
        return 0
    hosts, workers = settings.model_copies * settings.host_threads, settings.processes * settings.threads
    return hosts if settings.remote else workers


class _Room:
    """Sets torch's number of threads for a while, in several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._usual = 0
        self._set = 0

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Let torch use `free_cores` threads within it, unless the user chose a number; it is put back."""
        torch: Any = sys.modules.get("torch")
        if torch is None or any(name in os.environ for name in DECIDED):
            yield
            return
        with self._lock:
            usual = torch.get_num_threads()
            if self._inside and usual == self._set:
                usual = self._usual  # torch met this thread just now, and gave it the number of another one in here
            wanted = min(usual, free_cores())
            if usual not in _defaults() or wanted == torch.get_num_threads():
                wanted = 0
            else:
                self._inside += 1
                self._usual, self._set = usual, wanted
                torch.set_num_threads(wanted)
        try:
            yield
        finally:
            if wanted:
                with self._lock:
                    self._inside -= 1
                    if torch.get_num_threads() == wanted:  # else the user has just chosen
                        torch.set_num_threads(usual)


@functools.cache
def _cores() -> int:
    return cpu_count()


@functools.cache
def _defaults() -> set[int]:
    """What torch may have chosen by itself: all cores, as the system or the process may use them, with or without
    those that share one."""
    import psutil

    found = {os.cpu_count(), psutil.cpu_count(logical=False)}
    if hasattr(os, "sched_getaffinity"):
        found.add(len(os.sched_getaffinity(0)))
    return {number for number in found if number}


in_free_cores = _Room().threads
