"""Errors on their way from one process to another, as text."""

from __future__ import annotations

import traceback
from typing import NamedTuple

from kit import errors

#: What the user's code may raise: ``sys.exit`` in it ends the example or the load, and no process that serves others.
FAILURES = (Exception, SystemExit)


def in_words(error: BaseException) -> str:
    """An error's type and text, whatever its own ``__str__`` does."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, whose text can't be had"


class Trouble(NamedTuple):
    """An error as it travels: class name of ours, message, traceback text."""

    kind: str
    message: str
    trace: str

    @classmethod
    def of(cls, error: BaseException, what: str = "") -> Trouble:
        """An error of ours as it is; of any other, an InferenceFailed that says `what` failed."""
        if isinstance(error, errors.KitError):
            return cls(type(error).__name__, str(error.args[0]), error.remote_traceback)
        message = f"{what}: " if what else ""
        trace = "".join(traceback.format_exception(error))
        return cls("InferenceFailed", f"{message}{in_words(error)}", trace)

    def error(self) -> errors.KitError:
        """The error to raise."""
        cls = getattr(errors, self.kind, errors.InferenceFailed)
        error: errors.KitError = cls(self.message, self.trace)
        return error
