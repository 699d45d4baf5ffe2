"""Bringing models in and giving them up: one load at a time a model, no lock held while it goes on."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

from kit import errors
from kit.checks import whole_bytes
from kit.manager.entry import EVICTED, FAILED, HOST_TIER, LOADING, RESIDENT, Asker, Entry, Flight
from kit.manager.hosttier import HostTier
from kit.manager.policy import Policy, tell
from kit.manager.room import Room, Ticket
from kit.shorten import counted
from kit.sizes import format_bytes

#: Longest time before a failed load is tried again, seconds.
MOST_BACKOFF_S = 60.0


class Event(NamedTuple):
    """Something that happened to a model: "load", "move", "evict", "host tier", "fail"; `at` is monotonic seconds."""

    at: float
    kind: str
    name: Hashable
    size_bytes: int
    seconds: float


class Traffic:
    """Loads, moves and evictions. Methods are called with the lock of `changed` held, unless they say otherwise."""

    def __init__(
        self,
        load: Callable[[Hashable], Any],  # gives a model_bytes.Loaded
        size_of: Callable[[Hashable], int | None],
        drop: Callable[[list[Any]], None],
        policy: Policy,
        room: Room,
        tier: HostTier,
        backoff_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.room = room
        self.tier = tier
        self.policy = policy
        self.clock = clock
        self.closed = False
        self.events: deque[Event] = deque(maxlen=1000)
        self._load = load
        self._size_of = size_of
        self._drop = drop
        self._backoff_s = backoff_s

    # ---- loading -----------------------------------------------------------------------------

    def fetch(self, entry: Entry, asker: Asker) -> None:
        """Load or move a model in.

        Raises:
            KitError: it can't be; whoever waits for the same load gets the same error.
            DeadlineExceeded, Unwanted: before there was room; others who wait try for themselves.
        """
        former, entry.state = entry.state, LOADING
        flight = entry.flight = Flight()
        if entry.size_bytes is None:
            self._learn_size(entry, flight)
        try:
            self._reserve(entry, asker)
        except BaseException:
            entry.state, entry.closing, entry.unwanted = former, False, False
            self._land(flight)
            raise
        failure: BaseException | None = None
        size, seconds, moved = 0, 0.0, False
        with self._unlocked():
            try:
                size, seconds, moved = self._bring(entry)
            except BaseException as error:
                failure = error
        self.tier.forget(entry)
        if failure is not None:
            self.room.cancel(entry)
            self._failed(entry, flight, failure)
        else:
            self._arrived(entry, flight, size, seconds, moved)

    def _learn_size(self, entry: Entry, flight: Flight) -> None:
        """Ask what a model takes before it is loaded; when that fails, its load has failed."""
        failure: BaseException | None = None
        known: int | None = None
        with self._unlocked():
            try:
                known = whole_bytes("size_of", self._size_of(entry.name))
            except BaseException as error:
                failure = error
        if failure is not None:
            self._failed(entry, flight, failure)
        entry.size_bytes = known

    def _bring(self, entry: Entry) -> tuple[int, float, bool]:
        """Set the entry's model, without the lock; its bytes, the seconds, and whether it came from the host tier."""
        if entry.model is not None:
            began = self.clock()
            model, entry.model = entry.model, None
            entry.model = self.tier.bring(model)
            return entry.size_bytes or 0, self.clock() - began, True
        loaded = self._load(entry.name)
        entry.model = loaded.model
        return loaded.size_bytes, loaded.load_s, False

    def _arrived(self, entry: Entry, flight: Flight, size: int, seconds: float, moved: bool) -> None:
        """Enter a loaded model in the books; it is dropped again when it turns out not to fit, or nobody wants it."""
        self.room.settle(entry, size)
        entry.failures, entry.error = 0, None
        if moved:
            entry.move_s = seconds
        else:
            entry.load_s = seconds
            entry.loads += 1
            entry.load_total_s += seconds
        entry.loaded_at, entry.gap_s, entry.state = self.clock(), None, RESIDENT
        entry.leases += 1  # of whoever waits for it, so that it can't be evicted before that one has its own
        try:
            self.policy.loaded(entry.name, size, self.tier.cost_s(entry))
            self._note("move" if moved else "load", entry, seconds)
            self.raise_if_closed()
            self.room.check_fits(entry)
        except Exception as error:
            flight.error = error.copy() if isinstance(error, errors.KitError) else None
            entry.leases -= 1
            self.evict([entry], keep=False)
            raise
        finally:
            self._land(flight)
        try:
            if self.room.over:
                # Its size wasn't known, or was another: the others make room now.
                self.evict(self.room.shrink())
        finally:
            entry.leases -= 1

    def _failed(self, entry: Entry, flight: Flight, failure: BaseException) -> None:
        entry.model, entry.state, entry.closing, entry.unwanted = None, EVICTED, False, False
        if not isinstance(failure, (Exception, SystemExit)):
            self._land(flight)
            raise failure  # interrupted: nobody else's business
        entry.state = FAILED
        entry.failures += 1
        wait_s = min(MOST_BACKOFF_S, self._backoff_s * 2.0 ** (entry.failures - 1))
        entry.retry_at = self.clock() + wait_s
        if isinstance(failure, errors.KitError):
            error: errors.KitError = failure
        else:
            error = errors.ModelLoadFailed(
                f"loading the model of {entry.name!r} failed: {type(failure).__name__}: {failure}"
            )
        # Copies: a traceback would keep what the load had made so far.
        entry.error, flight.error = error.copy(), error.copy()
        self._note("fail", entry, 0.0)
        self._land(flight)
        raise error from (failure if error is not failure else failure.__cause__)

    def _land(self, flight: Flight) -> None:
        flight.done = True
        self.changed.notify_all()

    def raise_if_failing(self, entry: Entry) -> None:
        left_s = entry.retry_at - self.clock()
        if entry.state == FAILED and isinstance(entry.error, errors.UnknownKey) and left_s > 0:
            raise entry.error.copy()  # it is the example's fault, and says so each time
        if entry.state == FAILED and entry.error is not None and left_s > 0:
            raise errors.ModelLoadFailed(
                f"the model of {entry.name!r} isn't loaded: its load failed {entry.failures} "
                f"{'time' if entry.failures == 1 else 'times in a row'}, and the next one is tried in {left_s:.1f} s. "
                f"The last error: {entry.error.args[0]}"
            ) from entry.error

    # ---- room --------------------------------------------------------------------------------

    def _reserve(self, entry: Entry, asker: Asker) -> None:
        """Wait until the load may start, evicting what has to go."""
        room = self.room
        ticket = Ticket(entry, self.clock(), asker.whom)
        room.join(ticket)
        try:
            while True:
                self.raise_if_closed()
                asker.check()
                room.check_fits(entry)
                now = self.clock()
                if room.may_reserve(ticket, now):
                    room.reserve(entry)
                    return
                going = room.to_evict(ticket, now)
                if going:
                    ticket.evicting = True
                    self.evict(going)
                    continue
                wakes_at = room.wakes_at(ticket, now)
                self.wait(asker, f"room for the model of {entry.name!r}", wakes_at)
        finally:
            room.leave(ticket)
            for other in ticket.closed:
                other.closing = other.unwanted
            self.changed.notify_all()

    def evict(self, entries: list[Entry], *, keep: bool = True) -> None:
        """Give back the memory of idle models, some of them to the host tier; the lock isn't held meanwhile."""
        if not entries:
            return
        plan = self.tier.plan([entry for entry in entries if keep and not entry.retired and not self.closed])
        for entry in entries:
            entry.leaving = True
            tell(self.policy.evicted, entry.name)
        dropped: list[Any] = []
        for entry in (*entries, *plan.dropped):
            if entry not in plan.moved:
                dropped.append(entry.model)
                entry.model = None
        for entry in plan.dropped:
            entry.state = EVICTED
            self._note("evict", entry, 0.0)
        try:
            with self._unlocked():
                self._drop(dropped)
                self.tier.take(plan)
        finally:
            for entry in entries:
                self.room.gone(entry)
                entry.leaving = entry.closing = entry.unwanted = False
                entry.evictions += 1
                entry.state = HOST_TIER if entry.model is not None else EVICTED
                self._note("host tier" if entry.model is not None else "evict", entry, 0.0)
            self.changed.notify_all()

    def used(self, entry: Entry) -> None:
        """Note a request for a model, resident or not."""
        entry.requests += 1
        tell(self.policy.used, entry.name)

    def take(self, policy: Policy) -> None:
        """Go by another policy, which learns first what is loaded."""
        known = [entry for entry in self.room.present if entry.state == RESIDENT]
        for entry in sorted(known, key=lambda entry: entry.used_at or 0.0):
            tell(policy.used, entry.name)
            tell(policy.loaded, entry.name, entry.size_bytes or 0, self.tier.cost_s(entry))
        self.policy = self.room.policy = self.tier.policy = policy

    def drop_from_tier(self, entry: Entry) -> None:
        """Give back the memory of a model in the host tier."""
        models = [entry.model]
        entry.model, entry.state = None, EVICTED
        self.tier.forget(entry)
        self._note("evict", entry, 0.0)
        with self._unlocked():
            self._drop(models)

    @contextlib.contextmanager
    def _unlocked(self) -> Iterator[None]:
        self.changed.release()
        try:
            yield
        finally:
            self.changed.acquire()

    def wait(self, asker: Asker, what: str, wakes_at: float | None = None) -> None:
        """Wait for a change, or for one of two times."""
        now, until = self.clock(), asker.until
        if until is not None and now >= until:
            raise errors.DeadlineExceeded(f"{what} didn't come within the timeout; {self._advice()}.")
        ends = [at - now for at in (until, wakes_at) if at is not None]
        self.changed.wait(max(0.0, min(ends)) if ends else None)

    def _advice(self) -> str:
        room = self.room
        more, budget, most = "give more time", "", ""
        if room.budget is not None:
            more += " or a larger memory_budget"
            budget = f" of {format_bytes(room.budget)}"
        if room.most is not None:
            more += " or a larger max_models_per_worker_hint"
            most = f" of {room.most} at most"
        in_use = sum(entry.leases > 0 for entry in room.present)
        taken = f"{format_bytes(room.used_bytes)}{budget} are taken, by {counted(len(room.present), 'model')}{most}"
        return f"{more} ({taken}, {in_use} in use)"

    def _note(self, kind: str, entry: Entry, seconds: float) -> None:
        self.events.append(Event(self.clock(), kind, entry.name, entry.size_bytes or 0, seconds))

    def raise_if_closed(self) -> None:
        if self.closed:
            raise errors.DeploymentClosed("the model manager is closed: make a new one, or deploy the handler again.")
