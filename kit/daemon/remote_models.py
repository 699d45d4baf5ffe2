"""What a kernel asks of the models of a named deployment."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from kit.daemon import withdrawal

if TYPE_CHECKING:
    from kit.daemon.connection import Connection
    from kit.key_mappings import KeyModelPathMapping


class RemoteModels:
    """The methods of `kit.deployed_models.ModelCalls`, each a call to the deployment's process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._connection.call("models")
        return found

    def preload(self, keys: list[Hashable], timeout: float | None) -> None:
        self._connection.call("preload", keys=keys, timeout=timeout)

    def pin(self, keys: list[Hashable], timeout: float | None) -> None:
        self._connection.call("pin", keys=keys, timeout=timeout)

    def unpin(self, keys: list[Hashable]) -> None:
        self._connection.call("unpin", keys=keys)

    def unload(self, keys: list[Hashable]) -> None:
        self._connection.call("unload", keys=keys)

    def update(self, mappings: list[KeyModelPathMapping]) -> None:
        sent = [(list(mapping.keys), seen_from_anywhere(mapping.update_path)) for mapping in mappings]
        withdrawal.change(self._connection, "update_models", mappings=sent)


def seen_from_anywhere(path: str) -> str:
    """A path of this process for one that may have another current folder; names that are no paths stay as they are."""
    return os.path.abspath(path) if os.path.exists(path) else path
