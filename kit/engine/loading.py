"""Loading a model in a serving process, and what it weighs."""

from __future__ import annotations

import os
import time
from typing import Any

from kit.engine import weights


def load(handler: Any) -> tuple[Any, dict[str, Any]]:
    """Load the handler's model; returns it with a report: load_s, weights_bytes.

    ``weights_bytes`` is the sum of the model's torch storages and numpy buffers, each once, plus
    its other pickled state; of a model that can't be pickled, the growth of private memory.
    """
    before = _private_bytes()
    start = time.monotonic()
    model = handler.load_model()
    load_s = time.monotonic() - start
    measured = weights.measure(model)
    if measured is None:
        measured = max(0, _private_bytes() - before)
    return model, {"load_s": load_s, "weights_bytes": measured}


def _private_bytes() -> int:
    from kit.memory import process_memory

    memory = process_memory(os.getpid())
    return 0 if memory is None else int(memory.uss_bytes)
