"""Keeping an interrupt of the cell away from a few lines that must run to their end."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

# The C functions: their wrappers, which make enums, cost more than all the rest, and this is done for every request.
_c = sys.modules.get("_signal", signal)
_set, _get = _c.signal, _c.getsignal
_SIGINT = int(signal.SIGINT)


class Deferred:
    """``with Deferred():`` - an interrupt that comes within is raised behind it. Only the main thread gets any.

    For short pieces that leave shared state torn when they are cut: a frame half read, a slot of the ring taken.
    """

    __slots__ = ("_came", "_former")

    def __init__(self) -> None:
        self._former: Any = None
        self._came: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread() and callable(_get(_SIGINT)):
            self._former = _set(_SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = (number, frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._former is not None:
            _set(_SIGINT, self._former)
            if self._came is not None:
                self._former(*self._came)
