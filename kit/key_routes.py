"""From a key to the model handler that serves it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from kit.errors import InvalidSetting, KitError, ModelLoadFailed, UnknownKey, UnsupportedInput
from kit.key_mappings import check_function, check_inner, mapping_of, path_updates, short, unlike_itself
from kit.shorten import shorten

#: Keys named in a message at most.
SHOWN = 8


def key_of(pair: Any, position: int | None = None, *, maybe: bool = False) -> Any:
    """The key of a (key, example); `position` of the example, where it is known, goes into the message.

    With `maybe` others of its request are pairs, and it could do without a key if they weren't.

    Raises:
        UnsupportedInput: it is no pair.
    """
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        return pair[0]
    which = "an example" if position is None else f"example {position}"
    raise UnsupportedInput(
        f"{which}, {shorten(repr(pair), 80)} ({type(pair).__name__}), has no key"
        + (
            ", but others of the same request have: a MaybeKeyedModelHandler takes pairs (key, example), or examples "
            "without keys, and not both in one request."
            if maybe
            else ": a keyed handler takes pairs (key, example)."
        )
    )


def check_key(key: Hashable) -> None:
    """Raise UnsupportedInput for a key that isn't equal to itself: its model would be loaded anew each time."""
    if unlike_itself(key):
        raise UnsupportedInput(f"the key {short(key)} isn't equal to itself, and can't be a key.")


class KeyModel:
    """One model, of one or several keys; what the model manager knows it by."""

    def __init__(self, handler: Any, first_key: Hashable) -> None:
        self.handler = handler
        self.first_key = first_key

    def __repr__(self) -> str:
        return repr(self.first_key)


class Route:
    """How the examples of some keys are run: by which handler, on which model.

    Its first key and its path say which handler that is, in every process: the one of that key from the beginning,
    with that path. The key itself may lead elsewhere by now.
    """

    def __init__(self, handler: Any, model: KeyModel, key: Hashable = None, path: str | None = None) -> None:
        self.handler = handler
        self.model = model
        self.key = key  # the first that led here
        self.path = path  # of the last update


