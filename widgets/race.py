"""A race: two modes in turn on one stream of examples, and their curves on one clock."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kit.compare_plot import number
from kit.deployment import Deployment
from kit.errors import InvalidSetting
from kit.load import LoadGenerator, LoadReport
from kit.memory import format_bytes
from widgets.html import GREY, MODE_COLOURS, milliseconds
from widgets.load import WeakDeployment, clients_of
from widgets.plots import DPI, WIDTH_PX

#: Seconds between two looks at a racer.
STEP_S = 0.5


class Stop:
    """Ends a race from another thread: also a switch of it that is under way, but not the one back."""

    def __init__(self) -> None:
        self._called = threading.Event()
        self._lock = threading.Lock()
        self._switching: Deployment | None = None

    def cancel(self) -> None:
        """End it."""
        self._called.set()
        while self._to_be_cancelled():
            time.sleep(0.02)  # it is about to begin, or to end

    def _to_be_cancelled(self) -> bool:
        with self._lock:
            return self._switching is not None and not self._switching.cancel_switch()

    @contextmanager
    def switching(self, deployment: Deployment) -> Iterator[None]:
        """Within it the deployment is switched for the race."""
        with self._lock:
            self.check()
            self._switching = deployment
        try:
            yield
        finally:
            with self._lock:
                self._switching = None

    def wait(self, future: Future[Any]) -> None:
        """Wait for an answer, or for the end."""
        while not future.done() and not self._called.wait(0.05):
            pass
        if self._called.is_set():
            future.cancel()
        self.check()
        future.result()

    def check(self) -> None:
        """Raise CancelledError once it was cancelled."""
        if self._called.is_set():
            raise CancelledError("the race was cancelled.")


@dataclass(frozen=True, slots=True)
class Lap:
    """One mode's run.

    Attributes:
        mode: the mode.
        seconds: since its start, of each look.
        rates: elements a second since the look before.
        pss_bytes: of all processes, at each look.
        report: of its load.
    """

    mode: str
    seconds: list[float]
    rates: list[float]
    pss_bytes: list[int]
    report: LoadReport


def race(
    deployment: Deployment,
    modes: Sequence[str],
    examples: Sequence[Any],
    seconds: float,
    stop: Stop,
    step: Callable[[int, int, str], None] = lambda done, total, words: None,
) -> list[Lap]:
    """Serve the same examples in each of `modes`, `seconds` each, as fast as they are answered.

    The deployment goes back to the settings that it had.

    Raises:
        InvalidSetting: no examples, fewer than two modes, no time.
        CancelledError: `stop` was set.
        KitError: a mode can't serve.
    """
    if len(set(modes)) < 2:
        raise InvalidSetting(f"modes={list(modes)!r}: give two different modes to race.")
    if not len(examples):
        raise InvalidSetting("the race has no examples: make the panel with ServingPanel(deployment, examples=...).")
    if not 1 <= seconds <= 3600:
        raise InvalidSetting(f"seconds={seconds!r}: give from 1 to 3600 seconds a mode.")
    before = deployment.settings
    laps: list[Lap] = []
    looks = max(2, round(seconds / STEP_S))
    try:
        for index, mode in enumerate(modes):
            step(index * looks, looks * len(modes), f"{mode}: starting")
            with stop.switching(deployment):
                deployment.switch(mode)
            stop.wait(deployment.submit(list(examples[:8])))  # what is made at first use isn't raced

            def note(done: int, index: int = index, mode: str = mode) -> None:
                step(index * looks + done, looks * len(modes), f"{mode}: {done * STEP_S:.0f} of {seconds:.0f} s")

            laps.append(_lap(deployment, mode, examples, looks, stop, note))
        return laps
    finally:
        if not deployment.closed and deployment.settings != before:
            step(0, 1, f"going back to {before.mode}")
            deployment.switch(before.mode, **_settings(before))


def _settings(settings: Any) -> dict[str, Any]:
    return {"model_copies": settings.model_copies} if settings.mode == "medium" else {}


def _lap(
    deployment: Deployment,
    mode: str,
    examples: Sequence[Any],
    looks: int,
    stop: Stop,
    note: Callable[[int], None],
) -> Lap:
    seconds, rates, sizes = [], [], []
    clients = clients_of(deployment.settings)
    with LoadGenerator(WeakDeployment(deployment), examples, clients=clients, batch=4) as load:
        began = last = time.perf_counter()
        answered = 0
        for look in range(1, looks + 1):
            load.wait(max(0.0, began + look * STEP_S - time.perf_counter()))
            try:
                stop.check()
            except CancelledError:
                load.stop(timeout_s=0.0)  # nobody waits for the answers still due
                raise
            now, report = time.perf_counter(), load.report()
            seconds.append(now - began)
            rates.append((report.answered - answered) / max(1e-9, now - last))
            row = deployment.snapshot(STEP_S * 6).rows
            sizes.append(int(row[-1]["pss_bytes"]) if row else 0)
            answered, last = report.answered, now
            note(look)
    return Lap(mode, seconds, rates, sizes, load.report())


def summary(laps: Sequence[Lap]) -> str:
    """The numbers of the picture, a line a mode."""
    lines = []
    for lap in laps:
        report = lap.report
        lines.append(
            f"{lap.mode}: {number(report.throughput)} elements/s, p50 {milliseconds(report.p50_s)}, "
            f"p99 {milliseconds(report.p99_s)}, {format_bytes(max(lap.pss_bytes, default=0))} PSS, "
            f"{report.failed} failed"
        )
    return "\n".join(lines)


class RacePlot:
    """Throughput over memory, each mode a line of its own colour and style, by seconds since its start."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDTH_PX / DPI, 3.2), dpi=DPI)
        self.figure.patch.set_alpha(0)
        FigureCanvasAgg(self.figure)
        self._axes = [self.figure.add_axes((0.09, bottom, 0.75, 0.34)) for bottom in (0.61, 0.15)]

    def draw(self, laps: Sequence[Lap]) -> bytes:
        """A PNG."""
        for axes, name in zip(self._axes, ("elements/s", "PSS, MB"), strict=True):
            axes.clear()
            axes.patch.set_alpha(0)
            axes.tick_params(colors=GREY, labelsize=9)
            axes.set_ylabel(name, color=GREY, fontsize=9)
            axes.grid(axis="y", color=GREY, alpha=0.25)
            for side, spine in axes.spines.items():
                spine.set_visible(side in ("left", "bottom"))
                spine.set_color(GREY)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        columns = [lap.rates for lap in laps], [[size / 1e6 or math.nan for size in lap.pss_bytes] for lap in laps]
        for axes, column in zip(self._axes, columns, strict=True):
            for lap, values, style in zip(laps, column, ("-", "--", "-.", ":"), strict=False):
                colour = MODE_COLOURS.get(lap.mode, GREY)
                axes.plot(lap.seconds, values, color=colour, linestyle=style, linewidth=2, label=lap.mode)
            known = [value for values in column for value in values if math.isfinite(value)]
            axes.set_ylim(0, 1.1 * max(known, default=0.0) or 1.0)
            axes.set_xlim(0, max((second for lap in laps for second in lap.seconds), default=1.0))
            if not known:
                axes.set_yticks([])
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, color=GREY, fontsize=10, ha="center")
        self._axes[1].set_xlabel("seconds since the mode began", color=GREY, fontsize=9, labelpad=0)
        legend = self._axes[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=10)
        for text in legend.get_texts():
            text.set_color(GREY)
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return buffer.getvalue()
