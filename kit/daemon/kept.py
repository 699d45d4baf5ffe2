"""What was asked for and a deployment that was served already leaves as it is, in words."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kit.daemon.durations import parse_seconds
from kit.errors import InvalidSetting

if TYPE_CHECKING:
    from kit.daemon.remote_deployment import RemoteDeployment


def settings(deployment: RemoteDeployment, wanted: Mapping[str, Any]) -> str:
    """Its settings, where they aren't those that were wanted; None among these is no wish."""
    if not deployment.attached or all(value is None for value in wanted.values()):
        return ""
    found = deployment.settings
    try:
        if deployment.settings_for(**wanted) == found:
            return ""
    except InvalidSetting:
        pass  # it couldn't serve so
    return f"Its settings stay as they were: {found.describe(by_key=deployment.handler.by_key)}."


def others(
    deployment: RemoteDeployment, keep_alive: float | str | None, allow_pickle: bool, option: str = "allow_pickle=True"
) -> list[str]:
    """A sentence each; `option` is how leave to pickle is given."""
    found, limit = [], deployment.keep_alive_s
    if keep_alive is not None and parse_seconds(keep_alive) != limit:
        found.append(f"It ends after {limit:g} s without a request." if limit else "It ends only when it is ended.")
    if allow_pickle and not deployment.allow_pickle:
        found.append(f"It was served without {option}, and stays so.")
    return found


def warn(
    deployment: RemoteDeployment, wanted: Mapping[str, Any], keep_alive: float | str | None, allow_pickle: bool
) -> None:
    """Warn who called `kit.deploy` of all that it leaves."""
    said = []
    if words := settings(deployment, wanted):
        given = ", ".join(f"{name}={value!r}" for name, value in wanted.items() if value is not None)
        said.append(f"{words} This changes them: deployment.switch({given}).")
    if stay := others(deployment, keep_alive, allow_pickle):
        said.append(f"{' '.join(stay)} To serve it otherwise, end it for all kernels first: deployment.stop().")
    if said:
        was = "was served already" if deployment.attached else "was replaced"
        warnings.warn(f"{deployment.name!r} {was}. {' '.join(said)}", stacklevel=3)
