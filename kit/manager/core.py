"""The model manager: loads models when they are asked for, and evicts them under a budget in bytes.

    acquire(name) --resident--> Lease
         |--loading--> wait for that load (one at a time a model) --> Lease
         '--not there--> wait for room (room.py) --> load, without any lock --> Lease

The manager has one lock, for its books. Loading, moving and giving memory back happen outside it, in the
thread that needs the room, so that nobody who asks for a resident model waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

from kit import errors
from kit.manager import memory
from kit.manager.departures import Departures
from kit.manager.device import Device
from kit.manager.entry import LOADING, RESIDENT, Asker, Entry, Lease
from kit.manager.hosttier import HostTier
from kit.manager.pins import check_pins, not_pinned
from kit.manager.policy import make
from kit.manager.room import Room
from kit.manager.sweep import Sweeper
from kit.manager.traffic import Traffic
from kit.sizes import format_bytes, parse_bytes

#: In the place of a setting: as it is.
SAME: Any = object()


class ModelManager(Departures):
    """Models by name, as many of them loaded as the budget allows.

    Args:
        load: called with a name, returns the model. Several names may be loaded at once, in several threads.
        budget: bytes, or text such as "2GiB", that loaded models may take together; None for no limit. With a
            `device` these are the device's bytes.
        size_of: called with a name, returns the model's bytes before it is loaded, None where it doesn't know.
        measure: called with a loaded model, returns its bytes; None where it doesn't know.
        policy: "cost", "lru", "gdsf", or an object like those of `kit.manager.policy`, of which it uses a copy.
        max_models: models loaded at once at most, None for no limit.
        keep_alive: seconds after which a model that nobody uses is unloaded, None for never.
        hysteresis: a model in demand is kept for this many times its load seconds.
        patience_s: how long a load may wait for room while requests for resident models overtake it.
        backoff_s: time before a failed load is tried again; doubles with each failure in a row.
        device: where models compute if that isn't host memory; evicted models then go to a tier in host memory.
        host_budget: bytes of that tier; None for no limit, 0 for no tier.
        clock: monotonic seconds.
        timed: `load` returns a `kit.model_bytes.Loaded`, with the seconds and bytes that it has measured itself.
        drop: called with models that go, gives their memory back; it may block, and runs without the lock.
        later: runs a function in another thread: what a release has to do when models must go. None for at once.

    Raises:
        InvalidSetting: a value that can't work.
    """

    def __init__(
        self,
        load: Callable[[Hashable], Any],
        *,
        budget: int | float | str | None = None,
        size_of: Callable[[Hashable], int | None] = lambda name: None,
        measure: Callable[[Any], int | None] | None = None,
        policy: Any = "cost",
        max_models: int | None = None,
        keep_alive: float | None = None,
        hysteresis: float = 1.0,
        patience_s: float = 5.0,
        backoff_s: float = 1.0,
        device: Device | None = None,
        host_budget: int | float | str | None = None,
        clock: Callable[[], float] = time.monotonic,
        timed: bool = False,
        drop: Callable[[list[Any]], None] = memory.drop,
        later: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        if max_models is not None and (isinstance(max_models, bool) or int(max_models) != max_models or max_models < 1):
            raise errors.InvalidSetting(f"max_models={max_models!r}: give a whole number of at least 1, or None.")
        for name, value, least in (("hysteresis", hysteresis, 0), ("patience_s", patience_s, 0)):
            if not value >= least:
                raise errors.InvalidSetting(f"{name}={value!r}: give a number of at least {least}.")
        _check_keep_alive(keep_alive)
        chosen = make(policy)
        room = Room(chosen, parse_bytes(budget), max_models, hysteresis, patience_s)
        tier = HostTier(device, 0 if host_budget == 0 else parse_bytes(host_budget, "host_budget"), chosen)
        bring = load if timed else partial(memory.timed, load, measure)
        self._traffic = Traffic(bring, size_of, drop, chosen, room, tier, backoff_s, clock)
        self._later = later or (lambda action: action())
        self._changed = self._traffic.changed
        self._room = room
        self._entries: dict[Hashable, Entry] = {}
        self._sweeper: Sweeper | None = None
        self._keep_alive: float | None = None
        self.use(keep_alive=keep_alive)

    # ---- leases ------------------------------------------------------------------------------

    def acquire(
        self,
        name: Hashable,
        timeout: float | None = None,
        *,
        whom: Hashable = None,
        wanted: Callable[[], bool] | None = None,
    ) -> Lease:
        """A lease of the model `name`, which is loaded first where it isn't; use it in a ``with``.

        Args:
            timeout: seconds to wait for room, or for a load by another thread; None for as long as it takes. A load
                that this call itself has started isn't cut short.
            whom: who asks; of several who wait for room each one's first load goes before any other's next one.
            wanted: says, when asked anew after `look_again`, whether anybody wants the model any more.

        Raises:
            BudgetExceeded: the model is larger than the budget. ModelLoadFailed: its load failed, or did so a
            moment ago and isn't tried again yet. DeadlineExceeded: `timeout` passed. DeploymentClosed.
            kit.manager.entry.Unwanted: nobody wants it any more.
        """
        traffic = self._traffic
        asker = Asker(None if timeout is None else traffic.clock() + timeout, whom, wanted)
        with self._changed:
            traffic.used(self._entry(name))
            waited = False
            while True:
                traffic.raise_if_closed()
                entry = self._entry(name)
                if entry.ready:
                    entry.hits += not waited
                    return self._lease(entry, loaded=False)
                if not (entry.state in (LOADING, RESIDENT) or entry.leaving):
                    traffic.raise_if_failing(entry)
                    traffic.fetch(entry, asker)
                    return self._lease(entry, loaded=True)
                flight, waited = entry.flight, True
                asker.check()
                traffic.wait(asker, f"the model of {name!r}")
                if flight.done and flight.error is not None:
                    raise flight.error.copy()

    def look_again(self) -> None:
        """Have all who wait see whether their models are still wanted."""
        with self._changed:
            self._changed.notify_all()

    def _lease(self, entry: Entry, *, loaded: bool) -> Lease:
        entry.note_use(self._traffic.clock())
        entry.leases += 1
        return Lease(self, entry, loaded)

    def lease_if_ready(self, name: Hashable) -> Lease | None:
        """A lease of a model that is loaded and may be used now, else None; never waits."""
        with self._changed:
            entry = self._entries.get(name)
            if entry is None or not entry.ready or self._traffic.closed:
                return None
            entry.hits += 1
            self._traffic.used(entry)
            return self._lease(entry, loaded=False)

    def _release(self, entry: Entry) -> None:
        with self._changed:
            entry.leases -= 1
            entry.used_at = self._traffic.clock()
            if entry.leases:
                return
            if not (entry.closing and entry.idle) and not self._room.over:
                self._changed.notify_all()
                return
        self._later(partial(self._make_go, entry))

    def _entry(self, name: Hashable) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = Entry(name)
        return entry

    # ---- what users ask for ------------------------------------------------------------------

    def preload(self, names: Iterable[Hashable], timeout: float | None = None) -> None:
        """Load models before they are asked for; what doesn't fit beside the others evicts the worth least.

        `timeout` and errors are those of `acquire`, for each of them.
        """
        for name in names:
            self.acquire(name, timeout).release()

    def pin(self, names: Iterable[Hashable], timeout: float | None = None) -> None:
        """Load models and never evict them, until `unpin`; all of them, or none.

        Raises:
            BudgetExceeded: the pinned models don't fit the budget together. ModelLoadFailed: one of them was unloaded
            or unpinned meanwhile. And those of `acquire`.
        """
        pinned: list[Hashable] = []
        entries: list[Entry] = []
        held: list[Entry] = []
        try:
            for name in names:
                with self._changed:
                    first = self._entry(name)
                    lifted = first.lifted
                with self.acquire(name, timeout), self._changed:
                    entry = self._entry(name)
                    if entry.unwanted or first.lifted != lifted:
                        raise not_pinned(entry.name)
                    held.append(entry)
                    if not entry.pinned:
                        pinned.append(name)
                        entries.append(entry)
                        entry.pinning = True
                    entry.pinned = True
                    self._room.check_fits(entry)
                    entry.closing = False  # whoever wanted it to go has to look for another
            with self._changed:
                self._traffic.raise_if_closed()
                for entry in held:
                    if not (entry.pinned or entry.retired):
                        raise not_pinned(entry.name)
        except BaseException:
            self.unpin(pinned)
            raise
        finally:
            for entry in entries:
                entry.pinning = False

    def unpin(self, names: Iterable[Hashable]) -> None:
        """Let pinned models be evicted again."""
        with self._changed:
            for name in names:
                if name in self._entries:
                    self._entries[name].lift()
            self._traffic.evict(self._room.shrink())
            self._changed.notify_all()

    def resize(self, budget: int | float | str | None, max_models: int | None = SAME) -> None:
        """Change the budget, and the number of models, live. Models over it go now, those in use once released.

        Args:
            max_models: None for no limit; left out, it stays.

        Raises:
            BudgetExceeded: pinned models alone take more.
        """
        wanted = parse_bytes(budget)
        most = self.max_models if max_models is SAME else max_models
        with self._changed:
            pinned = self._room.pinned_bytes()
            if wanted is not None and pinned > wanted:
                raise errors.BudgetExceeded(
                    f"the pinned models take {format_bytes(pinned)}, and the new memory budget is "
                    f"{format_bytes(wanted)}: unpin some first."
                )
            check_pins(sum(entry.pinned for entry in self._room.present), most)
            self._room.budget, self._room.most = wanted, most
            self._traffic.evict(self._room.shrink())
            self._changed.notify_all()

    def use(self, policy: Any = SAME, keep_alive: float | None = SAME) -> None:
        """Take another policy, which learns what is loaded now, or another `keep_alive`; what is left out stays.

        Raises:
            InvalidSetting: a value that can't work.
        """
        chosen = None if policy is SAME else make(policy)
        wanted = self._keep_alive if keep_alive is SAME else keep_alive
        _check_keep_alive(wanted)
        if chosen is not None:
            with self._changed:
                self._traffic.take(chosen)
        if wanted != self._keep_alive:
            if self._sweeper is not None:
                self._sweeper.end()
            self._keep_alive = wanted
            self._sweeper = None if wanted is None else Sweeper(self, wanted)

    def close(self) -> None:
        """Unload all models, those in use as soon as they are released; later requests fail. Idempotent."""
        with self._changed:
            self._traffic.closed = True
            self._take_away(list(self._entries.values()))
        if self._sweeper is not None:
            self._sweeper.stop()


def _check_keep_alive(keep_alive: float | None) -> None:
    if keep_alive is not None and not keep_alive > 0:
        raise errors.InvalidSetting(f"keep_alive={keep_alive!r}: give seconds above 0, or None.")
