"""What a user gives to a panel, checked."""

from __future__ import annotations

from typing import Any

from kit import inputs
from kit.deployment import Deployment
from kit.errors import DeploymentClosed, InvalidSetting, UnsupportedInput


def rate_of(text: str) -> float | None:
    """Requests a second as the control says; None for as fast as possible. Raises InvalidSetting."""
    if not text.strip():
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < 1e9:
        raise InvalidSetting(f"rate={text!r} (Requests/s): give requests a second, or nothing for as fast as possible.")
    return rate


def check_deployment(given: Any) -> None:
    """Raise InvalidSetting for anything but a deployment."""
    if not isinstance(given, Deployment):
        raise InvalidSetting(f"ServingPanel({given!r:.80}): give a deployment, made by kit.deploy(handler).")


def check_open(deployment: Deployment | None) -> Deployment:
    """The deployment; raises DeploymentClosed when it is gone or closed."""
    if deployment is None or deployment.closed:
        raise DeploymentClosed("the deployment is closed: deploy the handler again, then make a panel for it.")
    return deployment


def sized(examples: Any) -> Any:
    """Examples that can be sent over and over; raises UnsupportedInput or InvalidSetting for others."""
    if examples is None:
        return None
    rows = inputs.sized(examples)
    if rows is None:
        raise UnsupportedInput("examples: give a list, an array or a table; the load sends them over and over.")
    if not len(rows):
        raise InvalidSetting("examples is empty: give at least one, or None.")
    return rows
