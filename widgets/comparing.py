"""What the Compare tab does: every mode measured in turn, the best one found, two modes raced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from kit.compare import compare
from kit.comparison import Comparison
from kit.deployment import Deployment
from kit.errors import InvalidSetting
from widgets.compare_tab import CompareTab
from widgets.load import SharedLoad
from widgets.progress import Steps
from widgets.race import Lap, Stop, race


class Cancels(Protocol):
    """Ends something from another thread."""

    def cancel(self) -> None: ...


class Comparing:
    """Runs in threads of the panel's controller, but for `begins`.

    Args:
        tab: shows the results.
        load: rests while anything is measured.
        served: gives the deployment, or raises.
        examples: gives what to send.
        steps: told of progress.
    """

    def __init__(
        self,
        tab: CompareTab,
        load: SharedLoad,
        served: Callable[[], Deployment],
        examples: Callable[[], Any],
        steps: Steps,
    ) -> None:
        self._tab = tab
        self._load = load
        self._served = served
        self._examples = examples
        self._steps = steps
        self._comparison: Comparison | None = None
        self._under_way: dict[str, Cancels] = {}
        self._ended = False
        self._lock = threading.Lock()

    def begins(self, what: str, cancel: Cancels) -> None:
        """`what`, "compare" or "race", is about to begin, and `cancel` ends it."""
        with self._lock:
            self._under_way[what] = cancel
            ended = self._ended
        if ended:
            cancel.cancel()

    def cancel(self, what: str) -> None:
        """End what is under way; nothing when it isn't."""
        with self._lock:
            cancel = self._under_way.get(what)
        if cancel is not None:
            if (step := self._steps.now.get(what)) is not None:
                self._steps.now[what] = (*step[:2], "cancelling")
            cancel.cancel()

    def end(self) -> None:
        """End all of it, also what has yet to begin."""
        with self._lock:
            self._ended = True
            found = list(self._under_way.values())
        for cancel in found:
            cancel.cancel()

    def compare(self, modes: Sequence[str] | None, options: Mapping[str, Any], cancel: Any) -> Comparison:
        """Run `kit.compare`; `modes` None takes those that are ticked."""
        deployment = self._served()
        handler, settings = deployment.handler, deployment.settings
        del deployment  # it may be dropped meanwhile
        given = {"processes": settings.processes, "threads": settings.threads, "repeats": 2, **options}
        wanted = self._tab.chosen_modes if modes is None else modes
        if isinstance(wanted, (list, tuple)):  # what else there is, `compare` refuses in words
            # The deployment's budget is for copies of the model, the comparison's for all memory.
            wanted = [_within(mode, settings.memory_budget) for mode in wanted]
        with self._resting(), self._steps.under_way("compare"):
            self._comparison = compare(
                handler,
                self._examples(),
                wanted,
                progress=False,
                on_progress=lambda done, all_, label: self._steps.note("compare", done, all_, f"measuring {label}"),
                cancel=cancel,
                **given,
            )
        self._tab.show(self._comparison)
        return self._comparison

    def _resting(self) -> AbstractContextManager[None]:
        return self._load.resting(lambda: self._served().settings)

    def best(self) -> dict[str, Any]:
        """The settings that the last comparison found best.

        Raises:
            InvalidSetting: there are none.
        """
        if self._comparison is None:
            raise InvalidSetting("nothing was compared yet: use Compare first.")
        best = self._comparison.best()
        if best.mode is None:
            raise InvalidSetting(best.reason)
        return best.settings

    def race(self, first: str | None, second: str | None, seconds: float | None, stop: Stop) -> list[Lap]:
        """Serve in two modes in turn; None takes what the controls say."""
        tab = self._tab
        modes = [first or tab.first.value, second or tab.second.value]
        with self._resting(), self._steps.under_way("race"):
            step = partial(self._steps.note, "race")
            given = tab.seconds.value if seconds is None else seconds
            laps = race(self._served(), modes, self._examples(), given, stop, step)
        tab.show_race(laps)
        return laps


def _within(mode: Any, budget: int | None) -> Any:
    if budget is None or not isinstance(mode, (str, Mapping)):
        return mode
    return {"memory_budget": budget, **({"mode": mode} if isinstance(mode, str) else mode)}
