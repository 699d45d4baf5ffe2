"""Bringing a panel's view up to date with its deployment: what changed, and only while somebody looks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from kit.deployment import Deployment
from kit.errors import KitError
from kit.memory import format_bytes
from widgets import export, kernels
from widgets.load import SharedLoad
from widgets.model_log import ModelLog
from widgets.progress import Steps
from widgets.twin import Twin
from widgets.view import View

if TYPE_CHECKING:
    from kit.settings import Settings
    from kit.snapshot import Snapshot

#: The static twin is brought up to date this often, and at the end.
TWIN_EVERY_S = 10.0
#: Looks after the last thing that happened: busy shares and rates fall to 0 within 2 s.
LOOKS = 4
#: What of a model makes a redraw worth it.
_MODEL_CHANGES = ("state", "loading_at", "loads", "evictions")


class Redraw:
    """Draws into a view, from one thread at a time.

    Args:
        seconds: how much of the history the plots show.
        busy: tells whether a job of the panel is under way, by its name.

    Attributes:
        errors: HTML of what went wrong, by what was tried.
        seen: whether a page has shown the panel; if none does any more, nothing is drawn.
        steps: of "compare" and "race".
    """

    def __init__(
        self, view: View, load: SharedLoad, seconds: float, busy: Callable[[str], bool], examples: Any
    ) -> None:
        self.errors: dict[str, str] = {}
        self.steps = Steps()
        self.seen = False
        self.twin = Twin()
        view.style.value = self.twin.hide
        self._view = view
        self._load = load
        self._seconds = seconds
        self._models = ModelLog(seconds)
        self._busy = busy
        self._examples = examples
        self._served: tuple[Any, ...] = ()
        self._drawn: tuple[Any, ...] | None = None
        self._drawn_bytes = 0
        self._last: Snapshot | None = None
        self._twin_at, self._twin_due = 0.0, False
        self._pulse: tuple[Any, ...] = ()
        self._looks = 0  # since something happened
        self._failed_at_close = 0
        self._closed_words = ""

    # ---- as text and picture ---------------------------------------------------------------------

    def text(self) -> str:
        """What was drawn last, in lines of text."""
        if self._last is None:
            return "nothing was drawn yet"
        return self._closed_words + self._view.text(self._last, self._failed_at_close)

    def png(self) -> bytes:
        """The plots as drawn last, one PNG."""
        return self._view.png(self._last) if self._last is not None else b""

    # ---- when to draw ----------------------------------------------------------------------------

    def tick(self, deployment: Deployment | None) -> None:
        """Draw what changed, unless nobody looks any more."""
        if deployment is None or deployment.closed:
            return
        pulse = deployment.pulse(), self._load.running, self._load.rate, *self.steps.now.values()
        if pulse != self._pulse:
            self._pulse, self._looks = pulse, 0
            self._load.follow(deployment.settings)
        elif self._last is not None:
            self._models.still(time.time())
        self._looks += 1
        if self.seen and not self._view.root._view_count:
            if self._looks <= LOOKS:  # for the static twin's sake
                self._last = deployment.snapshot(self._seconds)
                self._models.note(time.time(), self._last.models, self._last.events)
        elif self._looks <= LOOKS or self._twin_due:
            self.draw(deployment, only_changes=True)

    def look(self) -> None:
        """Have the next ticks look for changes: something may have happened that the deployment doesn't know of."""
        self._looks = 0

    def force(self) -> None:
        """Have the next tick draw, whatever changed."""
        self._drawn = None
        self.look()

    def wanted(self, deployment: Deployment) -> dict[str, Any]:
        """Arguments for `Deployment.switch` that lead to what the controls say."""
        batching: dict[str, Any] = getattr(deployment.handler, "batching_options", dict)()
        return self._view.controls.wanted(deployment.settings, batching)

    def draw(self, deployment: Deployment, only_changes: bool = False) -> None:
        """Bring the view up to date; with `only_changes`, when there is anything new."""
        snapshot = deployment.snapshot(self._seconds)
        self._models.note(time.time(), snapshot.models, snapshot.events)
        if under_way := self._models.loads(snapshot.models):
            snapshot = dataclasses.replace(snapshot, events=[*snapshot.events, *under_way])
        served = (snapshot.settings, tuple(sorted(snapshot.batching.items(), key=lambda item: item[0])))
        if served != self._served:
            self._served = served
            self._view.controls.show(snapshot.settings, snapshot.batching)
            writers = (export.python_code, export.beam_code)
            self._view.show_code(*(write(deployment.handler, snapshot.settings, self._examples) for write in writers))
        wanted = self.wanted(deployment)
        steps = dict(self.steps.now), dict(self.steps.ended)
        own = wanted, steps, tuple(self.errors), self._load.running, self._load.rate
        changed = _changing(snapshot), self._memory_of(snapshot), own
        if not (only_changes and changed == self._drawn):
            self._drawn, self._last = changed, snapshot
            chosen, words, can_be = self._choice(deployment, wanted, snapshot)
            predicted = snapshot.predict_memory(chosen) if chosen is not None else None
            self._view.hint.value = f'<div role="status">{words}</div>' if words else ""
            self._view.apply.disabled = not can_be or snapshot.switching is not None
            self._view.draw(snapshot, chosen, predicted, self._load, self._models)
            self._view.show_errors(self.errors)
            self._draw_progress()
            self._twin_due = True
        if self._twin_due and self.twin.shown and time.monotonic() - self._twin_at >= TWIN_EVERY_S:
            self._twin_at, self._twin_due = time.monotonic(), False
            self.twin.update(self.text(), self.png())

    def end(self, deployment: Deployment | None) -> None:
        """Leave the twin as it was at the very end; of a closed deployment, with the processes that were seen last."""
        last = self._last
        if deployment is not None and deployment.closed:
            self._closed_words = _why_closed(deployment)
        if not self.twin.shown:
            return
        if deployment is not None and last is not None:
            snapshot = deployment.snapshot(self._seconds)
            if snapshot.closed and snapshot.settings == last.settings:
                snapshot = dataclasses.replace(snapshot, processes=last.processes, models=last.models)
            if snapshot.closed:
                # Between the last look and the end: what waited then has failed.
                self._failed_at_close = snapshot.counters["failed"] - last.counters["failed"]
            self._last = snapshot
            self._view.draw(snapshot, None, None, self._load, self._models)
        self.twin.update(self.text(), self.png())

    def _memory_of(self, snapshot: Snapshot) -> int:
        """Bytes of all processes; those drawn last where the difference is no more than reading them twice gives."""
        size = int(snapshot.rows[-1].get("pss_bytes", 0)) if snapshot.rows else 0
        if abs(size - self._drawn_bytes) > max(5e6, 0.02 * self._drawn_bytes):
            self._drawn_bytes = size
        return self._drawn_bytes

    def _choice(
        self, deployment: Deployment, wanted: Mapping[str, Any], snapshot: Snapshot
    ) -> tuple[Settings | None, str, bool]:
        """The settings that are chosen and not applied, what is to be said about them, whether they can be applied."""
        if not wanted:
            return None, "", False
        try:
            self._view.controls.check()
            chosen = deployment.settings_for(**{name: value for name, value in wanted.items() if name != "batching"})
        except KitError as error:
            return None, f"Can't be applied: {escape(str(error.args[0]))}", False
        try:
            chosen.check_budget(snapshot.model_bytes)
        except KitError as error:
            return chosen, f"Can't be applied: {escape(str(error.args[0]))}", False
        total = format_bytes(snapshot.predict_memory(chosen)["pss_bytes"])
        under_way = snapshot.switching is not None and snapshot.switching.settings == chosen
        state = "Being applied" if under_way else "Chosen, not applied yet"
        copies = [] if snapshot.models else [chosen.copies_in_words]
        what = ", ".join([chosen.mode, chosen.workers_in_words, *copies])
        changes = snapshot.settings.change_in_words(chosen, batching="batching" in wanted)
        return chosen, escape(f"{state}: {what}, about {total} in all. What changes: {changes}."), True

    def _draw_progress(self) -> None:
        tab = self._view.comparing
        for what, bar, job, button in (
            ("compare", tab.compare_progress, "comparison", tab.compare),
            ("race", tab.race_progress, "race", tab.race),
        ):
            busy = self._busy(job)
            button.disabled = busy
            if busy:
                bar.show(*self.steps.now.get(what, (0, 1, "starting")))
            else:
                bar.hide(self.steps.ended.get(what, ""))


def _why_closed(deployment: Deployment) -> str:
    """A line that says it."""
    try:
        deployment.raise_if_closed()
    except KitError as error:
        return f"{error.args[0]}\n"
    return ""


def _changing(snapshot: Snapshot) -> tuple[Any, ...]:
    """What of a snapshot makes a redraw worth it, but for memory; busy shares to a tenth."""
    row = snapshot.rows[-1] if snapshot.rows else {}
    processes = [
        (one["pid"], round((one.get("busy_share") or 0) * 10) if one.get("busy_share") == one.get("busy_share") else -1)
        for one in snapshot.processes
    ]
    under_way = snapshot.switching
    return (
        snapshot.settings,
        tuple(snapshot.counters.items()),
        tuple(processes),
        len(snapshot.events) and snapshot.events[-1].time,
        round(row.get("elements_per_s", 0)),
        under_way and (under_way.step, under_way.ready, round(under_way.seconds)),
        snapshot.closed,
        kernels.changing(snapshot),
        hash(tuple(tuple(row.get(name) for name in _MODEL_CHANGES) for row in snapshot.models)),
    )
