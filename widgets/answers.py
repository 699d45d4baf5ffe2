"""Live answers: the latest example, its answer, and who made it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from widgets.html import GREEN, VERMILLION, described, milliseconds

if TYPE_CHECKING:
    from kit.snapshot import Snapshot


def text(snapshot: Snapshot) -> str:
    """The latest answer in lines of text."""
    if not snapshot.latest:
        return "no answer yet"
    example, answer, maker = _parts(snapshot)
    return f"example: {example}\nanswer:  {answer}\n{maker}"


def draw(snapshot: Snapshot) -> str:
    """The latest answer as HTML."""
    if not snapshot.latest:
        return '<div class="kit-answer">No answer yet: start the load, or predict something.</div>'
    example, answer, maker = _parts(snapshot)
    return (
        '<div class="kit-answer" style="line-height:1.5">'
        f"<div><b>Example</b> {escape(example)}</div><div><b>Answer</b> {escape(answer)}</div>"
        f'<div class="kit-maker">{escape(maker)}</div></div>'
    )


def failed(snapshot: Snapshot) -> str:
    """The number of failed requests in large type."""
    count = snapshot.counters["failed"]
    colour = VERMILLION if count else GREEN
    sign = "✗" if count else "✓"
    return (
        f'<div class="kit-failed-count" role="status" style="font-size:26px;line-height:1.3;font-weight:bold">'
        f'<span style="color:{colour}" aria-hidden="true">{sign}</span> failed: {count:,}</div>'
    )


def _parts(snapshot: Snapshot) -> tuple[str, str, str]:
    latest = snapshot.latest
    result = latest["result"]
    if type(result).__name__ == "Failure":
        answer = f"failed: {result.error.args[0]}"
    else:
        answer = getattr(result, "inference", result)
    made = (
        f"by pid {latest['pid']}, mode {latest['mode']}, in {milliseconds(latest['seconds'])}"
        if "pid" in latest
        else ""
    )
    return described(latest["example"]), described(answer), made
