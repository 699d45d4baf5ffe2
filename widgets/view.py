"""What a panel looks like: its parts, where they are, and how a snapshot is put into them."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets as widgets

import kit.deploying  # noqa: F401
from widgets import answers, kernels, model_rows, topology
from widgets.compare_tab import CompareTab
from widgets.controls import Controls
from widgets.html import PURPLE, ROLES, facts, folded
from widgets.image import image
from widgets.legend import legend
from widgets.memory_plot import MemoryPlot, memory_facts
from widgets.model_log import ModelLog
from widgets.models_view import ModelsView
from widgets.plots import LINES, ThroughputPlot, throughput_facts
from widgets.progress import Progress
from widgets.twin import stitched

if TYPE_CHECKING:
    from kit.settings import Settings
    from kit.snapshot import Snapshot
    from widgets.load import SharedLoad

#: Set when the interpreter ends: the page has dropped its widgets then, and would complain of each one closed. What
#: closes deployments, and with them their panels, has to be registered first: these functions run in reverse.
_ending = threading.Event()
atexit.register(_ending.set)

#: Events that say what became of a switch or update.
SWITCHES = ("switch", "update", "cancelled")
_WRAP = {"flex_flow": "row wrap", "align_items": "center"}


class Actions(Protocol):
    """What the buttons do; every one only enqueues."""

    def apply(self) -> object: ...
    def cancel(self) -> object: ...
    def start_load(self) -> object: ...
    def stop_load(self) -> object: ...
    def kill(self, role: str) -> object: ...
    def compare(self) -> object: ...
    def cancel_compare(self) -> object: ...
    def use_best(self) -> object: ...
    def race(self) -> object: ...
    def cancel_race(self) -> object: ...
    def dismiss_errors(self) -> object: ...
    def _chosen(self) -> None: ...
    def _budget_moved(self, budget: int) -> None: ...
    def _rate_changed(self) -> None: ...


class View:
    """The widgets of a panel; `root` is what is displayed."""

    def __init__(self, actions: Actions) -> None:
        self.memory_plot, self.throughput_plot = MemoryPlot(), ThroughputPlot()
        self.controls = Controls(actions._chosen)
        self.topology = _html("kit-topology")
        self.hint = _html("kit-chosen")
        self.apply = _button("Apply", lambda: actions.apply(), style="primary")
        self.switch_progress = Progress("switch", actions.cancel)
        self.rate = widgets.Text(
            description="Requests/s",
            placeholder="as fast as possible",
            continuous_update=False,
            style={"description_width": "80px"},
            layout={"width": "240px"},
        )
        self._on_rate = lambda _: actions._rate_changed()
        self._load_rate: float | None = None  # shown last
        self.rate.observe(self._on_rate, "value")
        self.start = _button("Start load", lambda: actions.start_load())
        self.stop = _button("Stop load", lambda: actions.stop_load())
        self.load_words = _html("kit-load")
        self.kill_worker = _button("Kill worker 0", lambda: actions.kill("worker"), style="danger")
        self.kill_host = _button("Kill host 0", lambda: actions.kill("host"), style="danger")
        self.failed = _html("kit-failed")
        self.memory, self.throughput = image("kit-memory"), image("kit-throughput")
        self.memory_facts, self.throughput_facts = _html("kit-memory-text"), _html("kit-throughput-text")
        self.models = ModelsView(actions._budget_moved)
        self.answers = _html("kit-answers")
        self.style = widgets.HTML("", layout={"display": "contents"})
        self.errors = _html("kit-errors")
        self.dismiss = _button("Dismiss errors", lambda: actions.dismiss_errors())
        self.dismiss.layout.display = "none"
        self.python, self.beam = _html("kit-export-python"), _html("kit-export-beam")
        self.comparing = CompareTab(
            actions.compare, actions.cancel_compare, actions.use_best, actions.race, actions.cancel_race
        )
        self.root = self._assembled()
        # The page counts the places where the panel is shown; 0 again means that nobody looks.
        self.root._view_count = 0

    def _assembled(self) -> Any:
        live = widgets.VBox(
            [
                self.topology,
                self.controls.box,
                widgets.HBox([self.apply, self.switch_progress.box], layout=_WRAP),
                self.hint,
                widgets.HBox([self.rate, self.start, self.stop, self.load_words], layout=_WRAP),
                widgets.HBox([self.kill_worker, self.kill_host, self.failed], layout=_WRAP),
                widgets.HBox([self.throughput, self.throughput_facts], layout=_WRAP),
                widgets.HBox([self.memory, self.memory_facts], layout=_WRAP),
                self.models.box,
                self.answers,
            ]
        )
        live.add_class("kit-live")
        export = widgets.VBox([self.python, self.beam])
        export.add_class("kit-export")
        tabs = widgets.Tab([live, self.comparing.box, export], titles=("Live", "Compare", "Export"))
        tabs.add_class("kit-tabs")
        root = widgets.VBox([self.style, self.errors, self.dismiss, tabs])
        root.add_class("kit-panel")
        return root

    # ---- drawing ---------------------------------------------------------------------------------

    def draw(
        self,
        snapshot: Snapshot,
        chosen: Settings | None,
        predicted: Mapping[str, int] | None,
        load: SharedLoad,
        log: ModelLog,
    ) -> None:
        """Bring the Live tab up to date."""
        self.topology.value = kernels.draw(snapshot) + topology.draw(snapshot)
        self.memory.value = self.memory_plot.draw(snapshot, chosen, predicted)
        self.throughput.value = self.throughput_plot.draw(snapshot)
        pairs, colours = memory_facts(snapshot, predicted)
        self.memory_facts.value = facts("memory over time", pairs, colours)
        self.throughput_facts.value = facts("throughput and latency over time", throughput_facts(snapshot), LINES)
        self.models.draw(snapshot, log)
        self.answers.value = answers.draw(snapshot)
        self.failed.value = answers.failed(snapshot)
        self.draw_load(load)
        self.kill_host.disabled = not snapshot.settings.remote
        self._draw_progress(snapshot)

    def draw_load(self, load: SharedLoad) -> None:
        """What the load does."""
        self.start.disabled, self.stop.disabled = load.running or load.rests > 0, not load.running
        if load.running and load.rate != self._load_rate:
            self._load_rate = load.rate
            self._show_rate(load.rate)
        report = load.report()
        trace = ""
        if report is None:
            words = "no load"
        else:
            state = "rests while modes are measured" if load.rests else "stopped"
            if load.running:
                state = "running" if load.rate is not None else f"running, {load.clients} requests at a time"
                if load.rate == 0:
                    state = "paused, at 0 requests/s"
            words = f"{state}: {report.answered:,} answered, {report.failed:,} failed"
            for error in report.errors[:1]:
                first, _, trace = error.partition("\n")
                words += f"; {first}"
        self.load_words.value = f'<span role="status">{escape(words)}</span>{folded(trace) if trace else ""}'

    def _show_rate(self, rate: float | None) -> None:
        """Of the load that another panel, or Python, has started; that is no wish of the user's here."""
        words = "" if rate is None else f"{rate:g}"
        if self.rate.value.strip() != words:
            self.rate.unobserve(self._on_rate, "value")
            self.rate.value = words
            self.rate.observe(self._on_rate, "value")

    def _draw_progress(self, snapshot: Snapshot) -> None:
        under_way = snapshot.switching
        if under_way is not None:
            words = (
                f"to {under_way.settings.mode}: {under_way.ready} of {under_way.total} processes ready"
                if under_way.step == "starting"
                else f"{under_way.settings.mode} serves; the old processes finish"
            )
            self.switch_progress.show(under_way.ready, under_way.total, f"{words}, {under_way.seconds:.1f} s")
            return
        switches = [event for event in snapshot.events if event.kind in SWITCHES]
        words = ""
        if switches:
            last = switches[-1]
            words = (
                f"cancelled: {last.text}; mode {snapshot.settings.mode} serves on"
                if last.kind == "cancelled"
                else f"last: {last.text}"
            )
        self.switch_progress.hide(words)

    def show_code(self, python: str, beam: str) -> None:
        """Fill the Export tab."""
        style = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"
        for widget, title, code in ((self.python, "Python", python), (self.beam, "Apache Beam", beam)):
            widget.value = f'<h4>{title}</h4><pre style="{style}" tabindex="0">{escape(code)}</pre>'

    def show_errors(self, errors: Mapping[str, str]) -> None:
        """Show the errors, one for each thing that was tried."""
        self.errors.value = "".join(errors.values())
        self.dismiss.layout.display = "" if errors else "none"

    def text(self, snapshot: Snapshot, failed_at_close: int = 0) -> str:
        """The Live tab in lines of text."""
        failed = f"failed: {snapshot.counters['failed'] - failed_at_close:,}"
        if failed_at_close:
            failed += f", and {failed_at_close:,} that had no answer yet when the deployment was closed"
        numbers = [
            "; ".join(f"{name} {value}" for name, value in pairs)
            for pairs in (throughput_facts(snapshot), memory_facts(snapshot, None)[0])
        ]
        worth_a_line = (*SWITCHES, "death")
        marks = [f"  {event}" for event in snapshot.events if event.kind in worth_a_line][-6:]
        happened = ["what happened:", *marks] if marks else []
        who = [kernels.text(snapshot)] if snapshot.clients is not None else []
        models = [words] if (words := model_rows.text(snapshot)) else []
        parts = [*who, topology.text(snapshot), failed, *numbers, *models, *happened, answers.text(snapshot)]
        return "\n".join(parts)

    def png(self, snapshot: Snapshot) -> bytes:
        """The plots as drawn last, throughput and memory each below its legend."""
        layers = dict(ROLES.values()) | ({"on the GPU": PURPLE} if self.memory_plot.gpu is not None else {})
        strips = [legend(tuple(names.items())) for names in (LINES, layers)]
        timeline = [self.models.timeline.value] if self.models.shown else []
        return stitched([strips[0], self.throughput.value, strips[1], self.memory.value, *timeline])

    def close(self) -> None:
        """Take everything off the page."""
        if not _ending.is_set():
            _close(self.root)


def _close(widget: Any) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    for name in ("layout", "style"):
        part = getattr(widget, name, None)
        if isinstance(part, widgets.Widget):
            part.close()
    widget.close()


def _html(name: str) -> Any:
    widget = widgets.HTML("", layout={"max_width": "100%"})
    widget.add_class(name)
    return widget


def _button(words: str, action: Any, style: str = "") -> Any:
    # No icon: its glyph would be read out as part of the name.
    button = widgets.Button(description=words, button_style=style)
    button.on_click(lambda _: action())
    return button
