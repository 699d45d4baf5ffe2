"""The history of a deployment: a row of figures a second, and events.

Written by several threads without locks: a deque's append is one step under CPython's global lock.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kit.metrics import LATENCY_PARTS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth a mark on a plot.

    Attributes:
        time: seconds since the epoch.
        kind: "start", "switch", "update", "cancelled" (one of these two), "death", "load", "close" and others.
        text: what happened, for people.
        pid: the process concerned, None when it isn't about one.
        mode: the serving mode at that time, "" where there is none.
        seconds: how long it took, until `time`; 0 for what happens in a moment.
        model: of a model by key, the first of its keys in words; "" for other events.
    """

    time: float
    kind: str
    text: str
    pid: int | None = None
    mode: str = ""
    seconds: float = 0.0
    model: str = ""

    @property
    def began(self) -> float:
        """Seconds since the epoch."""
        return self.time - self.seconds

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}" if self.text else self.kind


#: The figures of a deployment's row of `History`, by name; "gpu_bytes" comes with a GPU.
FIGURES = (
    "mode", "elements_per_s", "failed_per_s", "p50_s", "p95_s", "p99_s",
    *(f"{part}_p{share}_s" for part in LATENCY_PARTS for share in (50, 99)),
    "queued", "in_flight", "processes", "pss_bytes", "libraries_bytes",
    "weights_private_bytes", "weights_shared_bytes", "working_bytes",
)  # fmt: skip


class History:
    """The last hour of a deployment, a row a second, and its last events.

    Args:
        capacity: rows kept.
        max_events: events kept of each kind: models that come and go by the second push out no switch.
        clock: seconds since the epoch.
    """

    def __init__(self, capacity: int = 3600, max_events: int = 1000, clock: Any = time.time) -> None:
        self._rows: deque[dict[str, Any]] = deque(maxlen=capacity)
        self._events: defaultdict[str, deque[Event]] = defaultdict(lambda: deque(maxlen=max_events))
        self._last: Event | None = None
        self._clock = clock
        self._forgotten_until = -math.inf
        self.began = clock()

    def add(self, row: Mapping[str, Any], at: float | None = None) -> None:
        """Append a row: figures by name, units in the names. `at` is seconds since the epoch."""
        if len(self._rows) == self._rows.maxlen:
            self._forgotten_until = self._rows[0]["time"]
        self._rows.append({"time": self._clock() if at is None else at, **row})

    def event(
        self,
        kind: str,
        text: str = "",
        pid: int | None = None,
        at: float | None = None,
        mode: str = "",
        seconds: float = 0.0,
        model: str = "",
    ) -> Event:
        """Note an event; returns it."""
        noted = self._last = Event(self._clock() if at is None else at, kind, text, pid, mode, seconds, model)
        self._events[kind].append(noted)
        return noted

    def events(self, churn_s: float = math.inf) -> list[Event]:
        """The events, oldest first; of models by key that came and went, those of the last `churn_s` seconds."""
        since = self._clock() - churn_s
        kinds = [tuple(found) for found in tuple(self._events.values())]
        found = (event for events in kinds for event in events if not event.model or event.time >= since)
        return sorted(found, key=lambda event: event.time)

    def recent(self, seconds: float) -> list[dict[str, Any]]:
        """The rows of the last `seconds`, oldest first, as they were added; cheap, however long the history is."""
        since = self._clock() - seconds
        found = list(itertools.takewhile(lambda row: row["time"] >= since, reversed(tuple(self._rows))))
        return found[::-1]

    def rows(self) -> list[dict[str, Any]]:
        """The rows, oldest first: "time" (seconds since the epoch), "elapsed_s", the figures, "events".

        "events" holds the texts of what happened since the row before; what happened after the last
        row has a row of its own, with the mode but without figures.
        """
        rows = [
            {"time": row["time"], "elapsed_s": row["time"] - self.began, **row, "events": []}
            for row in tuple(self._rows)
        ]
        index = 0
        for event in (event for event in self.events() if event.time > self._forgotten_until):
            while index < len(rows) and rows[index]["time"] < event.time:
                index += 1
            if index == len(rows):
                rows.append({"time": event.time, "elapsed_s": event.time - self.began, "events": []})
                if event.mode:
                    rows[index]["mode"] = event.mode
            rows[index]["events"].append(str(event))
        return rows

    def last(self) -> Mapping[str, Any]:
        """The newest row as it was added, empty before the first."""
        return self._rows[-1] if self._rows else {}

    def last_event(self) -> Event | None:
        """The newest event, None before the first."""
        return self._last

    def to_frame(self, figures: Sequence[str] = ()) -> pd.DataFrame:
        """`frame_of_rows` of `rows`."""
        return frame_of_rows(self.rows(), figures)

    def __len__(self) -> int:
        return len(self._rows)


def frame_of_rows(rows: list[dict[str, Any]], figures: Sequence[str] = ()) -> pd.DataFrame:
    """The `rows` of a History as a DataFrame; the columns `figures` are there before the first row is, too.

    "time" is the local time without a zone, "events" one text ("" for none).
    """
    import pandas as pd

    found = (name for row in rows for name in row if name != "events")
    names = dict.fromkeys(["time", "elapsed_s", *figures, *found])
    frame = pd.DataFrame(rows, columns=[*names, "events"])
    frame["time"] = pd.to_datetime([datetime.fromtimestamp(row["time"]) for row in rows])
    frame["elapsed_s"] = frame["elapsed_s"].astype(float)
    frame["events"] = ["; ".join(row["events"]) for row in rows]
    return frame
