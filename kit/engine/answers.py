"""Answers of chunks on their way to the requests that their parts belong to, and what is counted then."""

from __future__ import annotations

import threading
from typing import Any

from kit.engine.lane import Lane
from kit.engine.requests import Chunk
from kit.engine.runner import Batch, pick
from kit.engine.trouble import Trouble
from kit.metrics import Counters, LatencySplit


class Answers:
    """Hands out answers and failures, under the counts of one deployment.

    Attributes:
        latest: the last answer: example, result, pid, mode, seconds.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.counters = Counters()
        self.latency = LatencySplit()
        self.latest: dict[str, Any] = {}
        self._made: dict[str, Any] = {}  # by whom the chunk in hand was computed
        self._lock = lock

    def note_times(self, lane: Lane, chunk: Chunk, message: Any, now: float) -> None:
        """Count the latency of a chunk that was just answered."""
        began = max(message.stamp, chunk.sent_at)
        self.counters.batches += message.attempt
        if chunk.asks_for_batches:
            _note_batches(chunk, lane.batches_of(chunk, message))
        for part in chunk.parts:
            total = now - part.request.accepted_at
            queue = max(0.0, began - part.request.accepted_at)
            self.latency.record(total, min(queue, total), min(message.spent, total), len(part.indices))
        self._made = _made(lane, now - began)

    def deliver(self, chunk: Chunk, values: Any, model_ids: Any, plain: bool, troubles: dict[int, Trouble]) -> None:
        """Hand the answers of a chunk to the requests that its parts belong to."""
        start = 0
        for request, indices in chunk.parts:
            stop = start + len(indices)
            if not request.ended:
                mine = values[start:stop] if len(chunk.parts) > 1 else values
                ids = model_ids[start:stop] if isinstance(model_ids, list) else model_ids
                failed = {at - start: trouble for at, trouble in troubles.items() if start <= at < stop}
                with self._lock:
                    self.counters.answered += len(indices) - len(failed)
                    self.counters.failed += len(failed) if request.isolate else 0
                request.settle(indices, mine, ids, plain, failed)
            start = stop
        if start:
            request, indices = chunk.parts[-1]
            # A new dict: who reads it gets an example with its own answer.
            example, result = request.shown(indices[-1])
            self.latest = {**self._made, "example": example, "result": result}

    def show(self, lane: Lane, example: Any, result: Any, seconds: float) -> None:
        """Note the latest of the answers that a thread gave directly."""
        self.latest = {**_made(lane, seconds), "example": example, "result": result}

    def fail(self, chunk: Chunk, trouble: Trouble) -> list[Chunk]:
        """Fail a chunk; of one with several requests, or examples that may fail alone, the pieces to try instead."""
        if len(chunk.parts) > 1:
            return chunk.split()
        if chunk.isolate and chunk.count > 1 and trouble.kind != "WrongPredictionCount":
            return chunk.singles()
        self.fail_all(chunk, trouble)
        return []

    def fail_all(self, chunk: Chunk, trouble: Trouble) -> None:
        """Fail all examples of a chunk."""
        if chunk.isolate:
            self.deliver(chunk, [None] * chunk.count, None, False, dict.fromkeys(range(chunk.count), trouble))
        else:
            for request, _ in chunk.parts:
                request.fail_all(trouble.error())


def _note_batches(chunk: Chunk, batches: list[Batch]) -> None:
    """Tell the requests of a chunk of the batches in which some of their examples were."""
    for where, seconds in batches:
        start = 0
        for request, indices in chunk.parts:
            stop = start + len(indices)
            mine = [at - start for at in where if start <= at < stop] if len(chunk.parts) > 1 else where
            if mine:
                request.note_batch(pick(indices, mine), seconds)
            start = stop


def _made(lane: Lane, seconds: float) -> dict[str, Any]:
    """What made an answer: the process, its mode, and how long it took."""
    return {"pid": lane.process.pid, "mode": lane.mode, "seconds": seconds}
