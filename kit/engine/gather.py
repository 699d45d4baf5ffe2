"""Computed batches, brought into the order of the examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kit.engine.codec import concatenate
from kit.engine.local_model import Computed


def gather(done: list[tuple[Sequence[int], Computed]], count: int) -> tuple[Any, Any, bool]:
    """Values of `count` examples in their order, their model id or ids, and whether they are bare."""
    if not done:
        return [None] * count, None, True
    raw = done[0][1].raw
    ids = {computed.model_id for _, computed in done}
    in_order = sum(len(part) for part, _ in done) == count and _ascending(done)
    if in_order and len(ids) == 1:
        model_id = ids.pop()
        if len(done) == 1:
            return done[0][1].values, model_id, raw
        joined = concatenate([computed.values for _, computed in done])
        return joined, model_id, raw
    values: list[Any] = [None] * count
    model_ids: list[Any] = [None] * count
    for part, computed in done:
        for at, value in zip(part, computed.values, strict=True):
            values[at] = value
            model_ids[at] = computed.model_id
    return values, (model_ids if len(ids) > 1 else ids.pop()), raw


def _ascending(done: list[tuple[Sequence[int], Computed]]) -> bool:
    at = 0
    for part, _ in done:
        if type(part) is not range or part.start != at:
            return False
        at = part.stop
    return True
