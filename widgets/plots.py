"""Plots over time on figures that are made once: the frame with its clock and marks, and throughput with latency.

Drawn through matplotlib's object interface, so that no window and no global state is involved; transparent with
mid-grey text, to be read on a light page and on a dark one.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from kit.compare_plot import number
from widgets.html import GREEN, GREY, SKY, VERMILLION
from widgets.marks import Mark, marks_of, rank

if TYPE_CHECKING:
    from kit.snapshot import Snapshot

DPI = 100
WIDTH_PX = 720
#: The lines of the throughput plot and their colours.
LINES = {"elements/s": GREEN, "p50": SKY, "p99": VERMILLION}
#: Width of a time of day below an axis, with some room.
CLOCK_PX = 75
#: What stands in a plot that has no line yet.
YOUNG = "the first figures come in a moment"
#: The clock moves on in steps, of so many seconds up to a minute and beyond it, and a scale stays while the values
#: fill this share of it: what is still between two frames, most of the work, is drawn once.
STEPS_S = 5, 10
FILLED = 0.6, 0.97
#: Height of a row of labels above the axes.
LABEL_PX = 14
#: In place of a mark that isn't there any more.
_NOTHING = Mark(0.0, "")


class TimePlot:
    """A figure whose axes share a clock; `mark` draws events over all of them, labels above the first.

    Axes with their scales, grids and words are still: they are drawn when one of them changes. What changes with
    each frame (`moving`) is drawn on top.
    """

    def __init__(self, height_px: int) -> None:
        self.figure = Figure(figsize=(WIDTH_PX / DPI, height_px / DPI), dpi=DPI)
        self.figure.patch.set_alpha(0)
        self.canvas: Any = FigureCanvasAgg(self.figure)  # matplotlib gives it no types
        self._lines: list[Any] = []
        self._bands: list[Any] = []
        self._labels: list[Any] = []
        self._timed: list[Any] = []
        self._notes: dict[Any, Any] = {}
        self._moving: list[Any] = []
        self._settled: dict[Any, Any] = {}
        self._still: Any = None  # the pixels of what is still, None when they aren't those any more

    def axes(self, left: int, bottom: int, width: int, height: int, *, timed: bool = True) -> Any:
        """Axes at a place in pixels."""
        axes = self.figure.add_axes((0, 0, 1, 1))
        self.place(axes, left, bottom, width, height)
        axes.patch.set_alpha(0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(GREY)
        axes.tick_params(colors=GREY, labelsize=9, length=3)
        if timed:
            self._timed.append(axes)
        return axes

    def place(self, axes: Any, left: int, bottom: int, width: int, height: int) -> None:
        """Put axes at a place in pixels."""
        w, h = self.figure.get_size_inches() * DPI
        axes.set_position((left / w, bottom / h, width / w, height / h))
        self._still = None
        self._settled.clear()

    def moving(self, artist: Any) -> Any:
        """Have an artist drawn with each frame; returns it."""
        artist.set_animated(True)
        self._moving.append(artist)
        return artist

    def settle(self, what: Any, value: Any, change: Callable[[], object]) -> None:
        """Call `change`, which draws something of what is still otherwise, if its `value` isn't that of before."""
        if self._settled.get(what) != value:
            self._settled[what] = value
            self._still = None
            change()

    def scale(self, axes: Any, highest: float) -> None:
        """Let axes show 0 to `highest` with some room, and keep the scale of before while it does."""
        low, high = FILLED
        top = self._settled.get((axes, "top"), 0.0)
        if not top or not low * top <= highest <= high * top:
            top = 1.15 * highest or 1.0
        self.settle((axes, "top"), top, lambda: axes.set_ylim(0, top))

    def tell(self, axes: Any, words: str) -> None:
        """Say in the middle of axes why nothing is drawn in them, and hide their scale; "" for what can be seen."""
        self.settle((axes, "words"), words, lambda: self._tell(axes, words))

    def _tell(self, axes: Any, words: str) -> None:
        axes.tick_params(axis="y", left=not words, labelleft=not words)
        axes.grid(visible=not words, axis="y")
        if axes not in self._notes:
            place = {"transform": axes.transAxes, "ha": "center", "va": "center"}
            self._notes[axes] = axes.text(0.5, 0.5, "", fontsize=10, color=GREY, **place)
        self._notes[axes].set_text(words)

    def set_clock(self, times: Sequence[float]) -> None:
        """Let the axes show these times, seconds since the epoch; at least 30 seconds, until now without any."""
        first, last = (times[0], times[-1]) if times else (time.time(),) * 2
        step = STEPS_S[last - first > 60]
        last = step * math.ceil(last / step)
        start = min(step * math.floor(first / step), last - 30)
        self.settle("clock", (start, last), lambda: self._set_clock(start, last))

    def _set_clock(self, start: float, last: float) -> None:
        span = last - start
        lowest = min(axes.get_position().y0 for axes in self._timed)
        for axes in self._timed:
            most = max(1, min(6, int(axes.bbox.width / CLOCK_PX)))
            step = next(step for step in (10, 15, 30, 60, 120, 300, 900, 3600) if span / step <= most or step == 3600)
            ticks = [tick * step for tick in range(math.ceil(start / step), math.floor(last / step) + 1)]
            # Named below the lowest only; later, a name would be cut off.
            latest = last - 16 * span / axes.bbox.width if axes.get_position().y0 == lowest else -math.inf
            names = [time.strftime("%H:%M:%S", time.localtime(tick)) if tick <= latest else "" for tick in ticks]
            axes.set_xlim(start, last)
            axes.set_xticks(ticks, names)

    def mark(self, found: Sequence[Mark]) -> None:
        """Draw the marks; labels that would overlap end at their line, go to another row, or give way to a death's or a
        later one.
        """
        while len(self._lines) < len(found) * len(self._timed):
            for axes in self._timed:
                line = axes.axvline(0, color=GREY, linewidth=1, linestyle=(0, (3, 2)), zorder=4)
                self._lines.append(self.moving(line))
                band = Rectangle((0, 0), 0, 1, transform=axes.get_xaxis_transform(), color=GREY, alpha=0.16, lw=0)
                band.set_zorder(1)
                self._bands.append(self.moving(axes.add_patch(band)))
            text = self._timed[0].text(
                0, 1, "", transform=self._timed[0].get_xaxis_transform(), fontsize=9, color=GREY, va="bottom"
            )
            self._labels.append(self.moving(text))
        low, high = self._timed[0].get_xlim()
        per_s = self._timed[0].bbox.width / (high - low)
        taken: list[list[tuple[float, float]]] = [[] for _ in range(self._label_rows())]
        for index in sorted(range(len(self._labels)), key=lambda index: rank(found, index)):
            text = self._labels[index]
            text.set_visible(False)
            mark = found[index] if index < len(found) else _NOTHING
            if not self._draw_line(index, mark, low):
                continue
            width = 7.5 * len(mark.label)
            at = max(0.0, mark.time - low) * per_s
            place = _free_place(taken, at, width, self._timed[0].bbox.width)
            if place is not None:
                row, x = place
                taken[row].append((x, x + width + 6))
                text.set(x=low + x / per_s, y=1.01 + row * LABEL_PX / self._timed[0].bbox.height, text=mark.label)
                text.set_visible(True)

    def _draw_line(self, index: int, mark: Mark, low: float) -> bool:
        """Line and band of a mark in all axes; whether any of it is right of `low`, where they begin."""
        start, end = mark.band or (mark.time, mark.time)
        start = max(start, low)
        drawn = slice(index * len(self._timed), (index + 1) * len(self._timed))
        for line, band in zip(self._lines[drawn], self._bands[drawn], strict=True):
            line.set_visible(low <= mark.time)
            line.set_xdata([mark.time] * 2)
            band.set_visible(start < end)
            band.set_bounds(start, 0, end - start, 1)
        return low <= max(mark.time, end)

    def _label_rows(self) -> int:
        return int((self.figure.bbox.height - self._timed[0].bbox.y1) // LABEL_PX)

    def png(self) -> bytes:
        """The figure as it is now."""
        if self._still is None:
            self.canvas.draw()
            self._still = self.canvas.copy_from_bbox(self.figure.bbox)
        else:
            self.canvas.restore_region(self._still)
        for artist in sorted(self._moving, key=lambda artist: artist.get_zorder()):
            artist.axes.draw_artist(artist)
        buffer = io.BytesIO()
        image = Image.frombuffer("RGBA", self.canvas.get_width_height(), self.canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
        # Little compression, a third of the time: a frame a second is looked at once.
        image.save(buffer, format="png", compress_level=1)
        return buffer.getvalue()


def _free_place(taken: Sequence[Sequence[tuple[float, float]]], at: float, width: float, most: float) -> Any:
    """Row and left end of a label, to the right of its line or else to the left; None where all is taken."""
    for x in (min(at, most - width + 6), at - width):
        for row, others in enumerate(taken):
            if x >= 0 and all(x > end or x + width < start for start, end in others):
                return row, x
    return None


class ThroughputPlot(TimePlot):
    """Elements a second over time; p50 and p99 of the latency beneath."""

    HEIGHT_PX = 284

    def __init__(self) -> None:
        super().__init__(self.HEIGHT_PX)
        self.rate = self.axes(70, 140, WIDTH_PX - 83, 92)
        self.latency = self.axes(70, 24, WIDTH_PX - 83, 84)
        self.rate.set_ylabel("elements/s", color=GREY, fontsize=9)
        self.latency.set_ylabel("latency, ms", color=GREY, fontsize=9)
        self._rate = self.moving(*self.rate.plot([], [], color=GREEN, linewidth=2))
        # Dots too: of a second with answers between seconds without, a line has nothing.
        dots = {"marker": "o", "markersize": 2.5}
        self._p50 = self.moving(*self.latency.plot([], [], color=SKY, linewidth=2, **dots))
        self._p99 = self.moving(*self.latency.plot([], [], color=VERMILLION, linewidth=1.6, linestyle="--", **dots))
        self.rate.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        self.latency.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        for axes in (self.rate, self.latency):
            axes.locator_params(axis="y", nbins=4)
            axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.7)

    def draw(self, snapshot: Snapshot) -> bytes:
        """A PNG of the last seconds."""
        rows = snapshot.rows
        times = [row["time"] for row in rows]
        rates = [row["elements_per_s"] for row in rows]
        p50, p99 = ([row[name] * 1000 for row in rows] for name in ("p50_s", "p99_s"))
        for line, values in ((self._rate, rates), (self._p50, p50), (self._p99, p99)):
            line.set_data(times, values)
        self.scale(self.rate, _highest(rates))
        self.scale(self.latency, _highest(p99))
        young = YOUNG if len(rows) < 2 else ""
        self.tell(self.rate, young)
        self.tell(self.latency, young or ("" if any(map(math.isfinite, p50)) else "no answers in this time"))
        self.set_clock(times)
        self.mark(marks_of(snapshot))
        return self.png()


def throughput_facts(snapshot: Snapshot) -> list[tuple[str, str]]:
    """The numbers of the plot, of the last second."""
    from widgets.html import milliseconds

    row = snapshot.rows[-1] if snapshot.rows else {}
    nan = math.nan
    return [
        ("elements/s", number(row.get("elements_per_s", nan))),
        ("p50", milliseconds(row.get("p50_s", nan))),
        ("p99", milliseconds(row.get("p99_s", nan))),
        ("waiting", f"{row.get('queued', 0):,}"),
        ("answered", f"{snapshot.counters['answered']:,}"),
        ("sent again", f"{snapshot.counters['retried']:,}"),
    ]


def _highest(values: Sequence[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=0.0)
