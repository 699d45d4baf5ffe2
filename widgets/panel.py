"""`ServingPanel`: a deployment to look at and to change, in a notebook."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from kit.checks import is_number
from kit.compare_cancel import Cancel
from kit.deployment import Deployment
from kit.errors import InvalidSetting
from widgets import export
from widgets.budget import BudgetMoves
from widgets.comparing import Comparing
from widgets.controller import Controller
from widgets.given import check_deployment, check_open, rate_of, sized
from widgets.html import error_html, error_words
from widgets.load import load_of
from widgets.race import Stop
from widgets.redraw import Redraw
from widgets.view import View

SAVED = "ServingPanel; without its kernel, what it showed last:"


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
        check_deployment(deployment)
        if not is_number(seconds) or not 10 <= seconds <= 3600:
            raise InvalidSetting(f"seconds={seconds!r}: give from 10 to 3600 seconds.")
        check_open(deployment)
        self._examples = sized(examples)
        self._deployment = weakref.ref(deployment)
        self._load = load_of(deployment)
        self._closed = False
        self._close_lock = threading.Lock()
        self._view = View(self)
        self._view.root.observe(self._viewed, "_view_count")
        self._controller = Controller(self._tick, self._report)
        self._redraw = Redraw(self._view, self._load, float(seconds), self._controller.busy, self._examples)
        self._comparing = Comparing(
            self._view.comparing, self._load, self._served_one, self._examples_now, self._redraw.steps
        )
        self._budget = BudgetMoves(self._post, self._controller.busy, self.set_budget)
        self._load.join()
        self._forget = deployment.at_close(self.close)
        self._redraw.draw(deployment)
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

    def set_budget(self, budget: int | float | str) -> Future[Any]:
        """Switch to another memory budget, such as "200MB"; "none" takes it away."""
        return self._post("budget", lambda: self._resize(budget), job="switch")

    def _resize(self, budget: Any) -> None:
        if budget is None:
            raise InvalidSetting('set_budget(None): give bytes, or text such as "200MB", or "none" for no limit.')
        self._served_one().switch(memory_budget=budget)

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
        cancel, comparing = Cancel(), self._comparing
        return self._post(
            "compare",
            lambda: comparing.compare(modes, options, cancel),
            job="comparison",
            begins=lambda: comparing.begins("compare", cancel),
        )

    def cancel_compare(self) -> Future[Any]:
        """Cancel the comparison under way."""
        # Ending processes takes a moment: not for the thread that draws.
        return self._post("cancel", lambda: self._comparing.cancel("compare"), job="cancelling")

    def use_best(self) -> Future[Any]:
        """Apply the settings that the last comparison found best."""
        return self._post("use this mode", self._use_best, job="switch")

    def race(self, first: str | None = None, second: str | None = None, seconds: float | None = None) -> Future[Any]:
        """Two modes in turn on the examples; resolves to their laps. None takes what the controls say."""
        stop, comparing = Stop(), self._comparing
        return self._post(
            "race",
            lambda: comparing.race(first, second, seconds, stop),
            job="race",
            begins=lambda: comparing.begins("race", stop),
        )

    def cancel_race(self) -> Future[Any]:
        """Cancel the race under way; the deployment goes back to the mode before it."""
        return self._post("cancel", lambda: self._comparing.cancel("race"), job="cancelling of the race")

    def export(self, language: str = "python") -> str:
        """Code that reproduces the settings: "python" or "beam"."""
        writers = {"python": export.python_code, "beam": export.beam_code}
        if language not in writers:
            raise InvalidSetting(f"language={language!r}: give 'python' or 'beam'.")
        deployment = self._served_one()
        return writers[language](deployment.handler, deployment.settings, self._examples)

    def dismiss_errors(self) -> Future[Any]:
        """Take the errors off the panel."""
        return self._post("dismiss", self._redraw.errors.clear)

    def refresh(self) -> Future[Any]:
        """Redraw now, whatever changed."""
        return self._post("redraw", lambda: self._redraw.draw(self._served_one()))

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
        return self._redraw.text()

    def png(self) -> bytes:
        """Throughput and memory as one PNG."""
        return self._redraw.png()

    def __repr__(self) -> str:
        deployment = self._deployment()
        state = "closed" if self._closed or deployment is None else f"of {deployment!r}"
        return f"<ServingPanel {state}>"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if not self._closed:
            # Its text is what a page without a kernel shows in place of the widget, above the twin.
            display({**self._view.root._repr_mimebundle_(), "text/plain": SAVED}, raw=True)
        self._redraw.twin.show(self.text(), self.png())

    def close(self) -> None:
        """Take the panel off the page, end its threads and, with the last panel of the deployment, its load."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        self._forget()
        self._comparing.end()
        self._load.leave()
        self._controller.close()
        self._redraw.end(self._deployment())
        self._view.close()

    # ---- actions, in the controller's threads ----------------------------------------------------------

    def _post(
        self, what: str, action: Any, job: str | None = None, begins: Callable[[], None] | None = None
    ) -> Future[Any]:
        return self._controller.post(what, action, job, begins)

    def _served_one(self) -> Deployment:
        deployment = self._deployment()
        return check_open(deployment)

    def _apply(self) -> None:
        deployment = self._served_one()
        wanted = self._redraw.wanted(deployment)
        self._view.controls.check()
        if wanted:
            deployment.switch(**wanted)

    def _start_load(self, rate: float | str | None) -> None:
        if rate is not None:
            self._view.rate.value = str(rate)
        self._load.start(self._examples_now(), rate_of(self._view.rate.value), self._served_one().settings)

    def _use_best(self) -> None:
        self._view.controls.set(**self._comparing.best())
        self._apply()

    def _examples_now(self) -> Any:
        if self._examples is not None:
            return self._examples
        return self._served_one().snapshot(0).sample

    # ---- from the page: only enqueued -----------------------------------------------------------------

    def _chosen(self) -> None:
        self._post("choose", lambda: None)  # the redraw that follows shows it

    def _budget_moved(self, budget: int) -> None:
        self._budget.to(budget)

    def _rate_changed(self) -> None:
        if self._load.running:
            self._post("rate", lambda: self._start_load(None))

    def _viewed(self, change: Any) -> None:
        if change["new"]:
            self._redraw.seen = True
            self._chosen()

    def _report(self, what: str, error: Exception | None) -> None:
        if error is None:
            changed = self._redraw.errors.pop(what, None) is not None
        else:
            self._redraw.errors[what] = error_html(what, *error_words(error))
            changed = True
        if changed:
            self._redraw.force()
        self._redraw.look()

    def _tick(self) -> None:
        self._budget.follow()
        self._redraw.tick(self._deployment())
