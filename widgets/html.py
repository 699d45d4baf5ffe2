"""Pieces of HTML that several parts of the panel use; everything shown is escaped here."""

from __future__ import annotations

import traceback
from html import escape
from typing import Any

from kit.errors import KitError

#: Okabe and Ito's colours, told apart by all; in middle lightness, to be seen on white and on black.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
#: Grey with a contrast of 4.3 on white and on JupyterLab's dark background alike.
GREY = "#797979"

#: What a role of memory is called, and its colour, from the bottom of the stack to its top.
ROLES = {
    "weights_private_bytes": ("weights, private", BLUE),
    "weights_shared_bytes": ("weights, shared", ORANGE),
    "working_bytes": ("working memory", GREEN),
    "libraries_bytes": ("libraries", "#999999"),
}
MODE_COLOURS = {"default": BLUE, "medium": PURPLE, "large": GREEN, "shared": VERMILLION}


def shortened(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def described(value: Any, most: int = 160) -> str:
    """A value in a line: text as it is, arrays with dtype, shape and their first numbers."""
    if isinstance(value, str):
        return shortened(value, most)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and shape != ():
        flat = value.reshape(-1)[:4].tolist()
        numbers = ", ".join(f"{number:.3g}" if isinstance(number, float) else str(number) for number in flat)
        return f"{dtype} {tuple(shape)}: {numbers}, …"
    if isinstance(value, (list, tuple)) and len(value) > 8:
        return shortened(f"{len(value)} values: {value[:4]!r}…", most)
    return shortened(repr(value), most)


def milliseconds(seconds: float) -> str:
    """A latency in words; "-" where there is none."""
    if seconds != seconds:
        return "-"
    return f"{seconds * 1000:,.3g} ms" if seconds < 1 else f"{seconds:,.2f} s"


def swatch(colour: str) -> str:
    """A small square in a colour of the plots."""
    return f'<span style="display:inline-block;width:.8em;height:.8em;background:{colour};margin-right:.4em"></span>'


def facts(plot: str, pairs: list[tuple[str, str]], colours: dict[str, str] | None = None) -> str:
    """The numbers of a plot, one below the other; a colour makes the name its legend."""
    colours = colours or {}
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:normal;padding-right:.8em">'
        f"{swatch(colours[name]) if name in colours else ''}{escape(name)}</th>"
        f'<td style="text-align:right;white-space:nowrap"><b>{escape(value)}</b></td></tr>'
        for name, value in pairs
    )
    about = f'aria-label="the numbers of the plot: {escape(plot)}"'
    return f'<table {about} style="line-height:1.45;border-collapse:collapse;font-size:12px">{rows}</table>'


def error_words(error: BaseException) -> tuple[str, str]:
    """An error as (what happened, in words; traceback, the serving process's where it arose there)."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, KitError):
        return str(error.args[0]) if error.args else type(error).__name__, error.remote_traceback or trace
    return f"{type(error).__name__}: {error}", trace


def error_html(what: str, words: str, trace: str) -> str:
    """An error in words, its traceback folded."""
    return (
        f'<div class="kit-error" role="alert" style="border-left:4px solid {VERMILLION};padding:.2em .6em">'
        f"<b>{escape(what)}:</b> {escape(words)}"
        f"{folded(trace)}</div>"
    )


def folded(trace: str) -> str:
    """A traceback that a click shows."""
    return (
        "<details><summary>traceback</summary>"
        f'<pre style="white-space:pre-wrap;font-size:85%">{escape(trace)}</pre></details>'
    )
