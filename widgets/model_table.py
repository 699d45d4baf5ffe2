"""The models by score, as a table: which the manager would keep longest."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from kit.memory import format_bytes
from widgets import model_rows
from widgets.html import milliseconds, shortened, swatch
from widgets.model_rows import SHOWN, STATES, Row, figure, in_words, state_of

if TYPE_CHECKING:
    from kit.snapshot import Snapshot

_CELL = 'style="text-align:right;padding:0 .6em;white-space:nowrap"'
_COLUMNS = ("state", "size", "score", "hits", "loads", "evictions", "load", "last used", "in use")


def draw(snapshot: Snapshot) -> str:
    """An HTML table of the SHOWN best models, and a line on the others."""
    best = model_rows.by_score(snapshot.models)
    head = "".join(f'<th scope="col" {_CELL}>{words}</th>' for words in _COLUMNS)
    body = "".join(_row(row) for row in best[:SHOWN])
    more = ""
    if len(best) > SHOWN:
        words = f"and {len(best) - SHOWN:,} more: {model_rows.counted(best[SHOWN:])}"
        more = f'<tr><td colspan="{len(_COLUMNS) + 1}" style="text-align:left;padding:.2em .6em">{words}</td></tr>'
    return (
        '<div style="overflow-x:auto"><table class="kit-models" style="border-collapse:collapse;font-size:12px;'
        f'line-height:1.5"><thead><tr><th scope="col" style="text-align:left">key</th>{head}</tr></thead>'
        f"<tbody>{body}{more}</tbody></table></div>"
    )


def _row(row: Row) -> str:
    state = state_of(row)
    size, used = model_rows.size(row), row.get("idle_s")
    cells = (
        swatch(STATES[state]) + escape(in_words(state)) if state in STATES else escape(state),
        format_bytes(size) if size else "-",
        f"{figure(row, 'score'):.3g}",
        f"{int(figure(row, 'hits')):,}",
        f"{int(figure(row, 'loads')):,}",
        f"{int(figure(row, 'evictions')):,}",
        milliseconds(figure(row, "load_s")) if figure(row, "loads") else "-",
        "never" if used is None or used != used else f"{used:,.0f} s ago",
        f"{int(figure(row, 'in_use')):,}" + (", pinned" if figure(row, "pinned") else ""),
    )
    body = "".join(f"<td {_CELL}>{cell}</td>" for cell in cells)
    key = (
        f'<th scope="row" style="text-align:left;font-weight:normal">{escape(model_rows.name(row))}{_trouble(row)}</th>'
    )
    return f"<tr>{key}{body}</tr>"


def _trouble(row: Row) -> str:
    """What keeps a model from being loaded, in small letters below its name; all of it as a tooltip."""
    error = model_rows.trouble(row)
    if not error:
        return ""
    words = escape(shortened(error, 90))
    return f'<div style="font-size:11px;max-width:26em" title="{escape(error, quote=True)}">{words}</div>'
