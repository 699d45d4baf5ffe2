"""A model host: the single point that computes on a copy of the model for other processes.

    worker threads --lanes--> take all that is waiting -> coalesce -> compute -> answer each

One thread reads and computes, so a batch never waits for a hand-over between threads, and what
arrived while a batch was computed is looked at together: requests with equal inference arguments
share a batch when the measured cost curve says that it pays.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from kit import batching
from kit.engine import board as fields
from kit.engine.child import Context
from kit.engine.codec import Rows, concatenate
from kit.engine.ends import Ends
from kit.engine.loading import load
from kit.engine.local_model import Computed, LocalModel
from kit.engine.protocol import ADD_LANE, ALONE, ARGS, FAILED, LOADED, META, RESULT, RUN, STOP
from kit.engine.transport import SPIN_S, Channel, ChannelClosed
from kit.engine.trouble import Trouble


def main(context: Context) -> int:
    """Load the model and compute for worker threads until told to stop; returns the exit code."""
    found = context.loaded(lambda: load(context.handler))
    if found is None:
        return 1
    model, report = found
    host = Host(context, LocalModel(context.handler, model))
    context.control.send(LOADED, report)
    return host.run()


#: Computing time of the batches that one lane gets in a turn, seconds.
TURN_S = 0.005


class _Lane:
    """The host's end of a worker thread's lane."""

    def __init__(self, channel: Channel, slot: int) -> None:
        self.channel = channel
        self.slot = slot  # the worker thread's
        self.args: Mapping[str, Any] | None = None
        self.announced: tuple[str | None, bool] | None = None


class _Request:
    """Examples of a lane, computed in batches of `size` and answered together."""

    __slots__ = ("_at", "_total", "_whole", "alone", "batch", "count", "lane", "size", "spent", "values")

    def __init__(self, lane: _Lane, whole: Any, alone: bool, size: int) -> None:
        self.lane = lane
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


class Host:
    """The loop of a model host."""

    def __init__(self, context: Context, compute: LocalModel) -> None:
        self.context = context
        self.compute = compute
        self.board = context.board
        self.slot = context.slot
        handler = context.handler
        self.options = batching.options_of(handler)
        self.never_coalesce = bool(handler.should_skip_batching())
        self.most = self.options.get("max_batch_size") or batching.MAX_BATCH_SIZE
        self.curve = batching.CostCurve()
        self.waiting: deque[_Request] = deque()
        self.spin_s = 0.0
        self.poll = select.poll()
        self.lanes: dict[int, _Lane] = {}
        self.poll.register(context.control.fileno(), select.POLLIN)

    def run(self) -> int:
        """Serve until the owner says stop or is gone."""
        control = self.context.control
        while True:
            for fd, _ in self._events():
                if fd != control.fileno():
                    self._read(fd)
                elif not self._obey(control):
                    return 0
            if self.waiting:
                self._serve(self._coalesce())

    def _events(self) -> list[tuple[int, int]]:
        """What is readable; waits for it when there is nothing to compute, awake while requests come fast."""
        poll = self.poll.poll
        events = poll(0)
        if events or self.waiting:
            return events
        began = now = time.monotonic()
        while not events and now - began < self.spin_s:
            os.sched_yield()  # the other side may need this very core
            events = poll(0)
            now = time.monotonic()
        if not events:
            events = poll()
        self.spin_s = SPIN_S if time.monotonic() - began < 2 * SPIN_S else 0.0
        return events

    def _obey(self, control: Channel) -> bool:
        try:
            message = control.recv()
        except ChannelClosed:
            return False
        assert message is not None
        if message.kind == ADD_LANE:
            for number, slot in enumerate(message.value):
                channel = Ends(*message.fds[2 * number : 2 * number + 2]).open(first=False)
                self.lanes[channel.fileno()] = _Lane(channel, slot)
                self.poll.register(channel.fileno(), select.POLLIN)
            control.send(ADD_LANE, request=message.request)
        return message.kind != STOP

    def _read(self, fd: int) -> None:
        lane = self.lanes[fd]
        try:
            message = lane.channel.recv()
        except ChannelClosed:
            self._drop(lane)
            return
        assert message is not None
        if message.kind == RUN:
            self.waiting.append(_Request(lane, message.value, bool(message.flags & ALONE), message.attempt))
        elif message.kind == ARGS:
            lane.args = message.value

    def _drop(self, lane: _Lane) -> None:
        fd = lane.channel.fileno()
        if fd in self.lanes:
            self.poll.unregister(fd)
            del self.lanes[fd]
            lane.channel.close()
        self.waiting = deque(request for request in self.waiting if request.lane is not lane)

    def _coalesce(self) -> list[_Request]:
        """Take the oldest request and those that may share its batch."""
        first = self.waiting.popleft()
        group = [first]
        if self.never_coalesce or first.alone or not self.waiting:
            return group
        total = first.count
        left: deque[_Request] = deque()
        for request in self.waiting:
            joins = (
                not request.alone
                and total + request.count <= self.most
                and request.lane.args == first.lane.args
                and _alike(first.batch, request.batch)
                and self.curve.pays(total, request.count)
                and self._within_limits([*group, request])
            )
            if joins:
                group.append(request)
                total += request.count
            else:
                left.append(request)
        self.waiting = left
        return group

    def _within_limits(self, group: list[_Request]) -> bool:
        options = self.options
        tokens, weight = options.get("max_batch_tokens"), options.get("max_batch_weight")
        if not tokens and not weight and not options.get("batch_bucket_boundaries"):
            return True
        examples = [example for request in group for example in request.batch]
        return len(batching.plan(examples, options)) == 1

    def _serve(self, group: list[_Request]) -> None:
        began = self.board.begin(self.slot)
        for request in group:
            self.board.put(request.lane.slot, fields.COMPUTING_NS, began)
        total = sum(request.count for request in group)
        try:
            computed = self._turn(group[0]) if len(group) == 1 else None
            if computed is None:
                batch = group[0].batch if len(group) == 1 else concatenate([request.batch for request in group])
                computed = self.compute(batch, group[0].lane.args)
                self.curve.record(total, computed.seconds)
            total = len(computed.values)
        except Exception as error:
            self.board.end(self.slot, began, 0, 0)
            if len(group) > 1:
                # One request's bad example must not fail another's.
                for request in group:
                    self._serve([request])
            else:
                self._answer_trouble(group[0].lane, error)
            return
        self.board.end(self.slot, began, total, -(-total // group[0].size) if len(group) == 1 else 1)
        if len(group) > 1:
            self.board.add(self.slot, fields.COALESCED, len(group))
        start = 0
        for request in group:
            values = computed.values
            if len(group) > 1:
                values = values[start : start + request.count]
            start += request.count
            if request.take(values, computed.seconds):
                self._answer(request, computed)
            elif request.lane.channel.fileno() in self.lanes:
                # Behind the others: lanes take turns by batches.
                self.waiting.append(request)

    def _turn(self, request: _Request) -> Computed | None:
        """Several batches of a request in one go, None when that can't be."""
        examples = request.turn()
        if examples is None:
            return None
        try:
            return self.compute.several(examples, request.lane.args, request.size)
        except Exception:
            return None  # its batches are computed one by one, which tells which of them failed

    def _answer(self, request: _Request, computed: Computed) -> None:
        lane, parts = request.lane, request.values
        values = parts[0] if len(parts) == 1 else concatenate(parts)
        about = (computed.model_id, computed.raw)
        try:
            if lane.announced != about:
                lane.channel.send(META, about)
                lane.announced = about
            lane.channel.send(RESULT, values, spent=request.spent, stamp=time.monotonic())
        except ChannelClosed:
            self._drop(lane)
        except Exception as error:
            self._answer_trouble(lane, error)

    def _answer_trouble(self, lane: _Lane, error: Exception) -> None:
        trouble = Trouble.of(error, f"{type(self.context.handler).__name__} failed")
        try:
            lane.channel.send(FAILED, trouble)
        except ChannelClosed:
            self._drop(lane)


def _alike(one: Any, other: Any) -> bool:
    if type(one) is Rows and type(other) is Rows:
        first, second = one.stacked, other.stacked
        return bool(first.shape[1:] == second.shape[1:] and first.dtype == second.dtype)
    return type(one) is list and type(other) is list
