"""From an error of a serving process to what Beam's dead letters hold: the class, its repr, its traceback."""

from __future__ import annotations

import ast
import builtins
import contextlib
import re
import sys
from typing import Any

from kit.errors import KitError

Info = tuple[type[BaseException], str, list[str]]
#: The line of a traceback that names the exception; those of a group stand behind a bar.
_HEADER = re.compile(r"^(?:[ +-]*\| )?(?P<name>[A-Za-z_][\w.<>]*)(?:: (?P<words>.*))?$", re.MULTILINE)


def info_of(error: BaseException) -> Info:
    """(class, repr, lines of the traceback) of an error, in the form of Beam's dead letters.

    An error that arose in a serving process came as text; its class is found again by its name where this
    process has it, and is `kit.errors.InferenceFailed` otherwise.
    """
    trace = getattr(error, "remote_traceback", "")
    cls, words = _raised(trace, str(error.args[0]) if error.args else "")
    if cls is None:
        return type(error), f"{type(error).__name__}({str(error.args[0] if error.args else '')!r})", [str(error)]
    return cls, f"{cls.__name__}{_arguments(cls, words)}", trace.splitlines(keepends=True)


def as_raised(error: BaseException) -> BaseException:
    """The error as Beam's own step would raise it, of the class that the handler's has; itself where that can't be."""
    cls = info_of(error)[0] if getattr(error, "remote_traceback", "") else None
    if cls is None or issubclass(cls, KitError | StopIteration) or not issubclass(cls, Exception):
        return error
    try:
        return cls(str(error.args[0]))
    except Exception:  # it wants other arguments
        return error


def _raised(trace: str, message: str) -> tuple[type[BaseException] | None, str]:
    """Class and words of the exception that a traceback's text is of; `message` ends with both."""
    found = ("", "")
    for header in _HEADER.finditer(trace):
        name = header["name"]
        at = message.find(f"{name.rpartition('.')[2]}: ")
        words = message[at:].partition(": ")[2]
        # What it says may look like the end of another traceback: the longest words are all of them.
        if (
            at >= 0
            and trace.startswith(f"{name}: {words}".rstrip(": "), header.start("name"))
            and (not found[0] or len(words) > len(found[1]))
        ):
            found = name, words
    if not found[0]:
        last = list(_HEADER.finditer(trace))[-1:]
        found = (last[0]["name"], last[0]["words"] or "") if last else found
    return _class_named(found[0]) if found[0] else None, found[1]


def _arguments(cls: type[BaseException], words: str) -> str:
    """What an exception of these words was made of, as its repr has it."""
    if not words or cls is KeyError:  # the words of that are the repr of the key
        return f"({words})"
    if cls.__str__ is BaseException.__str__ and words[0] == "(":  # of several
        with contextlib.suppress(ValueError, SyntaxError):
            if isinstance(ast.literal_eval(words), tuple):
                return words
    return f"({words!r})"


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
