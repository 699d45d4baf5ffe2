"""From an error of a serving process to what Beam's dead letters hold: the class, its repr, its traceback."""

from __future__ import annotations

import builtins
import re
import sys
from typing import Any

from kit.errors import KitError

Info = tuple[type[BaseException], str, list[str]]
_LAST = re.compile(r"^(?P<name>[A-Za-z_][\w.<>]*)(?:: (?P<words>.*))?$", re.DOTALL)


def info_of(error: BaseException) -> Info:
    """(class, repr, lines of the traceback) of an error, in the form of Beam's dead letters.

    An error that arose in a serving process came as text; its class is found again by its name where this
    process has it, and is `kit.errors.InferenceFailed` otherwise.
    """
    trace = getattr(error, "remote_traceback", "")
    cls, words = _raised(trace)
    if cls is None:
        return type(error), f"{type(error).__name__}({str(error.args[0] if error.args else '')!r})", [str(error)]
    return cls, f"{cls.__name__}({words!r})", trace.splitlines(keepends=True)


def as_raised(error: BaseException) -> BaseException:
    """The error as Beam's own step would raise it, of the class that the handler's has; itself where that can't be."""
    cls = info_of(error)[0] if getattr(error, "remote_traceback", "") else None
    if cls is None or issubclass(cls, KitError) or not issubclass(cls, Exception):
        return error
    try:
        return cls(str(error.args[0]))
    except Exception:  # it wants other arguments
        return error


def _raised(trace: str) -> tuple[type[BaseException] | None, str]:
    """Class and words of the exception at the end of a traceback's text."""
    block = trace.rpartition("Traceback (most recent call last):")[2].lstrip("\n")
    lines = block.splitlines()
    while lines and lines[0].startswith(" "):
        del lines[0]
    match = _LAST.match("\n".join(lines))
    if match is None:
        return None, ""
    return _class_named(match["name"]), match["words"] or ""


def _class_named(name: str) -> type[BaseException] | None:
    found: Any = getattr(builtins, name, None) or _inside(sys.modules.get("__main__"), name)
    head = name
    while found is None and "." in head:
        head = head.rpartition(".")[0]
        if head in sys.modules:
            found = _inside(sys.modules[head], name[len(head) + 1 :])
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _inside(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part, None)
    return module
