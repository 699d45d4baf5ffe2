"""What a model host is asked: lanes of worker threads, their requests, and the models that these are for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kit import batching
from kit.engine.codec import Rows
from kit.engine.protocol import FAILED, RUN
from kit.engine.transport import Channel, Message
from kit.engine.unreadable import EXAMPLES, Unreadable

#: Computing time of the batches that one lane gets in a turn, seconds.
TURN_S = 0.005


class Kind:
    """A model that is computed on: what computes, and how its requests share batches."""

    def __init__(self, handler: Any, compute: Any, model: int = 0) -> None:
        self.model = model  # by key: its number
        self.name = type(handler).__name__
        self.compute = compute
        self.options = batching.options_of(handler)
        self.never_coalesce = bool(handler.should_skip_batching())
        self.most = self.options.get("max_batch_size") or batching.MAX_BATCH_SIZE
        self.curve = batching.CostCurve()
        self.last_s = math.inf  # what the last batch took


class HostLane:
    """The host's end of a worker thread's lane."""

    def __init__(self, channel: Channel, slot: int) -> None:
        self.channel = channel
        self.slot = slot  # the worker thread's
        self.args: Mapping[str, Any] | None = None
        self.announced: tuple[str | None, bool] | None = None
        self.kind: Kind | None = None

    def receive(self) -> Message | None:
        """The next message; None when that was a request that can't be rebuilt here, which is failed.

        Raises:
            ChannelClosed: the worker is gone.
        """
        try:
            return self.channel.recv()
        except Unreadable as error:
            if error.message.kind != RUN:
                raise
            self.channel.send(FAILED, error.trouble(EXAMPLES))
            return None


class HostRequest:
    """Examples of a lane, computed in batches of `size` and answered together."""

    __slots__ = ("_at", "_total", "_whole", "alone", "batch", "count", "kind", "lane", "size", "spent", "values")

    def __init__(self, lane: HostLane, kind: Kind, whole: Any, alone: bool, size: int) -> None:
        self.lane = lane
        self.kind = kind
        self.alone = alone
        self.values: list[Any] = []
        self.spent = 0.0
        self._whole = whole
        self._total = len(whole) if type(whole) in (list, Rows) else 1
        self.size = size or self._total
        self._at = 0
        self._cut()

    def _cut(self) -> None:
        at, stop = self._at, min(self._at + self.size, self._total)
        self.batch = self._whole if stop - at == self._total else self._whole[at:stop]
        self.count = stop - at

    def turn(self) -> Any:
        """The examples of as many batches as take about TURN_S; None where that isn't known, or is but one."""
        if not self._at:
            return None
        stop = self._at + int(TURN_S * self._at / max(self.spent, 1e-9) / self.size) * self.size
        return self._whole[self._at : stop] if stop > self._at + self.size and self.count == self.size else None

    def take(self, values: Any, seconds: float) -> bool:
        """Note the inferences of the batch or batches at hand; True when they were the last ones."""
        self.values.append(values)
        self.spent += seconds
        self._at += len(values)
        if self.size >= self._total or self._at >= self._total:
            return True
        self._cut()
        return False
