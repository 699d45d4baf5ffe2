"""A handler's way into the process of a named deployment."""

from __future__ import annotations

import traceback
from typing import Any

import cloudpickle

from kit import errors
from kit.daemon.direct_line import DOOR
from kit.engine import tensor_bytes
from kit.engine.asking import looks_into, preload_of, works_on_tensors
from kit.engine.processes import ForkServer
from kit.engine.trouble import Trouble


def lost_while_loading(name: str, error: BaseException) -> errors.KitError:
    trouble = Trouble.of(error)
    return errors.DeploymentLost(f"{name!r} wasn't loaded: {trouble.message}", trouble.trace)


def rebuild(data: Any) -> Any:
    """A handler from what `packing.pack` made of it; only called for a serve or update of a peer with our uid.

    Raises:
        ModelLoadFailed: it can't be rebuilt in this process.
    """
    try:
        return cloudpickle.loads(data)
    except Exception as error:
        raise errors.ModelLoadFailed(
            f"the handler can't be rebuilt in the deployment's process: {type(error).__name__}: {error}. Its modules "
            "must be found from the folder and search path of the notebook that serves it.",
            "".join(traceback.format_exception(error)),
        ) from error


def forkserver_of(handler: Any) -> ForkServer:
    """The fork server of the deployment; while it starts, torch is imported here, too, where tensors are looked into.

    Elsewhere it would take 130 MB for nothing: tensors are passed on as bytes.
    """
    tensor_bytes.pass_on(not looks_into(handler))
    found = ForkServer([*preload_of(handler), DOOR.rpartition(".")[0]])
    if looks_into(handler) and works_on_tensors(handler):
        import torch  # noqa: F401
    return found
