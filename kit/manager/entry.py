"""What the manager knows of one model, and the lease that keeps it from being evicted."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from kit.errors import KitError
    from kit.manager.core import ModelManager

LOADING, RESIDENT, HOST_TIER, EVICTED, FAILED = "loading", "resident", "host tier", "evicted", "failed"


class Unwanted(Exception):
    """Nobody wants the model any more that was waited for."""


class Asker(NamedTuple):
    """Who asks for a model.

    Attributes:
        until: when it has waited long enough, monotonic seconds; None for never.
        whom: for whom; the loads of one take turns with those of others. None for nobody else.
        wanted: False once nobody wants the model any more.
    """

    until: float | None
    whom: Hashable
    wanted: Callable[[], bool] | None

    def check(self) -> None:
        """Raise Unwanted when nobody wants the model any more."""
        if self.wanted is not None and not self.wanted():
            raise Unwanted


class Flight:
    """One attempt at loading a model, which all who ask for it meanwhile wait for."""

    def __init__(self) -> None:
        self.done = False
        self.error: KitError | None = None  # of the load itself; what befell its first asker is no one else's


@dataclass(slots=True, eq=False)
class Entry:
    """A model by its name; the manager's lock guards all of it.

    Attributes:
        model: the loaded model, on its device when `state` is resident, in host memory in the host tier.
        size_bytes: bytes as measured at the last load, else as estimated; None when nothing is known.
        reserved_bytes: set aside for a load under way.
        alone: its load was started without knowing its size, so no other may run beside it.
        load_s: seconds of the last load; move_s: of the last move from the host tier to the device.
        leases: users at this moment.
        lifted: how often a pin was lifted, which whoever pins it meanwhile has to know.
        pinning: the call that pins it has yet to see whether all that it was given fits.
        leaving: its memory is being given back; the bytes count until that is done.
        closing: takes no new leases, so that it becomes idle and can go.
        gap_s: seconds between uses since it was loaded, smoothed; None before the second.
        retry_at: monotonic seconds before which a failed load isn't tried again.
        retired: another version took its name; it goes with its last lease.
        unwanted: it was unloaded on request, so it doesn't go to the host tier.
    """

    name: Hashable
    state: str = EVICTED
    model: Any = None
    size_bytes: int | None = None
    reserved_bytes: int = 0
    alone: bool = False
    load_s: float = 0.0
    move_s: float | None = None
    load_total_s: float = 0.0
    leases: int = 0
    hits: int = 0
    requests: int = 0
    loads: int = 0
    evictions: int = 0
    used_at: float | None = None
    loaded_at: float = 0.0
    gap_s: float | None = None
    pinned: bool = False
    lifted: int = 0
    pinning: bool = False
    leaving: bool = False
    closing: bool = False
    retired: bool = False
    unwanted: bool = False
    failures: int = 0
    retry_at: float = 0.0
    error: KitError | None = None
    flight: Flight = field(default_factory=Flight)

    @property
    def held_bytes(self) -> int:
        """Bytes that count against the budget now."""
        return (self.size_bytes or 0) if self.state == RESIDENT else self.reserved_bytes

    @property
    def idle(self) -> bool:
        """True when it is resident and may go: nobody uses it, and it isn't pinned or going already."""
        return self.state == RESIDENT and not self.leases and not self.pinned and not self.leaving

    @property
    def ready(self) -> bool:
        """True when a lease can be had at once."""
        return self.state == RESIDENT and not (self.closing or self.leaving)

    def lift(self) -> None:
        """Let it be evicted again."""
        self.pinned, self.lifted = False, self.lifted + 1

    def let_go(self) -> None:
        """Have it go as soon as nobody uses it, and not to the host tier; a pin is lifted."""
        self.pinned = False
        if self.state in (RESIDENT, LOADING):
            self.closing = self.unwanted = True

    def row(self, now: float, score: float) -> dict[str, Any]:
        """The columns of `ModelManager.rows`."""
        return {
            "name": self.name,
            "state": self.state,
            "size_bytes": self.size_bytes,
            "hits": self.hits,
            "requests": self.requests,
            "loads": self.loads,
            "evictions": self.evictions,
            "load_s": self.load_s,
            "load_total_s": self.load_total_s,
            "idle_s": None if self.used_at is None else max(0.0, now - self.used_at),
            "score": score,
            "in_use": self.leases,
            "pinned": self.pinned,
            "error": None if self.error is None else str(self.error.args[0]),
        }

    def note_use(self, now: float) -> None:
        """Remember when it was asked for, and how long after the time before."""
        if self.used_at is not None and self.used_at >= self.loaded_at:
            gap = now - self.used_at
            self.gap_s = gap if self.gap_s is None else 0.7 * self.gap_s + 0.3 * gap
        self.used_at = now


def blank_row() -> dict[str, Any]:
    """The row, without a name, of a model that was never asked for."""
    row = Entry(None).row(0.0, 0.0)
    del row["name"]
    return row


def columns() -> list[str]:
    """Of a table with a row a model by key, which a function may have named none of yet."""
    return ["keys", *blank_row()]


class Lease:
    """The right to use a loaded model: it isn't evicted until `release`, which the end of a ``with`` calls.

    Attributes:
        model: the model; None after the release.
        loaded: True when this lease's request had to load or move the model.
    """

    __slots__ = ("_manager", "entry", "loaded", "model")

    def __init__(self, manager: ModelManager, entry: Entry, loaded: bool) -> None:
        self._manager = manager
        self.entry: Entry | None = entry
        self.model = entry.model
        self.loaded = loaded

    def release(self) -> None:
        """Let the model go; idempotent."""
        entry, self.entry, self.model = self.entry, None, None
        if entry is not None:
            self._manager._release(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
