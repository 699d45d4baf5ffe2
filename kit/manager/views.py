"""What can be seen of a model manager: its budget, its bytes, its models."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from kit.manager.entry import Entry
from kit.manager.policy import worth
from kit.manager.room import Room
from kit.manager.traffic import Event, Traffic


class Views:
    """The part of a `ModelManager` that is read."""

    _room: Room
    _traffic: Traffic
    _entries: dict[Hashable, Entry]

    @property
    def budget(self) -> int | None:
        """Bytes that loaded models may take together, None for no limit."""
        return self._room.budget

    @property
    def max_models(self) -> int | None:
        """Models loaded at once at most, None for no limit."""
        return self._room.most

    @property
    def loading_factor(self) -> float:
        """Bytes that a load takes while it goes on, in bytes of the loaded model; may be set."""
        return self._room.loading_factor

    @loading_factor.setter
    def loading_factor(self, factor: float) -> None:
        self._room.loading_factor = factor

    @property
    def used_bytes(self) -> int:
        """Bytes of loaded models, and those reserved for loads under way."""
        return self._room.used_bytes

    @property
    def loading(self) -> int:
        """Loads under way."""
        return self._room.loading

    @property
    def overshoot_bytes(self) -> int:
        """Most bytes ever above the budget: by a model whose size wasn't known, or was said to be less."""
        return self._room.overshoot_bytes

    def above_budget(self, name: Hashable, size_bytes: int) -> int:
        """Bytes above the budget since the model that has just been loaded takes so many."""
        with self._traffic.changed:
            entry = self._entries.get(name)
            return 0 if entry is None else self._room.above(entry, size_bytes)

    def resident(self, name: Hashable) -> bool:
        """True when a request for `name` would be answered without loading."""
        with self._traffic.changed:
            entry = self._entries.get(name)
            return entry is not None and entry.ready

    @property
    def events(self) -> list[Event]:
        """The last 1,000 loads, moves, evictions and failures, oldest first."""
        with self._traffic.changed:
            return list(self._traffic.events)

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each model that was ever asked for, the worth most first.

        name; state ("loading", "resident", "host tier", "evicted", "failed"); size_bytes (None before it is known);
        hits, requests, loads, evictions; load_s (last), load_total_s; idle_s since it was last used (None: never);
        score (the policy's, higher is kept longer; NaN where it can't tell); in_use (leases); pinned; error (text, None
        where none; also why a model couldn't be loaded under the budget as it is).
        """
        with self._traffic.changed:
            now, policy = self._traffic.clock(), self._traffic.policy
            entries = list(self._entries.values())
            found = [entry.row(now, worth(policy, entry.name)) for entry in entries]
            refused = self._room.refusals(entries)
        for row in found:
            row["error"] = row["error"] or refused.get(row["name"])
        return sorted(found, key=lambda row: -row["score"])
