"""Loading a model in a serving process, and what it weighs."""

from __future__ import annotations

from typing import Any

from kit.engine.giving_way import giving_way
from kit.model_bytes import timed_load


def load(handler: Any) -> tuple[Any, dict[str, Any]]:
    """Load the handler's model; returns it with a report: load_s, weights_bytes, device_bytes and mapped.

    ``weights_bytes`` is the sum of the model's torch storages and numpy buffers, each once, plus
    its other pickled state; of a model that can't be pickled, the growth of the process. ``mapped`` has
    the part of them in mapped files, one dict by file, and ``device_bytes`` is the part on a GPU.
    """
    with giving_way():
        loaded = timed_load(handler.load_model)
    report = {"load_s": loaded.load_s, "weights_bytes": loaded.size_bytes, "device_bytes": loaded.device_bytes}
    return loaded.model, {**report, "mapped": [loaded.mapped]}
