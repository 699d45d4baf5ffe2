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
from typing import Any

from kit import batching
from kit.engine import board as fields
from kit.engine.child import Context
from kit.engine.codec import Rows, concatenate
from kit.engine.ends import Ends
from kit.engine.host_requests import HostLane, HostRequest, Kind
from kit.engine.keyed_requests import Spec
from kit.engine.keyed_runner import MOST_RUNNERS
from kit.engine.loading import load
from kit.engine.local_model import Computed, LocalModel
from kit.engine.model_store import KINDS, ModelStore
from kit.engine.protocol import ADD_LANE, ALONE, ARGS, FAILED, LOADED, META, MODEL, RESULT, RUN, STOP
from kit.engine.transport import SPIN_S, Channel, ChannelClosed
from kit.engine.trouble import FAILURES, Trouble
from kit.shorten import counted


def main(context: Context) -> int:
    """Load the model and compute for worker threads until told to stop; returns the exit code."""
    report: dict[str, Any] = {}
    if getattr(context.handler, "routes", None) is not None:
        host = Host(context, None, ModelStore(context.handler))
    else:
        found = context.loaded(lambda: load(context.handler))
        if found is None:
            return 1
        model, report = found
        host = Host(context, Kind(context.handler, LocalModel(context.handler, model)))
    context.control.send(LOADED, report)
    return host.run()


class Host:
    """The loop of a model host."""

    def __init__(self, context: Context, kind: Kind | None, store: ModelStore | None = None) -> None:
        self.context = context
        self.board = context.board
        self.slot = context.slot
        self.kind = kind  # None where models are by key
        self.store = store
        self.kinds: dict[int, Kind] = {}  # by route
        self.waiting: deque[HostRequest] = deque()
        self.spin_s = 0.0
        self.poll = select.poll()
        self.lanes: dict[int, HostLane] = {}
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
                self.lanes[channel.fileno()] = HostLane(channel, slot)
                self.poll.register(channel.fileno(), select.POLLIN)
            control.send(ADD_LANE, request=message.request)
        elif self.store is not None and message.kind in KINDS:
            self.store.obey(message, control)
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
            kind = lane.kind or self.kind
            assert kind is not None
            self.waiting.append(HostRequest(lane, kind, message.value, bool(message.flags & ALONE), message.attempt))
        elif message.kind == MODEL:
            lane.kind = self._kind_of(message.value)
        elif message.kind == ARGS:
            lane.args = message.value

    def _kind_of(self, spec: Spec) -> Kind:
        kind = self.kinds.get(spec.route)
        if kind is None:
            assert self.store is not None
            if len(self.kinds) >= MOST_RUNNERS:
                self.kinds.clear()
            kind = self.kinds[spec.route] = Kind(self.store.handlers.of(spec), self.store.compute(spec), spec.model)
        elif kind.model != spec.model:
            assert self.store is not None
            kind.model, kind.compute = spec.model, self.store.compute(spec)
        return kind

    def _drop(self, lane: HostLane) -> None:
        fd = lane.channel.fileno()
        if fd in self.lanes:
            self.poll.unregister(fd)
            del self.lanes[fd]
            lane.channel.close()
        self.waiting = deque(request for request in self.waiting if request.lane is not lane)

    def _coalesce(self) -> list[HostRequest]:
        """Take the oldest request and those that may share its batch."""
        first = self.waiting.popleft()
        group = [first]
        kind = first.kind
        if kind.never_coalesce or first.alone or not self.waiting:
            return group
        total = first.count
        left: deque[HostRequest] = deque()
        for request in self.waiting:
            joins = (
                request.kind is kind
                and not request.alone
                and total + request.count <= kind.most
                and request.lane.args == first.lane.args
                and _alike(first.batch, request.batch)
                and kind.curve.pays(total, request.count)
                and self._within_limits([*group, request])
            )
            if joins:
                group.append(request)
                total += request.count
            else:
                left.append(request)
        self.waiting = left
        return group

    def _within_limits(self, group: list[HostRequest]) -> bool:
        options = group[0].kind.options
        tokens, weight = options.get("max_batch_tokens"), options.get("max_batch_weight")
        if not tokens and not weight and not options.get("batch_bucket_boundaries"):
            return True
        examples = [example for request in group for example in request.batch]
        return len(batching.plan(examples, options)) == 1

    def _serve(self, group: list[HostRequest]) -> None:
        began = self.board.begin(self.slot)
        for request in group:
            self.board.put(request.lane.slot, fields.COMPUTING_NS, began)
        total = sum(request.count for request in group)
        try:
            computed: Computed | None = self._turn(group[0]) if len(group) == 1 else None
            if computed is None:
                batch = group[0].batch if len(group) == 1 else concatenate([request.batch for request in group])
                computed = group[0].kind.compute(batch, group[0].lane.args)
                group[0].kind.curve.record(total, computed.seconds)
            total = len(computed.values)
        except FAILURES as error:
            self.board.end(self.slot, began, 0, 0)
            if len(group) > 1:
                # One request's bad example must not fail another's.
                for request in group:
                    self._serve([request])
            else:
                self._answer_trouble(group[0], error)
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

    def _turn(self, request: HostRequest) -> Computed | None:
        """Several batches of a request in one go, None when that can't be."""
        examples = request.turn()
        if examples is None:
            return None
        try:
            several: Computed | None = request.kind.compute.several(examples, request.lane.args, request.size)
            return several
        except FAILURES:
            return None  # its batches are computed one by one, which tells which of them failed

    def _answer(self, request: HostRequest, computed: Computed) -> None:
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
            self._answer_trouble(request, error)

    def _answer_trouble(self, request: HostRequest, error: BaseException) -> None:
        words = f"{request.kind.name} failed on a batch of {counted(request.count, 'example')}"
        lane, trouble = request.lane, Trouble.of(error, words)
        try:
            lane.channel.send(FAILED, trouble)
        except ChannelClosed:
            self._drop(lane)


def _alike(one: Any, other: Any) -> bool:
    if type(one) is Rows and type(other) is Rows:
        first, second = one.stacked, other.stacked
        return bool(first.shape[1:] == second.shape[1:] and first.dtype == second.dtype)
    return type(one) is list and type(other) is list
