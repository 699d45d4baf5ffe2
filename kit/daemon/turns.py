"""Turns of kernels that use one deployment: first who has had least, and for a turn as long as the others' requests.

A request of one kernel waits for what is being computed just then. So while other kernels are about, one worker
thread is kept free of what is much longer than their usual requests, where several can compute at once; that keeps
its whole batches on the others. Where one computes at a time it is cut into pieces of the size of the others'
requests: a job of a million elements lets a single request in after a time like that request's own. Kernels that all
send requests of about one size share all workers with whole batches, and one that is alone has them, too.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kit.engine.codec import Rows
from kit.engine.lane import computed_at_once
from kit.handler import _num_bytes

if TYPE_CHECKING:
    from kit.engine.dispatcher import Dispatcher
    from kit.engine.requests import Request

#: A turn takes at least this long, seconds: shorter ones spare nobody anything.
TURN_S = 0.004
#: A request of up to so many turns isn't cut.
WHOLE = 2.0
#: A kernel is about for so long after a request, and longer, up to the second, if it asks less often; seconds.
ABOUT_S, LONGEST_ABOUT_S = 1.0, 30.0
#: When bytes are forgotten that a kernel has had, seconds.
MEMORY_S = 2.0
#: Requests by which it is judged how large a kernel's usually are.
USUAL = 9


class _Kernel:
    """What is known of one kernel: when it asked last, how much usually, and what it had lately."""

    __slots__ = ("about_s", "had_at", "had_bytes", "seen", "sizes", "usual_bytes", "who")

    def __init__(self, who: Any, now: float) -> None:
        self.who = who
        self.seen = self.had_at = now
        self.about_s = ABOUT_S
        self.had_bytes = self.usual_bytes = 0.0
        self.sizes: deque[float] = deque(maxlen=USUAL)

    def asks(self, size_bytes: float, now: float) -> None:
        self.about_s = min(max(ABOUT_S, 2 * (now - self.seen)), LONGEST_ABOUT_S)
        self.seen = now
        self.sizes.append(size_bytes)
        self.usual_bytes = statistics.median_low(self.sizes)

    def about(self, now: float) -> bool:
        return now - self.seen < self.about_s or bool(self.who.waiting)

    def had(self, now: float) -> float:
        return self.had_bytes * math.exp((self.had_at - now) / MEMORY_S)

    def takes(self, size_bytes: float, now: float) -> None:
        self.had_bytes, self.had_at = self.had(now) + size_bytes, now


class Turns:
    """The kernels of one deployment; keys are sessions, which say by `waiting` whether they wait for anything."""

    def __init__(self) -> None:
        self._kernels: dict[Any, _Kernel] = {}

    def asks(self, who: Any, request: Request, dispatcher: Dispatcher) -> Turn:
        """A kernel has a request, whose turn this is."""
        now = time.monotonic()
        kernel = self._kernels.get(who)
        if kernel is None:
            kernel = self._kernels[who] = _Kernel(who, now)
        turn = Turn(self, kernel, bytes_each(request.examples), dispatcher)
        kernel.asks(request.count * turn.each_bytes, now)
        return turn

    def heard(self, who: Any, sizes_bytes: list[float]) -> None:
        """A kernel has asked a worker directly, which is as good as asking here."""
        now = time.monotonic()
        kernel = self._kernels.setdefault(who, _Kernel(who, now))
        for size in sizes_bytes[-USUAL:]:
            kernel.asks(size, now)
        kernel.takes(sum(sizes_bytes), now)

    def alone(self, who: Any) -> bool:
        """True when no other kernel asks or is expected to."""
        now = time.monotonic()
        return not any(kernel.about(now) for kernel in list(self._kernels.values()) if kernel.who is not who)

    def leaves(self, who: Any) -> None:
        """A kernel is gone."""
        self._kernels.pop(who, None)

    def about(self, now: float) -> list[_Kernel]:
        """Those who ask now or are expected to; the one with the smallest requests first."""
        if len(self._kernels) < 2:
            return []
        found = [kernel for kernel in list(self._kernels.values()) if kernel.about(now)]
        found.sort(key=lambda kernel: kernel.usual_bytes)
        return found


class Turn:
    """What the engine asks about a kernel's request; it calls this under the dispatcher's lock.

    Attributes:
        each_bytes: of an example.
    """

    __slots__ = ("_dispatcher", "_kernel", "_turns", "each_bytes")

    def __init__(self, turns: Turns, kernel: _Kernel, each_bytes: float, dispatcher: Dispatcher) -> None:
        self._turns = turns
        self._kernel = kernel
        self._dispatcher = dispatcher
        self.each_bytes = max(1.0, each_bytes)

    def long(self, request: Request) -> bool:
        """True when other kernels, whose requests are much shorter, are about."""
        return self._most(request, self._turns.about(time.monotonic())) is not None

    def most(self, request: Request) -> int | None:
        """Examples of the request's next piece at most; None when it isn't cut."""
        lanes = self._dispatcher.lanes
        if lanes and self._dispatcher.keyed is None and computed_at_once(lanes) > 1:
            return None  # a lane is kept free for the others
        return self._most(request, self._turns.about(time.monotonic()))

    def _most(self, request: Request, about: list[_Kernel]) -> int | None:
        other = next((kernel for kernel in about if kernel is not self._kernel), None)
        if other is None:
            return None
        cost_s = self._dispatcher.backlog.cost_s
        most = max(1.0, TURN_S / cost_s if cost_s else 1.0, other.usual_bytes / self.each_bytes)
        return None if request.untaken <= WHOLE * most else int(most)

    def early(self) -> bool:
        """True for the only request of a kernel that had less than the average lately."""
        now = time.monotonic()
        about = self._turns.about(now)
        had = [kernel.had(now) for kernel in about]
        return len(about) > 1 and len(self._kernel.who.waiting) == 1 and self._kernel.had(now) < sum(had) / len(had)

    def took(self, count: int) -> None:
        """So many examples go to a worker."""
        self._kernel.takes(count * self.each_bytes, time.monotonic())

    def pick(self, requests: Iterable[Request], *, reserve: bool) -> Request | None:
        """The request whose turn it is: the first of the kernel that has had least lately.

        Args:
            reserve: it is to wait behind what a worker is computing, where only short ones go: another one might
                come that would have to wait for a piece more.
        """
        now = time.monotonic()
        about = self._turns.about(now)
        best: Request | None = None
        least, seen = math.inf, set()
        for request in requests:
            turn = request.turn
            assert isinstance(turn, Turn)
            if len(about) < 2:
                return request
            if turn._kernel in seen or (reserve and turn._most(request, about) is not None):
                continue
            seen.add(turn._kernel)
            had = turn._kernel.had(now)
            if had < least:
                best, least = request, had
        return best


def bytes_each(examples: Any) -> float:
    """Bytes of an example, judged by a few."""
    if isinstance(examples, Rows):
        return float(examples.stacked.nbytes) / len(examples)
    few = examples[:8]
    return sum(map(_num_bytes, few)) / len(few)
