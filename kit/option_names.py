"""The names of the arguments that a handler's constructor takes, and the error for one that it doesn't."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

from kit.errors import UnknownOption

P = ParamSpec("P")
_Init = Callable[Concatenate[Any, P], None]
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def names_checked(init: _Init[P]) -> _Init[P]:
    """A constructor to which others pass on what they don't know: one name too many is told with those there are."""
    known = [parameter.name for parameter in _parameters(init)]

    @functools.wraps(init)
    def checked(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        if unknown := [name for name in kwargs if name not in known]:
            raise _unknown(type(self), unknown[0], list(dict.fromkeys([*_names(type(self)), *known])))
        init(self, *args, **kwargs)

    return checked  # type: ignore[return-value]  # what `wraps` returns names `self` otherwise


def check_names(cls: Any, given: Mapping[str, Any]) -> None:
    """Raise UnknownOption for a name that the constructor of a class doesn't take and can't pass on."""
    if _passes_on(cls.__init__):
        return
    names = _names(cls)
    for name in given:
        if name not in names:
            raise _unknown(cls, name, names)


def _names(cls: type) -> list[str]:
    """The arguments that a class takes by name, its own before those that it passes on."""
    names: dict[str, None] = {}
    for owner in cls.__mro__:
        init = vars(owner).get("__init__")
        # A private class is called by those derived from it, in their own way.
        if init is not None and not owner.__name__.startswith("_"):
            names |= {parameter.name: None for parameter in _parameters(init) if parameter.kind in _NAMED}
            if not _passes_on(init):
                break
    return list(names)


def _passes_on(init: Any) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in _parameters(init))


def _parameters(init: Any) -> list[inspect.Parameter]:
    """The parameters but the object itself."""
    try:
        return list(inspect.signature(init).parameters.values())[1:]
    except ValueError:  # of something compiled, which may take anything
        return [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]


def _unknown(cls: type, name: str, names: Sequence[str]) -> UnknownOption:
    close = difflib.get_close_matches(name, names, 1)
    meant = f": did you mean {close[0]!r}?" if close else "."
    takes = f"It takes {', '.join(names)}." if names else "It takes none."
    return UnknownOption(f"{getattr(cls, '_written', cls.__name__)} has no option {name!r}{meant} {takes}")
