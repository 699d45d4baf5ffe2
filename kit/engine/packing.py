"""Packing a handler so that it can travel to the serving processes."""

from __future__ import annotations

import inspect
from typing import Any

import cloudpickle

from kit.errors import HandlerNotPicklable


def pack(handler: Any) -> bytes:
    """Pickle a handler, its class included when it was defined in a notebook cell.

    Raises:
        HandlerNotPicklable: naming the attribute or variable that can't travel.
    """
    try:
        return bytes(cloudpickle.dumps(handler, protocol=5))
    except Exception as error:
        name = type(handler).__name__
        for attribute, value in sorted(getattr(handler, "__dict__", {}).items()):
            try:
                cloudpickle.dumps(value, protocol=5)
            except Exception as cause:
                raise HandlerNotPicklable(
                    f"{name}.{attribute} (a {type(value).__name__}) can't travel to the worker processes: "
                    f"{type(cause).__name__}: {cause}. Make it in load_model(), which runs in the worker, or keep a "
                    "path or a name in the handler instead."
                ) from error
        variable, where, why = _what_its_code_names(type(handler)) or ("Something", "", error)
        raise HandlerNotPicklable(
            f"{name} can't travel to the worker processes: {type(why).__name__}: {why}. {variable} that "
            f"{where or 'its methods or class'} refer{'s' if where else ''} to can't be pickled; make it in "
            "load_model(), which runs in the worker."
        ) from error


def _what_its_code_names(cls: type) -> tuple[str, str, Exception] | None:
    """The variable named in a class's methods that can't be pickled, the method, and the error; None for none found."""
    for owner in cls.__mro__[:-1]:
        for name, function in vars(owner).items():
            function = getattr(function, "__func__", function)
            if not inspect.isfunction(function):
                continue
            found = inspect.getclosurevars(function)
            for variable, value in {**found.nonlocals, **found.globals}.items():
                try:
                    cloudpickle.dumps(value, protocol=5)
                except Exception as error:
                    return f"The variable {variable!r} (a {type(value).__name__})", f"{owner.__name__}.{name}", error
    return None
