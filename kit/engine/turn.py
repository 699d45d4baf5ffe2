"""How callers that must not hold each other up take turns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kit.engine.requests import Request


class Turn(Protocol):
    """Says whose turn it is, where a deployment has callers that must not hold each other up."""

    def pick(self, requests: Iterable[Request], *, reserve: bool) -> Request | None:
        """The one to be given out next; with `reserve`, behind what a worker computes. None for none of these."""

    def most(self, request: Request) -> int | None:
        """Examples of the request's next piece at most; None for no limit."""

    def early(self) -> bool:
        """True when the request goes before all that wait."""

    def took(self, count: int) -> None:
        """So many examples of the caller's go to a worker."""
