"""The picture of a comparison: memory against throughput, one labelled point a mode.

Drawn through matplotlib's object interface, so that no window or global state is involved.
"""

from __future__ import annotations

import math
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit.memory import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by all; the markers tell the modes apart without any colour.
_STYLES = {
    "default": ("#0072B2", "o"),
    "medium": ("#CC79A7", "s"),
    "large": ("#009E73", "^"),
    "shared": ("#D55E00", "D"),
    "bare loop": ("#555555", "X"),
}
_OTHER_STYLE = ("#000000", "P")
# The same colours as text: darker, so that they can be read on white and on the shading.
_TEXT_COLOURS = {
    "default": "#005A8E",
    "medium": "#9B3F72",
    "large": "#00694D",
    "shared": "#A84600",
    "bare loop": "#444444",
}
_TEXT, _FAINT, _OVER = "#222222", "#777777", "#B2182B"
_WIDTH_IN, _HEIGHT_IN, _DPI = 8.0, 5.0, 100
#: A line of notes: its height, and the letters of 10 points that the width has room for.
_NOTE_PX, _NOTE_LETTERS = 21, 104


@dataclass(frozen=True, slots=True)
class Point:
    """One mode: label of several words at most, mode, PSS in bytes, elements/s with the lowest and highest."""

    label: str
    mode: str
    pss_bytes: float
    throughput: float
    lowest: float
    highest: float


Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels


