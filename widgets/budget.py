"""Moving the memory budget by a slider: what it says last counts, and one switch goes on at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class BudgetMoves:
    """Budgets that a slider asks for; while a switch is under way the latest waits.

    Args:
        post: has an action done by the controller, as its `post`.
        busy: whether a job of the controller is under way.
        set_budget: starts the switch to a budget in bytes.
    """

    def __init__(
        self, post: Callable[..., Future[Any]], busy: Callable[[str], bool], set_budget: Callable[[int], object]
    ) -> None:
        self._post = post
        self._busy = busy
        self._set_budget = set_budget
        self._wanted: deque[int] = deque(maxlen=1)

    def to(self, budget: int) -> None:
        """Ask for a budget, from any thread."""
        self._wanted.append(budget)
        self._post("budget", self.follow)

    def follow(self) -> None:
        """Start what was asked for, unless a switch is under way; in the controller's thread."""
        if self._wanted and not self._busy("switch"):
            self._set_budget(self._wanted.pop())
