"""A model host: the single point that computes on a copy of the model for other processes.

    worker threads --lanes--> take all that is waiting -> coalesce -> compute -> answer each

The thread that reads also computes, so a batch never waits for a hand-over between threads, and what
arrived while a batch was computed is looked at together: requests with equal inference arguments
share a batch when the measured cost curve says that it pays. Where workers have several threads, so
have hosts of one model: one of them reads, and another does as soon as that one computes (leader and
followers, Schmidt 2000).
"""

from __future__ import annotations

import os
import select
import threading
import time
import traceback
from typing import Any

from kit.engine import board as fields
from kit.engine.child import Context
from kit.engine.codec import concatenate
from kit.engine.ends import Ends
from kit.engine.host_requests import HostLane, HostRequest, Kind
from kit.engine.host_waiting import Waiting
from kit.engine.keyed_requests import Spec
from kit.engine.keyed_runner import MOST_RUNNERS
from kit.engine.loading import load
from kit.engine.local_model import Computed, LocalModel
from kit.engine.model_store import KINDS, ModelStore
from kit.engine.protocol import ADD_LANE, ALONE, ARGS, FAILED, LOADED, META, MODEL, RESULT, RUN, STOP
from kit.engine.transport import SPIN_S, Channel, ChannelClosed
from kit.engine.trouble import Trouble
from kit.shorten import counted

#: The thread that computes something shorter goes on reading: waking another one takes longer, seconds.
QUICK_S = 0.0005


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
        on_gpu = report["device_bytes"] > 0
        host = Host(context, Kind(context.handler, LocalModel(context.handler, model)), on_gpu=on_gpu)
    context.control.send(LOADED, report)
    return host.run()


class Host:
    """The loop of a model host."""

    def __init__(
        self, context: Context, kind: Kind | None, store: ModelStore | None = None, *, on_gpu: bool = False
    ) -> None:
        self.context = context
        self.board = context.board
        self.slot = context.slot
        self.kind = kind  # None where models are by key
        self.store = store
        self.kinds: dict[int, Kind] = {}  # by route
        self.waiting = Waiting()
        self.spin_s = 0.0
        self.poll = select.poll()
        self.lanes: dict[int, HostLane] = {}
        self.poll.register(context.control.fileno(), select.POLLIN)
        self.threads = 1 if kind is None or on_gpu else context.config["threads"]
        self.computing = 0  # threads
        self.began = 0  # the first of them
        self.ended = False
        self._reading = threading.Lock()  # of the one thread that reads
        self._state = threading.RLock()  # of all that several threads change

    def run(self) -> int:
        """Serve until the owner says stop or is gone."""
        threading.current_thread().name, *names = (f"kit-host-{number}" for number in range(self.threads))
        others = [threading.Thread(target=self._work_or_die, name=name, daemon=True) for name in names]
        for thread in others:
            thread.start()
        self._work()
        for thread in others:
            thread.join()  # it answers what it computes
        return 0

    def _work(self) -> None:
        leading = False
        while True:
            group = None
            if not leading and not self._reading.acquire(blocking=False):
                group = self._left_over()
                if group is None:
                    self._reading.acquire()
            if group is None:
                group = self._next()
                leading = group is not None and (self.threads == 1 or group[0].kind.last_s < QUICK_S)
                if not leading:
                    self._reading.release()
            if group is None:
                return
            self._serve(group)

    def _work_or_die(self) -> None:
        try:
            self._work()
        except BaseException:
            # A thread that ended silently would leave what it computes unanswered for ever.
            traceback.print_exc()
            os._exit(70)

    def _left_over(self) -> list[HostRequest] | None:
        """What the thread that reads has left, None when that is nothing."""
        with self._state:
            return self.waiting.take() if self.waiting and not self.ended else None

    def _next(self) -> list[HostRequest] | None:
        """What is to be computed next, waited for; None at the end. One thread at a time."""
        control = self.context.control
        while not self.ended:
            for fd, _ in self._events():
                with self._state:
                    if fd != control.fileno():
                        self._read(fd)
                    elif not self._obey(control):
                        self.ended = True
            group = self._left_over()
            if group is not None:
                return group
        return None

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
        lane = self.lanes.get(fd)
        if lane is None:  # another thread has just dropped it
            return
        try:
            message = lane.receive()
        except ChannelClosed:
            self._drop(lane)
            return
        if message is None:
            return
        if message.kind == RUN:
            kind = lane.kind or self.kind
            assert kind is not None
            self.waiting.add(HostRequest(lane, kind, message.value, bool(message.flags & ALONE), message.attempt))
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
        with self._state:
            if fd in self.lanes:
                self.poll.unregister(fd)
                del self.lanes[fd]
                lane.channel.close()
            self.waiting.drop(lane)

    def _serve(self, group: list[HostRequest]) -> None:
        began = self._begin()
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
            group[0].kind.last_s = computed.seconds
        except BaseException as error:  # an interrupt is user code's, too: no signal comes here
            self._end(0, 0)
            if len(group) > 1:
                # One request's bad example must not fail another's.
                for request in group:
                    self._serve([request])
            else:
                self._answer_trouble(group[0], error)
            return
        self._end(total, -(-total // group[0].size) if len(group) == 1 else 1, len(group))
        start = 0
        for request in group:
            values = computed.values
            if len(group) > 1:
                values = values[start : start + request.count]
            start += request.count
            if request.take(values, computed.seconds):
                self._answer(request, computed)
            else:
                with self._state:
                    if request.lane.channel.fileno() in self.lanes:
                        # Behind the others: lanes take turns by batches.
                        self.waiting.add(request)

    def _begin(self) -> int:
        """Note that this thread computes; returns since when, in nanoseconds."""
        with self._state:
            self.computing += 1
            if self.computing == 1:
                self.began = self.board.begin(self.slot)
                return self.began
        return time.monotonic_ns()

    def _end(self, examples: int, batches: int, requests: int = 1) -> None:
        """Note its end; the host is busy while any of its threads computes."""
        with self._state:
            self.computing -= 1
            if self.computing:
                self.board.add(self.slot, fields.EXAMPLES, examples)
                self.board.add(self.slot, fields.BATCHES, batches)
            else:
                self.board.end(self.slot, examples, batches)
            if requests > 1:
                self.board.add(self.slot, fields.COALESCED, requests)

    def _turn(self, request: HostRequest) -> Computed | None:
        """Several batches of a request in one go, None when that can't be."""
        examples = request.turn()
        if examples is None:
            return None
        try:
            several: Computed | None = request.kind.compute.several(examples, request.lane.args, request.size)
            return several
        except BaseException:
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
