"""The models that a process holds, drawn into its box: slots that fill and empty."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kit.memory import format_bytes
from widgets import model_rows
from widgets.html import GREEN, GREY, shortened
from widgets.model_rows import Row

#: Slots drawn one by one; what is more shares the last.
MOST = 24
HEIGHT = 44


def draw(rows: Sequence[Row], room: float, budget: int | None, x: float, y: float, width: float) -> str:
    """Slots as wide as their models are large; the words beneath say it in numbers.

    Args:
        rows: the models that are loaded here.
        room: bytes that the whole width stands for.
        budget: bytes that these models may take, None for no limit or when others share it.
        x, y, width: where, in the picture's units; it is HEIGHT high.
    """
    rows = sorted(rows, key=model_rows.name)  # a slot keeps its place while others come and go
    whole = max(room, sum(map(model_rows.size, rows)), 1.0)
    parts = [
        f'<rect class="kit-room" x="{x}" y="{y}" width="{width}" height="26" rx="4" fill="none" stroke="{GREY}" '
        'stroke-dasharray="3 3"/>'
    ]
    left = x
    for at, row in enumerate(rows):
        if at == MOST - 1 and len(rows) > MOST:
            more = f"{len(rows) - at} more"
            parts.append(_slot(left, y, width * sum(map(model_rows.size, rows[at:])) / whole, more, more))
            break
        wide = width * model_rows.size(row) / whole
        title = f"{model_rows.name(row, 60)}: {format_bytes(model_rows.size(row))}"
        parts.append(_slot(left, y, wide, model_rows.name(row, 20), title))
        left += wide
    parts.append(
        f'<text x="{x + width / 2:.0f}" y="{y + 40}" font-size="11" fill="currentColor" text-anchor="middle">'
        f"{escape(words(rows, budget))}</text>"
    )
    return "".join(parts)


def words(rows: Sequence[Row], budget: int | None) -> str:
    """Such as "2 models, 182 of 200 MB"."""
    used = model_rows.of_budget(sum(map(model_rows.size, rows)), budget)
    return f"{len(rows)} model{'s' * (len(rows) != 1)}, {used}"


def _slot(x: float, y: float, width: float, label: str, title: str) -> str:
    room = int(width / 6)
    text = (
        f'<text x="{x + width / 2:.1f}" y="{y + 17}" font-size="10" fill="currentColor" text-anchor="middle">'
        f"{escape(shortened(label, room))}</text>"
        if room >= min(len(label), 6)
        else ""
    )
    return (
        f'<g class="kit-slot"><title>{escape(title)}</title><rect x="{x:.1f}" y="{y}" '
        f'width="{max(0.5, width - 1):.1f}" height="26" rx="2" fill="{GREEN}" fill-opacity="0.35" '
        f'stroke="{GREEN}"/>{text}</g>'
    )
