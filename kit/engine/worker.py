"""A worker process: threads that take chunks of examples from the owner and answer them.

    main thread      loads the model (modes default, shared), then waits for word from the owner
    worker thread    lane: RUN -> pre-process, compute here or in a model host, post-process -> RESULT

Each thread has a lane of its own to the owner and, in modes large and medium, one to each host, so
threads share nothing but the model.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from kit.engine import board as fields
from kit.engine import weights
from kit.engine.child import Context
from kit.engine.ends import Ends
from kit.engine.keyed_requests import Spec
from kit.engine.loading import load
from kit.engine.local_model import Computed, LocalModel
from kit.engine.model_store import KINDS, KeyedRunners, ModelStore
from kit.engine.protocol import (
    ADD_HOST,
    ALONE,
    ARGS,
    FAILED,
    FULL_RESULT,
    ISOLATE,
    LOADED,
    LOST,
    META,
    MODEL,
    RESULT,
    RUN,
    STOP,
)
from kit.engine.runner import Outcome, Runner
from kit.engine.transport import SPIN_S, Channel, ChannelClosed
from kit.engine.trouble import Trouble


class HostLost(BaseException):
    """The model host that was asked is gone, its pid, or 0 when none could be asked; not an error of the example."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid


class Unwanted(BaseException):
    """The chunk at hand was cancelled; what is left of it needn't be computed."""


def main(context: Context) -> int:
    """Serve until told to stop; returns the exit code."""
    lanes = [context.take_channel() for _ in context.config["lane_slots"]]
    remote = context.config["remote"]
    report: dict[str, Any] = {}
    model = None
    by_key = getattr(context.handler, "routes", None) is not None
    store = ModelStore(context.handler) if by_key else None
    if not remote and store is None:
        found = context.loaded(lambda: _model_of(context))
        if found is None:
            return 1
        model, report = found
    pools = []
    for lane, slot in zip(lanes, context.config["lane_slots"], strict=True):
        pool = HostPool(context.board, slot) if remote else None
        pools.append(pool)
        compute = pool if pool is not None else LocalModel(context.handler, model)
        runners = None
        if store is not None:
            runners = KeyedRunners(context.handler, store.handlers, pool.one if pool is not None else store.compute)
        thread = LaneThread(context, lane, slot, compute, runners)
        threading.Thread(target=thread.run, name=f"kit-lane-{slot}", daemon=True).start()
    context.control.send(LOADED, report)
    while True:
        try:
            message = context.control.recv()
        except ChannelClosed:
            return 0
        assert message is not None
        if message.kind == STOP:
            return 0
        if store is not None and message.kind in KINDS:
            store.obey(message, context.control)
        elif message.kind == ADD_HOST:
            (index, pid), fds = message.value, message.fds
            for position, pool in enumerate(pools):
                assert pool is not None
                pool.add(index, pid, Ends(*fds[2 * position : 2 * position + 2]).open(first=True))
            context.control.send(ADD_HOST, request=message.request)


def _model_of(context: Context) -> tuple[Any, dict[str, Any]]:
    if "segment" in context.config:
        return weights.attach_segment(context.fds.pop(0), context.config["segment"])
    return load(context.handler)


class HostPool:
    """Computes batches on model hosts, the one with the fewest threads waiting first."""

    def __init__(self, board: fields.Board, slot: int) -> None:
        self.board = board
        self.slot = slot
        self.alone = False  # the request at hand is not to share a batch with another's
        self.model: tuple[Spec, int] | None = None  # the model by key at hand, and the pid of the host that has it
        self._hosts: dict[int, _HostLane] = {}  # by pid: another host may get the index of one that is gone

    def add(self, index: int, pid: int, channel: Channel) -> None:
        """Use one more host; called from the main thread, the only one that changes what hosts there are."""
        self._hosts = {**self._living(), pid: _HostLane(index, channel)}

    def _living(self) -> dict[int, _HostLane]:
        return {pid: lane for pid, lane in self._hosts.items() if not lane.gone}

    def one(self, spec: Spec) -> HostPool:
        """What computes for a model by key: this, once `model` says which host has it."""
        return self

    def __call__(self, batch: Any, inference_args: Mapping[str, Any] | None, size: int = 0) -> Computed:
        """Compute a batch on a host; with `size`, in batches of that many examples, answered together.

        Raises:
            HostLost: the host went away, or there is none.
        """
        model, pid = self.model or (None, None)
        hosts = self._living()
        if pid is None and hosts:
            pid = self._least_loaded(hosts)
        lane = None if pid is None else hosts.get(pid)
        if pid is None or lane is None:
            raise HostLost(0)
        self.board.put(self.slot, fields.COMPUTING_NS, 0)
        self.board.put(self.slot, fields.TARGET, lane.index + 1)
        try:
            return lane.compute(batch, inference_args, ALONE if self.alone else 0, size, model)
        except ChannelClosed as error:
            lane.gone = True
            raise HostLost(pid) from error
        finally:
            self.board.put(self.slot, fields.TARGET, 0)
            self.board.put(self.slot, fields.COMPUTING_NS, time.monotonic_ns())

    def several(self, examples: Any, inference_args: Mapping[str, Any] | None, size: int) -> Computed:
        """Compute examples on a host in batches of `size`, with one answer for all."""
        return self(examples, inference_args, size)

    def _least_loaded(self, hosts: dict[int, _HostLane]) -> int:
        if len(hosts) == 1:
            return next(iter(hosts))
        pids = {lane.index: pid for pid, lane in hosts.items()}
        waiting = dict.fromkeys(pids, 0)
        for slot in range(1, self.board.used):
            target = self.board.get(slot, fields.TARGET) - 1
            if target in waiting:
                waiting[target] += 1
        # Threads that find all hosts alike start at different ones.
        order = sorted(waiting)
        turn = self.slot % len(order)
        order = order[turn:] + order[:turn]
        return pids[min(order, key=waiting.__getitem__)]


