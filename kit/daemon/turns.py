"""Turns of kernels that use one deployment: short ones while several do, and first those who have had least.

A request of one kernel waits for what is being computed just then. So while others are about, a long job is cut
into pieces of TURN_S of computing time, and kernels below the average of bytes computed lately go to the front of the
queue. One that is alone gets whole batches.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from kit.engine.codec import Rows
from kit.handler import _num_bytes

if TYPE_CHECKING:
    from kit.engine.dispatcher import Dispatcher

#: Computing time of a turn while several kernels wait; how long one counts as being about; when bytes are forgotten.
TURN_S, ABOUT_S, MEMORY_S = 0.004, 1.0, 2.0


class Turns:
    """How much each kernel had lately; keys are sessions. Called with the dispatcher's lock held."""

    def __init__(self) -> None:
        self._had: dict[Any, tuple[float, float]] = {}  # bytes, decayed, and when that was
        self._seen: dict[Any, float] = {}

    def asks(self, who: Any) -> None:
        """A kernel has sent a request."""
        self._seen[who] = time.monotonic()

    def leaves(self, who: Any) -> None:
        """A kernel is gone."""
        self._seen.pop(who, None)
        self._had.pop(who, None)

    def _about(self) -> list[Any]:
        since = time.monotonic() - ABOUT_S
        return [who for who, seen in list(self._seen.items()) if seen > since or who.waiting]

    def most(self, dispatcher: Dispatcher) -> int | None:
        """Examples of a turn; None for no limit."""
        if len(self._about()) < 2:
            return None
        cost_s = dispatcher.backlog.cost_s
        return max(1, int(TURN_S / cost_s)) if cost_s else 1

    def took(self, who: Any, size_bytes: float) -> None:
        """A kernel's examples of so many bytes go to a worker."""
        now = time.monotonic()
        self._had[who] = (self._lately(who, now) + size_bytes, now)

    def goes_first(self, who: Any) -> bool:
        """True when a kernel had less than the average lately."""
        now = time.monotonic()
        about = self._about()
        return len(about) > 1 and self._lately(who, now) < sum(self._lately(o, now) for o in about) / len(about)

    def _lately(self, who: Any, now: float) -> float:
        size, then = self._had.get(who, (0.0, now))
        return size * math.exp((then - now) / MEMORY_S)


def bytes_each(examples: Any) -> float:
    """Bytes of an example, judged by a few."""
    if isinstance(examples, Rows):
        return float(examples.stacked.nbytes) / len(examples)
    few = examples[:8]
    return sum(map(_num_bytes, few)) / len(few)
