"""The marks of a plot over time: which events get one, and what it says.

A mark stands where something began; what took a while is a band up to its end. Models by key that come and go share
bands of their own, so that a switch or a death among them keeps its place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from kit.shorten import counted
from widgets.html import shortened

if TYPE_CHECKING:
    from kit.history import Event
    from kit.snapshot import Snapshot

#: Events closer than this share a mark, seconds.
TOGETHER_S = 2.0
#: A row of figures tells of the time before it, seconds.
ROW_S = 1.0
#: Models that a mark names; more are counted.
NAMED = 2
#: Which event of several names their mark.
_WEIGHT = {
    "death": 6, "switch": 5, "update": 5, "resize": 5, "cancelled": 4, "evict": 4, "timeout": 3, "warning": 3,
    "start": 2,
}  # fmt: skip
#: What is never one with another of these.
_CHANGES = ("switch", "update", "cancelled", "resize")
#: What models by key did, as it is counted; the order in which it is told.
_CHURN = {"load": "load", "evict": "eviction", "fail": "failed load"}


class Mark(NamedTuple):
    """A vertical line with a label, and a band for as long as it took.

    Attributes:
        time: where the line stands, seconds since the epoch.
        label: what it says.
        band: start and end; None for what happened in a moment.
        churn: whether it is about models by key that came and went.
    """

    time: float
    label: str
    band: tuple[float, float] | None = None
    churn: bool = False


def marks(events: Sequence[Event], since: float) -> list[Mark]:
    """The events after `since` worth a mark; those of the same moment share one."""
    wanted = [event for event in events if event.time >= since and event.kind != "verify"]
    found = [_mark(group) for group in _groups([event for event in wanted if not event.model])]
    found += [_churn(group) for group in _groups([event for event in wanted if event.model])]
    return sorted(found)


def marks_of(snapshot: Snapshot) -> list[Mark]:
    """The marks within a snapshot's seconds, and of the switch under way."""
    found = marks(snapshot.events, snapshot.rows[0]["time"] - ROW_S if snapshot.rows else math.inf)
    if snapshot.switching is not None and snapshot.rows:
        now = time.time()
        before, after = snapshot.settings, snapshot.switching.settings
        words = f"to {after.mode}…" if before.mode != after.mode else "switching…"
        began = now - snapshot.switching.seconds
        found.append(Mark(began, words, (began, now)))
    return found


def _groups(events: Sequence[Event]) -> list[list[Event]]:
    groups: list[list[Event]] = []
    end = -math.inf
    for event in sorted(events, key=lambda event: event.began):
        another = event.kind in _CHANGES and any(one.kind in _CHANGES for one in groups[-1]) if groups else False
        if event.began - end < TOGETHER_S and not another:
            groups[-1].append(event)
        else:
            groups.append([event])
        end = max(end, event.time)
    return groups


def _mark(group: list[Event]) -> Mark:
    top = max(group, key=lambda event: _WEIGHT.get(event.kind, 1))
    label = _label(top)
    deaths = sum(event.kind == "death" for event in group)
    if top.kind == "death" and deaths > 1:
        label = f"{deaths} deaths"
    switches = [event for event in group if event.kind == "switch"]
    if top.kind == "death" and switches:
        label += f", {_label(switches[-1])}"
    return Mark(top.began, label, _band([top, *switches]))


def _churn(group: list[Event]) -> Mark:
    label = []
    for kind, words in _CHURN.items():
        models = [shortened(event.model.strip("'"), 16) for event in group if event.kind == kind]
        if models:
            label.append(f"{kind} {' and '.join(models)}" if len(models) <= NAMED else counted(len(models), words))
    return Mark(group[0].began, ", ".join(label), _band(group), churn=True)


def _band(events: Sequence[Event]) -> tuple[float, float] | None:
    start, end = min(event.began for event in events), max(event.time for event in events)
    return (start, end) if end > start else None


def _label(event: Event) -> str:
    words = event.text.split(",")[0]
    if event.kind == "switch":
        return words
    if event.kind == "cancelled":
        return f"{words.split()[0]} cancelled"
    if event.kind == "resize":
        return f"budget {words.rpartition(' → ')[2]}"
    if event.kind == "death":
        return " ".join(words.split()[:2]) + (" killed" if "on purpose" in words else " died")
    if event.kind == "load":
        return "load"
    if event.kind == "start":
        return "start" if words.startswith("mode") else " ".join(words.split()[:3])
    return event.kind if event.kind in ("update", "timeout", "warning") else shortened(f"{event.kind} {words}", 24)


def rank(found: Sequence[Mark], index: int) -> tuple[int, int]:
    """Whose label is placed first: deaths, then switches and the like, then loads; of these the latest."""
    if index >= len(found):
        return 3, -index
    mark = found[index]
    kind = 0 if any(word in mark.label for word in ("died", "killed", "deaths")) else 1
    return 2 if mark.churn or mark.label == "load" else kind, -index
