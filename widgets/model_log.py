"""What became of each model over the last seconds: its loads and evictions, and its state once a second."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from kit.history import Event
from widgets.model_rows import Row, figure, identity, state_of

#: After a longer time without a look nothing is known of what was between.
BLIND_S = 5.0
#: Changes kept of a model; older ones are forgotten.
MOST_CHANGES = 500


class Span(NamedTuple):
    """A model was in a state from `start` to `end`, seconds since the epoch."""

    start: float
    end: float
    state: str


class ModelLog:
    """Remembers the states of models.

    Events tell when loads and evictions were; the rest is known as of the looks. A row may still say, or say already,
    what an event tells: then the event is right.

    Args:
        seconds: how far back.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._changes: dict[Hashable, deque[tuple[float, str]]] = {}
        self._copies: dict[Hashable, int] = {}  # at the last look
        self._read_to = 0.0  # of the events
        self._looked: float | None = None

    def note(self, now: float, rows: Sequence[Row], events: Sequence[Event] = ()) -> None:
        """Remember how all models are at `now`, seconds since the epoch, and what `events` (oldest first) say."""
        before = self._looked
        news = self._news(events)
        blind = before is not None and now - before > BLIND_S
        for row in rows:
            key, state = identity(row), state_of(row)
            told = news.get(repr(row["keys"][0]), []) if row["keys"] else []
            copies = int(figure(row, "copies"))
            changes = self._changes.get(key)
            if changes is None:
                changes = self._changes[key] = deque(maxlen=MOST_CHANGES)
                changes.append((now, state) if before is None or blind else (before, "evicted"))
            elif blind and before is not None:
                changes += [(before, ""), (now, state)]
            if before is not None and not blind:
                if told:
                    copies = _replay(changes, self._copies.get(key, 0), told)
                begins = state in ("loading", "waiting", "failed") and changes[-1][1] == "evicted"
                if (begins or not told) and changes[-1][1] != state:
                    changes.append((max(now, changes[-1][0]), state))
            self._copies[key] = copies
            while len(changes) > 1 and changes[1][0] < now - self._seconds:
                changes.popleft()
        self._looked = now

    def _news(self, events: Sequence[Event]) -> dict[str, list[Event]]:
        """The loads and evictions since the last look, by model."""
        found: defaultdict[str, list[Event]] = defaultdict(list)
        for event in itertools.takewhile(lambda event: event.time > self._read_to, reversed(events)):
            if event.model and event.kind in ("load", "evict"):
                found[event.model].insert(0, event)
        if events:
            self._read_to = events[-1].time
        return found

    def still(self, now: float) -> None:
        """Nothing has changed since the last look, `now` seconds since the epoch."""
        if self._looked is not None:
            self._looked = max(self._looked, now)

    def loads(self, rows: Sequence[Row]) -> list[Event]:
        """The loads under way, as the events that they will be; their beginning is judged by the looks."""
        spans = [(row, found[-1]) for row in rows if state_of(row) == "loading" and (found := self.spans(row))]
        return [
            Event(span.end, "load", "under way", seconds=span.end - span.start, model=repr(row["keys"][0]))
            for row, span in spans
            if row["keys"] and span.state == "loading"
        ]

    def spans(self, row: Row) -> list[Span]:
        """The states of a model, oldest first, up to the last look."""
        changes = list(self._changes.get(identity(row), ()))
        ends = [*(time for time, _ in changes[1:]), self._looked or 0.0]
        return [Span(start, end, state) for (start, state), end in zip(changes, ends, strict=False) if state]


def _replay(changes: deque[tuple[float, str]], copies: int, told: Sequence[Event]) -> int:
    """Add what loads and evictions have made of a model that had so many copies; returns how many it has then."""
    for event in told:
        last, state = changes[-1]
        if event.kind == "load":
            copies += 1
            if state != "resident":
                if state != "loading":
                    changes.append((max(last, event.began), "loading"))
                changes.append((max(last, event.time), "resident"))
        else:
            copies = max(0, copies - 1)
            if copies == 0 and state != "evicted":
                changes.append((max(last, event.time), "evicted"))
    return copies
