"""From a key to the model handler that serves it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kit.errors import InvalidSetting, UnknownKey, UnsupportedInput

#: Keys named in a message at most.
SHOWN = 8


@dataclass(frozen=True)
class KeyModelMapping:
    """The keys that one model handler serves.

    Attributes:
        keys: at least one, hashable, each in one mapping only.
        handler: ours or Beam's, with its own batching options, pre- and post-processing.
    """

    keys: Sequence[Hashable]
    handler: Any

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
        model_id: not used; `update_path` names the version in predictions.
    """

    keys: Sequence[Hashable]
    update_path: str
    model_id: str = ""


class KeyModel:
    """One model, of one or several keys; what the model manager knows it by."""

    def __init__(self, handler: Any, first_key: Hashable) -> None:
        self.handler = handler
        self.first_key = first_key

    def __repr__(self) -> str:
        return repr(self.first_key)


class Route:
    """How the examples of some keys are run: by which handler, on which model."""

    def __init__(self, handler: Any, model: KeyModel, key: Hashable = None, path: str | None = None) -> None:
        self.handler = handler
        self.model = model
        self.key = key  # one that leads here
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
        if not callable(source):
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

    def of(self, key: Any) -> Route:
        """The route of a key.

        Raises:
            UnknownKey: there is no model for it. UnsupportedInput: it isn't hashable.
        """
        try:
            route = self._by_key.get(key)
        except TypeError as error:
            raise UnsupportedInput(
                f"the key {_short(key)} is a {type(key).__name__}, which can't be a key: give a string or a number."
            ) from error
        if route is not None:
            return route
        if self._resolve is None:
            known = list(self._by_key)
            more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
            raise UnknownKey(
                f"there is no model for the key {_short(key)}; the keys are "
                f"{', '.join(map(_short, known[:SHOWN]))}{more}. Add a KeyModelMapping for it, or give "
                "KeyedModelHandler a function from a key to a handler."
            )
        return self._ask(key)

    def _ask(self, key: Hashable) -> Route:
        assert self._resolve is not None
        handler = self._resolve(key)
        if handler is None:
            raise UnknownKey(f"there is no model for the key {_short(key)}: the function for handlers returned None.")
        check_handler(handler, f"the function for handlers returned {handler!r} for the key {_short(key)}")
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
            InvalidSetting: an empty path, or a key in two of the mappings. UnknownKey. Nothing is changed then.
        """
        wanted = self._check_update(mappings)
        before = set(self.keys_of())
        made: dict[tuple[Route, str], Route] = {}
        for key, path in wanted.items():
            route = self.of(key)
            if route.path == path:
                continue
            if (route, path) not in made:
                handler = copy.deepcopy(route.handler)
                handler.update_model_path(path)
                made[route, path] = Route(handler, KeyModel(handler, key), key, path)
            self._by_key[key] = made[route, path]
        return [model for model in before if model not in self.keys_of()]

    def _check_update(self, mappings: Iterable[Any]) -> dict[Hashable, str]:
        wanted: dict[Hashable, str] = {}
        for mapping in mappings:
            if not mapping.update_path:
                raise InvalidSetting(f"update_model_paths: the path for {_short(list(mapping.keys))} is empty.")
            for key in mapping.keys:
                self.of(key)
                if key in wanted:
                    raise InvalidSetting(
                        f"update_model_paths: the key {_short(key)} is in two mappings; give it one path."
                    )
                wanted[key] = str(mapping.update_path)
        return wanted

    def _add_mappings(self, mappings: Sequence[Any]) -> None:
        if not mappings:
            raise InvalidSetting("KeyedModelHandler([]): give at least one KeyModelMapping(keys, handler).")
        for mapping in mappings:
            handler = getattr(mapping, "mh", None)
            keys = getattr(mapping, "keys", None)
            if handler is None or keys is None or isinstance(mapping, dict):
                raise InvalidSetting(
                    f"KeyedModelHandler: {_short(mapping)} isn't a mapping; write KeyModelMapping(['key'], handler)."
                )
            check_handler(handler, f"KeyModelMapping({_short(keys)}, {handler!r})")
            if isinstance(keys, (str, bytes)) or not len(list(keys)):
                raise InvalidSetting(
                    f"KeyModelMapping({_short(keys)}, {type(handler).__name__}): give a list of one or more keys."
                )
            route = Route(handler, self._model_of(handler, next(iter(keys))), next(iter(keys)))
            for key in keys:
                self._add(key, route)

    def _add(self, key: Any, route: Route) -> None:
        try:
            known = key in self._by_key
        except TypeError as error:
            raise InvalidSetting(f"the key {_short(key)} is a {type(key).__name__}, which can't be a key.") from error
        if known:
            raise InvalidSetting(
                f"the key {_short(key)} maps to two model handlers; each key must be in one KeyModelMapping only."
            )
        self._by_key[key] = route

    def _model_of(self, handler: Any, key: Hashable) -> KeyModel:
        """The model that a handler runs on: that of the handler which it is a variation of, if that is known."""
        return self._models.setdefault(id(_origin(handler)), KeyModel(handler, key))


def check_handler(handler: Any, where: str) -> None:
    """Raise InvalidSetting when something can't be served under a key."""
    if isinstance(handler, type) or not (hasattr(handler, "load_model") and hasattr(handler, "run_inference")):
        raise InvalidSetting(f"{where}: that isn't a model handler; give an object with load_model and run_inference.")
    if getattr(handler, "keyed", False):
        raise InvalidSetting(
            f"{where}: a keyed handler can't stand inside another; give the handler of the model itself."
        )
    if handler.model_copies() != 1:
        raise InvalidSetting(
            f"{where}: its model_copies={handler.model_copies()}, but models by key have one copy each under the "
            "memory budget; leave model_copies out."
        )


def _origin(handler: Any) -> Any:
    return getattr(handler, "_origin", None) or handler


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
