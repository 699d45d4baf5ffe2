"""What a comparison of the serving modes found: its table, its picture, and the best for a memory budget."""

from __future__ import annotations

import base64
import html
import io
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.compare_best import Choice, best
from kit.compare_plot import Point, draw, number
from kit.compare_run import BARE_LOOP, Result
from kit.memory import format_bytes, parse_bytes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_HEAD = (
    *("mode", "processes", "copies", "elements/s", "spread", "of bare loop", "p50", "p99"),
    *("peak PSS", "weights", "start"),
)

_MEDIANS = "elements/s is the median of the rounds, and of bare loop that of the ratios within each round."


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured.

    Attributes:
        results: one for each contender, the bare loop first.
        title: handler and number of examples.
        memory_budget: bytes, None for none.
        handler: what was measured.
    """

    results: list[Result]
    title: str = ""
    memory_budget: int | None = None
    handler: Any = field(default=None, repr=False, compare=False)
    _png: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def table(self) -> pd.DataFrame:
        """One row a contender; units in the column names. Figures of a mode that couldn't run are nan.

        throughput_elements_per_s is the median of the repeats and spread their (highest - lowest) / median;
        p50_s and p99_s are latencies of requests of one example, while as many clients as there are worker
        threads wait for theirs; peak_pss_bytes is the highest sum over all processes but the caller's;
        start_s lasts until the first answer, the import of libraries included; ratio_to_bare_loop is the median
        over the rounds.
        """
        import pandas as pd

        return pd.DataFrame([self._row(result) for result in self.results]).astype(
            {"model_copies": "Int64", "peak_pss_bytes": "Int64", "weights_bytes": "Int64"}
        )

    def _row(self, result: Result) -> dict[str, Any]:
        p50_s, p99_s = result.latency.quantiles(0.5, 0.99)
        return {
            "mode": result.label,
            "processes": result.processes,
            "model_copies": result.copies,
            "throughput_elements_per_s": result.throughput,
            "spread": result.spread,
            "ratio_to_bare_loop": self._ratio(result),
            "p50_s": p50_s,
            "p99_s": p99_s,
            "peak_pss_bytes": result.peak_pss_bytes if result.measured else None,
            "weights_bytes": result.weights_bytes if result.measured else None,
            "start_s": statistics.median(result.starts_s) if result.measured else math.nan,
            "note": result.note,
        }

    def _ratio(self, result: Result) -> float:
        bare = next((other for other in self.results if other.mode == BARE_LOOP), None)
        if bare is None:
            return math.nan
        ratios = [mine / its for mine, its in zip(result.throughputs, bare.throughputs, strict=False)]
        return statistics.median(ratios) if ratios else math.nan

    # ---- the best ---------------------------------------------------------------------------------

    def best(self, memory_budget: int | float | str | None = None) -> Choice:
        """The fastest mode whose peak PSS is within the budget; of those equal within the noise, the smallest.

        Args:
            memory_budget: bytes or text, for all memory of a mode's processes, where `kit.deploy` has one for the
                copies of the model; None takes the comparison's, and without one all modes fit.
        """
        budget = parse_bytes(memory_budget) if memory_budget is not None else self.memory_budget
        measured = [result for result in self.results if result.mode != BARE_LOOP]
        return best(measured, budget, self.handler)

    # ---- to look at --------------------------------------------------------------------------------

    def plot(self, memory_budget: int | float | str | None = None, path: str | Path | None = None) -> Figure:
        """Memory against throughput, each mode a labelled point, the budget a line.

        Args:
            memory_budget: bytes or text; None takes the comparison's.
            path: where to save it, as the ending says (.png, .svg, .pdf); None saves nothing.

        Returns:
            A matplotlib Figure of 800 × 500 pixels, and more of height for modes that weren't run.
        """
        budget = parse_bytes(memory_budget) if memory_budget is not None else self.memory_budget
        points = [
            Point(r.label, r.mode, r.peak_pss_bytes, r.throughput, min(r.throughputs), max(r.throughputs))
            for r in self.results
            if r.measured
        ]
        notes = [_shortened(f"not run: {r.label} ({r.note})", 400) for r in self.results if not r.measured]
        figure = draw(points, budget, self.title or "Memory against throughput", notes)
        if path is not None:
            figure.savefig(path)
        return figure

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if not self._png:
            buffer = io.BytesIO()
            self.plot().savefig(buffer, format="png")
            self._png["plot"] = buffer.getvalue()
        png = base64.b64encode(self._png["plot"]).decode("ascii")
        # The page shows one of these only, so the picture is in the HTML too.
        return {"text/plain": repr(self), "text/html": self._html(png), "image/png": png}

    def _html(self, png: str) -> str:
        head, *body = self._cells()
        titles = (f'<th style="padding:0 .5em">{html.escape(text)}</th>' for text in head)
        lines = ["<table><thead><tr>", *titles, "</tr></thead><tbody>"]
        for row in body:
            sides = ["left", *(["right"] * (len(_HEAD) - 1)), "left"]
            cells = [
                f'<td style="text-align:{side};padding:0 .5em">{html.escape(text)}</td>'
                for side, text in zip(sides, row, strict=False)
            ]
            lines.append(f"<tr>{''.join(cells)}</tr>")
        words = html.escape(str(self.best()))
        source = f"data:image/png;base64,{png}"
        lines.append(f"</tbody></table><p>{_MEDIANS}</p>")
        return "".join(lines) + f'<p>Best: {words}</p><img alt="{words}" width="800" src="{source}">'

    def __repr__(self) -> str:
        rows = self._cells()
        widths = [max(len(row[at]) for row in rows) for at in range(len(_HEAD))]
        lines = [self.title] if self.title else []
        for row in rows:
            first, *rest = [text.rjust(width) for text, width in zip(row, widths)]  # noqa: B905
            lines.append("  ".join([first.strip().ljust(widths[0]), *rest, *row[len(_HEAD) :]]).rstrip())
        return "\n".join([*lines, f"Best: {self.best()}"])

    def _cells(self) -> list[list[str]]:
        """The table as text for people, heading first; with a column of notes if there are any."""
        rows = [[*_HEAD, "note"]]
        for result in self.results:
            row = [result.label, str(result.processes), str(result.copies)]
            if result.measured:
                p50_s, p99_s = result.latency.quantiles(0.5, 0.99)
                row += [number(result.throughput), f"{result.spread:.0%}", f"{self._ratio(result):.2f}"]
                row += [_milliseconds(p50_s), _milliseconds(p99_s)]
                row += [format_bytes(result.peak_pss_bytes), format_bytes(result.weights_bytes)]
                row += [f"{statistics.median(result.starts_s):.2f} s"]
            else:
                row += ["-"] * (len(_HEAD) - len(row))
            rows.append([*row, _shortened(result.note, 120)])
        return rows if any(result.note for result in self.results) else [row[:-1] for row in rows]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.3g} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _shortened(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
