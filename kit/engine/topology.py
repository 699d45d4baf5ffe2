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
from kit.engine import board as fields
from kit.engine import protocol, system
from kit.engine.ends import channel_pair
from kit.engine.lane import Lane
from kit.engine.processes import Process
from kit.engine.transport import ChannelClosed

if TYPE_CHECKING:
    from kit.engine.core import Engine
    from kit.settings import Settings

STOP_TIMEOUT_S = 3.0
HANG_S = 30.0


class Topology:
    """Processes and lanes of one mode."""

    def __init__(self, engine: Engine, handler: Any, handler_bytes: bytes, settings: Settings) -> None:
        self.engine = engine
        self.handler = handler
        self.handler_bytes = handler_bytes
        self.settings = settings
        self.processes: list[Process] = []
        self.lanes: list[Lane] = []
        self.segment: Any = None
        self.segment_fd = -1
        self.loader: Process | None = None
        self.model_bytes: int | None = None
        self.state = "new"  # new, serving, stopping
        self.load_s = 0.0
        self._lock = threading.RLock()

    # ---- starting ----------------------------------------------------------------------------

    def start(self, sample: list[Any]) -> None:
        """Start all processes and wait until each has its model.

        Raises:
            BudgetExceeded: the size of the model became known with the first copy, and the others don't fit.
            KitError: whatever kept a process from serving. Nothing is left behind then.
        """
        settings = self.settings
        try:
            if settings.mode == "shared":
                self._publish_weights(sample)
            for index in range(settings.model_copies if settings.remote else 0):
                self._start_copy("host", index)
            for index in range(settings.processes):
                if settings.remote or settings.mode == "shared":
                    self._spawn_worker(index)
                else:
                    self._start_copy("worker", index)
            for process in list(self.processes):
                self._await(process)
            for host in self._of_role("host"):
                for worker in self._of_role("worker"):
                    self._connect(worker, host)
            self._raise_if_stopped()
        except BaseException:
            self.stop(gently=False)
            raise
        self.state = "serving"
        for process in list(self.processes):
            if not process.alive:
                self._replace(process)

    def _start_copy(self, role: str, index: int) -> None:
        """Start a process with a copy of its own; the first goes alone if its size decides about the others."""
        process = self._spawn_worker(index) if role == "worker" else self._spawn(role, index, {})
        if index == 0 and self.settings.memory_budget and not self.engine.model_bytes:
            self._await(process)
            self.settings.check_budget(self.model_bytes)

    def _publish_weights(self, sample: list[Any]) -> None:
        loader = self._spawn("loader", 0, {})
        (report, segment), fds = self._await(loader)
        self.segment, self.segment_fd = segment, fds[0]
        self.model_bytes = report["weights_bytes"]
        self.loader = loader
        self.settings.check_budget(self.model_bytes)
        if sample:
            verdict, words = self.verify(sample, None)
            if verdict == "differs":
                raise errors.SharedModeUnavailable(self._cannot_share(words))

    def verify(self, examples: Any, inference_args: Any) -> tuple[str, str]:
        """Compare original and rebuilt model on a batch; ends the loader when that settles it."""
        loader = self.loader
        if loader is None or not loader.alive:
            return "noisy", "the loader ended before it saw a batch; only the bytes of the weights were compared"
        try:
            verdict, words = loader.ask(
                protocol.VERIFY, (list(examples), inference_args), reply=protocol.VERIFIED
            ).result()
        except errors.WorkerDied as error:
            return "failed", str(error)
        if verdict != "failed":
            self.engine.event("verify", words)
            self.end_loader()
        return str(verdict), str(words)

    def end_loader(self) -> None:
        """Let the loader go, and with it the original copy of the weights."""
        loader, self.loader = self.loader, None
        if loader is not None:
            loader.ask_to_stop()
            if not loader.exited.wait(STOP_TIMEOUT_S):
                loader.kill()

    def _cannot_share(self, words: str) -> str:
        name = type(self.handler).__name__
        return f"{name} can't be served in mode 'shared': {words}. Use mode 'large', which also keeps one copy."

    def _await(self, process: Process) -> Any:
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
                f"{process.role} {process.index} (pid {process.pid}) {process.describe_exit()} "
                "while it loaded the model."
            ) from error
        process.ready = True
        self._note_report(process, value)
        return value, fds

    def _note_report(self, process: Process, value: Any) -> None:
        if process.role != "loader" and not process.report:
            process.report = value
            if value.get("weights_bytes"):
                self.model_bytes = value["weights_bytes"]
            if "load_s" in value:
                self.load_s = value["load_s"]
                self.engine.event("load", f"{process.role} {process.index} in {value['load_s']:.2f} s", process.pid)

    def _raise_if_stopped(self) -> None:
        if self.state == "stopping":
            raise errors.SwitchCancelled("the new topology was stopped before it could serve.")

    def _spawn_worker(self, index: int, role: str = "worker") -> Process:
        remote = self.settings.remote and role == "worker"
        threads = self.settings.threads if role == "worker" else 1
        ends = [channel_pair() for _ in range(threads)]
        slots = [self.engine.board.take() for _ in range(threads)]
        config: dict[str, Any] = {"remote": remote, "lane_slots": slots}
        fds = [fd for _, theirs in ends for fd in theirs]
        segment_fd = -1
        try:
            if self.segment is not None:
                config["segment"] = self.segment
                segment_fd = self._own_segment_fd()
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

    def _own_segment_fd(self) -> int:
        """A descriptor of the weights that another thread's `stop` can't close meanwhile."""
        with self._lock:
            if self.segment_fd < 0:
                raise errors.SwitchCancelled("the topology was stopped, and its weights with it.")
            return os.dup(self.segment_fd)

    def _watch_lane(self, lane: Lane) -> None:
        dispatcher = self.engine.dispatcher
        self.engine.reactor.watch(lane.channel.fileno(), lambda: lane.read(dispatcher, self._lane_closed))

    def _spawn(self, role: str, index: int, config: dict[str, Any], fds: tuple[int, ...] = ()) -> Process:
        self._raise_if_stopped()
        engine = self.engine
        process = Process(role, index, engine.board.take())
        process.on_exit = self._on_exit
        read_end, write_end = os.pipe()
        try:
            engine.forkserver.fork(process, engine.board.fd, write_end)
        finally:
            os.close(write_end)
        with self._lock:
            self.processes.append(process)
        process.output = read_end
        engine.logs.follow(process, engine.reactor)
        control = process.control
        assert control is not None
        engine.reactor.watch(control.fileno(), lambda: self._read_control(process))
        common = {"role": role, "slot": process.slot, "handler": self.handler_bytes}
        with contextlib.suppress(ChannelClosed):
            control.send(protocol.CONFIG, {**common, **config}, fds=fds)
        return process

    def _read_control(self, process: Process) -> None:
        assert process.control is not None
        try:
            process.take_control_message()
        except ChannelClosed:
            self.engine.reactor.forget(process.control.fileno())
            process.control.close()
            process.control_closed()

    def _connect(self, worker: Process, host: Process) -> None:
        """Give each thread of a worker a lane to a host, and wait until both have it."""
        pairs = [channel_pair() for _ in worker.lanes]
        try:
            to_host = host.ask(protocol.ADD_LANE, worker.lane_slots, tuple(fd for _, end in pairs for fd in end))
            to_worker = worker.ask(protocol.ADD_HOST, host.index, tuple(fd for end, _ in pairs for fd in end))
        finally:
            for pair in pairs:
                for end in pair:
                    end.close()
        to_host.result()
        to_worker.result()
        for lane in worker.lanes:
            assert lane.hosts is not None
            lane.hosts.add(host.index)

    def progress(self) -> tuple[int, int]:
        """Workers and hosts that have their model, and how many there will be."""
        ready = sum(process.ready for process in list(self.processes) if process.role in ("worker", "host"))
        return ready, self.settings.processes + (self.settings.model_copies if self.settings.remote else 0)

    # ---- deaths ------------------------------------------------------------------------------

    def kill(self, role: str, index: int) -> int:
        """Kill a worker or host on purpose; it is replaced, and its death isn't held against anybody. Returns its pid.

        Raises:
            InvalidSetting: there is no such process.
        """
        serving = [process for process in list(self.processes) if process.role in ("worker", "host") and process.alive]
        for process in serving:
            if (process.role, process.index) == (role, index):
                process.expected_death = True
                system.kill(process.pid)
                return process.pid
        there = ", ".join(f"{process.role} {process.index}" for process in serving) or "none at the moment"
        raise errors.InvalidSetting(f"there is no {role} {index!r} to kill; processes that serve: {there}.")

    def _lane_closed(self, lane: Lane) -> None:
        """All answers of the lane are read and its thread is gone."""
        engine = self.engine
        engine.reactor.forget(lane.channel.fileno())
        lane.channel.close()
        with self._lock:
            if lane in self.lanes:
                self.lanes.remove(lane)
        engine.dispatcher.died(lane)
        engine.dispatcher.pump()

    def _on_exit(self, process: Process) -> None:
        engine = self.engine
        with self._lock:
            if process in self.processes:
                self.processes.remove(process)
        engine.reactor.soon(lambda: self._clean_up(process))
        if process.role == "host":
            for lane in list(self.lanes):
                if lane.hosts is not None:
                    lane.hosts.discard(process.index)
        if process.condemned and process.role == "loader":
            return
        if self.state == "stopping":
            return
        engine.event("death", f"{process.role} {process.index} {process.describe_exit()}", process.pid)
        # One that never was ready is the business of whoever started it.
        if self.state == "serving" and process.ready and process.role in ("worker", "host"):
            self._replace(process)

    def _clean_up(self, process: Process) -> None:
        engine = self.engine
        while process.control is not None and not process.control.closed:
            self._read_control(process)  # its last words, and then the end
        engine.board.give_back(process.slot)
        for slot in process.lane_slots:
            engine.board.give_back(slot)

    def _replace(self, process: Process) -> None:
        if process.expected_death or self.engine.may_replace(process):
            threading.Thread(target=self._respawn, args=(process,), name="kit-respawn", daemon=True).start()

    def _respawn(self, dead: Process) -> None:
        """Start a process in place of a dead one; runs in a thread of its own."""
        engine = self.engine
        for attempt in range(3):
            if self.state != "serving":
                return
            try:
                process = (
                    self._spawn_worker(dead.index) if dead.role == "worker" else self._spawn(dead.role, dead.index, {})
                )
                self._await(process)
                partners = self._of_role("host" if dead.role == "worker" else "worker") if self.settings.remote else []
                for partner in partners:
                    if partner.loaded.done() and not partner.loaded.exception():
                        pair = (process, partner) if dead.role == "worker" else (partner, process)
                        with contextlib.suppress(errors.WorkerDied):
                            self._connect(*pair)
            except (errors.SwitchCancelled, errors.DeploymentClosed):
                return
            except errors.KitError as error:
                if attempt == 2:
                    engine.give_up(
                        errors.CrashLoop(
                            f"{dead.role} {dead.index} couldn't be replaced: load_model failed 3 times in a row. "
                            f"Mend the handler and deploy it again. The last error: {error.args[0]}",
                            error.remote_traceback,
                        )
                    )
                continue
            engine.event("start", f"{process.role} {process.index} replaced pid {dead.pid}", process.pid)
            if self.state == "serving" and process.role == "worker" and process.alive:
                engine.dispatcher.add(process.lanes)
            engine.dispatcher.pump()
            return

    def check_heartbeats(self, now_ns: int) -> None:
        """Kill hosts and workers whose heartbeat has stopped: they hang and would never answer."""
        for process in list(self.processes):
            beat = self.engine.board.get(process.slot, fields.HEARTBEAT_NS)
            if beat and now_ns - beat > HANG_S * 1e9 and process.alive:
                self.engine.event(
                    "death", f"{process.role} {process.index} gave no sign for {HANG_S:.0f} s", process.pid
                )
                os.kill(process.pid, 9)

    def computing_process(self, lane: Lane) -> Process | None:
        """The process that computes the lane's chunk: its worker, or the host that its thread asks."""
        if lane.hosts is None:
            return lane.process
        target = self.engine.board.get(lane.slot, fields.TARGET) - 1
        if target < 0:
            return lane.process  # in pre- or post-processing
        return next((host for host in self._of_role("host") if host.index == target), None)

    def _of_role(self, role: str) -> list[Process]:
        with self._lock:
            return [process for process in self.processes if process.role == role]

    # ---- quarantine --------------------------------------------------------------------------

    def start_quarantine(self) -> Process:
        """A process with one lane and a model of its own, which is not watched nor replaced."""
        process = self._spawn_worker(0, role="quarantine")
        self._await(process)
        return process

    # ---- stopping ----------------------------------------------------------------------------

    def drain(self) -> None:
        """Wait until nothing is in flight here."""
        dispatcher = self.engine.dispatcher
        with dispatcher.lock:
            while not dispatcher.idle(self.lanes) and self.engine.alive:
                dispatcher.room.wait(0.05)

    def stop(self, *, gently: bool = True) -> None:
        """End all processes and wait for their end; idempotent."""
        self.state = "stopping"
        with self._lock:
            processes = list(self.processes)
        for process in processes:
            process.ask_to_stop() if gently else process.kill()
        until = time.monotonic() + STOP_TIMEOUT_S
        for process in processes:
            if not process.exited.wait(max(0.0, until - time.monotonic())):
                process.kill()
                process.exited.wait(STOP_TIMEOUT_S)
        self.loader = None  # and with it its channel's memory, however long the deployment is kept
        with self._lock:
            segment_fd, self.segment_fd = self.segment_fd, -1
        if segment_fd >= 0:
            os.close(segment_fd)
