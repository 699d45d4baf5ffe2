"""Examples of a bundle that are sent to the deployment at once, and where each of them belongs."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from apache_beam.utils.windowed_value import WindowedValue

from kit.deployment import Deployment
from kit.engine.runner import Batch
from kit.example_bytes import num_bytes

#: Examples and bytes that are sent at once.
AT_ONCE, AT_ONCE_BYTES = 512, 4 << 20
#: The fewest and the most examples of a window, by how long windows take. Few large ones cost a fast model less than
#: many small ones (512 at once: 1.04 s for the benchmark's MLP, 2048: 0.93 s); of a slow one results come sooner.
LEAST, MOST = 32, 2048
#: Seconds from sending a window to its answer below which the next are larger, and above which they are smaller.
QUICK_S, SLOW_S = 1.0, 4.0


@dataclass
class Window:
    """Examples that are sent at once.

    Attributes:
        places: the elements as they came, with window and timestamp.
        most: the handler's largest batch, and then how many examples make the window full.
        at_once: about how many that may be.
        batches: those in which they were computed, once they are answered.
        sent_at, answered_at: monotonic seconds.
    """

    examples: list[Any] = field(default_factory=list)
    places: list[WindowedValue] = field(default_factory=list)
    most: int = AT_ONCE
    at_once: int = AT_ONCE
    future: Future[list[Any]] | None = None
    deployment: Deployment | None = None
    batches: list[Batch] = field(default_factory=list)
    tries: int = 0
    sent_at: float = 0.0
    answered_at: float = 0.0

    def add(self, element: Any, place: WindowedValue) -> bool:
        """Take one more; True when it is full."""
        self.examples.append(element)
        self.places.append(place)
        count = len(self.examples)
        if count == 1:
            self._fit(element)
        return count >= self.most

    def _fit(self, element: Any) -> None:
        """A whole number of the handler's batches."""
        most = max(1, min(self.at_once, AT_ONCE_BYTES // max(1, num_bytes(element))))
        self.most = most if self.most > most else max(self.most, most // self.most * self.most)

    @property
    def done(self) -> bool:
        """True when its answer is there."""
        return self.future is not None and self.future.done()

    def asked(self, future: Future[list[Any]], sent_at: float) -> None:
        """Note that it was sent, and by what its answer is to be had."""
        self.future, self.sent_at = future, sent_at
        future.add_done_callback(self._answered)

    def _answered(self, future: Future[list[Any]]) -> None:
        self.answered_at = time.monotonic()

    def next_size(self, at_once: int, *, waited: bool) -> int:
        """About how many examples are to be sent at once after this one was answered, which was waited for or not."""
        # Who waits for the answer may have it a moment before it is noted.
        took_s = (self.answered_at or time.monotonic()) - self.sent_at
        if took_s > SLOW_S:
            return max(LEAST, at_once // 2)
        # Where nobody waits for answers, larger ones would only come later.
        return min(MOST, at_once * 2) if waited and took_s < QUICK_S else at_once
