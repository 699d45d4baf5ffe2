"""What a deployment can do with its settings: show and switch them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from kit.errors import InvalidSetting
from kit.settings import Settings, given


class DeployedSettings(ABC):
    """The methods of a `Deployment` that are about its settings."""

    @property
    def mode(self) -> str:
        """The serving mode; another kernel may have switched that of a named deployment."""
        return self.settings.mode

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """All serving settings."""

    @property
    @abstractmethod
    def handler(self) -> Any:
        """The handler that is served; of a named deployment what this kernel knows of it, as it may not have its
        class: type_name, model_id, batching options."""

    def switch(
        self,
        mode: str | None = None,
        *,
        processes: int | None = None,
        threads: int | None = None,
        model_copies: int | None = None,
        memory_budget: int | float | str | None = None,
        batching: Mapping[str, Any] | None = None,
    ) -> Self:
        """Change settings live; what isn't given stays. No request fails or is lost.

        The new topology is started beside the old one, takes over, and the old one finishes what it has. If
        both don't fit the memory budget, the old one is drained and ended first, and requests wait. Of models by key
        another `memory_budget` alone starts nothing: those over it go, those in use as soon as they are released.
        A `memory_budget` of "none" takes the budget away, also one that the handler brought. `batching` changes the
        handler's batching options (`ModelHandler.with_batching`), such as ``{"max_batch_size": 16}``.

        Who switches a deployment at once, in other threads or kernels, does so one after the other.

        Raises:
            InvalidSetting, BudgetExceeded, SharedModeUnavailable, ModelLoadFailed: the old mode serves on.
        """
        if batching is not None and not isinstance(batching, Mapping):
            raise InvalidSetting(f'batching={batching!r}: give options by name, such as {{"max_batch_size": 16}}.')
        self._switch(given(mode, processes, threads, model_copies, memory_budget), dict(batching or {}))
        return self

    def settings_for(
        self,
        mode: str | None = None,
        *,
        processes: int | None = None,
        threads: int | None = None,
        model_copies: int | None = None,
        memory_budget: int | float | str | None = None,
    ) -> Settings:
        """The settings that `switch` with these arguments would lead to; changes nothing.

        Raises:
            InvalidSetting: they can't work.
        """
        return self._settings_for(given(mode, processes, threads, model_copies, memory_budget))

    @abstractmethod
    def cancel_switch(self) -> bool:
        """Stop a switch or update that hasn't taken over yet, whoever began it; False when none is under way."""

    # ---- how, by the kind of deployment --------------------------------------------------------

    @abstractmethod
    def _switch(
        self, changes: dict[str, Any], batching: dict[str, Any], *, anew: bool = True
    ) -> tuple[Settings, Settings]:
        """Switch, and give the settings before and after; unless `anew`, what is served so already isn't started anew.

        Before is when its turn has come: another thread or kernel may have been switching.
        """

    @abstractmethod
    def _settings_for(self, changes: dict[str, Any]) -> Settings: ...
