"""The processes that serve one handler in one mode, kept alive.

    default   worker | worker               each loads a copy
    large     worker, worker -> host        one copy; every worker thread has a lane to the host
    medium    worker, worker -> host, host  n copies
    shared    loader -> segment -> worker | worker; the loader ends once the weights are proved

A process that dies is replaced; its chunks go back to the dispatcher when its lanes close.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.engine import partners, protocol
from kit.engine.deaths import Deaths
from kit.engine.ends import channel_pair
from kit.engine.lane import Lane
from kit.engine.memory_roles import mapped_files
from kit.engine.process import STOP_TIMEOUT_S, Process
from kit.engine.shared_weights import SharedWeights
from kit.engine.transport import ChannelClosed

if TYPE_CHECKING:
    from kit.engine.core import Engine
    from kit.engine.keyed_requests import Spec
    from kit.settings import Settings


class Topology:
    """Processes and lanes of one mode.

    Attributes:
        model_bytes: measured weight of one copy, None before the first is loaded; `expected_bytes` is what was
            known of it before, None for nothing. mapped_bytes: the part of it that lies in mapped files.
    """

    def __init__(
        self,
        engine: Engine,
        handler: Any,
        handler_bytes: bytes,
        settings: Settings,
        expected_bytes: int | None = None,
    ) -> None:
        self.engine = engine
        self.handler = handler
        self.handler_bytes = handler_bytes
        self.settings = settings
        self.processes: list[Process] = []
        self.lanes: list[Lane] = []
        self.weights: SharedWeights | None = None
        self.model_bytes: int | None = None
        self.mapped_bytes = 0
        self.expected_bytes = expected_bytes
        self.cancelled_by, self.state = "", "new"  # new, serving, stopping
        self.load_s = 0.0
        self._lock = threading.RLock()
        self.deaths = Deaths(self)

    # ---- starting ----------------------------------------------------------------------------

    def start(self, sample: list[Any]) -> None:
        """Start all processes and wait until each has its model.

        Raises:
            BudgetExceeded: the size of the model became known with the first copy, and the others don't fit.
            KitError: whatever kept a process from serving. Nothing is left behind then.
        """
        settings = self.settings
        try:
            if settings.mode == "shared" and self.engine.places is None:
                self.weights = SharedWeights(self)
                self.weights.publish(sample)
            # One that ends is forgotten at once, so those that were started are kept here.
            started = []
            if settings.remote:
                started = [self._start_copy("host", index) for index in range(settings.model_copies)]
            own_copy = settings.mode == "default"
            for index in range(settings.processes):
                started.append(self._start_copy("worker", index) if own_copy else self._spawn_worker(index))
            for process in started:
                self.wait_ready(process)
                # The size known before was an estimate; this is what the copies really take.
                self.check_measured()
            for host in self.of_role("host"):
                for worker in self.of_role("worker"):
                    partners.connect(worker, host)
            self._raise_if_stopped()
        except BaseException:
            self.stop(gently=False)
            raise
        self.state = "serving"
        for process in started:
            if not process.alive:
                self.deaths.replace(process)

    def _start_copy(self, role: str, index: int) -> Process:
        """Start a process with a copy of its own; the first goes alone if its size decides about the others."""
        process = self.spawn(role, index)
        if index == 0 and self.settings.memory_budget and not self.expected_bytes:
            self.wait_ready(process)
            self.check_measured()
        return process

    def check_measured(self) -> None:
        """Raise BudgetExceeded when the copies don't fit, now that the weight of one is measured."""
        self.settings.check_budget(self.model_bytes, self.expected_bytes)

    def wait_ready(self, process: Process) -> Any:
        """Wait until a process has its model; returns what it reports.

        Raises:
            KitError: whatever kept it from that.
        """
        try:
            value, fds = process.loaded.result()
        except errors.SharedModeUnavailable as error:
            raise errors.SharedModeUnavailable(
                f"{error.args[0]}. Use mode 'large', which also keeps one copy.", error.remote_traceback
            ) from None
        except errors.WorkerDied as error:
            self._raise_if_stopped()
            process.exited.wait(STOP_TIMEOUT_S)
            raise errors.ModelLoadFailed(
                f"{process.name} (pid {process.pid}) {process.describe_exit()} while it loaded the model."
            ) from error
        process.ready = True
        self._note_report(process, value)
        return value, fds

    def _note_report(self, process: Process, value: Any) -> None:
        if process.role != "loader" and not process.report:
            process.report = value
            # A worker of mode shared tells of its segment; what the model is loaded from, the loader has told.
            if value.get("weights_bytes") and self.weights is None:
                self.note_weights(value)
            if "load_s" in value:
                self.load_s = value["load_s"]
                words = f"{process.name} in {value['load_s']:.2f} s"
                self.engine.event("load", words, process.pid, value["load_s"])

    def note_weights(self, report: dict[str, Any]) -> None:
        """Remember what one copy of the model weighs, as the process that loaded it has reported."""
        self.model_bytes = report["weights_bytes"]
        self.mapped_bytes = sum(mapped_files(report).values())

    def _raise_if_stopped(self) -> None:
        if self.state == "stopping":
            by = self.cancelled_by and f", by {self.cancelled_by}; what was served before serves on"
            raise errors.SwitchCancelled(f"the new topology was stopped before it could serve{by}.")

    def spawn(self, role: str, index: int) -> Process:
        """Start a worker, host or loader."""
        if role == "worker":
            return self._spawn_worker(index)
        return self._spawn(role, index, {"threads": self.settings.host_threads} if role == "host" else {})

    def spawn_loader(self, spec: Spec) -> Process:
        """Start a loader for one of the models by key."""
        return self._spawn("loader", 0, {"model": spec})

    def _spawn_worker(self, index: int, role: str = "worker") -> Process:
        remote = self.settings.remote and role == "worker"
        threads = self.settings.threads if role == "worker" else 1
        ends = [channel_pair() for _ in range(threads)]
        slots = [self.engine.board.take() for _ in range(threads)]
        config: dict[str, Any] = {"remote": remote, "lane_slots": slots}
        fds = [fd for _, theirs in ends for fd in theirs]
        segment_fd = -1
        try:
            if self.weights is not None:
                config["segment"] = self.weights.segment
                segment_fd = self.weights.own_fd()
                fds.append(segment_fd)
            process = self._spawn(role, index, config, tuple(fds))
        except BaseException:
            for ours, _ in ends:
                ours.close()
            raise
        finally:
            for _, theirs in ends:
                theirs.close()
            if segment_fd >= 0:
                os.close(segment_fd)
        process.lane_slots = slots
        for (ours, _), slot in zip(ends, slots, strict=True):
            lane = Lane(process, ours.open(first=True, copy=True), slot, self, remote=remote)
            process.lanes.append(lane)
        if role == "worker":
            with self._lock:
                self.lanes += process.lanes
            for lane in process.lanes:
                self._watch_lane(lane)
        return process

    def _watch_lane(self, lane: Lane) -> None:
        dispatcher = self.engine.dispatcher
        self.engine.reactor.watch(lane.channel.fileno(), lambda: lane.read(dispatcher, self.deaths.lane_closed))

    def _spawn(self, role: str, index: int, config: dict[str, Any], fds: tuple[int, ...] = ()) -> Process:
        self._raise_if_stopped()
        engine = self.engine
        process = Process(role, index, engine.board.take())
        process.on_exit = self.deaths.on_exit
        read_end, write_end = os.pipe()
        try:
            engine.forkserver.fork(process, engine.board.fd, write_end)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        with self._lock:
            self.processes.append(process)
        process.output = read_end
        engine.logs.follow(process, engine.reactor)
        control = process.control
        assert control is not None
        engine.reactor.watch(control.fileno(), lambda: self.read_control(process))
        common = {"role": role, "slot": process.slot, "handler": self.handler_bytes}
        with contextlib.suppress(ChannelClosed):
            control.send(protocol.CONFIG, {**common, **config}, fds=fds)
        return process

    def read_control(self, process: Process) -> None:
        assert process.control is not None
        try:
            process.take_control_message()
        except ChannelClosed:
            self.engine.reactor.forget(process.control.fileno())
            process.control.close()
            process.control_closed()

    def introduce(self, process: Process) -> None:
        """Connect a worker or host that was started later with its partners that are ready, and its models."""
        if self.settings.remote:
            partners.introduce(process, self.of_role("host" if process.role == "worker" else "worker"))
        if self.engine.places is not None:
            self.engine.places.introduce(process)

    def forget(self, process: Process) -> None:
        """Drop a process that has ended."""
        with self._lock:
            if process in self.processes:
                self.processes.remove(process)

    def forget_lane(self, lane: Lane) -> None:
        """Drop a lane whose thread has ended."""
        with self._lock:
            if lane in self.lanes:
                self.lanes.remove(lane)

    def progress(self) -> tuple[int, int]:
        """Workers and hosts that have their model, and how many there will be."""
        ready = sum(process.ready for process in list(self.processes) if process.role in ("worker", "host"))
        return ready, self.settings.processes + (self.settings.model_copies if self.settings.remote else 0)

    def of_role(self, role: str) -> list[Process]:
        """Its processes of one role."""
        with self._lock:
            return [process for process in self.processes if process.role == role]

    # ---- quarantine --------------------------------------------------------------------------

    def start_quarantine(self) -> Process:
        """A process with one lane and a model of its own, which is not watched nor replaced."""
        process = self._spawn_worker(0, role="quarantine")
        self.wait_ready(process)
        return process

    # ---- stopping ----------------------------------------------------------------------------

    def drain(self) -> None:
        """Wait until nothing is in flight here."""
        dispatcher = self.engine.dispatcher
        with dispatcher.lock:
            while not dispatcher.idle(self.lanes) and self.engine.alive:
                dispatcher.room.wait(0.05)

    def stop(self, *, gently: bool = True, cancelled_by: str = "") -> None:
        """End all processes and wait for their end; idempotent."""
        self.cancelled_by, self.state = cancelled_by or self.cancelled_by, "stopping"
        with self._lock:
            processes = list(self.processes)
        for process in processes:
            process.ask_to_stop() if gently else process.kill()
        until = time.monotonic() + STOP_TIMEOUT_S
        for process in processes:
            if not process.exited.wait(max(0.0, until - time.monotonic())):
                process.kill()
                process.exited.wait(STOP_TIMEOUT_S)
        if self.weights is not None:
            self.weights.close()
