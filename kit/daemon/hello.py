"""What a kernel says about itself when it connects, and what is checked before anything else."""

from __future__ import annotations

import os
import sys
from typing import Any

import kit
from kit import errors, search_path
from kit.daemon.frames import Frame
from kit.daemon.wire import Malformed

#: What a kernel can ask for. Only "list", "stop" and "look" work across versions.
SERVE, ATTACH, LOOK, LIST, STOP = "serve", "attach", "look", "list", "stop"
#: Said by a kernel that was interrupted in a SERVE, once it has hung up that connection.
WITHDRAW = "withdraw"
#: What came of it: the handler was loaded, took the place of what was served, or was served already.
SERVED, REPLACED, ATTACHED = "served", "replaced", "attached"
#: And of withdrawing it: nothing is served, another kernel waits for it, or what was served before is kept.
CANCELLED, AWAITED, KEPT = "cancelled", "awaited", "kept"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_TYPES = {"action": str, "name": str, "kit": str, "python": str, "pid": int, "label": str}


def hello(action: str, name: str = "", **more: Any) -> dict[str, Any]:
    """The first message of a connection.

    With SERVE also: digest of the handler, replace, and the process that a new deployment starts with
    (executable, path, folder, environment).
    """
    return {
        "action": action,
        "name": name,
        "kit": kit.__version__,
        "python": PYTHON,
        "pid": os.getpid(),
        "label": label(),
        **more,
    }


def surroundings() -> dict[str, Any]:
    """Python, search path, folder and environment of this process, for the deployment's process to start with."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        folder = "/"
    return {
        "executable": sys.executable,
        "path": search_path.entries(),
        "folder": folder,
        "environment": dict(os.environ),
    }


def label() -> str:
    """What to call this process in a picture: its notebook, or its script."""
    notebook = os.environ.get("JPY_SESSION_NAME")
    if notebook:
        return os.path.basename(notebook)
    if "ipykernel" in sys.modules:
        return f"kernel {os.getpid()}"
    script = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c") else "python"
    return f"{script} {os.getpid()}"


def read(frame: Frame) -> dict[str, Any]:
    """The checked dict of a HELLO or CONNECTION frame.

    Raises:
        Malformed: it isn't one.
    """
    found = frame.decoder.value()
    if not isinstance(found, dict) or any(type(found.get(name)) is not kind for name, kind in _TYPES.items()):
        raise Malformed("not a hello")
    if found["action"] == SERVE and type(found.get("digest")) is not str:
        raise Malformed("not a hello of serve")
    return found


def check_start(start: Any) -> dict[str, Any]:
    """The checked `surroundings` that a kernel sent.

    Raises:
        Malformed: they aren't that.
    """
    if (
        type(start) is not dict
        or type(start.get("environment")) is not dict
        or not _texts([start.get("executable"), start.get("folder")])
        or not _texts(start.get("path"))
        or not _texts([part for item in start["environment"].items() for part in item])
    ):
        raise Malformed("not a hello of serve")
    return start


def _texts(values: Any) -> bool:
    return type(values) is list and all(type(value) is str and "\0" not in value for value in values)


def check_versions(said: dict[str, Any], whose: str) -> None:
    """Compare a kernel's versions with ours.

    Raises:
        DaemonMismatch: they differ; what to do is in the message.
    """
    if said["kit"] == kit.__version__ and said["python"] == PYTHON:
        return
    raise errors.DaemonMismatch(
        f"{whose} (pid {os.getpid()}) runs kit {kit.__version__} under Python {PYTHON}, and this kernel has kit "
        f"{said['kit']} under Python {said['python']}. Use the same in both; or end what runs there with "
        "`python -m kit stop --all` and serve again from here."
    )


def unknown(name: str, names: str) -> errors.UnknownDeployment:
    """The error for a name that nobody has served."""
    there_are = f"there {'are' if ',' in names else 'is'} {names or 'none'}"
    return errors.UnknownDeployment(
        f"no deployment is named {name!r}; {there_are}. Serve one with %serve HANDLER --name {name}, or "
        f"kit.deploy(handler, name={name!r})."
    )
