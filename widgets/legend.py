"""Which colour is what, as a strip to be put above a plot: for the static twin, which has no numbers beside it."""

from __future__ import annotations

import functools
import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from widgets.html import GREY
from widgets.plots import DPI, WIDTH_PX

HEIGHT_PX = 24


@functools.lru_cache(maxsize=8)
def legend(names: tuple[tuple[str, str], ...]) -> bytes:
    """A PNG of squares with their names, in one row.

    Args:
        names: (name, colour), from left to right.
    """
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI)
    figure.patch.set_alpha(0)
    FigureCanvasAgg(figure)
    figure.legend(
        handles=[Patch(color=colour, label=name) for name, colour in names],
        ncols=len(names), loc="center", frameon=False, labelcolor=GREY,
        fontsize=9, handlelength=1, handleheight=1, handletextpad=0.5, columnspacing=1.4,
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
