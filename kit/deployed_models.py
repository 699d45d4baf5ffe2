"""What a deployment can do with its models, above all those by key: show, load, pin, unload and update them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from kit.checks import check_handler, seconds
from kit.errors import InvalidSetting
from kit.key_mappings import KeyModelPathMapping, key_list, path_updates

if TYPE_CHECKING:
    import pandas as pd


class ModelCalls(Protocol):
    """What is asked of the place where the models are; arguments are checked already."""

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `DeployedModels.models`."""

    def preload(self, keys: list[Hashable], timeout: float | None) -> None:
        """See `DeployedModels.preload`."""

    def pin(self, keys: list[Hashable], timeout: float | None) -> None:
        """See `DeployedModels.pin`."""

    def unpin(self, keys: list[Hashable]) -> None:
        """See `DeployedModels.unpin`."""

    def unload(self, keys: list[Hashable]) -> None:
        """See `DeployedModels.unload`."""

    def update(self, mappings: list[KeyModelPathMapping]) -> None:
        """See `DeployedModels.update_models`."""


class DeployedModels(ABC):
    """The methods of a `Deployment` that are about its models."""

    @property
    @abstractmethod
    def _models(self) -> ModelCalls: ...

    def models(self) -> pd.DataFrame:
        """One row a model.

        Of one model: model_id, state, resident_bytes (of one copy), copies, load_s.

        Of models by key, the worth most first, also those that nobody has asked for yet: the columns of
        ``RunInference(handler).models()``, that is keys, state ("loading", "resident", "failed", "evicted"),
        size_bytes (of one copy), requests (in chunks of examples), hits (those that found it loaded), loads, evictions,
        load_s, load_total_s, idle_s, score, in_use, pinned, error; and resident_bytes (of all its copies), copies,
        where, loading_at (where a copy is being loaded). What is counted and timed begins anew with the processes: at a
        switch for all models, at the death of a process for those that it had; `history` has all loads and evictions.
        """
        import pandas as pd

        rows = self._models.rows()
        if not rows:
            from kit.manager.entry import columns

            return pd.DataFrame(columns=[*columns(), "resident_bytes", "copies", "where", "loading_at"])
        return pd.DataFrame(rows)

    def preload(self, keys: Iterable[Hashable], timeout: float | None = None) -> Self:
        """Load the models of these keys before they are asked for; what doesn't fit beside the others evicts them.

        Args:
            timeout: seconds to wait for room for each.

        Raises:
            UnknownKey, BudgetExceeded, ModelLoadFailed, DeadlineExceeded. InvalidSetting: there is one model only.
        """
        self._models.preload(key_list(keys), seconds("timeout", timeout))
        return self

    def pin(self, keys: Iterable[Hashable], timeout: float | None = None) -> Self:
        """Load the models of these keys and keep them, until `unpin`; they are loaded again after a switch.

        All of them are pinned, or none. A version that takes the place of a pinned model is pinned in its stead.

        Raises:
            BudgetExceeded: they don't fit beside what is pinned already, or there are more than the handler's
            ``max_models_per_worker_hint`` allows. ModelLoadFailed: also when one was unloaded or unpinned meanwhile.
            And those of `preload`.
        """
        self._models.pin(key_list(keys), seconds("timeout", timeout))
        return self

    def unpin(self, keys: Iterable[Hashable]) -> Self:
        """Let the models of these keys be evicted again."""
        self._models.unpin(key_list(keys))
        return self

    def unload(self, keys: Iterable[Hashable]) -> Self:
        """Unload the models of these keys: now, or as soon as their requests are answered; pins are lifted."""
        self._models.unload(key_list(keys))
        return self

    def update_model(self, model: Any) -> Self:
        """Replace the model by another version, live: a path for the handler's ``update_model_path``, or a new handler.

        With models by key also a list of `KeyModelPathMapping`, as for `update_models`; of a new keyed handler its
        ``max_models_per_worker_hint``, ``policy`` and ``keep_alive`` are taken over, and its ``memory_budget`` where
        none was asked for.

        Raises:
            KitError: the new version can't be served; the old one serves on.
        """
        if isinstance(model, (list, tuple)):
            return self.update_models(model)
        if isinstance(model, str) or hasattr(model, "__fspath__"):
            self._update_path(str(os.fspath(model)))
        elif hasattr(model, "run_inference"):
            self._update_handler(check_handler(model))
        else:
            raise InvalidSetting(
                f"update_model({model!r}): give a path, a model handler, or for models by key a list of "
                "KeyModelPathMapping."
            )
        return self

    def update_models(self, mappings: Sequence[Any]) -> Self:
        """Give some keys other models, live; the others serve on, and requests under way are answered by the old ones.

        Args:
            mappings: `KeyModelPathMapping`, ours or Beam's. A new model is loaded when it is first asked for,
                that of a pinned key at once.

        Raises:
            InvalidSetting: an empty path, a key in two mappings, no models by key. UnknownKey.
            ModelLoadFailed: a handler's ``update_model_path`` raised. Nothing is changed then.
        """
        self._models.update(path_updates(mappings))
        return self

    @abstractmethod
    def _update_path(self, path: str) -> None: ...

    @abstractmethod
    def _update_handler(self, handler: Any) -> None: ...
