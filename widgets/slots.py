"""The models that a process holds or is loading, drawn into its box: slots that fill and empty."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kit.memory import format_bytes
from widgets import model_rows
from widgets.html import GREEN, GREY, ORANGE, shortened
from widgets.model_rows import Row

#: Slots drawn one by one; what is more shares the last.
MOST = 24
HEIGHT = 44
#: Width of a letter of the words below, about.
LETTER = 5.9
SLOT = 26


def draw(rows: Sequence[Row], room: float, budget: int | None, x: float, y: float, width: float) -> str:
    """Slots as wide as their models are large; the words beneath say it in numbers.

    The slot of a model that is being loaded is half full.

    Args:
        rows: the models that are loaded here or being loaded (`model_rows.held_by`).
        room: bytes that the whole width stands for.
        budget: bytes that these models may take, None for no limit or when others share it.
        x, y, width: where, in the picture's units; it is HEIGHT high.
    """
    rows = sorted(rows, key=model_rows.name)  # a slot keeps its place while others come and go
    least = max(room, 1.0) / 8  # of a model whose size isn't known
    sizes = [model_rows.size(row) or least for row in rows]
    whole = max(room, sum(sizes), 1.0)
    parts = [
        f'<rect class="kit-room" x="{x}" y="{y}" width="{width}" height="{SLOT}" rx="4" fill="none" stroke="{GREY}" '
        'stroke-dasharray="3 3"/>'
    ]
    left = x
    for at, row in enumerate(rows):
        if at == MOST - 1 and len(rows) > MOST:
            more = f"{len(rows) - at} more"
            parts.append(_slot(left, y, width * sum(sizes[at:]) / whole, more, more))
            break
        wide = width * sizes[at] / whole
        known = format_bytes(model_rows.size(row)) if model_rows.size(row) else "size unknown"
        filling = _loading(row)
        title = f"{model_rows.name(row, 60)}: {'loading, ' if filling else ''}{known}"
        parts.append(_slot(left, y, wide, model_rows.name(row, 20), title, filling=filling))
        left += wide
    said = words(rows, budget)
    # Squeezed where they would leave the box.
    fit = f' textLength="{width:.0f}" lengthAdjust="spacingAndGlyphs"' if len(said) * LETTER > width else ""
    parts.append(
        f'<text x="{x + width / 2:.0f}" y="{y + 40}" font-size="11" fill="currentColor" text-anchor="middle"{fit}>'
        f"{escape(said)}</text>"
    )
    return "".join(parts)


def words(rows: Sequence[Row], budget: int | None) -> str:
    """Such as "2 models, 182 of 200 MB, 1 loading"."""
    loaded = [row for row in rows if not _loading(row)]
    used = model_rows.of_budget(sum(map(model_rows.size, loaded)), budget)
    filling = f", {len(rows) - len(loaded)} loading" if len(loaded) < len(rows) else ""
    return f"{len(loaded)} model{'s' * (len(loaded) != 1)}, {used}{filling}"


def _loading(row: Row) -> bool:
    return bool(row["state"] == "loading")


def _slot(x: float, y: float, width: float, label: str, title: str, *, filling: bool = False) -> str:
    room = int(width / 6)
    text = (
        f'<text x="{x + width / 2:.1f}" y="{y + 17}" font-size="10" fill="currentColor" text-anchor="middle">'
        f"{escape(shortened(label, room))}</text>"
        if room >= min(len(label), 6)
        else ""
    )
    colour, dashes = (ORANGE, ' stroke-dasharray="4 2"') if filling else (GREEN, "")
    place = f'x="{x:.1f}" width="{max(0.5, width - 1):.1f}"'
    full = SLOT / 2 if filling else SLOT
    return (
        f'<g class="kit-slot{" kit-filling" * filling}"><title>{escape(title)}</title>'
        f'<rect {place} y="{y}" height="{SLOT}" rx="2" fill="none" stroke="{colour}"{dashes}/>'
        f'<rect {place} y="{y + SLOT - full}" height="{full}" rx="2" fill="{colour}" fill-opacity="0.35"/>{text}</g>'
    )