def draw(points: Sequence[Point], budget_bytes: int | None, title: str, notes: Sequence[str] = ()) -> Figure:
    """A figure of 800 × 500 pixels, and 21 more of height for each line of notes.

    Args:
        points: what was measured.
        budget_bytes: drawn as a line, what lies beyond it shaded; None for none.
        title: one line over the picture.
        notes: lines under it, such as the modes that couldn't run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [line for note in notes for line in textwrap.wrap(note, _NOTE_LETTERS)]
    below, width = _NOTE_PX * len(lines), _WIDTH_IN * _DPI
    height = _HEIGHT_IN * _DPI + below
    figure = Figure(figsize=(_WIDTH_IN, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    digits = len(number(max((point.highest for point in points), default=0.0)))
    left = (62 + 8 * digits) / width
    axes = figure.add_axes((left, (62 + below) / height, 0.975 - left, (height - 117 - below) / height))
    figure.text(0.5, 1 - 27 / height, title, ha="center", va="center", fontsize=14, color=_TEXT, fontweight="bold")
    for index, line in enumerate(reversed(lines)):
        y = (7 + _NOTE_PX * index) / height
        figure.text(0.012, y, line, ha="left", va="bottom", fontsize=10, color=_FAINT)
    unit, unit_name = _unit(points, budget_bytes)
    _set_scales(axes, points, budget_bytes, unit, unit_name)
    obstacles = _draw_budget(axes, budget_bytes, unit)
    for point in points:
        colour, marker = _STYLES.get(point.mode, _OTHER_STYLE)
        x = point.pss_bytes / unit
        if point.highest > point.lowest:
            axes.plot([x, x], [point.lowest, point.highest], color=colour, linewidth=2, alpha=0.5, zorder=2)
        axes.scatter([x], [point.throughput], s=120, c=colour, marker=marker, zorder=3, edgecolors="white")
    _label(axes, points, unit, obstacles)
    return figure


def _unit(points: Sequence[Point], budget_bytes: int | None) -> tuple[float, str]:
    largest = max([point.pss_bytes for point in points] + [budget_bytes or 0], default=0)
    return (1e9, "GB") if largest >= 2e9 else (1e6, "MB")


def _set_scales(axes: Axes, points: Sequence[Point], budget_bytes: int | None, unit: float, unit_name: str) -> None:
    most = max((point.pss_bytes for point in points), default=0.0)
    shown = most
    # A budget far beyond all points would squeeze them together; it is named at the edge instead.
    if budget_bytes is not None and budget_bytes <= 2.5 * most:
        shown = max(most, budget_bytes)
    axes.set_xlim(*(edge / unit for edge in _memory_range(points, shown)))
    axes.set_ylim(0, 1.36 * max((point.highest for point in points), default=1.0) or 1.0)
    axes.set_xlabel(f"peak memory of all processes (PSS, {unit_name})", fontsize=12, color=_TEXT)
    axes.set_ylabel("throughput (elements/s)", fontsize=12, color=_TEXT)
    axes.tick_params(labelsize=11, colors=_TEXT)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _memory_range(points: Sequence[Point], shown: float) -> tuple[float, float]:
    """From 0, unless the points would lie on top of each other then."""
    least = min((point.pss_bytes for point in points), default=0.0)
    if least <= 0.6 * shown:
        return 0.0, 1.28 * (shown or 1.0)
    span = max(shown - least, 0.05 * shown)
    return max(0.0, least - 0.6 * span), shown + 0.6 * span


def _draw_budget(axes: Axes, budget_bytes: int | None, unit: float) -> list[Box]:
    """Draw the budget; returns the boxes, in pixels, that labels should keep clear of."""
    x, (left, right) = (budget_bytes or 0) / unit, axes.get_xlim()
    boxes = []
    if budget_bytes is not None and x < right:
        axes.axvspan(max(x, left), right, color=_OVER, alpha=0.10, linewidth=0, zorder=0)
    if budget_bytes is not None and left < x < right:
        axes.axvline(x, color=_OVER, linewidth=2, linestyle=(0, (5, 3)), zorder=1)
        line_x = axes.transData.transform((x, 0))[0]
        boxes.append((line_x - 3, axes.bbox.y0, line_x + 3, axes.bbox.y1))
    if budget_bytes is not None:
        beyond, below = x >= right, x <= left
        text = ("← " if below else "") + f"budget {format_bytes(budget_bytes)}" + (" →" if beyond else "")
        left_side = x > left + 0.75 * (right - left)
        boxes.append(
            _box(
                axes.annotate(
                    text,
                    (min(max(x, left), right), 1),
                    (-5 if left_side else 5, -4),
                    ("data", "axes fraction"),
                    "offset points",
                    ha="right" if left_side else "left",
                    va="top",
                    fontsize=12,
                    fontweight="bold",
                    color=_OVER,
                )
            )
        )
    hint = axes.annotate(
        "↖ better",
        (0, 1),
        (6, -5),
        "axes fraction",
        "offset points",
        va="top",
        fontsize=11,
        style="italic",
        color=_FAINT,
    )
    if any(_overlap(_box(hint), box) for box in boxes):
        hint.remove()  # it can be done without
        return boxes
    return [*boxes, _box(hint)]


# ---- labels that don't overlap -------------------------------------------------------------------

#: Places for a label around its point: direction and distance in pixels, the preferred ones first.
_PLACES = [
    (math.cos(math.radians(angle)), math.sin(math.radians(angle)), distance)
    for distance in (14, 30, 50, 75, 105)
    for angle in (0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 338, 202, 68, 112, 292, 248)
]


def _label(axes: Axes, points: Sequence[Point], unit: float, obstacles: list[Box]) -> None:
    texts, centres, sizes, marks = [], [], [], []
    for point in points:
        words = f"{point.label}\n{format_bytes(point.pss_bytes)} PSS\n{number(point.throughput)} elements/s"
        colour = _TEXT_COLOURS.get(point.mode, _OTHER_STYLE[0])
        text = axes.annotate(
            words, (0, 0), xycoords="figure pixels", va="bottom", fontsize=12, color=colour, linespacing=1.1
        )
        left, bottom, right, top = _box(text)
        texts.append(text)
        sizes.append((right - left, top - bottom))
        x, y = axes.transData.transform((point.pss_bytes / unit, point.throughput))
        centres.append((float(x), float(y)))
        lowest, highest = (float(axes.transData.transform((0, end))[1]) for end in (point.lowest, point.highest))
        marks.append((x - 8, min(y - 8, lowest), x + 8, max(y + 8, highest)))
    inside = (axes.bbox.x0 + 4, axes.bbox.y0 + 4, axes.bbox.x1 + 8, axes.bbox.y1 + 4)
    boxes = _place(centres, sizes, marks, obstacles, inside)
    for text, centre, box in zip(texts, centres, boxes, strict=True):
        text.xyann = (box[0], box[1])
        near = _nearest(centre, box)
        if math.dist(centre, near) > 22:  # too far to be seen as belonging together
            axes.annotate(
                "", centre, near, "figure pixels", "figure pixels", zorder=2,
                arrowprops={"arrowstyle": "-", "color": text.get_color(), "linewidth": 1, "shrinkA": 1, "shrinkB": 5},
            )  # fmt: skip


def _place(
    centres: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    marks: Sequence[Box],
    obstacles: Sequence[Box],
    inside: Box,
) -> list[Box]:
    """A box for each label. Passes over all move one at a time to its cheapest place; other starts if they clash."""
    choices = [[_candidate(at, size, place) for place in _PLACES] for at, size in zip(centres, sizes, strict=True)]

    def cost(index: int, box: Box, chosen: list[Box]) -> float:
        others = [other for at, other in enumerate(chosen) if at != index]
        clash = sum(_overlap(box, other) for other in (*others, *marks)) * 10
        clash += sum(_overlap(box, other) for other in obstacles) * 20
        mine = _line(centres[index], box)
        lines = [_line(centres[at], other) for at, other in enumerate(chosen) if at != index]
        crossed = sum(_crosses(mine, other) for other in others) + sum(_crosses(line, box) for line in lines)
        return clash + crossed * 2000 + _outside(box, inside) * 200

    best: tuple[float, list[Box]] = (math.inf, [])
    for attempt in range(8):
        shuffled = random.Random(attempt)  # the same picture each time
        order = list(range(len(choices)))
        chosen = [boxes[0] for boxes in choices]
        if attempt:
            shuffled.shuffle(order)
            chosen = [shuffled.choice(boxes) for boxes in choices]
        for _ in range(6):
            before = list(chosen)
            for index in order:
                costs = [cost(index, box, chosen) + rank for rank, box in enumerate(choices[index])]
                chosen[index] = choices[index][costs.index(min(costs))]
            if chosen == before:
                break
        best = min(best, (sum(cost(index, box, chosen) for index, box in enumerate(chosen)), chosen))
        if best[0] == 0:
            break
    return best[1]


def _nearest(centre: tuple[float, float], box: Box) -> tuple[float, float]:
    """The point of `box` that is nearest to `centre`."""
    return (min(max(centre[0], box[0]), box[2]), min(max(centre[1], box[1]), box[3]))


def _line(centre: tuple[float, float], box: Box) -> list[tuple[float, float]]:
    """Points along the line from a mark to its label."""
    near = _nearest(centre, box)
    steps = [step / 12 for step in range(13)]
    return [(centre[0] + (near[0] - centre[0]) * t, centre[1] + (near[1] - centre[1]) * t) for t in steps]


def _crosses(line: Sequence[tuple[float, float]], box: Box) -> bool:
    return any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in line)


def _candidate(centre: tuple[float, float], size: tuple[float, float], place: tuple[float, float, float]) -> Box:
    across, up, distance = place
    width, height = size
    x = centre[0] + across * (distance + width / 2)
    y = centre[1] + up * (distance + height / 2)
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _overlap(one: Box, other: Box) -> float:
    """Area that two boxes share, with a margin around each."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 12
    height = min(one[3], other[3]) - max(one[1], other[1]) + 4
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, inside: Box) -> float:
    return sum(
        max(0.0, beyond) for beyond in (inside[0] - box[0], inside[1] - box[1], box[2] - inside[2], box[3] - inside[3])
    )


def _box(text: Any) -> Box:
    extent = text.get_window_extent()
    return (float(extent.x0), float(extent.y0), float(extent.x1), float(extent.y1))


def number(value: float) -> str:
    """Three digits at least, no more decimals than that: "12,345", "812", "81.2", "0.0812"."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
