"""What happens when a serving process dies or hangs: its chunks come back, and another takes its place."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kit import errors
from kit.engine import board as fields
from kit.engine import system
from kit.engine.lane import Lane
from kit.engine.process import Process

if TYPE_CHECKING:
    from kit.engine.topology import Topology

HANG_S = 30.0
#: After so many in a row a process isn't started again.
LOAD_FAILURES = 3


class Deaths:
    """Replaces the dead processes of one topology."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._lock = threading.Lock()
        self._on_purpose: set[int] = set()  # pids

    def kill(self, role: str, index: int) -> int:
        """Kill a worker or host on purpose; it is replaced, and its death isn't held against anybody. Returns its pid.

        Raises:
            InvalidSetting: there is no such process.
        """
        serving = [
            process
            for process in list(self._topology.processes)
            if process.role in ("worker", "host") and process.alive
        ]
        for process in serving:
            if (process.role, process.index) == (role, index):
                self.end(process)
                return process.pid
        there = ", ".join(process.name for process in serving) or "none at the moment"
        raise errors.InvalidSetting(f"there is no {role} {index!r} to kill; processes that serve: {there}.")

    def end(self, process: Process) -> None:
        """Kill a process that is to be replaced, and whose end shall not be held against what it computes."""
        process.expected_death = True
        self._on_purpose.add(process.pid)
        system.kill(process.pid)

    def suspicious(self, host: int) -> bool:
        """Whether what a model host computed when it ended may be why; its pid, 0 for none that was asked."""
        return host != 0 and host not in self._on_purpose

    def lane_closed(self, lane: Lane) -> None:
        """All answers of the lane are read and its thread is gone."""
        engine = self._topology.engine
        engine.reactor.forget(lane.channel.fileno())
        lane.channel.close()
        self._topology.forget_lane(lane)
        engine.dispatcher.died(lane)
        engine.dispatcher.pump()

    def on_exit(self, process: Process) -> None:
        """A process has ended, whyever; called once each, in any thread."""
        topology = self._topology
        engine = topology.engine
        topology.forget(process)
        if engine.places is not None:
            engine.places.lost(process)
        engine.reactor.soon(lambda: self._clean_up(process))
        if process.role == "host":
            for lane in list(topology.lanes):
                if lane.hosts is not None:
                    lane.hosts.discard(process.index)
        if process.condemned and process.role == "loader":
            return
        if topology.state == "stopping":
            return
        engine.event("death", f"{process.name} {process.describe_exit()}", process.pid)
        # One that never was ready is the business of whoever started it.
        if topology.state == "serving" and process.ready and process.role in ("worker", "host"):
            self.replace(process)

    def _clean_up(self, process: Process) -> None:
        engine = self._topology.engine
        while process.control is not None and not process.control.closed:
            self._topology.read_control(process)  # its last words, and then the end
        if not engine.alive:
            return  # closed, perhaps by this very thread, and the board with it
        engine.board.give_back(process.slot)
        for slot in process.lane_slots:
            engine.board.give_back(slot)

    def replace(self, process: Process) -> None:
        """Start another in place of a dead process, unless too many have died; once each."""
        with self._lock:
            if process.replaced:
                return
            process.replaced = True
        if process.expected_death or self._topology.engine.may_replace(process):
            threading.Thread(target=self._respawn, args=(process,), name="kit-respawn", daemon=True).start()

    def _respawn(self, dead: Process) -> None:
        """Start a process in place of a dead one; runs in a thread of its own."""
        topology = self._topology
        engine = topology.engine
        failures = 0
        while topology.state == "serving":
            process = None
            try:
                process = topology.spawn(dead.role, dead.index)
                topology.wait_ready(process)
                topology.introduce(process)
            except (errors.SwitchCancelled, errors.DeploymentClosed):
                return
            except errors.KitError as error:
                failures += process is None or not process.expected_death
                if failures == LOAD_FAILURES:
                    engine.give_up(
                        errors.CrashLoop(
                            f"{dead.name} couldn't be replaced: load_model failed {failures} times in a row. "
                            f"Mend the handler and deploy it again. The last error: {error.args[0]}",
                            error.remote_traceback,
                        )
                    )
                    return
                continue
            engine.event("start", f"{process.name} replaced pid {dead.pid}", process.pid)
            if topology.state == "serving" and process.role == "worker" and process.alive:
                engine.dispatcher.add(process.lanes)
            engine.dispatcher.pump()
            if not process.alive:  # ended before it was known to be ready
                self.replace(process)
            return

    def check_heartbeats(self, now_ns: int) -> None:
        """Kill hosts and workers whose heartbeat has stopped: they hang and would never answer."""
        engine = self._topology.engine
        for process in list(self._topology.processes):
            beat = engine.board.get(process.slot, fields.HEARTBEAT_NS)
            if beat and now_ns - beat > HANG_S * 1e9 and process.alive:
                engine.event("death", f"{process.name} gave no sign for {HANG_S:.0f} s", process.pid)
                system.kill(process.pid)
