"""Memory over time, stacked by role, and beside it what there is now against what a chosen mode would take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle

from kit.memory import format_bytes, memory_limit
from widgets.html import GREY, PURPLE, ROLES, VERMILLION
from widgets.marks import marks_of
from widgets.plots import WIDTH_PX, YOUNG, TimePlot

if TYPE_CHECKING:
    from kit.settings import Settings
    from kit.snapshot import Snapshot

#: Weights lie at the bottom, so that their top can be read against the budget, which is theirs.
_STACK = list(ROLES)
#: Libraries, the largest layer and the dullest, let lines and words show through.
_ALPHA = {name: 0.45 if name == "libraries_bytes" else 0.9 for name in _STACK}


class MemoryPlot(TimePlot):
    """The stack over time, the budget and the machine's limit as lines, the bars "now" and "chosen"."""

    HEIGHT_PX = 284
    #: Where the stack is: left, bottom, width, height.
    PLACE = (70, 24, WIDTH_PX - 318, 208)
    #: With a GPU the stack is narrower, and the GPU's memory stands beside it.
    PLACES_WITH_GPU = (70, 24, 215, 208), (348, 24, 124, 208)

    def __init__(self) -> None:
        super().__init__(self.HEIGHT_PX)
        self.stack = self.axes(*self.PLACE)
        self.bars = self.axes(WIDTH_PX - 225, 24, 215, 208, timed=False)
        self.bars.spines["left"].set_visible(False)
        self.stack.set_ylabel("memory (PSS), MB", color=GREY, fontsize=9)
        self._layers = []
        for name in _STACK:
            layer = PolyCollection([], facecolor=ROLES[name][1], edgecolor="none", alpha=_ALPHA[name], zorder=2)
            self.stack.add_collection(layer, autolim=False)
            self._layers.append(self.moving(layer))
        self.gpu: Any = None
        self._now = [self._bar(0.15, ROLES[name][1], alpha=_ALPHA[name]) for name in _STACK]
        self._ghost = [self._bar(1.15, "none", edge=ROLES[name][1]) for name in _STACK]
        self._budget = [self._level(axes, VERMILLION, (0, (5, 3))) for axes in (self.stack, self.bars)]
        self._limit = [self._level(axes, GREY, (0, (1, 1.5))) for axes in (self.stack, self.bars)]
        self._words = {
            # White on its own dark ground: it may lie on any layer, on a light page or a dark one.
            name: self.moving(
                self.stack.text(
                    *(0, 0, ""),
                    fontsize=9,
                    color="white",
                    va="bottom",
                    zorder=6,
                    bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5},
                )
            )
            for name, colour in (("budget", "#A84600"), ("limit", "#555555"))
        }
        self._totals = [
            self.moving(self.bars.text(x, 0, "", fontsize=9, color=GREY, ha="center", va="bottom")) for x in (0.5, 1.5)
        ]
        self.bars.set_xlim(0, 2)
        self.bars.set_yticks([])
        self.stack.locator_params(axis="y", nbins=5)
        self.stack.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.7)

    def _bar(self, x: float, face: str, edge: str | None = None, alpha: float = 0.9) -> Any:
        patch = Rectangle((x, 0), 0.7, 0, facecolor=face, alpha=alpha, linewidth=0, zorder=2)
        if edge is not None:
            patch.set(edgecolor=edge, hatch="///", linewidth=1.6, linestyle="--", zorder=3)
        return self.moving(self.bars.add_patch(patch))

    def _level(self, axes: Any, colour: str, style: Any) -> Any:
        return self.moving(axes.axhline(0, color=colour, linestyle=style, linewidth=1.8, zorder=5))

    def draw(self, snapshot: Snapshot, chosen: Settings | None, predicted: Mapping[str, int] | None) -> bytes:
        """A PNG; `chosen` are settings that aren't applied (yet), `predicted` the bytes that they would take."""
        rows = [row for row in snapshot.rows if row.get("pss_bytes")]
        times = [row["time"] for row in rows]
        below = [0.0] * len(rows)
        for name, layer in zip(_STACK, self._layers, strict=True):
            above = [low + row[name] / 1e6 for low, row in zip(below, rows, strict=True)]
            edge = [*zip(times, below, strict=True), *reversed(list(zip(times, above, strict=True)))]
            layer.set_verts([edge] if len(rows) > 1 else [])
            below = above
        self._draw_gpu(rows, times)
        now = {name: rows[-1][name] if rows else 0 for name in _STACK}
        self._fill(self._now, now)
        self._fill(self._ghost, predicted or {})
        highest = max([*below, sum((predicted or {}).get(name, 0) for name in _STACK) / 1e6, 1.0])
        budget = (chosen or snapshot.settings).memory_budget
        self._draw_levels(highest, budget)
        shown = "now: " + snapshot.settings.mode
        names = [shown, *([f"chosen: {chosen.mode}"] if chosen is not None else [])]
        self.settle("bars", names, lambda: self.bars.set_xticks([0.5, 1.5][: len(names)], names))
        for text, x, bar in zip(self._totals, (0.5, 1.5), (now, predicted), strict=True):
            total = sum((bar or {}).get(name, 0) for name in _STACK)
            text.set(position=(x, total / 1e6), text=format_bytes(total) if total else "")
        self.tell(self.stack, "" if len(rows) > 1 else YOUNG)
        self.set_clock([row["time"] for row in snapshot.rows])
        self.mark(marks_of(snapshot))
        self._place_words(shown=bool(rows))
        return self.png()

    def _fill(self, bars: list[Any], sizes: Mapping[str, int]) -> None:
        bottom = 0.0
        for name, bar in zip(_STACK, bars, strict=True):
            height = sizes.get(name, 0) / 1e6
            bar.set_y(bottom)
            bar.set_height(height)
            bar.set_visible(height > 0)
            bottom += height

    def _draw_levels(self, highest: float, budget: int | None) -> None:
        limit = memory_limit() / 1e6
        for axes in (self.stack, self.bars):
            self.scale(axes, max(highest, min((budget or 0) / 1e6, 2 * highest)))
        top = float(self.stack.get_ylim()[1])
        words = {"budget": (budget or 0) / 1e6, "limit": limit}
        for name, lines in (("budget", self._budget), ("limit", self._limit)):
            for line in lines:
                line.set_ydata([words[name]] * 2)
                line.set_visible(0 < words[name] < top)
        self._levels = {
            "budget": (words["budget"], top, f"budget of the weights {format_bytes(budget)}" if budget else ""),
            "limit": (limit, top, f"machine's limit {format_bytes(limit * 1e6)}"),
        }

    def _place_words(self, shown: bool) -> None:
        low, high = self.stack.get_xlim()
        inside = 0
        for name, text in self._words.items():
            level, top, words = self._levels[name]
            beyond = level >= top
            step = 0.075 * top
            inside += beyond and bool(words)
            y = top - step * inside if beyond else level
            if not beyond and level > 0.8 * top:  # leave the upper edge to those beyond it
                y -= step
            text.set(position=(low + 0.01 * (high - low), y), text=words + " ↑" * beyond)
            text.set_visible(bool(words) and shown)

    def _draw_gpu(self, rows: list[dict[str, Any]], times: list[float]) -> None:
        """GPU memory on axes of its own, beside the stack, once there is any."""
        values = [row.get("gpu_bytes", math.nan) / 1e6 for row in rows]
        known = [value for value in values if not math.isnan(value)]
        if self.gpu is None and known:
            stack, beside = self.PLACES_WITH_GPU
            self.place(self.stack, *stack)
            self.gpu = self.axes(*beside)
            self.gpu.set_ylabel("GPU memory, MB", color=GREY, fontsize=9)
            self.gpu.locator_params(axis="y", nbins=5)
            self.gpu.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.7)
            self._gpu_line = self.moving(*self.gpu.plot([], [], color=PURPLE, linewidth=2))
        if self.gpu is not None:
            self._gpu_line.set_data(times, values)
            self.scale(self.gpu, max(known, default=0.0))


def memory_facts(
    snapshot: Snapshot, predicted: Mapping[str, int] | None
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """The numbers of the plot, and the colours that make them its legend."""
    row = snapshot.rows[-1] if snapshot.rows else {}
    known = bool(row.get("pss_bytes"))  # else it has yet to be read
    pairs = [(words, format_bytes(row[name]) if known else "-") for name, (words, _) in reversed(ROLES.items())]
    pairs.append(("together (PSS)", format_bytes(row["pss_bytes"]) if known else "-"))
    if "gpu_bytes" in row:
        pairs.append(("on the GPU", format_bytes(row["gpu_bytes"])))
    if predicted:
        pairs.append(("chosen (predicted)", format_bytes(predicted["pss_bytes"])))
    budget = snapshot.settings.memory_budget
    pairs.append(("weights budget", format_bytes(budget) if budget else "none"))
    pairs.append(("machine's limit", format_bytes(memory_limit())))
    colours = dict(ROLES.values())
    colours |= {"on the GPU": PURPLE, "weights budget": VERMILLION, "machine's limit": GREY}
    return pairs, colours
