"""Measuring two ways of doing a job side by side, and the table of what came out.

Times drift by half on a shared machine, so both ways run in turn, each pair one after the other, and what
counts is the median of the pairs' ratios. Nothing here fails on time: a figure is met or short.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: True with --quick: fewer repetitions and smaller inputs.
quick = False
#: Of the benchmarks that watch for long, --minutes.
minutes = 0.5


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        what: the job and what is measured.
        ours, peer: what each took, with units.
        ratio: ours against the peer's, in the sense of the floor; with its spread.
        floor: what we promise, "" where nothing is.
        met: None where nothing is promised or nothing could be measured.
        note: printed below the table's line.
    """

    what: str
    ours: str
    peer: str
    ratio: str
    floor: str = ""
    met: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Pairs:
    """Seconds of both ways, a pair after the other."""

    ours: Sequence[float]
    peer: Sequence[float]

    @property
    def speed(self) -> float:
        """Median over the pairs of how many times as fast as the peer we are."""
        return statistics.median(self.speeds)

    @property
    def speeds(self) -> list[float]:
        return [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]

    def figure(self, what: str, count: int, at_least: float | None, *, note: str = "", digits: int = 2) -> Figure:
        """A line about elements a second, `count` of them a run."""
        low, high = spread(self.speeds)
        return Figure(
            what,
            rate(count / statistics.median(self.ours)),
            rate(count / statistics.median(self.peer)),
            f"{self.speed:.{digits}f}× ({low:.{digits}f}-{high:.{digits}f})",
            "" if at_least is None else f"≥ {at_least:g}×",
            None if at_least is None else self.speed >= at_least,
            note,
        )


def interleave(ours: Callable[[], object], peer: Callable[[], object], pairs: int, *, warm: int = 1) -> Pairs:
    """Time both in turn, `pairs` times, after `warm` runs of each that don't count; who goes first alternates."""
    for _ in range(warm):
        ours()
        peer()
    seconds: dict[Callable[[], object], list[float]] = {ours: [], peer: []}
    for number in range(pairs):
        for job in (ours, peer) if number % 2 else (peer, ours):
            seconds[job].append(timed(job))
    return Pairs(seconds[ours], seconds[peer])


def timed(job: Callable[[], object]) -> float:
    """Seconds that a job takes.

    Neither the garbage nor the libraries of what ran before are its business: full collections, which a
    job that makes many objects pays for, would walk over all that other benchmarks have imported.
    """
    gc.collect()
    gc.freeze()
    try:
        start = time.perf_counter()
        result = job()
        taken = time.perf_counter() - start
    finally:
        gc.unfreeze()
    del result
    return taken


def spread(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile."""
    ordered = sorted(values)
    return quantile(ordered, 0.25), quantile(ordered, 0.75)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value at `share` (0 to 1) of ascending values."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def latencies(values: Sequence[float]) -> tuple[float, float]:
    """p50 and p99."""
    ordered = sorted(values)
    return quantile(ordered, 0.5), quantile(ordered, 0.99)


def rate(per_s: float) -> str:
    """Elements a second, in words."""
    return f"{per_s:,.0f}/s" if per_s < 1e6 else f"{per_s / 1e6:,.2f} M/s"


def duration(seconds: float) -> str:
    """A time with a fitting unit."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def megabytes(size: float) -> str:
    """Bytes in MB (10^6)."""
    return f"{size / 1e6:,.1f} MB"


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned columns."""
    head = ("what", "ours", "peer", "ratio", "floor", "")
    verdicts = {True: "pass", False: "SHORT", None: ""}
    rows = [(f.what, f.ours, f.peer, f.ratio, f.floor, verdicts[f.met]) for f in figures]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True)).rstrip()]
    lines.append("  ".join("-" * width for width in widths))
    for figure, row in zip(figures, rows, strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if figure.note:
            lines.append(f"    {figure.note}")
    return "\n".join(lines)
