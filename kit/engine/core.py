"""The engine of a deployment: fork server, dispatcher, topologies, and the switch between them.

    Deployment --> Engine --> Dispatcher --lanes--> Topology (processes)
                     |                                  ^
                     '---- switch: start the next one, publish its lanes, drain and stop the old

The engine holds no reference to its Deployment, so dropping the last reference to that closes it.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from kit import errors
from kit.checks import estimated_bytes
from kit.engine import board as fields
from kit.engine import deadlines, first_batch
from kit.engine.asking import preload_of
from kit.engine.board import Board
from kit.engine.dispatcher import Dispatcher
from kit.engine.lane import Lane
from kit.engine.logs import Logs
from kit.engine.model_places import ModelPlaces
from kit.engine.packing import pack
from kit.engine.process import Process
from kit.engine.processes import ForkServer
from kit.engine.quarantine import Quarantine
from kit.engine.reactor import Reactor
from kit.engine.topology import Topology
from kit.history import History
from kit.settings import Settings

TICK_S = 0.05
DEATHS, DEATHS_WINDOW_S = 5, 60.0
#: All engines of this process that aren't closed.
running: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Serves one handler; see the module's picture."""

    def __init__(self, handler: Any, settings: Settings, forkserver: ForkServer | None = None) -> None:
        self.owner = os.getpid()
        self.handler = handler
        self.settings = settings = settings.with_budget_of(handler)
        handler_bytes = pack(handler)
        self.model_bytes: int | None = estimated_bytes(handler)
        self.alive = True
        self.history = History()
        self.logs = Logs()
        self.board = Board()
        self.reactor = Reactor("kit-reactor")
        self.quarantine = Quarantine(self)
        by_key = getattr(handler, "routes", None) is not None
        self.places = ModelPlaces(self, handler, settings) if by_key else None
        self.dispatcher = Dispatcher(handler, self.quarantine.take, self.reactor.at, self.places)
        self.topology = Topology(self, handler, handler_bytes, settings, self.model_bytes)
        self.starting: Topology | None = None
        self.retiring: Topology | None = None  # replaced, and finishing what it has
        self.last_switch: dict[str, Any] = {}
        self.switching: tuple[Topology, float] | None = None  # the one to come, and since when
        self.at_close: list[Callable[[], None]] = []
        self.on_broken: Callable[[errors.KitError], None] = lambda error: None  # told when it has given up
        self.logs_by = "deployment.logs()"  # how the user reads what was printed
        self.switch_lock = threading.RLock()  # also held while is seen what would change
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._close_lock = threading.Lock()
        self.forkserver = (forkserver or ForkServer(preload_of(handler))).retain()
        running.add(self)
        self._tick()

    # ---- starting ----------------------------------------------------------------------------

    def start(self, sample: list[Any]) -> None:
        """Load the model and serve; closes itself on failure.

        Raises:
            KitError: whatever kept it from serving.
        """
        try:
            self.settings.check_budget(self.model_bytes)
            began = time.monotonic()
            self.forkserver.wait_ready()
            self._run(self.topology, sample)
            seconds = time.monotonic() - began
            self.event("start", f"mode {self.settings.mode} in {seconds:.2f} s", seconds=seconds)
            self._publish(self.topology)
        except BaseException:
            self.close()
            raise

    def _run(self, topology: Topology, sample: list[Any]) -> None:
        self.starting = topology
        try:
            self.raise_if_closed()  # after `starting` is set: `close` stops it, or this sees that it has closed
            topology.start(sample)
        finally:
            self.starting = None
        self.model_bytes = topology.model_bytes or self.model_bytes

    def _publish(self, topology: Topology) -> None:
        self.topology = topology
        self.settings = topology.settings
        if self.places is not None:
            self.places.publish(topology, self.handler)
        first_batch.wait_for_proof(self)
        self.dispatcher.publish(topology.lanes)

    # ---- switching ---------------------------------------------------------------------------

    def switch(self, settings: Settings, handler: Any = None, *, event: str = "switch") -> None:
        """Replace the topology by one with other settings, or another version of the handler.

        Both run side by side while that fits the memory budget; otherwise the old one is drained and
        ended first, and requests wait.

        Raises:
            KitError: the new topology can't serve; the old one goes on.
        """
        with self.switch_lock:
            self.raise_if_closed()
            old = self.topology
            new_handler = self.handler if handler is None else handler
            handler_bytes = old.handler_bytes if handler is None else pack(new_handler)
            expected_bytes = self.model_bytes if handler is None else estimated_bytes(new_handler)
            model_bytes = expected_bytes or self.model_bytes
            settings.check_budget(model_bytes)
            if self.places is not None:
                self.places.check(new_handler, settings)
            new = Topology(self, new_handler, handler_bytes, settings, expected_bytes)
            budget = settings.memory_budget
            together = (old.settings.copies + settings.copies_at_start) * (model_bytes or 0)
            drain_first = budget is not None and together > budget
            same = event == "update" and settings == old.settings
            change = settings.mode if same else old.settings.change_in_words(settings, batching=handler is not None)
            began = time.monotonic()
            self.switching = (new, began)
            try:
                (self._switch_drained if drain_first else self._switch_side_by_side)(old, new, new_handler)
            except errors.SwitchCancelled:
                if self.dispatcher.closed is None:
                    seconds = time.monotonic() - began
                    self.event("cancelled", f"{event} {change}, after {seconds:.2f} s", seconds=seconds)
                raise
            finally:
                self.switching = None
            self.last_switch = {
                "policy": "drain first" if drain_first else "side by side",
                "seconds": time.monotonic() - began,
                "from": old.settings.mode,
                "to": settings.mode,
            }
            seconds = self.last_switch["seconds"]
            self.event(event, f"{change}, {self.last_switch['policy']}, {seconds:.2f} s", seconds=seconds)

    def _switch_side_by_side(self, old: Topology, new: Topology, handler: Any) -> None:
        self._run(new, self._sample())
        self.retiring = old
        try:
            self._adopt(new, handler)
            old.drain()
            old.stop()
        finally:
            self.retiring = None

    def _switch_drained(self, old: Topology, new: Topology, handler: Any) -> None:
        dispatcher = self.dispatcher
        dispatcher.paused = True
        sample = self._sample()
        try:
            old.drain()
            old.stop()
            self._run(new, sample)
        except BaseException:
            back = Topology(self, old.handler, old.handler_bytes, old.settings, old.model_bytes)
            self._run(back, sample)
            self._adopt(back, old.handler)
            raise
        self._adopt(new, handler)

    def _adopt(self, topology: Topology, handler: Any) -> None:
        self.handler = handler
        if self.places is not None:
            self.dispatcher.paused = True  # until the new topology is there to be asked
        self.dispatcher.use(handler)
        self._publish(topology)
        if self.dispatcher.closed is not None:
            # Closed since `_run`: whoever closed may not have seen this topology.
            topology.stop(gently=False)
            self.raise_if_closed()

    def _sample(self) -> list[Any]:
        # The click on `shared` waits for what is computed on them, and a few prove as much as more.
        return list(self.dispatcher.sample[: first_batch.MOST])

    def cancel_switch(self, by: str = "cancel_switch()") -> bool:
        """Stop a switch that hasn't taken over yet; False when none was under way."""
        switching, starting = self.switching, self.starting
        # After a switch that drained first, what starts may be the former topology, which must come back.
        if switching is None or starting is not switching[0] or starting.state == "serving":
            return False
        starting.stop(gently=False, cancelled_by=by)
        return True

    # ---- watching ----------------------------------------------------------------------------

    def event(self, kind: str, text: str, pid: int | None = None, seconds: float = 0.0, model: str = "") -> None:
        """Note something for the history."""
        self.history.event(kind, text, pid, mode=self.settings.mode, seconds=seconds, model=model)

    def may_replace(self, process: Process) -> bool:
        """Count a death; False once there were too many, which ends the deployment with an error."""
        self.dispatcher.counters.deaths += 1
        if process.loads:
            return True  # a load that kills is the trouble of its own key, which is tried again later and later
        now = time.monotonic()
        if process.exit_status is None and self._deaths and now - self._deaths[-1] < 1.0:
            return True  # they all went with the fork server: one death
        self._deaths.append(now)
        seconds = now - self._deaths[0]
        if len(self._deaths) == DEATHS and seconds < DEATHS_WINDOW_S:
            self.give_up(
                errors.CrashLoop(
                    f"{DEATHS} serving processes died within {max(1.0, seconds):.0f} s, so no more are started. "
                    f"The last one was {process.name} (pid {process.pid}), {process.describe_exit()}. "
                    f"See {self.logs_by}, then deploy again."
                )
            )
            return False
        return True

    def give_up(self, error: errors.KitError) -> None:
        """Stop serving with an error that every request gets from now on."""
        self.event("death", str(error.args[0]))
        self.dispatcher.close(error)
        topology = self.topology  # the one that is marked is stopped
        topology.state = "stopping"
        threading.Thread(target=topology.stop, kwargs={"gently": False}, name="kit-give-up", daemon=True).start()
        self.on_broken(error)

    def _tick(self) -> None:
        """Deadlines, stuck batches and heartbeats; runs in the reactor."""
        if not self.alive:
            return
        now = time.monotonic()
        for lane, chunk in deadlines.expire(self.dispatcher, now, self._computing_since):
            process = deadlines.computing_process(lane)
            self.dispatcher.answers.fail_all(chunk, deadlines.ran_too_long(chunk))
            if process is not None and process.alive:
                self.event("timeout", f"{process.name} replaced: a batch ran too long", process.pid)
                lane.topology.deaths.end(process)
        self.topology.deaths.check_heartbeats(time.monotonic_ns())
        self.dispatcher.pump()
        self.reactor.at(now + TICK_S, self._tick)

    def _computing_since(self, lane: Lane) -> float | None:
        since_ns = self.board.get(lane.slot, fields.COMPUTING_NS)
        return since_ns / 1e9 if since_ns else None

    def raise_if_closed(self) -> None:
        """Raise when no request can be answered any more."""
        if self.dispatcher.closed is not None:
            raise self.dispatcher.closed.copy()

    # ---- closing -----------------------------------------------------------------------------

    def close(self) -> None:
        """End all processes and threads; idempotent, and a no-op in a fork of the owner."""
        if os.getpid() != self.owner:
            return
        with self._close_lock:
            if not self.alive:
                return
            self.alive = False
            running.discard(self)
            self.dispatcher.close(
                errors.DeploymentClosed("the deployment is closed; call kit.deploy(...) again to serve the handler.")
            )
            for topology in (self.starting, self.topology, self.retiring):
                if topology is not None:
                    topology.stop(gently=False)
            self.quarantine.close()
            if self.places is not None:
                self.places.close()
            self.forkserver.close()
            self.reactor.stop()
            self.logs.close()
            self.board.close()
        for callback in list(self.at_close):
            try:
                callback()
            except Exception:  # the others are told, and other deployments closed
                traceback.print_exc()
