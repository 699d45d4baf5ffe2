"""`ServingPanel`: a deployment to look at and to change, in a notebook."""

from __future__ import annotations

import dataclasses
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from kit import inputs
from kit.compare import Comparison, compare
from kit.compare_cancel import Cancel
from kit.deployment import Deployment
from kit.errors import DeploymentClosed, InvalidSetting, KitError, UnsupportedInput
from widgets import export
from widgets.controller import Controller
from widgets.html import error_html, error_words
from widgets.load import load_of
from widgets.race import Lap, race
from widgets.twin import Twin, stitched
from widgets.view import View

if TYPE_CHECKING:
    from kit.settings import Settings
    from kit.snapshot import Snapshot

#: The static twin is brought up to date this often, and at the end.
TWIN_EVERY_S = 10.0


class ServingPanel:
    """A live view of a deployment with its controls; shown by a notebook when it is a cell's last line.

    Every control has a method that does the same. They return at once, with a future of what they do; errors
    appear in the panel too. The panel doesn't keep the deployment alive, and closes with it.

    Args:
        deployment: what `kit.deploy` returned.
        examples: what the load, the comparison and the race send; None takes a few that were sent before.
        seconds: how much of the history the plots show.

    Raises:
        InvalidSetting: not a deployment, or a time that can't be.
        DeploymentClosed: it is closed.
        UnsupportedInput: examples that come one by one.
    """

    def __init__(self, deployment: Deployment, examples: Any = None, *, seconds: float = 120.0) -> None:
        _check_deployment(deployment)
        if not _is_number(seconds) or not 10 <= seconds <= 3600:
            raise InvalidSetting(f"seconds={seconds!r}: give from 10 to 3600 seconds.")
        _check_open(deployment)
        self._examples = _sized(examples)
        self._seconds = float(seconds)
        self._deployment = weakref.ref(deployment)
        self._load = load_of(deployment)
        self._errors: dict[str, str] = {}
        self._comparison: Comparison | None = None
        self._cancel_compare = Cancel()
        self._stop_race = threading.Event()
        self._progress: dict[str, tuple[int, int, str]] = {}
        self._served: tuple[Any, ...] = ()
        self._drawn: tuple[Any, ...] | None = None
        self._drawn_bytes = 0
        self._last: Snapshot | None = None
        self._seen = False
        self._twin, self._twin_at, self._twin_due = Twin(), 0.0, False
        self._closed = False
        self._close_lock = threading.Lock()
        self._view = View(self)
        self._view.root.observe(self._viewed, "_view_count")
        self._controller = Controller(self._tick, self._report)
        self._load.join()
        self._forget = deployment.at_close(self.close)
        self._draw(deployment)
        self._controller.start()
        if deployment.closed:  # while this was made
            self.close()

    # ---- what the controls do ------------------------------------------------------------------------

    def choose(self, mode: str | None = None, **settings: Any) -> Future[Any]:
        """Set controls as a user would, without applying: the plot shows what the choice would take.

        Args:
            mode: "default", "medium", "large", "shared".
            settings: processes, threads, model_copies, memory_budget, max_batch_size, max_batch_tokens
                (0 or None for no limit of batches, None for no budget).
        """
        values = settings if mode is None else {"mode": mode, **settings}
        return self._post("choose", lambda: self._view.controls.set(**values))

    def apply(self) -> Future[Any]:
        """Switch to what is chosen."""
        return self._post("switch", self._apply, job="switch")

    def cancel(self) -> Future[Any]:
        """Cancel the switch under way; resolves to False when there is none, or when it has taken over already."""
        return self._post("cancel", lambda: self._served_one().cancel_switch())

    def start_load(self, rate: float | str | None = None) -> Future[Any]:
        """Send examples; `rate` in requests a second, None for what the control says (empty: as fast as possible)."""
        return self._post("start load", lambda: self._start_load(rate))

    def stop_load(self) -> Future[Any]:
        """Stop the load; resolves to its `kit.LoadGenerator` report, None when there was none."""
        return self._post("stop load", self._load.stop, job="stop of the load")

    def kill(self, role: str = "worker", index: int = 0) -> Future[Any]:
        """Kill a worker or a host; resolves to its pid. It is replaced, and no request fails."""
        return self._post(f"kill {role}", lambda: self._served_one().kill(role, index))

    def compare(self, modes: Sequence[str] | None = None, **options: Any) -> Future[Any]:
        """Run `kit.compare` on the examples; resolves to the Comparison. None takes the modes that are ticked."""
        return self._post("compare", lambda: self._compare(modes, options), job="comparison")

    def cancel_compare(self) -> Future[Any]:
        """Cancel the comparison under way."""
        # The cancelling waits for nobody, but what it ends may: not for the thread that draws.
        return self._post("cancel", self._cancel_compare.cancel, job="cancelling")

    def use_best(self) -> Future[Any]:
        """Apply the settings that the last comparison found best."""
        return self._post("use this mode", self._use_best, job="switch")

    def race(self, first: str | None = None, second: str | None = None, seconds: float | None = None) -> Future[Any]:
        """Two modes in turn on the examples; resolves to their laps. None takes what the controls say."""
        return self._post("race", lambda: self._race(first, second, seconds), job="race")

    def cancel_race(self) -> Future[Any]:
        """Cancel the race under way."""
        return self._post("cancel", self._stop_race.set)

    def export(self, language: str = "python") -> str:
        """Code that reproduces the settings: "python" or "beam"."""
        writers = {"python": export.python_code, "beam": export.beam_code}
        if language not in writers:
            raise InvalidSetting(f"language={language!r}: give 'python' or 'beam'.")
        deployment = self._served_one()
        return writers[language](deployment.handler, deployment.settings)

    def dismiss_errors(self) -> Future[Any]:
        """Take the errors off the panel."""
        return self._post("dismiss", self._errors.clear)

    def refresh(self) -> Future[Any]:
        """Redraw now, whatever changed."""
        return self._post("redraw", lambda: self._draw(self._served_one()))

    # ---- to look at ----------------------------------------------------------------------------------

    @property
    def widget(self) -> Any:
        """The ipywidgets box, to be put into other boxes."""
        return self._view.root

    @property
    def closed(self) -> bool:
        """True once nothing is shown any more."""
        return self._closed

    def text(self) -> str:
        """What the panel shows, in lines of text."""
        return self._view.text(self._last) if self._last is not None else "nothing was drawn yet"

    def png(self) -> bytes:
        """Throughput and memory as one PNG."""
        return stitched([self._view.throughput.value, self._view.memory.value])

    def __repr__(self) -> str:
        deployment = self._deployment()
        state = "closed" if self._closed or deployment is None else f"of {deployment!r}"
        return f"<ServingPanel {state}>"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if not self._closed:
            display(self._view.root)
        self._twin.show(self.text(), self.png())

    def close(self) -> None:
        """Take the panel off the page, end its threads and, with the last panel of the deployment, its load."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        self._forget()
        self._cancel_compare.cancel()
        self._stop_race.set()
        self._load.leave()
        self._controller.close()
        self._draw_end()
        self._view.close()

    # ---- actions, in the controller's threads ----------------------------------------------------------

    def _post(self, what: str, action: Any, job: str | None = None) -> Future[Any]:
        return self._controller.post(what, action, job)

    def _served_one(self) -> Deployment:
        deployment = self._deployment()
        return _check_open(deployment)

    def _apply(self) -> None:
        deployment = self._served_one()
        wanted = self._wanted(deployment)
        if wanted:
            deployment.switch(**wanted)

    def _start_load(self, rate: float | str | None) -> None:
        if rate is not None:
            self._view.rate.value = str(rate)
        self._load.start(self._examples_now(), _rate(self._view.rate.value))

    def _compare(self, modes: Sequence[str] | None, options: Mapping[str, Any]) -> Comparison:
        deployment, cancel = self._served_one(), Cancel()
        self._cancel_compare = cancel
        if self._closed:
            cancel.cancel()
        handler, settings = deployment.handler, deployment.settings
        del deployment  # it may be dropped meanwhile
        self._load.stop()
        given = {
            "processes": settings.processes, "threads": settings.threads, "memory_budget": settings.memory_budget,
            "repeats": 2, **options,
        }  # fmt: skip
        try:
            self._comparison = compare(
                handler,
                self._examples_now(),
                self._view.comparing.chosen_modes if modes is None else modes,
                progress=False,
                on_progress=lambda done, total, label: self._note("compare", done, total, f"{label} measured"),
                cancel=cancel,
                **given,
            )
        finally:
            self._progress.pop("compare", None)
        self._view.comparing.show(self._comparison)
        return self._comparison

    def _use_best(self) -> None:
        if self._comparison is None:
            raise InvalidSetting("nothing was compared yet: use Compare first.")
        best = self._comparison.best()
        if best.mode is None:
            raise InvalidSetting(best.reason)
        self._view.controls.set(**best.settings)
        self._apply()

    def _race(self, first: str | None, second: str | None, seconds: float | None) -> list[Lap]:
        self._stop_race.clear()
        if self._closed:
            self._stop_race.set()
        tab = self._view.comparing
        modes = [first or tab.first.value, second or tab.second.value]
        self._load.stop()

        def step(done: int, total: int, words: str) -> None:
            self._note("race", done, total, words)

        try:
            examples = self._examples_now()
            laps = race(self._served_one(), modes, examples, seconds or tab.seconds.value, self._stop_race, step)
        finally:
            self._progress.pop("race", None)
        tab.show_race(laps)
        return laps

    def _note(self, what: str, done: int, total: int, words: str) -> None:
        self._progress[what] = (done, total, words)

    def _examples_now(self) -> Any:
        if self._examples is not None:
            return self._examples
        return self._served_one().snapshot(0).sample

    def _wanted(self, deployment: Deployment) -> dict[str, Any]:
        batching: dict[str, Any] = getattr(deployment.handler, "batching_options", dict)()
        return self._view.controls.wanted(deployment.settings, batching)

    # ---- from the page: only enqueued -----------------------------------------------------------------

    def _chosen(self) -> None:
        self._post("choose", lambda: None)  # the redraw that follows shows it

    def _rate_changed(self) -> None:
        if self._load.running:
            self._post("rate", lambda: self._load.start(self._examples_now(), _rate(self._view.rate.value)))

    def _viewed(self, change: Any) -> None:
        if change["new"]:
            self._seen = True
            self._chosen()

    def _report(self, what: str, error: Exception | None) -> None:
        if error is None:
            changed = self._errors.pop(what, None) is not None
        else:
            self._errors[what] = error_html(what, *error_words(error))
            changed = True
        if changed:
            self._drawn = None

    # ---- drawing --------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._seen and not self._view.root._view_count:
            return  # nobody looks
        deployment = self._deployment()
        if deployment is not None and not deployment.closed:
            self._draw(deployment, only_changes=True)

    def _draw(self, deployment: Deployment, only_changes: bool = False) -> None:
        snapshot = deployment.snapshot(self._seconds)
        served = (snapshot.settings, tuple(sorted(snapshot.batching.items(), key=lambda item: item[0])))
        if served != self._served:
            self._served = served
            self._view.controls.show(snapshot.settings, snapshot.batching)
            self._view.show_code(self.export("python"), self.export("beam"))
        wanted = self._wanted(deployment)
        own = wanted, dict(self._progress), tuple(self._errors), self._load.running, self._load.rate
        changed = _changing(snapshot), self._memory_of(snapshot), own
        if not (only_changes and changed == self._drawn):
            self._drawn, self._last = changed, snapshot
            chosen, words = self._choice(deployment, wanted, snapshot)
            predicted = snapshot.predict_memory(chosen) if chosen is not None else None
            self._view.hint.value = f'<div role="status">{words}</div>' if words else ""
            self._view.apply.disabled = not wanted or snapshot.switching is not None
            self._view.draw(snapshot, chosen, predicted, self._load)
            self._view.show_errors(self._errors)
            self._draw_progress()
            self._twin_due = True
        if self._twin_due and self._twin.shown and time.monotonic() - self._twin_at >= TWIN_EVERY_S:
            self._twin_at, self._twin_due = time.monotonic(), False
            self._twin.update(self.text(), self.png())

    def _draw_end(self) -> None:
        """Leave the twin as it was at the very end; of a closed deployment, with the processes that were seen last."""
        deployment, last = self._deployment(), self._last
        if not self._twin.shown:
            return
        if deployment is not None and last is not None:
            snapshot = deployment.snapshot(self._seconds)
            if snapshot.closed and snapshot.settings == last.settings:
                snapshot = dataclasses.replace(snapshot, processes=last.processes)
            self._last = snapshot
            self._view.draw(snapshot, None, None, self._load)
        self._twin.update(self.text(), self.png())

    def _memory_of(self, snapshot: Snapshot) -> int:
        """Bytes of all processes; those drawn last where the difference is no more than reading them twice gives."""
        size = int(snapshot.rows[-1].get("pss_bytes", 0)) if snapshot.rows else 0
        if abs(size - self._drawn_bytes) > max(5e6, 0.02 * self._drawn_bytes):
            self._drawn_bytes = size
        return self._drawn_bytes

    def _choice(
        self, deployment: Deployment, wanted: Mapping[str, Any], snapshot: Snapshot
    ) -> tuple[Settings | None, str]:
        """The settings that are chosen and not applied, and what is to be said about them."""
        from html import escape

        from kit.memory import format_bytes

        if not wanted:
            return None, ""
        try:
            chosen = deployment.settings_for(**{name: value for name, value in wanted.items() if name != "batching"})
        except KitError as error:
            return None, f"Can't be applied: {escape(str(error.args[0]))}"
        try:
            chosen.check_budget(snapshot.model_bytes)
        except KitError as error:
            return chosen, f"Can't be applied: {escape(str(error.args[0]))}"
        total = format_bytes(snapshot.predict_memory(chosen)["pss_bytes"])
        copies = f"{chosen.copies} {'copy' if chosen.copies == 1 else 'copies'} of the model"
        return chosen, escape(f"Chosen, not applied yet: {chosen.mode}, {copies}, about {total} in all.")

    def _draw_progress(self) -> None:
        tab = self._view.comparing
        for what, bar, job, button in (
            ("compare", tab.compare_progress, "comparison", tab.compare),
            ("race", tab.race_progress, "race", tab.race),
        ):
            busy = self._controller.busy(job)
            button.disabled = busy
            if busy:
                bar.show(*self._progress.get(what, (0, 1, "starting")))
            else:
                bar.hide("")


def _changing(snapshot: Snapshot) -> tuple[Any, ...]:
    """What of a snapshot makes a redraw worth it, but for memory; busy shares to a tenth."""
    row = snapshot.rows[-1] if snapshot.rows else {}
    processes = [
        (one["pid"], round((one.get("busy_share") or 0) * 10) if one.get("busy_share") == one.get("busy_share") else -1)
        for one in snapshot.processes
    ]
    under_way = snapshot.switching
    return (
        snapshot.settings,
        tuple(snapshot.counters.items()),
        tuple(processes),
        len(snapshot.events) and snapshot.events[-1].time,
        round(row.get("elements_per_s", 0)),
        under_way and (under_way.step, under_way.ready, round(under_way.seconds)),
        snapshot.closed,
    )


def _rate(text: str) -> float | None:
    """Requests a second as the control says; None for as fast as possible."""
    if not text.strip():
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < 1e9:
        raise InvalidSetting(f"rate={text!r}: give requests a second, or nothing for as fast as possible.")
    return rate


def _check_deployment(given: Any) -> None:
    if not isinstance(given, Deployment):
        raise InvalidSetting(f"ServingPanel({given!r:.80}): give a deployment, made by kit.deploy(handler).")


def _check_open(deployment: Deployment | None) -> Deployment:
    if deployment is None or deployment.closed:
        raise DeploymentClosed("the deployment is closed: deploy the handler again, then make a panel for it.")
    return deployment


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _sized(examples: Any) -> Any:
    if examples is None:
        return None
    rows = inputs.sized(examples)
    if rows is None:
        raise UnsupportedInput("examples: give a list, an array or a table; the load sends them over and over.")
    if not len(rows):
        raise InvalidSetting("examples is empty: give at least one, or None.")
    return rows
