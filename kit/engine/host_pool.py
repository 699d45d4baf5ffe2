"""A worker thread's way to the model hosts: it asks the one with the fewest threads waiting."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from kit.engine import board as fields
from kit.engine.keyed_requests import Spec
from kit.engine.local_model import Computed
from kit.engine.protocol import ALONE, ARGS, META, MODEL, RESULT, RUN
from kit.engine.transport import SPIN_S, Channel, ChannelClosed
from kit.engine.unreadable import PREDICTIONS, Unreadable


class HostLost(BaseException):
    """The model host that was asked is gone, its pid, or 0 when none could be asked; not an error of the example."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid


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
        self.board.pause(self.slot)
        self.board.put(self.slot, fields.COMPUTING_NS, 0)
        self.board.put(self.slot, fields.TARGET, lane.index + 1)
        try:
            return lane.compute(batch, inference_args, ALONE if self.alone else 0, size, model)
        except ChannelClosed as error:
            lane.gone = True
            raise HostLost(pid) from error
        finally:
            self.board.put(self.slot, fields.TARGET, 0)
            self.board.put(self.slot, fields.COMPUTING_NS, self.board.begin(self.slot))

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
            try:
                message = channel.recv(spin_s=self.spin_s)
            except Unreadable as error:
                raise error.trouble(PREDICTIONS).error() from None
            assert message is not None
            if message.kind == RESULT:
                # Only where answers come fast is it worth waiting for them awake.
                self.spin_s = SPIN_S if time.monotonic() - sent < 2 * SPIN_S else 0.0
                return Computed(message.value, self.model_id, self.raw, message.spent)
            if message.kind == META:
                self.model_id, self.raw = message.value
            else:
                raise message.value.error()