class _HostLane:
    def __init__(self, index: int, channel: Channel) -> None:
        self.index = index
        self.gone = False
        self.channel = channel
        self.args: Mapping[str, Any] | None = None
        self.model_id: str | None = None
        self.raw = False
        self.spin_s = 0.0
        self.model: Spec | None = None

    def compute(
        self, batch: Any, inference_args: Mapping[str, Any] | None, flags: int, size: int, model: Spec | None
    ) -> Computed:
        channel = self.channel
        if model != self.model:
            channel.send(MODEL, model)
            self.model = model
        if inference_args != self.args:
            channel.send(ARGS, inference_args)
            self.args = inference_args
        channel.send(RUN, batch, flags=flags, attempt=size)
        sent = time.monotonic()
        while True:
            message = channel.recv(spin_s=self.spin_s)
            assert message is not None
            if message.kind == RESULT:
                # Only where answers come fast is it worth waiting for them awake.
                self.spin_s = SPIN_S if time.monotonic() - sent < 2 * SPIN_S else 0.0
                return Computed(message.value, self.model_id, self.raw, message.spent)
            if message.kind == META:
                self.model_id, self.raw = message.value
            else:
                raise message.value.error()


class LaneThread:
    """One worker thread."""

    def __init__(
        self, context: Context, lane: Channel, slot: int, compute: Any, runners: KeyedRunners | None = None
    ) -> None:
        self.board = context.board
        self.pool = compute if isinstance(compute, HostPool) else None
        self.lane = lane
        self.slot = slot
        self.runners = runners
        self.model: tuple[Spec, int] | None = None  # the model by key of what comes next, and its host's pid
        self.runner: Any = Runner(context.handler, compute)
        self.args: Mapping[str, Any] | None = None
        self.model_ids: Any = None

    def run(self) -> None:
        """Answer chunks until the owner closes the lane."""
        try:
            while True:
                message = self.lane.recv()
                assert message is not None
                if message.kind == RUN:
                    self._answer(message)
                elif message.kind == ARGS:
                    self.args = message.value
                elif message.kind == MODEL:
                    self.model = message.value
                del message
        except ChannelClosed:
            return
        except BaseException:
            # A thread that ended silently would leave its chunks unanswered for ever.
            traceback.print_exc()
            os._exit(70)

    def _answer(self, message: Any) -> None:
        started = time.monotonic()
        began = self.board.begin(self.slot)
        self.board.put(self.slot, fields.COMPUTING_NS, began)
        if self.pool is not None:
            self.pool.alone, self.pool.model = bool(message.flags & ALONE), self.model
        count = batches = 0
        try:
            if self.runners is not None and self.model is not None:
                self.runner = self.runners.of(self.model[0])
            outcome = self.runner.run(
                message.value, self.args, isolate=bool(message.flags & ISOLATE), check=self._check_for(message.request)
            )
        except Unwanted:
            trouble = Trouble("InferenceFailed", "nobody waits for these examples any more.", "")
            self.lane.send(FAILED, trouble, request=message.request, stamp=started)
        except HostLost as lost:
            self.lane.send(LOST, lost.pid, request=message.request, stamp=started)
        except Exception as error:
            self.lane.send(FAILED, Trouble.of(error), request=message.request, stamp=started)
        else:
            count, batches = len(outcome.values), len(outcome.batches)
            self._send(outcome, message.request, started)
        self.board.put(self.slot, fields.COMPUTING_NS, 0)
        self.board.end(self.slot, began, count, batches)

    def _check_for(self, chunk_id: int) -> Callable[[], None]:
        get, slot = self.board.get, self.slot

        def check() -> None:
            if chunk_id in (get(slot, fields.CANCELLED), get(slot, fields.ALSO_CANCELLED)):
                raise Unwanted

        return check

    def _send(self, outcome: Outcome, request: int, started: float) -> None:
        spent = sum(seconds for _, seconds in outcome.batches)
        about = {"request": request, "stamp": started, "spent": spent, "attempt": min(len(outcome.batches), 0xFFFF)}
        try:
            if outcome.plain or outcome.troubles or isinstance(outcome.model_ids, list):
                value = (list(outcome.values), outcome.model_ids, outcome.plain, outcome.troubles)
                self.lane.send(FULL_RESULT, value, **about)  # type: ignore[arg-type]
                return
            if outcome.model_ids != self.model_ids:
                self.lane.send(META, outcome.model_ids)
                self.model_ids = outcome.model_ids
            self.lane.send(RESULT, outcome.values, **about)  # type: ignore[arg-type]
        except ChannelClosed:
            raise
        except Exception as error:
            message = (
                f"the predictions can't be sent back: {type(error).__name__}: {error}. Return numbers, text, "
                "arrays or other picklable objects from run_inference or a post-processing function."
            )
            self.lane.send(FAILED, Trouble("InferenceFailed", message, traceback.format_exc()), request=request)
