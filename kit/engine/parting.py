"""Leaving a core that this thread shares with whom it waits for, while another core is idle.

A thread that waits awake and the one that it waits for may have been woken on one core. Neither ever sleeps then, so
the kernel sees no cause to place them anew, and its balancing takes 10 ms or more to part them: as long as a
hundred short round trips, each of which takes half as long again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

#: What `select.poll` gives: (descriptor, events) pairs.
Found = list[tuple[int, int]]

#: A yield of the core that takes longer than this gave it to another thread, seconds.
LONG_YIELD_S = 10e-6
#: So many waits in a row with a long yield, before the core is left.
WAITS = 8
#: After leaving it, seconds until it may be left again: doubled each time, since on a busy machine it is no use.
PAUSE_S, LONGEST_PAUSE_S = 0.02, 5.0
#: A thread that wasn't crowded for so long begins with the shortest pause again, seconds.
CALM_S = 1.0


class Parting:
    """Waits awake, for one thread: counts crowded waits, and moves the thread when there are too many."""

    def __init__(self) -> None:
        self._waits = 0
        self._pause_s = PAUSE_S
        self._left_at = -LONGEST_PAUSE_S

    def wait(self, poll: Callable[[int], Found], seconds: float) -> Found:
        """Call ``poll(0)`` until it finds something or the time is over, whose last result this returns."""
        now, longest = time.monotonic(), 0.0
        until = now + seconds
        while not (found := poll(0)) and now < until:
            os.sched_yield()  # the other side may need this very core
            began, now = now, time.monotonic()
            longest = max(longest, now - began)
        self.waited(longest)
        return found

    def waited(self, longest_yield_s: float) -> None:
        """Note a wait, by the longest time that yielding the core took in it; may move the calling thread."""
        if longest_yield_s < LONG_YIELD_S:
            self._waits = 0
            return
        self._waits += 1
        now = time.monotonic()
        if self._waits < WAITS or now < self._left_at + self._pause_s:
            return
        calm = now - self._left_at > self._pause_s + CALM_S
        self._pause_s = PAUSE_S if calm else min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._waits, self._left_at = 0, now
        leave_core()


def leave_core(threads: Iterable[int] = (0,)) -> bool:
    """Have the calling thread go on on another of its cores than these; False when there is none, or the system can't.

    Args:
        threads: whose cores, those that they ran on last; native ids of threads of this process, 0 for the calling one.
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    try:
        allowed = os.sched_getaffinity(0)
        others = allowed - {_core(thread) for thread in threads}
        if not others or len(others) == len(allowed):
            return False
        os.sched_setaffinity(0, others)
        os.sched_setaffinity(0, allowed)
    except (OSError, ValueError, IndexError):
        return False
    return True


def _core(thread: int = 0) -> int:
    """The core that a thread of this process ran on last."""
    place = f"self/task/{thread}" if thread else "thread-self"
    # Field 39; the second may contain blanks.
    return int(Path(f"/proc/{place}/stat").read_text().rpartition(")")[2].split()[36])
