"""The repr of a handler: the call that made it, with values shortened, and what was changed since."""

from __future__ import annotations

import contextlib
import enum
import inspect
import os
import reprlib
from collections.abc import Mapping
from typing import Any

from kit.batch_options import BATCHING_OPTIONS
from kit.shorten import shorten

_MOST = 200
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_SECRETS = ("token", "secret", "password", "api_key")


def describe(handler: Any) -> str:
    """Such as ``PytorchModelHandlerTensor(state_dict_path='net.pt', model_class=Net)``."""
    arguments = _arguments(handler)
    words = ", ".join(f"{name}={_hidden(name, value)}" for name, value in arguments.items())
    model_id = None
    with contextlib.suppress(Exception):  # it may be a property of the user's
        model_id = handler.model_id
    if isinstance(model_id, str) and model_id and model_id not in map(_path, arguments.values()):
        words += f"{', ' * bool(words)}model_id={_value(model_id)}"
    kind = type(handler)
    return f"{getattr(kind, '_written', kind.__name__)}({shorten(words, _MOST)})"


def _arguments(handler: Any) -> dict[str, Any]:
    """The constructor's arguments by name, as they were given, and the batching options as they are now."""
    origin = handler._origin or handler
    made_with, found = origin._made_with, {}
    if made_with is not None:
        with contextlib.suppress(TypeError, ValueError):
            bound = inspect.signature(type(handler).__init__).bind_partial(handler, *made_with.args, **made_with.kwargs)
            found = dict(list(bound.arguments.items())[1:])
        for name, parameter in inspect.signature(type(handler).__init__).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                found |= found.pop(name, {})
    before, now = origin._options, handler._options
    changed = {name for name in BATCHING_OPTIONS if now.get(name) is not before.get(name)}
    if made_with is None:
        changed = set(now)
    found |= {name: now[name] for name in BATCHING_OPTIONS if name in changed and name in now}
    return {name: value for name, value in found.items() if name not in changed or name in now}


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _hidden(name: str, value: Any) -> str:
    """A value in a few letters; texts that may be secrets are left out, as notebooks keep what they show."""
    return "'...'" if isinstance(value, str) and name.lower().endswith(_SECRETS) else _value(value)


def _value(value: Any) -> str:
    value = _path(value)
    if isinstance(value, type) or inspect.isroutine(value):
        return str(value.__name__)
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, Mapping):
        plain = {
            name: _short.repr(v) if v is None or isinstance(v, (int, float)) else "..." for name, v in value.items()
        }
        return shorten("{" + ", ".join(f"{name!r}: {words}" for name, words in plain.items()) + "}")
    if hasattr(value, "shape"):
        return f"<{type(value).__name__} of shape {shorten(str(list(value.shape)))}>"
    return shorten(_short.repr(value))
