"""Room for loads: who goes, who waits, and for how long.

Loads that need room stand in a line. The first in the line has idle models evicted; others may go before
it as long as they fit without. Who asks for many takes turns with others: a load stands behind those that are
their askers' first where it is its own asker's first, behind their second ones where it is his second, and so on,
and behind all that have waited `patience_s`. Two things hold an eviction back, and both end:

- hysteresis: a model that was just loaded and is in demand stays for as long as its load took, so that two
  models which don't fit together don't do nothing but load;
- leases: a model in use is never evicted. Requests for resident models go on while a load waits, but once
  it has waited `patience_s`, the models that must go take no new leases.

So a load waits `patience_s` at most, then the longest lease that is held, then the loads before it: those that
were before it when it came, and those of other askers' earlier turns that came within `patience_s`.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import TYPE_CHECKING

from kit import errors
from kit.manager import policy as policies
from kit.manager.entry import EVICTED, LOADING, RESIDENT, Entry
from kit.shorten import counted
from kit.sizes import format_bytes

if TYPE_CHECKING:
    from kit.manager.policy import Policy

#: A model is in demand until it wasn't asked for over this many times the usual gap between requests.
GAPS = 4.0
#: The same before there is a usual gap, as a share of its load seconds.
GRACE = 0.05


class Ticket:
    """A load's place in the line."""

    def __init__(self, entry: Entry, since: float, whom: Hashable = None) -> None:
        self.entry = entry
        self.since = since
        self.whom = whom  # None for nobody who has others
        self.before = 0  # loads of the same asker that stand in the line before it
        self.evicting = False
        self.closed: list[Entry] = []  # models told to take no new leases on its behalf


