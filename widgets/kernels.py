"""The picture of who uses a named deployment: a box for each connected kernel, above the processes that serve them.

A box names the notebook and its pid, and says how many requests a second it sends; it is the greener the larger the
kernel's share of all requests. An arrow of a kernel that asks for nothing just now is grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from widgets.html import GREEN, GREY, shortened
from widgets.topology import WIDTH, _label

if TYPE_CHECKING:
    from kit.snapshot import Snapshot

Client = Mapping[str, Any]
COLUMNS, BOX_W, BOX_H, GAP = 5, 132, 50, 8
#: Boxes that are drawn; what is more is told in words.
MOST = 20
_TOP = 32


def changing(snapshot: Snapshot) -> tuple[Any, ...]:
    """What of the kernels makes a redraw worth it."""
    return tuple((one["pid"], one["notebook"], _rate(one)) for one in snapshot.clients or ())


def text(snapshot: Snapshot) -> str:
    """The same as the picture, in lines of text; "" for a deployment that has no name."""
    clients = snapshot.clients
    if clients is None:
        return ""
    return "\n".join([_title(clients), *(f"  {_words(one)}" for one in clients)])


def draw(snapshot: Snapshot) -> str:
    """The picture as an SVG element, with `text` as its description; "" for a deployment that has no name."""
    clients = snapshot.clients
    if clients is None:
        return ""
    shown = clients[:MOST]
    rows = -(-len(shown) // COLUMNS)
    bottom = _TOP + rows * (BOX_H + GAP)
    total = sum(one["requests_per_s"] for one in clients)
    parts = [_label(16, 22, _title(clients), bold=True)]
    for at, one in enumerate(shown):
        parts.append(_box(one, *_place(at, len(shown)), total))
    if len(clients) > MOST:
        bottom += 18
        parts.append(_label(WIDTH / 2, bottom - 6, f"… and {len(clients) - MOST} more kernels", middle=True))
    height = bottom + 26
    # One arrow for all: their requests go into one queue.
    parts.append(
        f'<line x1="{WIDTH / 2}" y1="{bottom}" x2="{WIDTH / 2}" y2="{height - 2}" stroke="{GREEN if total else GREY}" '
        f'stroke-width="3"/><path d="M{WIDTH / 2 - 6},{height - 9} L{WIDTH / 2},{height - 1} '
        f'L{WIDTH / 2 + 6},{height - 9} z" fill="{GREEN if total else GREY}"/>'
    )
    parts.append(_label(WIDTH / 2 + 14, bottom + 14, "one queue, one model", small=True))
    return (
        f'<svg class="kit-kernels-svg" role="img" aria-label="{escape(text(snapshot), quote=True)}" '
        f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" xmlns="http://www.w3.org/2000/svg" '
        'style="display:block;max-width:100%;height:auto;font-family:sans-serif;'
        f'color:var(--jp-ui-font-color1,currentColor)">{"".join(parts)}</svg>'
    )


def _place(at: int, count: int) -> tuple[float, float]:
    """Left upper corner of a box; each row stands in the middle."""
    row, column = divmod(at, COLUMNS)
    here = min(COLUMNS, count - row * COLUMNS)
    left = (WIDTH - here * BOX_W - (here - 1) * GAP) / 2
    return left + column * (BOX_W + GAP), _TOP + row * (BOX_H + GAP)


def _box(one: Client, x: float, y: float, total: float) -> str:
    share = one["requests_per_s"] / total if total else 0.0
    return (
        f'<g class="kit-kernel" data-pid="{one["pid"]}"><rect x="{x:.0f}" y="{y}" width="{BOX_W}" height="{BOX_H}" '
        f'rx="6" fill="{GREEN}" fill-opacity="{0.04 + 0.4 * share:.2f}" stroke="{GREEN}" stroke-width="1.5"/>'
        + _label(x + 8, y + 17, shortened(one["notebook"], 18), bold=True)
        + _label(x + 8, y + 31, f"{_rate(one)} requests/s", small=True)
        + _label(x + 8, y + 44, f"pid {one['pid']} · {one['in_flight']} under way", small=True)
        + "</g>"
    )


def _title(clients: Sequence[Client]) -> str:
    total = sum(one["requests_per_s"] for one in clients)
    return f"{len(clients)} kernel{'s' * (len(clients) != 1)} connected: {total:,.0f} requests/s"


def _words(one: Client) -> str:
    return f"{one['notebook']}: pid {one['pid']}, {_rate(one)} requests/s, {one['in_flight']} under way"


def _rate(one: Client) -> str:
    rate = one["requests_per_s"]
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.1f}"
