"""Errors in a magic: what was typed wrong in one line, and of others no more than the user's own part."""

from __future__ import annotations

import functools
import os
import re
import sysconfig
from collections.abc import Callable
from types import TracebackType
from typing import Any

from IPython.core.error import UsageError

import kit
from kit import errors
from kit.magics_args import HelpShown

#: Errors of what was typed, and of a daemon that isn't there, told in one line; others show where they come from.
_TYPED = (
    *(errors.InvalidSetting, errors.UnsupportedInput, errors.UnsupportedType, errors.UnknownKey),
    *(errors.NameTaken, errors.UnknownDeployment),
    *(errors.BudgetExceeded, errors.DaemonUnavailable, errors.DaemonMismatch, errors.DeploymentLost),
)
_KIT = os.path.dirname(os.path.abspath(kit.__file__)) + os.sep
_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")
_INSTALLED = (_KIT, "<frozen", *(sysconfig.get_path(name) for name in _PATHS))
#: One frame of a traceback as text: its place, and the lines below.
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line .*\n(?:    .*\n?)*', re.MULTILINE)


def plainly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Show errors of what was typed in one line, and others without frames of the kit."""

    @functools.wraps(method)
    def run(magics: Any, *args: Any) -> Any:
        try:
            return method(magics, *args)
        except HelpShown:
            return None
        except errors.UnsupportedResult as error:  # what was typed is well
            _show(error, in_brief(error))
            raise
        except _TYPED as error:
            raise UsageError(str(error)) from error
        except KeyboardInterrupt as stop:
            if stop.args or _from_the_user_on(stop.__traceback__) is None:
                _show(stop, [f"KeyboardInterrupt: {stop}" if stop.args else "KeyboardInterrupt"])  # what came of it
            raise
        except UsageError:
            raise
        except Exception as error:
            # As lines: a function would keep the error, and with it all that its frames hold, in a circle.
            own = _from_the_user_on(error.__traceback__)
            if own is not None:
                _show(error, magics.shell.InteractiveTB.structured_traceback(type(error), error, own, tb_offset=0))
            elif isinstance(error, errors.KitError):
                _show(error, in_brief(error))
            raise

    return run


def in_brief(error: errors.KitError) -> list[str]:
    """Lines of an error of the kit: its message, and of the other process's traceback the frames that aren't ours."""
    lines = [f"{type(error).__name__}: {error.args[0] if error.args else ''}"]
    if error.remote_traceback:
        frames = _FRAME.finditer(error.remote_traceback)
        text = error.remote_traceback
        if any(not frame["file"].startswith(_KIT) for frame in frames):
            text = _FRAME.sub(lambda frame: "" if frame["file"].startswith(_KIT) else frame[0], text)
        lines += ["  in the process that ran it:", *("    " + line for line in text.rstrip().splitlines())]
    return lines


def _from_the_user_on(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame on that is of a cell, or of a module that isn't installed; None without."""
    while trace is not None and not _is_the_users(trace):
        trace = trace.tb_next
    return trace


def _is_the_users(trace: TracebackType) -> bool:
    file = trace.tb_frame.f_code.co_filename
    return not file.startswith(_INSTALLED)


def _show(error: BaseException, lines: list[str]) -> None:
    """Have IPython show these lines."""
    error.__dict__["_render_traceback_"] = lambda: lines