class Routes:
    """The routes of a keyed handler and all its copies.

    Args:
        source: mappings, or a function from a key to a handler.

    Raises:
        InvalidSetting: a mapping that can't work.
    """

    def __init__(self, source: Sequence[Any] | Callable[[Any], Any]) -> None:
        self._lock = threading.Lock()
        self._resolve = source if callable(source) else None
        self._by_key: dict[Hashable, Route] = {}
        self._models: dict[int, KeyModel] = {}  # by the identity of the handler that loads it
        if callable(source):
            check_function(source)
        else:
            self._add_mappings(source)

    def __getstate__(self) -> dict[str, Any]:
        # Identities mean nothing in another process.
        return {"resolve": self._resolve, "by_key": self._by_key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._lock = threading.Lock()
        self._resolve, self._by_key = state["resolve"], state["by_key"]
        self._models = {id(_origin(route.model.handler)): route.model for route in self._by_key.values()}

    def copied(self) -> Routes:
        """Routes of their own, by the same models, so that an update of the one leaves the other alone."""
        twin = Routes.__new__(Routes)
        twin.__setstate__({"resolve": self._resolve, "by_key": dict(self._by_key)})
        return twin

    @property
    def listed(self) -> bool:
        """True when all keys are known beforehand, and no function is asked."""
        return self._resolve is None

    @property
    def handlers(self) -> list[Any]:
        """The handlers that are known now, each once."""
        return list({id(route.handler): route.handler for route in list(self._by_key.values())}.values())

    def by_origin(self) -> dict[tuple[Hashable, str | None], Route]:
        """The routes that are known now, by first key and path."""
        return {(route.key, route.path): route for route in list(self._by_key.values())}

    def first_keys(self) -> dict[Hashable, Hashable]:
        """For each key that is known now, the first of those that led to its model together with it."""
        return {key: route.key for key, route in list(self._by_key.items())}

    def of(self, key: Any) -> Route:
        """The route of a key.

        Raises:
            UnknownKey: there is no model for it. UnsupportedInput: it isn't hashable. ModelLoadFailed: the user's
            function failed.
        """
        try:
            route = self._by_key.get(key)
        except TypeError as error:
            raise UnsupportedInput(
                f"the key {short(key)} is a {type(key).__name__}, which can't be a key: give a string or a number."
            ) from error
        if route is not None:
            return route
        if self._resolve is None:
            known = list(self._by_key)
            more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
            raise UnknownKey(
                f"there is no model for the key {short(key)}; the keys are "
                f"{', '.join(map(short, known[:SHOWN]))}{more}. Add a KeyModelMapping for it, or give "
                "KeyedModelHandler a function from a key to a handler."
            )
        check_key(key)
        return self._ask(key)

    def _ask(self, key: Hashable) -> Route:
        assert self._resolve is not None
        try:
            handler = self._resolve(key)
        except KitError:
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, KeyError) and error.args == (key,):  # looked up in a dict, most likely
                words = f"there is no model for the key {short(key)}: the function for handlers has none."
                raise UnknownKey(words) from error
            raise ModelLoadFailed(
                f"the function for handlers failed for the key {short(key)}: {type(error).__name__}: {error}"
            ) from error
        if handler is None:
            raise UnknownKey(f"there is no model for the key {short(key)}: the function for handlers returned None.")
        check_inner(handler, f"the function for handlers returned {handler!r} for the key {short(key)}")
        with self._lock:
            return self._by_key.setdefault(key, Route(handler, self._model_of(handler, key), key))

    def keys_of(self) -> dict[KeyModel, list[Hashable]]:
        """The keys of each model that has any."""
        found: dict[KeyModel, list[Hashable]] = {}
        for key, route in list(self._by_key.items()):
            found.setdefault(route.model, []).append(key)
        return found

    def update(self, mappings: Iterable[Any]) -> list[KeyModel]:
        """Give keys other paths; returns the models that no key has any more. What is up to date stays.

        Raises:
            InvalidSetting: an empty path, or a key in two of the mappings. UnknownKey. ModelLoadFailed: a handler
            refuses its path. Nothing is changed then.
        """
        wanted = self._check_update(mappings)
        before = set(self.keys_of())
        made: dict[tuple[Route, str], Route] = {}
        found: dict[Hashable, Route] = {}
        for key, path in wanted.items():
            route = self.of(key)
            if route.path == path:
                continue
            if (route, path) not in made:
                handler = with_path(route.handler, path, key)
                made[route, path] = Route(handler, KeyModel(handler, key), key, path)
            found[key] = made[route, path]
        self._by_key.update(found)
        return [model for model in before if model not in self.keys_of()]

    def _check_update(self, mappings: Iterable[Any]) -> dict[Hashable, str]:
        wanted = {key: mapping.update_path for mapping in path_updates(mappings) for key in mapping.keys}
        for key in wanted:
            self.of(key)
        return wanted

    def _add_mappings(self, mappings: Sequence[Any]) -> None:
        if not mappings:
            raise InvalidSetting("KeyedModelHandler([]): give at least one KeyModelMapping(keys, handler).")
        for mapping in map(mapping_of, mappings):
            handler, first = mapping.handler, next(iter(mapping.keys))
            route = Route(handler, self._model_of(handler, first), first)
            for key in mapping.keys:
                if key in self._by_key:
                    raise InvalidSetting(
                        f"the key {short(key)} maps to two model handlers; each key must be in one KeyModelMapping "
                        "only."
                    )
                self._by_key[key] = route

    def _model_of(self, handler: Any, key: Hashable) -> KeyModel:
        """The model that a handler runs on: that of the handler which it is a variation of, if that is known."""
        return self._models.setdefault(id(_origin(handler)), KeyModel(handler, key))


def with_path(handler: Any, path: str | None, key: Hashable) -> Any:
    """A copy of the handler of a key, with another path.

    Raises:
        ModelLoadFailed: ``update_model_path`` raised.
    """
    twin = copy.deepcopy(handler)
    try:
        twin.update_model_path(path)
    except (Exception, SystemExit) as error:
        raise ModelLoadFailed(
            f"{type(handler).__name__}.update_model_path({path!r}) failed for the key {short(key)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return twin


def _origin(handler: Any) -> Any:
    return getattr(handler, "_origin", None) or handler
