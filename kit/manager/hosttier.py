"""The tier in host memory: models that had to leave the device wait there, which is quicker than loading again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kit.manager import memory
from kit.manager.device import Device
from kit.manager.entry import HOST_TIER, Entry

if TYPE_CHECKING:
    from kit.manager.policy import Policy


class Plan(NamedTuple):
    """What an eviction does: models that move to host memory, and models there that are dropped for them."""

    moved: list[Entry]
    dropped: list[Entry]


class HostTier:
    """Books of the tier; `plan`, `forget` and `cost_s` are called with the manager's lock, `take` and `bring` without.

    Args:
        device: None when models compute in host memory; there is no tier then.
        budget: bytes, None for no limit, 0 for no tier.
    """

    def __init__(self, device: Device | None, budget: int | None, policy: Policy) -> None:
        self._device = device
        self._budget = budget
        self.policy = policy
        self._held: dict[Entry, int] = {}  # bytes of each model in the tier, or on its way there

    @property
    def used_bytes(self) -> int:
        """Bytes of the models in the tier."""
        return sum(self._held.values())

    def cost_s(self, entry: Entry) -> float:
        """Seconds that bringing an evicted model back would cost."""
        return entry.load_s if self._device is None or entry.move_s is None else entry.move_s

    def plan(self, entries: list[Entry]) -> Plan:
        """Decide who moves; the worth most are looked at first."""
        plan = Plan([], [])
        if self._device is None or self._budget == 0:
            return plan
        for entry in sorted(entries, key=lambda entry: -self.policy.score(entry.name)):
            size = entry.size_bytes or 0
            victims = self._victims(entry, size)
            if victims is None:
                continue
            for victim in victims:
                del self._held[victim]
            plan.dropped.extend(victims)
            self._held[entry] = size
            plan.moved.append(entry)
        return plan

    def _victims(self, entry: Entry, size: int) -> list[Entry] | None:
        """Models in the tier, of less worth, to drop for `entry`; None when that isn't enough."""
        if self._budget is None:
            return []
        free = self._budget - self.used_bytes
        victims: list[Entry] = []
        score = self.policy.score
        for other in sorted(self._held, key=lambda other: score(other.name)):
            if free >= size:
                break
            if other.state == HOST_TIER and score(other.name) < score(entry.name):
                victims.append(other)
                free += self._held[other]
        return victims if free >= size else None

    def take(self, plan: Plan) -> None:
        """Move models off the device; one that can't be moved is dropped."""
        if self._device is None:
            return
        for entry in plan.moved:
            try:
                entry.model = self._device.to_host(entry.model)
            except Exception:
                # Host memory is short, or the model can't be moved: it is loaded again when it is asked for.
                lost: list[Any] = [entry.model]
                entry.model = None
                del self._held[entry]
                memory.drop(lost)
        self._device.trim()

    def bring(self, model: Any) -> Any:
        """Move a model to the device."""
        assert self._device is not None
        return self._device.to_device(model)

    def forget(self, entry: Entry) -> None:
        """The model isn't in the tier any more."""
        self._held.pop(entry, None)
