"""Packing a handler so that it can travel to the serving processes."""

from __future__ import annotations

from typing import Any

import cloudpickle

from kit.errors import HandlerNotPicklable


def pack(handler: Any) -> bytes:
    """Pickle a handler, its class included when it was defined in a notebook cell.

    Raises:
        HandlerNotPicklable: naming the attribute that can't travel.
    """
    try:
        return bytes(cloudpickle.dumps(handler, protocol=5))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        name = type(handler).__name__
        for attribute, value in sorted(getattr(handler, "__dict__", {}).items()):
            try:
                cloudpickle.dumps(value, protocol=5)
            except Exception as cause:
                raise HandlerNotPicklable(
                    f"{name}.{attribute} (a {type(value).__name__}) can't travel to the worker processes: "
                    f"{type(cause).__name__}: {cause}. Make it in load_model(), which runs in the worker, or keep a "
                    "path or a name in the handler instead."
                ) from error
        raise HandlerNotPicklable(
            f"{name} can't travel to the worker processes: {reason}. Something that its methods or class refer to "
            "can't be pickled; make it in load_model(), which runs in the worker."
        ) from error
