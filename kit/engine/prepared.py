"""A request about to be queued."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Prepared(NamedTuple):
    """What to do with a request under the dispatcher's lock, and what after it."""

    queue: Callable[[], None]
    finish: Callable[[], None]


def nothing() -> None:
    """Do nothing."""
