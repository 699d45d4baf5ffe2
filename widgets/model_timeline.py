"""A row a model over time: when it was loading, resident, evicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.collections import PolyCollection

from widgets.html import GREY
from widgets.marks import marks_of
from widgets.model_log import Span
from widgets.model_rows import STATES
from widgets.plots import WIDTH_PX, TimePlot

if TYPE_CHECKING:
    from kit.snapshot import Snapshot

ROW_PX, LEFT_PX, TOP_PX, BOTTOM_PX = 17, 150, 34, 24
#: Height of a state's bar in its row, so that states aren't told by colour alone.
_THICKNESS = {"resident": 0.78, "loading": 0.5, "waiting": 0.32, "host tier": 0.5, "evicted": 0.06, "failed": 0.22}


class ModelTimeline(TimePlot):
    """Bars for a number of models: thick while resident, half while loading, a line while evicted.

    Args:
        rows: models shown at most.
    """

    def __init__(self, rows: int) -> None:
        super().__init__(TOP_PX + ROW_PX * rows + BOTTOM_PX)
        self.rows = rows
        self.bars = self.axes(LEFT_PX, BOTTOM_PX, WIDTH_PX - LEFT_PX - 13, ROW_PX * rows)
        self.bars.set_ylim(rows, 0)
        self.bars.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.7)
        self._layers: dict[str, Any] = {}
        for state, colour in STATES.items():
            layer = PolyCollection([], facecolor=colour, edgecolor="none", zorder=2)
            self.bars.add_collection(layer, autolim=False)
            self._layers[state] = self.moving(layer)

    def draw(self, snapshot: Snapshot, models: Sequence[tuple[str, Sequence[Span]]]) -> bytes:
        """A PNG.

        Args:
            snapshot: its rows give the clock, its events the marks.
            models: name and states of each model, at most `rows` of them.
        """
        boxes: dict[str, list[Any]] = {state: [] for state in STATES}
        for at, (_, spans) in enumerate(models):
            for span in spans:
                half = _THICKNESS.get(span.state, 0.2) / 2
                low, high = at + 0.5 - half, at + 0.5 + half
                corners = [(span.start, low), (span.end, low), (span.end, high), (span.start, high)]
                boxes.get(span.state, boxes["failed"]).append(corners)
        for state, layer in self._layers.items():
            layer.set_verts(boxes[state])
        names = [name for name, _ in models]
        self.settle("rows", names, lambda: self.bars.set_yticks([at + 0.5 for at in range(len(names))], names))
        ends = [spans[-1].end for _, spans in models if spans]
        times = [row["time"] for row in snapshot.rows]
        self.set_clock([*times, max([times[-1], *ends])] if times else ends)
        self.mark(marks_of(snapshot))
        return self.png()
