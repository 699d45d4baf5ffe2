"""What users ask of the models of an engine: see, load, pin, unload and update them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from kit import errors

if TYPE_CHECKING:
    from kit.engine.core import Engine
    from kit.engine.model_places import ModelPlaces
    from kit.key_mappings import KeyModelPathMapping
    from kit.key_routes import Route


class EngineModels:
    """The methods of `kit.deployed_models.ModelCalls`, for models of this process's engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rows(self) -> list[dict[str, Any]]:
        engine = self._engine
        if engine.places is not None:
            return rows_by_key(engine)
        row = {
            "model_id": getattr(engine.handler, "model_id", None) or type(engine.handler).__name__,
            "state": "resident" if engine.dispatcher.closed is None else "closed",
            "resident_bytes": engine.model_bytes,
            "copies": engine.settings.copies,
            "load_s": engine.topology.load_s,
        }
        return [row]

    def preload(self, keys: list[Hashable], timeout: float | None) -> None:
        places, routes = self._found(keys)
        places.preload(routes, timeout)

    def pin(self, keys: list[Hashable], timeout: float | None) -> None:
        places, routes = self._found(keys)
        places.pin(routes, timeout)

    def unpin(self, keys: list[Hashable]) -> None:
        places, routes = self._found(keys)
        places.unpin(routes)

    def unload(self, keys: list[Hashable]) -> None:
        places, routes = self._found(keys)
        places.unload([route.model for route in routes])

    def update(self, mappings: list[KeyModelPathMapping]) -> None:
        engine = self._engine
        engine.raise_if_closed()
        if engine.places is None:
            raise errors.InvalidSetting(
                f"update_models: {type(engine.handler).__name__} has one model, and no keys: use update_model."
            )
        if not engine.handler.routes.listed:
            raise errors.InvalidSetting(
                "update_models: a function finds the handlers of this deployment's keys, in the processes that need "
                "them. Give update_model a KeyedModelHandler with another function."
            )
        from kit.engine import keyed_changes

        keyed_changes.update_models(engine, mappings)

    def _found(self, keys: list[Hashable]) -> tuple[ModelPlaces, list[Route]]:
        engine = self._engine
        engine.raise_if_closed()
        keyed = engine.dispatcher.keyed
        if engine.places is None or keyed is None:
            raise errors.InvalidSetting(
                f"{type(engine.handler).__name__} has one model, which is loaded as long as it is served; keys are "
                "for a KeyedModelHandler with mappings."
            )
        return engine.places, [keyed.router.of(key) for key in keys]


def rows_by_key(engine: Engine) -> list[dict[str, Any]]:
    """The rows of `Deployment.models` for a handler with models by key; [] for others."""
    keyed = engine.dispatcher.keyed
    if engine.places is None or keyed is None:
        return []
    return engine.places.rows(keyed.router.keys_of())
