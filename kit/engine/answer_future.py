"""The future of a request's answer."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from kit.errors import KitError


class AnswerFuture(Future[list[Any]]):
    """A future that gives a copy of its error, each time it is asked.

    An error that is raised takes up the frames that it passes. One of them holds this future, so the error itself
    would keep it alive, with its deployment, in a circle that only the garbage collector undoes, some time.

    Attributes:
        deployment: which must not end before the answer is there, though nobody else has it.
    """

    deployment: Any = None

    def result(self, timeout: float | None = None) -> list[Any]:
        """The answer; `concurrent.futures.Future.result`."""
        try:
            return super().result(timeout)
        except KitError as error:
            error.__traceback__ = None
            raise error.copy() from error.__cause__
        finally:
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error, None for an answer; `concurrent.futures.Future.exception`."""
        error = super().exception(timeout)
        return error.copy() if isinstance(error, KitError) else error
