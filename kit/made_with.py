"""The arguments of a handler's constructor, kept so that the handler can be written down as code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MadeWith:
    """Arguments that stay in the process where the handler was made.

    They may be large or impossible to pickle though the handler keeps nothing of them, so in a pickle None stands in
    their place.

    Attributes:
        args, kwargs: as the constructor was given them.
    """

    __slots__ = ("args", "kwargs")

    def __init__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        self.args = args
        self.kwargs: Mapping[str, Any] = kwargs or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (_left_behind, ())

    def __deepcopy__(self, memo: dict[int, Any]) -> MadeWith:
        return self


def _left_behind() -> None:
    return None
