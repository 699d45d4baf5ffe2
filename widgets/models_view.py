"""The panel's view of models by key: a timeline, a table by score, and a slider for the budget they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from widgets import model_rows, model_table
from widgets.html import facts
from widgets.image import image
from widgets.model_log import ModelLog
from widgets.model_rows import COLOURS, SHOWN
from widgets.model_timeline import ModelTimeline

if TYPE_CHECKING:
    from kit.snapshot import Snapshot

MB = 1e6


class ModelsView:
    """Shown for deployments with models by key only.

    Args:
        moved: called with bytes, in whatever thread a widget's value changes, when the user moved the slider.
    """

    def __init__(self, moved: Callable[[int], object]) -> None:
        self._moved = moved
        self._showing = False
        self._shown_budget: object = ()
        self._plot: ModelTimeline | None = None
        self.timeline = image("kit-model-timeline")
        self.facts = _html("kit-model-facts")
        self.table = _html("kit-model-table")
        self.slider = widgets.FloatSlider(
            description="Budget of all models (MB)",
            min=0,
            max=1,
            continuous_update=False,
            style={"description_width": "190px"},
            layout={"width": "600px", "max_width": "100%"},
        )
        self.slider.observe(self._changed, "value")
        self.words = _html("kit-model-budget")
        wrap = {"flex_flow": "row wrap", "align_items": "center"}
        self.box = widgets.VBox(
            [
                widgets.HBox([self.slider, self.words], layout=wrap),
                widgets.HBox([self.timeline, self.facts], layout=wrap),
                self.table,
            ]
        )
        self.box.add_class("kit-models-by-key")
        self.box.layout.display = "none"

    @property
    def shown(self) -> bool:
        """Whether the deployment has models by key."""
        return self._plot is not None

    def _changed(self, change: Any) -> None:
        if self._showing:
            return
        old, new = (f"{change[name]:{self.slider.readout_format}}" for name in ("old", "new"))
        if old == new:
            # Enter in the number beside the slider sends it as it is written there, rounded: nothing was moved.
            self._set(change["old"])
        else:
            self._moved(max(1, round(change["new"] * MB)))

    def _set(self, value: float) -> None:
        self._showing = True
        try:
            self.slider.value = value
        finally:
            self._showing = False

    def draw(self, snapshot: Snapshot, log: ModelLog) -> None:
        """Bring all of it up to date; hidden while there are no models by key."""
        rows = snapshot.models
        self.box.layout.display = "" if rows else "none"
        if not rows:
            self._plot = None
            return
        self._draw_slider(snapshot)
        best = sorted(model_rows.by_score(rows)[:SHOWN], key=lambda row: _natural(model_rows.name(row)))
        if self._plot is None or self._plot.rows != len(best):
            self._plot = ModelTimeline(len(best))
        named = [(model_rows.name(row, 22), log.spans(row)) for row in best]
        self.timeline.value = self._plot.draw(snapshot, named)
        self.facts.value = facts("models over time", model_rows.facts(snapshot), COLOURS)
        self.table.value = model_table.draw(snapshot)

    def _draw_slider(self, snapshot: Snapshot) -> None:
        budget = model_rows.budget_of(snapshot)
        used = model_rows.of_budget(model_rows.resident_bytes(snapshot.models), budget)
        self.words.value = f'<span role="status">{used} loaded{"" if budget else ", no limit"}</span>'
        low, high = bounds(snapshot)
        step = _step((high - low) / 100)
        low, high = min(math.ceil(low / step) * step, (budget or math.inf) / MB), math.ceil(high / step) * step
        if (budget, low, high) == self._shown_budget:
            return
        self._shown_budget = budget, low, high
        self._showing = True
        try:
            # Without an order that holds, a bound would be set beyond the other and refused. And one message for all:
            # a browser that has the new bounds without the new value may move the slider into them, and say so.
            with self.slider.hold_sync(), self.slider.hold_trait_notifications():
                self.slider.max = max(high, self.slider.min)
                self.slider.min = low
                self.slider.max = high
                self.slider.step = step
                self.slider.readout_format = f".{max(0, -math.floor(math.log10(step)))}f"
                self.slider.value = min(high, max(low, budget / MB)) if budget else high
        finally:
            self._showing = False


def bounds(snapshot: Snapshot) -> tuple[float, float]:
    """Budgets worth trying, in MB: from room for the largest known model to room for all."""
    known = [model_rows.size(row) for row in snapshot.models if model_rows.size(row)]
    budget = model_rows.budget_of(snapshot)
    if not known:
        usual = (budget or 1e9) / MB
        return usual / 10, usual * 2
    low = max(known) / MB
    high = sum(known) / len(known) * len(snapshot.models) * 1.05 / MB
    if budget:
        low, high = min(low, budget / MB), max(high, budget / MB)
    return low, max(high, low * 1.01)


def _step(least: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = float(10 ** math.floor(math.log10(max(least, 1e-6))))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= least * 0.999)


def _natural(text: str) -> list[tuple[int, str]]:
    """To sort "shop 2" before "shop 10"."""
    import re

    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text) if part]


def _html(name: str) -> Any:
    widget = widgets.HTML("", layout={"max_width": "100%"})
    widget.add_class(name)
    return widget
