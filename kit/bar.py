"""Steps that stand on the right of the bar: ``examples | step``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class RightOfTheBar:
    """numpy, torch and pandas don't broadcast | over such a step, but leave it to its ``__ror__``."""

    __array_ufunc__ = None
    __pandas_priority__ = 1_000_000

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if len(args) == 2 and isinstance(args[1], RightOfTheBar):
            return args[1].__ror__(args[0])  # type: ignore[attr-defined]  # each has its own
        return NotImplemented
