"""Packing a handler so that it can travel to the serving processes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import sys
from collections import ChainMap
from collections.abc import Iterator
from typing import Any

import cloudpickle

from kit.errors import HandlerNotPicklable, InvalidSetting
from kit.shorten import shorten

#: What stands in a handler's attributes under a name of the kit's own, in the words of those who gave it.
_WORDS = {
    "_preprocess_fns": "the pre-processing function",
    "_postprocess_fns": "the post-processing function",
    "_load": "the load function",
    "_run": "the run function",
}


def pack(handler: Any) -> bytes:
    """Pickle a handler, its class included when it was defined in a notebook cell.

    Raises:
        HandlerNotPicklable: naming the attribute, function or variable that can't travel.
        InvalidSetting: a model's key that is equal to itself only, and so can't be found in another process.
    """
    try:
        packed = _dumps(handler)
    except Exception as error:
        raise HandlerNotPicklable(_why(handler, error)) from error
    _check_keys(handler)
    return packed


def _dumps(value: Any) -> bytes:
    with io.BytesIO() as file:
        _Pickler(file, protocol=5).dump(value)
        return file.getvalue()


def _reduce_cached(value: Any) -> Any:
    """What `functools.lru_cache` has wrapped, by its name where that can be imported, else by its code."""
    module = getattr(value, "__module__", None)  # a partial has no names to wrap
    found: Any = sys.modules.get(module or "") if module != "__main__" else None
    for part in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return value.__reduce__() if found is value else (_cached, (value.__wrapped__, value.cache_parameters()))


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reduce_property(value: functools.cached_property[Any]) -> Any:
    """Without the lock that it has up to Python 3.11."""
    return functools.cached_property, (value.func,), {"attrname": value.attrname}


class _Pickler(cloudpickle.Pickler):
    """Pickles what a cell's code has wrapped with `functools`, too."""

    dispatch_table = ChainMap(
        {functools._lru_cache_wrapper: _reduce_cached, functools.cached_property: _reduce_property},
        cloudpickle.Pickler.dispatch_table,
    )


def _check_keys(handler: Any) -> None:
    routes = getattr(handler, "routes", None)
    keys = [] if routes is None else list(routes.first_keys())
    for key, copy in zip(keys, cloudpickle.loads(cloudpickle.dumps(keys)), strict=True):
        if hash(key) != hash(copy) or key != copy:
            raise InvalidSetting(
                f"the key {shorten(repr(key), 80)} ({type(key).__name__}) is equal to itself only, so it can't be "
                "found in a serving process: take a string or a number, or give its class __eq__ and __hash__."
            )


def _why(handler: Any, error: Exception) -> str:
    name = type(handler).__name__
    for part, value in _parts(handler):
        cause = _refusal(value)
        if cause is None:
            continue
        found = _variable_of(value)
        if found is not None:
            variable, cause = found
            return (
                f"{part} uses the variable {variable}, which can't travel to the worker processes: "
                f"{type(cause).__name__}: {cause}. Make it inside the function, which runs in the worker."
            )
        return (
            f"{part} (a {type(value).__name__}) can't travel to the worker processes: {type(cause).__name__}: {cause}. "
            "Make it in load_model(), which runs in the worker, or keep a path or a name in the handler instead."
        )
    variable, where, why = _what_its_code_names(type(handler)) or ("Something", "", error)
    return (
        f"{name} can't travel to the worker processes: {type(why).__name__}: {why}. {variable} that "
        f"{where or 'its methods or class'} refer{'s' if where else ''} to can't be pickled; make it in "
        "load_model(), which runs in the worker."
    )


def _parts(handler: Any) -> Iterator[tuple[str, Any]]:
    """What a handler is made of, with names for a message: its attributes, and the functions and options given."""
    name = type(handler).__name__
    state = getattr(handler, "__dict__", {})
    with contextlib.suppress(Exception):  # a class may write its own, which may raise anything
        travels = handler.__getstate__()
        state = travels if isinstance(travels, dict) else state
    # The handler that this one is a copy of has most attributes in common with it, which shall be named first.
    for attribute, value in sorted(state.items(), key=lambda item: (item[0] == "_origin", item[0])):
        words = _WORDS.get(attribute)
        if attribute == "_options":
            yield from ((f"{name}: the option {option!r}", given) for option, given in value.items())
        elif words is None:
            yield f"{name}.{attribute}", value
        else:
            for function in value if isinstance(value, tuple) else (value,):
                yield f"{name}: {words} {getattr(function, '__name__', repr(function))!r}", function


def _refusal(value: Any) -> Exception | None:
    """The error with which a value can't be pickled, None for one that can."""
    try:
        _dumps(value)
    except Exception as error:
        return error
    return None


def _variable_of(function: Any) -> tuple[str, Exception] | None:
    """The variable that a function refers to and that can't be pickled, with the error; None for none found."""
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        return None
    found = inspect.getclosurevars(function)
    for variable, value in {**found.nonlocals, **found.globals}.items():
        cause = _refusal(value)
        if cause is not None:
            return f"{variable!r} (a {type(value).__name__})", cause
    return None


def _what_its_code_names(cls: type) -> tuple[str, str, Exception] | None:
    """The variable named in a class's methods that can't be pickled, the method, and the error; None for none found."""
    for owner in cls.__mro__[:-1]:
        for name, function in vars(owner).items():
            found = _variable_of(function)
            if found is not None:
                return f"The variable {found[0]}", f"{owner.__name__}.{name}", found[1]
    return None
