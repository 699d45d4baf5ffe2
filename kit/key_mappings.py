"""Mappings of keys to model handlers and to paths, and what is wrong with those that can't work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kit.checks import check_handler
from kit.errors import InvalidSetting
from kit.shorten import shorten


@dataclass(frozen=True)
class KeyModelMapping:
    """The keys that one model handler serves.

    Attributes:
        keys: at least one, hashable, each in one mapping only.
        handler: ours or Beam's, with its own batching options, pre- and post-processing.

    Raises:
        InvalidSetting: no key, something that can't be one, or something that can't serve under a key.
    """

    keys: Sequence[Hashable]
    handler: Any

    def __post_init__(self) -> None:
        check_inner(self.handler, f"KeyModelMapping({short(self.keys)}, {short(self.handler)})")
        object.__setattr__(self, "keys", _mapped_keys(self.keys, self.handler))

    @property
    def mh(self) -> Any:
        """The handler, under Beam's name."""
        return self.handler


@dataclass(frozen=True)
class KeyModelPathMapping:
    """Another path for the models of some keys, for ``update_model_paths``; Beam's class is taken too.

    Attributes:
        keys: the keys.
        update_path: what the handler's ``update_model_path`` is given.
        model_id: names the version in Beam's metrics, as `update_path` does in predictions.
    """

    keys: Sequence[Hashable]
    update_path: str
    model_id: str = ""


def mapping_of(given: Any) -> KeyModelMapping:
    """A mapping, ours or Beam's, checked.

    Raises:
        InvalidSetting: it isn't one, or can't work.
    """
    if isinstance(given, KeyModelMapping):
        return given
    handler, keys = getattr(given, "mh", None), getattr(given, "keys", None)
    if handler is None or keys is None or isinstance(given, Mapping):
        raise InvalidSetting(
            f"KeyedModelHandler: {short(given)} isn't a mapping; write KeyModelMapping(['key'], handler)."
        )
    return KeyModelMapping(keys, handler)


def path_updates(given: Any) -> list[KeyModelPathMapping]:
    """Mappings of keys to paths, ours or Beam's, checked: each key has one path, which isn't empty.

    Raises:
        InvalidSetting: what is wrong.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise InvalidSetting(f"update_model_paths: {short(given)} isn't a list of KeyModelPathMapping(keys, path).")
    found, seen = [], set()
    for mapping in given:
        if not (hasattr(mapping, "keys") and hasattr(mapping, "update_path")):
            raise InvalidSetting(
                f"update_model_paths: {short(mapping)} isn't a mapping; write KeyModelPathMapping(['key'], path)."
            )
        keys, path = key_list(mapping.keys), mapping.update_path
        if not (isinstance(path, str) or hasattr(path, "__fspath__")) or not str(path):
            words = "is empty" if not path else f"is {short(path)}, a {type(path).__name__}; give text"
            raise InvalidSetting(f"update_model_paths: the path for {short(keys)} {words}.")
        for key in keys:
            if key in seen:
                raise InvalidSetting(f"update_model_paths: the key {short(key)} is in two mappings; give it one path.")
            seen.add(key)
        found.append(KeyModelPathMapping(keys, str(path)))
    return found


def key_list(keys: Any) -> list[Hashable]:
    """Keys as a list.

    Raises:
        InvalidSetting: they aren't in a list, or one of them can't be a key.
    """
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        raise InvalidSetting(f"keys={short(keys)}: give a list of keys.")
    found = list(keys)
    for key in found:
        _check_key(key)
    return found


def _mapped_keys(keys: Any, handler: Any) -> Sequence[Hashable]:
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        found = []
    else:
        found = list(keys)
    if not found:
        raise InvalidSetting(
            f"KeyModelMapping({short(keys)}, {type(handler).__name__}): give a list of one or more keys."
        )
    seen: set[Hashable] = set()
    for key in found:
        _check_key(key)
        if key in seen:
            raise InvalidSetting(f"KeyModelMapping({short(keys)}, ...): the key {short(key)} is there twice.")
        seen.add(key)
    return keys if isinstance(keys, Sequence) else found


def _check_key(key: Any) -> None:
    try:
        hash(key)
    except TypeError as error:
        raise InvalidSetting(f"the key {short(key)} is a {type(key).__name__}, which can't be a key.") from error
    if unlike_itself(key):
        raise InvalidSetting(f"the key {short(key)} isn't equal to itself, and can't be a key.")


def unlike_itself(key: Any) -> bool:
    """True for a NaN and its like: nobody who looks for it would find it."""
    try:
        return bool(key != key)
    except Exception:
        return False


def check_inner(handler: Any, where: str) -> None:
    """Raise InvalidSetting when something can't be served under a key."""
    check_handler(handler, where)
    if getattr(handler, "keyed", False):
        raise InvalidSetting(
            f"{where}: a keyed handler can't stand inside another; give the handler of the model itself."
        )
    if handler.model_copies() != 1:
        raise InvalidSetting(
            f"{where}: its model_copies={handler.model_copies()}, but models by key have one copy each under the "
            "memory budget; leave model_copies out."
        )


def check_function(function: Callable[..., Any]) -> None:
    """Raise InvalidSetting when something can't be asked for the handler of a key."""
    if isinstance(function, type):
        raise InvalidSetting(
            f"KeyedModelHandler({function.__name__}): that is a class; make a handler of it, {function.__name__}(...), "
            "or give a function from a key to a handler."
        )
    try:
        inspect.signature(function).bind("key")
    except ValueError:
        return  # of a function in C nothing is known
    except TypeError as error:
        raise InvalidSetting(
            f"KeyedModelHandler({short(function)}): the function is called with a key alone, and can't be: {error}."
        ) from error


def short(value: Any) -> str:
    """The value in a line of a message."""
    return shorten(repr(value), 80)
