"""The marks of a plot over time: which events get one, and what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from widgets.html import shortened

if TYPE_CHECKING:
    from kit.history import Event
    from kit.snapshot import Snapshot

#: Events closer than this share a mark, seconds.
TOGETHER_S = 2.0
#: Which event of several names their mark.
_WEIGHT = {
    "death": 6, "switch": 5, "update": 5, "resize": 5, "cancelled": 4, "evict": 4, "timeout": 3, "warning": 3,
    "start": 2,
}  # fmt: skip


class Mark(NamedTuple):
    """A vertical line with a label: `time` is since the epoch."""

    time: float
    label: str


def marks(events: Sequence[Event], since: float) -> list[Mark]:
    """The events after `since` worth a mark; those of the same moment share one."""
    found: list[list[Event]] = []
    for event in events:
        if event.time < since or event.kind == "verify":
            continue
        if found and event.time - found[-1][-1].time < TOGETHER_S:
            found[-1].append(event)
        else:
            found.append([event])
    return [_mark(group) for group in found]


def marks_of(snapshot: Snapshot) -> list[Mark]:
    """The marks within a snapshot's seconds; models by key come, fail and go in a timeline of their own."""
    since = snapshot.rows[0]["time"] if snapshot.rows else math.inf
    own = {"load", "evict", "fail"} if snapshot.models else set()
    return marks([event for event in snapshot.events if event.kind not in own], since)


def _mark(group: list[Event]) -> Mark:
    top = max(group, key=lambda event: _WEIGHT.get(event.kind, 1))
    label = _label(top)
    deaths = sum(event.kind == "death" for event in group)
    if top.kind == "death" and deaths > 1:
        label = f"{deaths} deaths"
    switches = [event for event in group if event.kind == "switch"]
    if top.kind == "death" and switches:
        label += f", {_label(switches[-1])}"
    return Mark(top.time, label)


def _label(event: Event) -> str:
    words = event.text.split(",")[0]
    if event.kind == "switch":
        before, _, after = words.partition(" → ")
        return words if before != after else f"switch ({after})"
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
    label = found[index].label if index < len(found) else ""
    kind = 0 if any(word in label for word in ("died", "killed", "deaths")) else 2 if label in ("load", "") else 1
    return kind, -index
