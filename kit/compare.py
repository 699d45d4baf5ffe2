"""Every serving mode on the same examples: a table, a picture, and the best for a memory budget."""

from __future__ import annotations

import base64
import html
import io
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kit import inputs
from kit.checks import check_handler, check_positive, check_whole
from kit.compare_best import Choice, best
from kit.compare_cancel import Cancel
from kit.compare_plot import Point, draw, number
from kit.compare_run import BARE_LOOP, Contender, Result, bare_loop, deployed, fork_server, measure
from kit.engine.packing import pack
from kit.errors import InvalidSetting, UnsupportedInput
from kit.memory import format_bytes, parse_bytes
from kit.progress import progress as progress_bar
from kit.settings import MODES
from kit.shorten import counted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_HEAD = (
    *("mode", "processes", "copies", "elements/s", "spread", "of bare loop", "p50", "p99"),
    *("peak PSS", "weights", "start"),
)


def compare(
    handler: Any,
    examples: Any,
    modes: Sequence[str | Mapping[str, Any]] | None = None,
    processes: int = 2,
    *,
    repeats: int = 3,
    memory_budget: int | float | str | None = None,
    threads: int = 1,
    progress: bool = True,
    seconds: float = 1.0,
    on_progress: Callable[[int, int, str], None] | None = None,
    cancel: Cancel | None = None,
) -> Comparison:
    """Serve `examples` in each mode, in fresh processes each, and measure.

    A plain loop in one process with one thread (`load_model`, then batches through `run_inference`)
    is measured with them. A mode that can't run has a row that says why.

    Args:
        handler: a model handler.
        examples: a list, an array's or tensor's rows, a Series or a DataFrame's rows.
        modes: names of modes, or dicts of settings as `kit.deploy` takes them (mode, processes, threads,
            model_copies, memory_budget); None for all four modes, `medium` with 2 copies.
        processes, threads: worker processes, and threads in each, unless a dict of `modes` says otherwise.
        repeats: measurements of each mode, taken in rounds so that the machine's moods hit all alike. Modes
            that take long to start are started once and measured `repeats` times in a row.
        memory_budget: bytes, or text such as "1GiB". A mode whose copies of the model don't fit isn't run;
            the line in the picture and what `best` goes by, unless they are given another.
        progress: show a progress bar.
        seconds: least time of each measurement; each repeat has three (warm-up, throughput, latency).
        on_progress: called after each measurement with (done, total, what was measured).
        cancel: a `kit.compare_cancel.Cancel`, whose ``cancel()`` ends the comparison from another thread.

    Returns:
        A Comparison; in a notebook it shows its table and picture.

    Raises:
        UnsupportedInput: an iterator, a string, a dict.
        InvalidSetting: no examples, an unknown mode, a setting that can't work.
        HandlerNotPicklable: the handler can't travel to the serving processes.
        KitError: neither a mode nor the bare loop could run; the loop's error.
        CancelledError: `cancel` was used; nothing is left running.
    """
    handler = check_handler(handler)
    rows = _rows(examples)
    check_whole("repeats", repeats, needed=True)
    check_positive("seconds", seconds)
    budget = parse_bytes(memory_budget)
    given = _modes(modes)
    wanted: list[dict[str, Any]] = [{"mode": mode} if isinstance(mode, str) else dict(mode) for mode in given]
    pack(handler)  # raises if it can't travel to any process
    base = {"processes": processes, "threads": threads, "memory_budget": budget}
    loop = bare_loop(handler, rows)
    for settings in wanted:
        deployed(handler, rows, {**base, **settings})  # raises before anything is started
    show = None if progress else False
    with fork_server(handler) as (server, prepared_s):
        contenders = [loop, *(deployed(handler, rows, {**base, **settings}, server) for settings in wanted)]
        for contender in contenders[1:]:
            contender.prepared_s = prepared_s
        _name(contenders)
        with progress_bar(len(contenders) * repeats, "compare", "measurements", enabled=show) as bar:

            def step(label: str) -> None:
                bar.update(1)
                if on_progress is not None:
                    on_progress(bar.n, len(contenders) * repeats, label)

            measure(contenders, repeats, seconds, step, cancel)
    results = [contender.result for contender in contenders]
    if not any(result.measured for result in results):
        raise next(result.error for result in results if result.error is not None)
    return Comparison(results, f"{type(handler).__name__}, {counted(len(rows), 'example')}", budget, handler)


def _modes(modes: Any) -> Sequence[str | Mapping[str, Any]]:
    if modes is None:
        return MODES
    if isinstance(modes, (str, Mapping)) or not isinstance(modes, Iterable):
        raise InvalidSetting(f"modes={modes!r}: give a list of modes, such as ['default', 'shared'].")
    given = list(modes)
    if not given:
        raise InvalidSetting(f"modes={modes!r}: give at least one of {', '.join(MODES)}.")
    for one in given:
        if not isinstance(one, (str, Mapping)):
            raise InvalidSetting(f"modes has {one!r}: give names of modes, or dicts of settings as kit.deploy takes.")
    return given


def _rows(examples: Any) -> Any:
    rows = inputs.sized(examples)
    if rows is None:
        raise UnsupportedInput("compare() runs the same examples many times: give a list, an array or a table.")
    if not len(rows):
        raise InvalidSetting("compare() was given no examples: give at least one, better some hundreds.")
    return rows


def _name(contenders: Sequence[Contender]) -> None:
    """Label each with its mode, and with the settings in which those of its mode differ."""
    for contender in contenders:
        result = contender.result
        peers = [other.result.settings for other in contenders if other.result.mode == result.mode]
        words = [result.mode]
        for name, one in (("processes", "process"), ("threads", "thread"), ("model_copies", "copy")):
            if len({peer.get(name) for peer in peers}) > 1:
                value = result.settings.get(name)
                words.append(f"{value} {one if value == 1 else 'copies' if one == 'copy' else name}")
        result.label = ", ".join(words)


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
            memory_budget: bytes or text; None takes the comparison's, and without one all modes fit.
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
            A matplotlib Figure of 800 × 500 pixels.
        """
        budget = parse_bytes(memory_budget) if memory_budget is not None else self.memory_budget
        points = [
            Point(r.label, r.mode, r.peak_pss_bytes, r.throughput, min(r.throughputs), max(r.throughputs))
            for r in self.results
            if r.measured
        ]
        notes = [_shortened(f"not run: {r.label} ({r.note})", 118) for r in self.results if not r.measured]
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
        lines = ["<table><thead><tr>", *(f"<th>{html.escape(text)}</th>" for text in head), "</tr></thead><tbody>"]
        for row in body:
            sides = ["left", *(["right"] * (len(_HEAD) - 1)), "left"]
            cells = [f'<td style="text-align:{side}">{html.escape(text)}</td>' for side, text in zip(sides, row)]  # noqa: B905
            lines.append(f"<tr>{''.join(cells)}</tr>")
        words = html.escape(str(self.best()))
        source = f"data:image/png;base64,{png}"
        return "".join(lines) + f'</tbody></table><p>Best: {words}</p><img alt="{words}" width="800" src="{source}">'

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


class _Callable(ModuleType):
    """Lets `kit.compare(...)` work too once `import kit.compare` has put this module in the function's place."""

    __call__ = staticmethod(compare)


sys.modules[__name__].__class__ = _Callable