class Room:
    """Books of the bytes; every method is called with the manager's lock held.

    Attributes:
        budget: bytes, None for no limit; most: models, None for no limit.
        used_bytes: of resident models, of those that are leaving, and reserved for loads.
        overshoot_bytes: most that was ever used above the budget, by models whose size wasn't known.
    """

    def __init__(
        self, policy: Policy, budget: int | None, most: int | None, hysteresis: float, patience_s: float
    ) -> None:
        self.policy = policy
        self.budget = budget
        self.most = most
        self.hysteresis = hysteresis
        self.patience_s = patience_s
        self.loading_factor = 1.0  # bytes that a load takes while it goes on, in bytes of the loaded model
        self.used_bytes = 0
        self.overshoot_bytes = 0
        self.present: dict[Entry, None] = {}  # resident, leaving or loading
        self.loading = 0
        self.line: list[Ticket] = []
        self._sizes: list[int] = []  # of the models loaded last, for a guess at the next

    # ---- books -------------------------------------------------------------------------------

    def reserve(self, entry: Entry) -> None:
        """Set bytes aside for a load."""
        entry.alone = entry.size_bytes is None
        entry.reserved_bytes = self.expected_bytes(entry)
        self.used_bytes += entry.reserved_bytes
        self.present[entry] = None
        self.loading += 1

    def cancel(self, entry: Entry) -> None:
        """Give back what was set aside for a load that came to nothing."""
        self.used_bytes -= entry.reserved_bytes
        entry.reserved_bytes, entry.alone = 0, False
        self.present.pop(entry, None)
        self.loading -= 1

    def settle(self, entry: Entry, size_bytes: int) -> None:
        """Put the measured size of a loaded model in the place of what was reserved."""
        self.overshoot_bytes = max(self.overshoot_bytes, self.above(entry, size_bytes))
        self.used_bytes += size_bytes - entry.reserved_bytes
        entry.size_bytes, entry.reserved_bytes, entry.alone = size_bytes, 0, False
        self.loading -= 1
        self._sizes = [*self._sizes[-31:], size_bytes]

    def above(self, entry: Entry, size_bytes: int) -> int:
        """Bytes above the budget since a loaded model takes so many; what a lowered budget leaves isn't its doing."""
        grown = size_bytes - entry.reserved_bytes
        over = 0 if self.budget is None else self.used_bytes + grown - self.budget
        return max(0, min(grown, over))

    def gone(self, entry: Entry) -> None:
        """A resident model's memory was given back."""
        self.used_bytes -= entry.size_bytes or 0
        self.present.pop(entry, None)

    @property
    def over(self) -> bool:
        """True when there are more bytes, or more models, than there should be."""
        return self._short(None) != (0, 0)

    def expected_bytes(self, entry: Entry) -> int:
        """Bytes to set aside for a load: its size, or the typical one when that isn't known."""
        if entry.size_bytes is not None:
            return int(entry.size_bytes * self.loading_factor)
        guess = self.loading_factor * sorted(self._sizes)[len(self._sizes) // 2] if self._sizes else 0
        return int(guess) if self.budget is None else max(0, min(int(guess), self.budget - self.pinned_bytes(entry)))

    def pinned_bytes(self, but: Entry | None = None) -> int:
        """Bytes of pinned models, `but` one."""
        return sum(entry.held_bytes for entry in self.present if entry.pinned and entry is not but)

    def check_fits(self, entry: Entry) -> None:
        """Raise BudgetExceeded when a model couldn't be loaded if all others went, with both numbers."""
        self._check_number(entry)
        if self.budget is None or entry.size_bytes is None:
            return
        pinned = self.pinned_bytes(entry)
        need = self.expected_bytes(entry) if entry.state == LOADING else entry.size_bytes
        if need + pinned <= self.budget:
            return
        more = f", and {format_bytes(need)} while it is loaded" if need > entry.size_bytes else ""
        asked = sum(other.held_bytes for other in self.present if other.pinning and other is not entry)
        beside = f" and {format_bytes(pinned - asked)} of it are pinned" if pinned > asked else ""
        beside += f", and {format_bytes(asked)} are to be pinned with it" if asked else ""
        raise errors.BudgetExceeded(
            f"the model of {entry.name!r} takes {format_bytes(entry.size_bytes)} ({entry.size_bytes:,} bytes){more}, "
            f"the memory budget is {format_bytes(self.budget)} ({self.budget:,} bytes){beside}. Raise memory_budget, "
            f"{'unpin a model, ' if pinned > asked else 'pin less, ' if asked else ''}or take a smaller model."
        )

    def _check_number(self, entry: Entry) -> None:
        pinned = [other for other in self.present if other.pinned and other is not entry]
        if self.most is None or len(pinned) < self.most:
            return
        asked = sum(other.pinning for other in pinned)
        beside = f"{asked} are to be pinned with it" if asked else ""
        if len(pinned) > asked:
            beside = f"{len(pinned) - asked} of them are pinned" + (f", and {beside}" if asked else "")
        raise errors.BudgetExceeded(
            f"the model of {entry.name!r} has no place: max_models_per_worker_hint allows "
            f"{counted(self.most, 'model')} at once in all, and {beside}. Raise max_models_per_worker_hint, or "
            f"{'unpin a model' if len(pinned) > asked else 'pin less'}."
        )

    def refusals(self, entries: Iterable[Entry]) -> dict[Hashable, str]:
        """Why some models that aren't loaded couldn't be, as things are, by name."""
        found: dict[Hashable, str] = {}
        full = self.most is not None and sum(entry.pinned for entry in self.present) >= self.most
        most = None if self.budget is None else self.budget - self.pinned_bytes()
        for entry in entries:
            if entry.state == EVICTED and (full or (most is not None and (entry.size_bytes or 0) > most)):
                try:
                    self.check_fits(entry)
                except errors.BudgetExceeded as error:
                    found[entry.name] = str(error.args[0])
        return found

    # ---- the line ----------------------------------------------------------------------------

    def join(self, ticket: Ticket) -> None:
        """Put a load in the line, where its turn is."""
        if ticket.whom is not None:
            ticket.before = sum(other.whom is ticket.whom for other in self.line)
        at = len(self.line)
        while at and self.line[at - 1].before > ticket.before and not self._stays(self.line[at - 1], ticket.since):
            at -= 1
        self.line.insert(at, ticket)

    def _stays(self, ticket: Ticket, now: float) -> bool:
        """True when no other load may come to stand before the ticket's."""
        return ticket.evicting or now - ticket.since >= self.patience_s

    def leave(self, ticket: Ticket) -> None:
        """Take a load out of the line."""
        self.line.remove(ticket)
        for other in self.line:
            if ticket.whom is not None and other.whom is ticket.whom and other.before > ticket.before:
                other.before -= 1

    def may_reserve(self, ticket: Ticket, now: float) -> bool:
        """True when the ticket's load can start as things are."""
        if self.budget is not None:
            if any(entry.alone for entry in self.present):
                return False
            if ticket.entry.size_bytes is None and self.loading:
                return False
        head = self.line[0]
        if ticket is not head and self._stays(head, now):
            return False
        return not any(self._short(ticket.entry))

    def to_evict(self, ticket: Ticket, now: float) -> list[Entry]:
        """Idle models that have to go for the ticket's load; empty when it must wait first.

        Those that go anyway, at once or with their last lease, come first.
        """
        if ticket is not self.line[0]:
            return []
        impatient = now - ticket.since >= self.patience_s
        if impatient:
            self._close(ticket)
        closing = [entry for entry in self.present if entry.closing and entry.idle]
        if closing:
            return closing
        going = [entry for entry in self.present if entry.leaving or (entry.closing and not impatient)]
        short, too_many = self._short(ticket.entry, going)
        free = [entry for entry in self.present if entry.idle and (impatient or not self._protected(entry, now))]
        return self._choose(free, short, too_many)

    def _close(self, ticket: Ticket) -> None:
        """Choose who must go for an impatient load, among models in use too, and let them take no new leases."""
        short, too_many = self._short(ticket.entry, [entry for entry in self.present if entry.leaving or entry.closing])
        movable = [
            entry
            for entry in self.present
            if entry.state == RESIDENT and not (entry.pinned or entry.leaving or entry.closing)
        ]
        for entry in self._choose(movable, short, too_many):
            entry.closing = True
            ticket.closed.append(entry)

    def shrink(self) -> list[Entry]:
        """Idle models that have to go because more is used than the budget allows."""
        short, too_many = self._short(None, [entry for entry in self.present if entry.leaving])
        idle = [entry for entry in self.present if entry.idle]
        return self._choose(idle, short, too_many, all_or_none=False)

    def wakes_at(self, ticket: Ticket, now: float) -> float | None:
        """When the clock alone may let the ticket's load go on, monotonic seconds."""
        times = [ticket.since + self.patience_s]
        if ticket is self.line[0]:
            times += [self._protected_until(entry) for entry in self.present if entry.idle]
        ahead = [at for at in times if at > now]
        return min(ahead) if ahead else None

    def _short(self, entry: Entry | None, going: Collection[Entry] = ()) -> tuple[int, int]:
        """Bytes and models that have to go before a load can start, or with None for the limits to hold; not below 0.

        Args:
            going: go by themselves, so that their bytes come without doing anything.
        """
        used = self.used_bytes - sum(other.held_bytes for other in going)
        present = len(self.present) - len(going)
        if entry is not None:
            used, present = used + self.expected_bytes(entry), present + 1
        need = 0 if self.budget is None else used - self.budget
        too_many = 0 if self.most is None else present - self.most
        return max(0, need), max(0, too_many)

    def _choose(
        self, candidates: Iterable[Entry], short: int, too_many: int, *, all_or_none: bool = True
    ) -> list[Entry]:
        by_name: dict[Hashable, Entry] = {entry.name: entry for entry in candidates}
        chosen: list[Hashable] = []
        if short > 0:
            chosen = policies.victims(self.policy, [(n, e.size_bytes or 0) for n, e in by_name.items()], short)
        if len(chosen) < too_many:
            left = sorted((name for name in by_name if name not in chosen), key=self.policy.score)
            chosen += left[: too_many - len(chosen)]
        found = [by_name[name] for name in chosen]
        enough = sum(entry.size_bytes or 0 for entry in found) >= short and len(found) >= too_many
        return found if enough or not all_or_none else []

    def _protected(self, entry: Entry, now: float) -> bool:
        return now < self._protected_until(entry)

    def _protected_until(self, entry: Entry) -> float:
        """End of the time for which a model in demand is kept after its load."""
        if entry.used_at is None:
            return entry.loaded_at
        grace = GRACE * entry.load_s if entry.gap_s is None else GAPS * entry.gap_s
        return min(entry.loaded_at + self.hysteresis * entry.load_s, entry.used_at + grace)
