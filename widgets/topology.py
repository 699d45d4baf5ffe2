"""The picture of who serves: processes, their threads, and where the copies of the model are. An SVG string.

    default   each process holds a copy, arrows from its threads
    large     one box of its own holds the model, arrows from every process
    medium    n such boxes
    shared    one weights segment, dashed lines to every process

With models by key a manager stands in a copy's place, and its slots fill and empty (slots.py).

Text takes the page's colour; a box is the bluer the busier its process was in the last 2 s, and says so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from kit.memory import format_bytes
from widgets import model_rows, slots
from widgets.html import BLUE, GREEN, GREY, ORANGE, shortened

if TYPE_CHECKING:
    from kit.snapshot import Snapshot

Row = dict[str, Any]
WIDTH, BOX_W, GAP = 720, 164, 10
COLUMNS = 4
#: Boxes of one kind that are drawn; what is more is told in words.
MOST = 12
THREADS_SHOWN = 6
#: The page's own colour.
PAGE = "var(--jp-layout-color1,Canvas)"


def text(snapshot: Snapshot) -> str:
    """The same as the picture, in lines of text."""
    settings = snapshot.settings
    lines = [_title(snapshot)]
    for row in _serving(snapshot):
        threads = f", {settings.threads} thread{'s' * (settings.threads > 1)}" if row["role"] == "worker" else ""
        holds = "" if not _holds(row) else f", holds a copy of the model ({_weights(row)})"
        if snapshot.models and holds:
            holds = f", holds {slots.words(_models_in(snapshot, row), None)}"
        lines.append(f"  {row['role']} {row['index']}: pid {row['pid']}, {_size(row)}{threads}, {_busy(row)}{holds}")
    if settings.mode == "shared" and snapshot.models:
        held = model_rows.held_by(snapshot.models, "all workers")
        lines.append(f"  mapped by every worker: {slots.words(held, model_rows.budget_of(snapshot))}")
    elif settings.mode == "shared" and snapshot.processes:
        lines.append(f"  weights segment: {_segment_size(snapshot)}, one copy, mapped by every worker")
    return "\n".join(lines)


def draw(snapshot: Snapshot) -> str:
    """The picture as an SVG element, with `text` as its description."""
    workers = _of_role(snapshot, "worker")
    hosts = _of_role(snapshot, "host")
    settings = snapshot.settings
    inside = settings.mode == "default"
    more = slots.HEIGHT - 26 if snapshot.models else 0  # the words beneath the slots
    height = 128 + more if inside else 84
    host_height = 92 + more
    parts: list[str] = []
    places = _places(len(workers), 34, height)
    bottom = places[-1][1] + height if places else 60
    centres = [(x + BOX_W / 2, y + height) for x, y in places]
    for row, (x, y) in zip(workers, places, strict=False):
        parts.append(_process(snapshot, row, x, y, height))
    if len(workers) > MOST:
        bottom += 18
        parts.append(
            _label(WIDTH / 2, bottom - 4, f"… and {len(workers) - MOST} more processes", middle=True, clear=True)
        )
    below = bottom + 40
    if settings.mode == "shared":
        parts.append(_segment(snapshot, below))
        links = [(centre, (min(max(centre[0], 130), WIDTH - 130), below)) for centre in centres]
        parts[:0] = [_link(a, b, dashed=True) for a, b in links]
        bottom = below + (64 if snapshot.models else 46)
    elif hosts:
        spots = _places(len(hosts), below, host_height)
        for row, (x, y) in zip(hosts, spots, strict=False):
            parts.append(_process(snapshot, row, x, y, host_height))
        ends = [(x + BOX_W / 2, y) for x, y in spots]
        parts[:0] = [_link(a, b) for a in centres for b in ends]
        bottom = spots[-1][1] + host_height
        if len(hosts) > MOST:
            bottom += 18
            parts.append(
                _label(WIDTH / 2, bottom - 4, f"… and {len(hosts) - MOST} more model hosts", middle=True, clear=True)
            )
    bottom += 24
    parts.append(_label(16, bottom - 4, _forkserver(snapshot), small=True))
    return _svg(snapshot, parts, bottom + 8)


# ---- parts -----------------------------------------------------------------------------------


def _svg(snapshot: Snapshot, parts: Sequence[str], height: float) -> str:
    frame = f'<rect x="2" y="2" width="{WIDTH - 4}" height="{height - 4}" rx="10" fill="none" stroke="{GREY}"/>'
    title = _label(16, 23, _title(snapshot), bold=True)
    arrow = (
        '<defs><marker id="kit-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{GREY}"/></marker></defs>'
    )
    description = escape(text(snapshot), quote=True)
    return (
        f'<svg class="kit-topology-svg" role="img" aria-label="{description}" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" xmlns="http://www.w3.org/2000/svg" '
        'style="max-width:100%;height:auto;font-family:sans-serif;color:var(--jp-ui-font-color1,currentColor)" '
        f'data-mode="{snapshot.settings.mode}">{arrow}{frame}{title}{"".join(parts)}</svg>'
    )


def _process(snapshot: Snapshot, row: Row, x: float, y: float, height: float) -> str:
    share = row.get("busy_share")
    busy = share if share is not None and share == share else 0.0
    model = row["role"] == "host"
    threads = 0 if model else snapshot.settings.threads
    parts = [
        f'<g class="kit-process kit-{row["role"]}" data-pid="{row["pid"]}">'
        f'<rect x="{x}" y="{y}" width="{BOX_W}" height="{height}" rx="6" fill="{PAGE}"/>'  # arrows go behind it
        f'<rect x="{x}" y="{y}" width="{BOX_W}" height="{height}" rx="6" fill="{BLUE}" '
        f'fill-opacity="{0.04 + 0.5 * busy:.2f}" stroke="{GREEN if model else BLUE}" '
        f'stroke-width="{2.5 if model else 1.5}"/>'
    ]
    name = f"{'host' if model else 'process'} {row['index']} · pid {row['pid']}"
    parts.append(_label(x + 8, y + 17, name, bold=True))
    parts.append(_label(x + 8, y + 34, f"{_size(row)} · {_busy(row)}"))
    if threads:
        parts.append(_threads(x, y + 40, threads, arrows=_holds(row)))
    if _holds(row) and snapshot.models:
        held, alone = _models_in(snapshot, row), snapshot.settings.copies == 1
        budget = model_rows.budget_of(snapshot) if alone else None
        parts.append(slots.draw(held, _room(snapshot), budget, x + 8, y + height - 8 - slots.HEIGHT, BOX_W - 16))
    elif _holds(row):
        parts.append(_model(row, x + 8, y + height - 34))
    return "".join([*parts, "</g>"])


def _model(row: Row, x: float, y: float) -> str:
    """The model inside a box."""
    width = BOX_W - 16
    return (
        f'<rect class="kit-model" x="{x}" y="{y}" width="{width}" height="26" rx="4" fill="{GREEN}" '
        f'fill-opacity="0.3" stroke="{GREEN}"/>' + _label(x + width / 2, y + 17, _in_box(row), middle=True)
    )


def _threads(x: float, y: float, count: int, *, arrows: bool) -> str:
    shown = min(count, THREADS_SHOWN)
    parts = []
    for index in range(shown):
        at = x + 18 + index * 22
        parts.append(f'<circle cx="{at}" cy="{y + 12}" r="8" fill="none" stroke="currentColor" stroke-width="1.2"/>')
        parts.append(_label(at, y + 16, "t", middle=True, small=True))
        if arrows:
            parts.append(_link((at, y + 21), (at, y + 53)))
    words = f"{count} thread{'s' * (count > 1)}"
    parts.append(_label(x + 14 + shown * 22, y + 16, words if shown <= 3 else f"{count}", small=True))
    return "".join(parts)


def _segment(snapshot: Snapshot, y: float) -> str:
    if snapshot.models:
        held, budget = model_rows.held_by(snapshot.models, "all workers"), model_rows.budget_of(snapshot)
        return f'<g class="kit-segment">{slots.draw(held, _room(snapshot), budget, 60, y, WIDTH - 120)}</g>'
    words = f"weights segment: {_segment_size(snapshot)}, one read-only copy, mapped by every process"
    return (
        f'<rect class="kit-segment" x="60" y="{y}" width="{WIDTH - 120}" height="40" rx="4" fill="{ORANGE}" '
        f'fill-opacity="0.3" stroke="{ORANGE}" stroke-width="2"/>' + _label(WIDTH / 2, y + 25, words, middle=True)
    )


def _link(start: tuple[float, float], end: tuple[float, float], *, dashed: bool = False) -> str:
    style = 'stroke-dasharray="6 4"' if dashed else 'marker-end="url(#kit-arrow)"'
    return (
        f'<line x1="{start[0]:.0f}" y1="{start[1]:.0f}" x2="{end[0]:.0f}" y2="{end[1]:.0f}" stroke="{GREY}" '
        f'stroke-width="1.5" {style}/>'
    )


def _label(
    x: float,
    y: float,
    words: str,
    *,
    bold: bool = False,
    middle: bool = False,
    small: bool = False,
    clear: bool = False,
) -> str:
    style = (' font-weight="bold"' if bold else "") + (' text-anchor="middle"' if middle else "")
    size = 11 if small else 12
    halo = f'paint-order="stroke" stroke="{PAGE}" stroke-width="4"' if clear else ""  # over arrows
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="currentColor" {halo}{style}>{escape(words)}</text>'


def _places(count: int, top: float, height: float) -> list[tuple[float, float]]:
    """Left upper corners of boxes in rows, each row in the middle."""
    count = min(count, MOST)
    places = []
    for first in range(0, count, COLUMNS):
        here = min(COLUMNS, count - first)
        left = (WIDTH - here * BOX_W - (here - 1) * GAP) / 2
        y = top + first // COLUMNS * (height + 14)
        places += [(left + at * (BOX_W + GAP), y) for at in range(here)]
    return places


# ---- words -----------------------------------------------------------------------------------


def _title(snapshot: Snapshot) -> str:
    settings = snapshot.settings
    state = " (closed)" if snapshot.closed else ""
    copies = model_rows.loaded(snapshot) if snapshot.models else settings.copies_in_words
    name = shortened((snapshot.model_id or snapshot.handler_name).rstrip("/").rsplit("/", 1)[-1], 28)
    return f"mode {settings.mode}{state}: {settings.workers_in_words}, {copies} · {name}"


def _of_role(snapshot: Snapshot, role: str) -> list[Row]:
    return sorted((row for row in snapshot.processes if row["role"] == role), key=lambda row: row["index"])


def _models_in(snapshot: Snapshot, row: Row) -> list[Row]:
    return model_rows.held_by(snapshot.models, f"{row['role']} {row['index']}")


def _room(snapshot: Snapshot) -> float:
    """Bytes that the width of a box stands for: its share of the budget, or more where one holds more."""
    homes = [_models_in(snapshot, row) for row in _serving(snapshot)]
    most = max((sum(map(model_rows.size, held)) for held in homes), default=0)
    return max((model_rows.budget_of(snapshot) or 0) / snapshot.settings.copies, most)


def _serving(snapshot: Snapshot) -> list[Row]:
    return [*_of_role(snapshot, "worker"), *_of_role(snapshot, "host")]


def _holds(row: Row) -> bool:
    """Whether a process has a copy of its own."""
    mode = row["mode"]
    return bool(row["role"] == "host" if mode in ("large", "medium") else mode == "default")


def _weights(row: Row) -> str:
    mapped = row.get("weights_shared_bytes", 0)
    size = row.get("weights_private_bytes", 0) + mapped
    return "" if not size else format_bytes(size) + (", mapped file" if mapped > size / 2 else "")


def _in_box(row: Row) -> str:
    """The copy in words that fit its box."""
    return f"model {_weights(row).removesuffix(' file')}"


def _size(row: Row) -> str:
    size = row.get("pss_bytes")
    return format_bytes(size) if size else "starting"


def _busy(row: Row) -> str:
    share = row.get("busy_share")
    return f"busy {share:.0%}" if share is not None and share == share else "new"


def _segment_size(snapshot: Snapshot) -> str:
    sizes = [row.get("weights_shared_bytes", 0) for row in snapshot.processes]
    return format_bytes(max([*sizes, snapshot.model_bytes or 0]))


def _forkserver(snapshot: Snapshot) -> str:
    for row in snapshot.processes:
        if row["role"] == "forkserver":
            return f"fork server · pid {row['pid']} · {_size(row)}: its libraries are shared by all processes"
    return ""
