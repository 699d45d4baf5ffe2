"""A handler as far as other kernels know it: its class stays in the deployment's process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.daemon.connection import Connection


class RemoteHandler:
    """Stands in for the handler of a named deployment.

    Attributes:
        type_name: name of the handler's class.
        model_id: path or name of its model, if it has one.
        by_key: whether it has models by key.
        takes_paths: whether `Deployment.update_model` can give it a path.
    """

    def __init__(self, about: Mapping[str, Any], connection: Connection) -> None:
        self._connection = connection
        self.learn(about)

    def learn(self, about: Mapping[str, Any]) -> None:
        """Take what the deployment says of the handler that it serves now, as `calls.describe` puts it."""
        self.type_name: str = about["type"]
        self.model_id: str | None = about["model_id"]
        self.by_key = bool(about["by_key"])
        self.takes_paths = bool(about["takes_paths"])
        self._options = dict(about["options"])
        self._shares = bool(about["shares"])
        self._copies = int(about["copies"])
        self._accepted: Mapping[str, Any] | None = None

    def batching_options(self) -> dict[str, Any]:
        """Batching options; True in place of a function."""
        return dict(self._options)

    def share_model_across_processes(self) -> bool:
        """As the handler says."""
        return self._shares

    def model_copies(self) -> int:
        """As the handler says."""
        return self._copies

    def validate_inference_args(self, inference_args: Mapping[str, Any] | None) -> None:
        """Have the handler judge the arguments; those that it has just accepted aren't sent again."""
        if inference_args is None or self._accepted is inference_args:
            return
        self._connection.call("validate", inference_args=dict(inference_args))
        self._accepted = inference_args

    def __repr__(self) -> str:
        return f"<{self.type_name} of the named deployment {self._connection.name!r}>"
