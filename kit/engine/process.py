"""A forked process as its owner sees it: its channel, what it has been asked, and how it ended."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from kit import errors
from kit.engine import system
from kit.engine.protocol import FAILED, LOADED, STOP
from kit.engine.transport import Channel, ChannelClosed

#: How long a process told to end may take before it is killed.
STOP_TIMEOUT_S = 3.0
_numbers = itertools.count(1)


class Process:
    """A forked process: its pid, its control channel, and how it ended.

    Attributes:
        role: "worker", "host", "loader" or "quarantine".
        index: number within its role.
        loaded: resolves to the report of the process once its model is ready, or to the error.
        condemned: True once we ended it for good.
        ready: True once its model was loaded.
        loads: models by key that it is loading, or was when it died.
        expected_death: True when its end shall not count as a death, but it is to be replaced.
        replaced: True once another is started in its place.
    """

    def __init__(self, role: str, index: int, slot: int) -> None:
        self.role = role
        self.index = index
        self.slot = slot
        self.pid = 0
        self.control: Channel | None = None
        self.output = -1
        self.loaded: Future[Any] = Future()
        self.acks: dict[tuple[int, int], Future[Any]] = {}
        self.exited = threading.Event()
        self.exit_status: int | None = None
        self.condemned = False
        self.expected_death = self.replaced = False
        self.loads = 0
        self.knows: set[int] = set()  # routes of models by key whose handlers it has found
        self.ready = False
        self.started_at = time.monotonic()
        self.report: dict[str, Any] = {}
        self.lanes: list[Any] = []
        self.lane_slots: list[int] = []
        self.on_exit: Callable[[Process], None] | None = None

    @property
    def name(self) -> str:
        """What it is called in words, such as "worker 0"."""
        return f"{self.role} {self.index}"

    @property
    def alive(self) -> bool:
        return self.pid > 0 and not self.exited.is_set()

    def describe_exit(self) -> str:
        """How the process ended, in words."""
        if self.exit_status is None:
            return "ended with the fork server"
        if self.expected_death:
            return "was killed on purpose"
        return system.describe_exit(self.exit_status)

    def ask_to_stop(self) -> None:
        """Let the process end by itself."""
        self.condemned = True
        if self.control is not None:
            with contextlib.suppress(ChannelClosed):
                self.control.send(STOP)

    def kill(self) -> None:
        """End the process now, on purpose."""
        self.condemned = True
        if self.alive:
            system.kill(self.pid)

    def ask(self, kind: int, value: Any, fds: tuple[int, ...] = (), *, reply: int | None = None) -> Future[Any]:
        """Send a control message; the future resolves to the value of its reply."""
        number = next(_numbers)
        future: Future[Any] = Future()
        self.acks[(kind if reply is None else reply, number)] = future
        assert self.control is not None
        try:
            self.control.send(kind, value, request=number, fds=fds)
        except ChannelClosed:
            self.control_closed()
        return future

    def take_control_message(self) -> None:
        """Read one message of the control channel; resolves `loaded` and `acks`.

        Raises:
            ChannelClosed: the process is gone.
        """
        assert self.control is not None
        message = self.control.recv()
        assert message is not None
        if message.kind == LOADED:
            if not self.loaded.done():
                self.loaded.set_result((message.value, message.fds))
        elif message.kind == FAILED:
            if not self.loaded.done():
                self.loaded.set_exception(message.value.error())
        else:
            waiting = self.acks.pop((message.kind, message.request), None)
            if waiting is not None:
                with contextlib.suppress(InvalidStateError):  # another thread has just seen the end of the process
                    waiting.set_result(message.value)

    def control_closed(self) -> None:
        """All that the process had to say is read: what is still waited for won't come."""
        error = errors.WorkerDied(f"{self.name} (pid {self.pid}) is gone.")
        for future in (self.loaded, *list(self.acks.values())):
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)

    def gone(self, status: int | None) -> None:
        """Note the end of the process; called once, in the fork server's reader thread."""
        self.exit_status = status
        self.exited.set()
        if self.on_exit is not None:
            self.on_exit(self)
