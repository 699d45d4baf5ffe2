"""What a deployment can do with models by key: show, load, pin, unload and update them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from kit import errors

if TYPE_CHECKING:
    import pandas as pd

    from kit.engine.core import Engine
    from kit.engine.model_places import ModelPlaces
    from kit.key_routes import Route


class DeployedModels:
    """The methods of a `Deployment` that are about its models."""

    _engine: Engine

    def models(self) -> pd.DataFrame:
        """One row a model.

        Of one model: model_id, state, resident_bytes (of one copy), copies, load_s.

        Of models by key, the worth most first, also those that nobody has asked for yet: the columns of
        ``RunInference(handler).models()``, that is keys, state ("loading", "resident", "failed", "evicted"),
        size_bytes (of one copy), hits and requests (in chunks of examples), loads, evictions, load_s,
        load_total_s, idle_s, score, in_use, pinned, error; and resident_bytes (of all its copies), copies, where.
        """
        import pandas as pd

        engine = self._engine
        if engine.places is not None and engine.dispatcher.keyed is not None:
            return pd.DataFrame(engine.places.rows(engine.dispatcher.keyed.router.keys_of()))
        row = {
            "model_id": getattr(engine.handler, "model_id", None) or type(engine.handler).__name__,
            "state": "resident" if engine.dispatcher.closed is None else "closed",
            "resident_bytes": engine.model_bytes,
            "copies": engine.settings.copies,
            "load_s": engine.topology.load_s,
        }
        return pd.DataFrame([row])

    def preload(self, keys: Iterable[Hashable], timeout: float | None = None) -> Self:
        """Load the models of these keys before they are asked for; what doesn't fit beside the others evicts them.

        Args:
            timeout: seconds to wait for room for each.

        Raises:
            UnknownKey, BudgetExceeded, ModelLoadFailed, DeadlineExceeded. InvalidSetting: there is one model only.
        """
        places, routes = self._found(keys)
        places.preload(routes, timeout)
        return self

    def pin(self, keys: Iterable[Hashable], timeout: float | None = None) -> Self:
        """Load the models of these keys and keep them, until `unpin`; they are loaded again after a switch.

        Raises:
            BudgetExceeded: they don't fit beside what is pinned already. And those of `preload`.
        """
        places, routes = self._found(keys)
        places.pin(routes, timeout)
        return self

    def unpin(self, keys: Iterable[Hashable]) -> Self:
        """Let the models of these keys be evicted again."""
        places, routes = self._found(keys)
        places.unpin(routes)
        return self

    def unload(self, keys: Iterable[Hashable]) -> Self:
        """Unload the models of these keys: now, or as soon as their requests are answered; pins are lifted."""
        places, routes = self._found(keys)
        places.unload([route.model for route in routes])
        return self

    def update_models(self, mappings: Sequence[Any]) -> Self:
        """Give some keys other models, live; the others serve on, and requests under way are answered by the old ones.

        Args:
            mappings: `KeyModelPathMapping`, ours or Beam's. A new model is loaded when it is first asked for.

        Raises:
            InvalidSetting: an empty path, a key in two mappings, no models by key. UnknownKey. Nothing is changed then.
        """
        engine = self._engine
        engine.raise_if_closed()
        if engine.places is None or not engine.handler.routes.listed:
            raise errors.InvalidSetting(
                "update_models: this deployment's keys aren't listed in mappings. Use update_model with a path or a "
                "new handler."
            )
        from kit.engine import keyed_changes

        keyed_changes.update_models(engine, mappings)
        return self

    def _found(self, keys: Iterable[Hashable]) -> tuple[ModelPlaces, list[Route]]:
        engine = self._engine
        engine.raise_if_closed()
        keyed = engine.dispatcher.keyed
        if engine.places is None or keyed is None:
            raise errors.InvalidSetting(
                f"{type(engine.handler).__name__} has one model, which is loaded as long as it is served; keys are "
                "for a KeyedModelHandler with mappings."
            )
        if isinstance(keys, (str, bytes)):
            raise errors.InvalidSetting(f"keys={keys!r}: give a list of keys.")
        return engine.places, [keyed.router.of(key) for key in keys]
