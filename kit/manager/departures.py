"""Models that go: unloaded on request, replaced by other versions, unused for long, or too many once released."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from functools import partial

from kit.manager.entry import HOST_TIER, Entry, Lease
from kit.manager.views import Views


class Departures(Views):
    """The part of a `ModelManager` that has models go."""

    _changed: threading.Condition
    _later: Callable[[Callable[[], None]], None]

    def _make_go(self, entry: Entry) -> None:
        """Evict what a release has made free to go."""
        with self._changed:
            if entry.closing and entry.idle:
                self._traffic.evict([entry], keep=not entry.unwanted)
            elif self._room.over:
                self._traffic.evict(self._room.shrink())
            self._changed.notify_all()

    def unload(self, names: Iterable[Hashable]) -> None:
        """Unload models, out of the host tier too: now, or as soon as nobody uses them; pins are lifted."""
        with self._changed:
            found = [self._entries[name] for name in names if name in self._entries]
            for entry in found:
                entry.lift()
            self._take_away(found)

    def forget(self, names: Iterable[Hashable]) -> None:
        """Unload models whose next load gives another version: who uses the old one keeps it, all others get the new.

        A load that is under way is finished for those who wait for it, and dropped then.
        """
        with self._changed:
            gone = [self._retired(name) for name in names if name in self._entries]
        if gone:
            self._later(partial(self._drop, gone))

    def retire(self, lease: Lease) -> None:
        """Release a lease whose model is of no use any more; as `forget`, unless it was loaded again meanwhile."""
        entry = lease.entry
        with self._changed:
            if entry is not None and self._entries.get(entry.name) is entry:
                self._retired(entry.name)
        lease.release()

    def _retired(self, name: Hashable) -> Entry:
        """Take a name away from its model, which goes as soon as it can: its bytes and pin are in nobody's way."""
        entry = self._entries.pop(name)
        entry.retired = True
        entry.let_go()
        return entry

    def _drop(self, entries: list[Entry]) -> None:
        with self._changed:
            self._take_away(entries)

    def _take_away(self, entries: list[Entry]) -> None:
        for entry in entries:
            entry.let_go()
            if entry.idle:
                self._traffic.evict([entry], keep=False)
            elif entry.state == HOST_TIER:
                self._traffic.drop_from_tier(entry)
        self._changed.notify_all()

    def sweep(self, idle_s: float) -> float | None:
        """Unload models that nobody has used for `idle_s` seconds; seconds until the next is due, None when none is."""
        with self._changed:
            now = self._traffic.clock()
            left = []
            for entry in list(self._entries.values()):
                if entry.idle or entry.state == HOST_TIER:
                    unused_s = now - (entry.used_at or now)
                    if unused_s >= idle_s:
                        self._take_away([entry])
                    else:
                        left.append(idle_s - unused_s)
            return min(left, default=None)
