"""The one thread that acts for a panel.

    widgets' callbacks, methods --> queue --> controller thread --> quick actions, and the redraw once a second
                                                   '--> a job thread each for what takes long (switch, compare, race)

Callbacks may come in any thread, also while a cell is busy; they only put something into the queue.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

from kit.errors import DeploymentClosed, InvalidSetting, SwitchCancelled

INTERVAL_S = 1.0
#: After an action the redraw comes sooner, but never more often than this.
SOONEST_S = 0.15
_numbers = itertools.count(1)


class _Command(NamedTuple):
    what: str
    action: Callable[[], Any]
    job: str | None
    future: Future[Any]
    begins: Callable[[], None] | None = None


class Controller:
    """Runs commands and calls `tick` once a second, in a thread named kit-panel-N.

    Args:
        tick: redraws what changed.
        report: called with (what was tried, the error or None), in the thread that tried.
    """

    def __init__(self, tick: Callable[[], None], report: Callable[[str, Exception | None], None]) -> None:
        self._tick = tick
        self._report = report
        self._queue: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._jobs: dict[str, threading.Thread] = {}
        self._closed = threading.Event()
        self._number = next(_numbers)
        self._thread = threading.Thread(target=self._run, name=f"kit-panel-{self._number}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def thread(self) -> threading.Thread:
        """The controller thread."""
        return self._thread

    def post(
        self,
        what: str,
        action: Callable[[], Any],
        job: str | None = None,
        begins: Callable[[], None] | None = None,
    ) -> Future[Any]:
        """Have `action` done soon; the future resolves to its result or error.

        Args:
            what: words for the error message, such as "switch".
            job: name of a thread of its own, of which there is one at a time; None for quick actions.
            begins: called just before that thread starts, and so before anything that was posted later.
        """
        command = _Command(what, action, job, Future(), begins)
        if self._closed.is_set():
            _refuse(command)
        else:
            self._queue.put(command)
            if self._closed.is_set():  # closed in between: nobody takes it any more
                self._refuse_waiting()
        return command.future

    def busy(self, job: str) -> bool:
        """Whether the job is under way."""
        thread = self._jobs.get(job)
        return thread is not None and thread.is_alive()

    def close(self, timeout_s: float = 10.0) -> None:
        """End all threads; waits for them, except for the one that calls."""
        self._closed.set()
        self._queue.put(None)
        for thread in (self._thread, *list(self._jobs.values())):
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(timeout_s)
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        while True:
            try:
                command = self._queue.get_nowait()
            except queue.Empty:
                return
            if command is not None:
                _refuse(command)

    # ---- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        due = time.monotonic() + INTERVAL_S
        drawn = 0.0
        while not self._closed.is_set():
            try:
                command = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                command = None
            if self._closed.is_set():
                if command is not None:
                    _refuse(command)
                return
            if command is not None:
                self._take(command)
                due = min(due, max(time.monotonic(), drawn + SOONEST_S))
            if time.monotonic() >= due and self._queue.empty():
                self._redraw()
                drawn = time.monotonic()
                due = drawn + INTERVAL_S

    def _redraw(self) -> None:
        try:
            self._tick()
        except Exception as error:
            self._report("redraw", error)

    def _take(self, command: _Command) -> None:
        if command.job is None:
            self._perform(command)
        elif self.busy(command.job):
            error = InvalidSetting(f"a {command.job} is under way already: wait for its end, or cancel it.")
            self._report(command.what, error)
            command.future.set_exception(error)
        else:
            self._report(command.what, None)  # of the try before
            if command.begins is not None:
                command.begins()
            name = f"kit-panel-{self._number}-{command.job}"
            self._jobs[command.job] = threading.Thread(target=self._perform, args=(command,), name=name, daemon=True)
            self._jobs[command.job].start()

    def _perform(self, command: _Command) -> None:
        future = command.future
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = command.action()
        except (CancelledError, SwitchCancelled) as error:
            self._report(command.what, None)
            future.set_exception(error)
        except Exception as error:
            if not self._closed.is_set():  # what fails because all is ending is no news
                self._report(command.what, error)
            future.set_exception(error)
        else:
            self._report(command.what, None)
            future.set_result(result)
        if command.job is not None and not self._closed.is_set():
            self._queue.put(_Command("redraw", lambda: None, None, Future()))


def _refuse(command: _Command) -> None:
    if command.future.set_running_or_notify_cancel():
        command.future.set_exception(DeploymentClosed("the panel is closed; ServingPanel(deployment) makes a new one."))
