"""Which models go first when room is needed: `cost`, `lru` and `gdsf`.

The manager and `kit.simulate` use the same objects, so what a simulation says is what a budget will do.
Time is counted in requests, not in seconds: only relative rates matter, and a quiet night forgets nothing.
"""

from __future__ import annotations

import copy
import math
import traceback
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kit.errors import InvalidSetting
from kit.manager import rates

#: Models that are remembered at most; those not asked for longest are forgotten first.
MOST_REMEMBERED = 20_000
#: `cost` takes rates relative to so many models at least; with less traffic than that, it can't tell them apart.
FEWEST = 8


@dataclass(slots=True)
class Facts:
    """What a policy knows of a model.

    Attributes:
        size_bytes, load_s: as measured at its last load; 0 before the first.
        last: number of the request that used it last.
        priority: GDSF's H, set at each use.
        count: uses since it was loaded.
        belief: how often it is asked for, as of its last use, see `kit.manager.rates`.
    """

    size_bytes: int = 0
    load_s: float = 0.0
    last: int = 0
    priority: float = 0.0
    count: int = 0
    belief: Sequence[float] = rates.fresh()


#: Stands for a model that was forgotten.
_UNKNOWN = Facts()


class Policy:
    """Order of eviction: the model with the least `score` goes first."""

    name = ""
    #: True when a victim that turns out not to be needed, once the others are gone, may stay.
    spares = True

    def __init__(self) -> None:
        self.clock = 0
        self.facts: dict[Hashable, Facts] = {}

    def used(self, model: Hashable) -> None:
        """Note a request for `model`, resident or not."""
        self.clock += 1
        facts = self.facts.get(model)
        if facts is None:
            if len(self.facts) >= MOST_REMEMBERED:
                self._forget()
            facts = self.facts[model] = Facts()
        self._asked(facts)
        facts.last = self.clock
        facts.count += 1
        self._refresh(facts)

    def loaded(self, model: Hashable, size_bytes: int, load_s: float) -> None:
        """Note what a load took: bytes, and seconds that loading it again would cost."""
        facts = self.facts.setdefault(model, Facts(last=self.clock))
        facts.size_bytes, facts.load_s = size_bytes, load_s
        self._refresh(facts)

    def evicted(self, model: Hashable) -> None:
        """Note that `model` had to go; how often it is asked for is remembered for when it comes back."""
        facts = self.facts.get(model)
        if facts is not None:
            facts.count = 0

    def score(self, model: Hashable) -> float:
        """Worth of keeping `model`; only the order counts."""
        raise NotImplementedError

    def _asked(self, facts: Facts) -> None:
        """Hook of policies that keep a rate; the clock is at the request, `facts` aren't yet."""

    def _refresh(self, facts: Facts) -> None:
        """Hook of policies that keep a priority."""

    def _forget(self) -> None:
        by_last = sorted(self.facts, key=lambda model: self.facts[model].last)
        for model in by_last[: MOST_REMEMBERED // 10]:
            del self.facts[model]


class Cost(Policy):
    """(request rate) × (load seconds) / (bytes): seconds of loading saved by each byte kept.

    The rate is the mean of a belief about it, see `kit.manager.rates`. Requests for one model that come one after the
    other count as one: as long as they do, it doesn't matter where the others are.
    """

    name = "cost"

    def used(self, model: Hashable) -> None:
        facts = self.facts.get(model, _UNKNOWN)
        if not facts.count or facts.last != self.clock:
            super().used(model)

    def score(self, model: Hashable) -> float:
        facts = self.facts.get(model, _UNKNOWN)
        rate = rates.expected(facts.belief, self._time_since(facts))
        return rate * facts.load_s / max(1, facts.size_bytes)

    def _time_since(self, facts: Facts) -> float:
        return (self.clock - facts.last) / max(FEWEST, len(self.facts))

    def _asked(self, facts: Facts) -> None:
        facts.belief = rates.asked(facts.belief, self._time_since(facts))


class Lru(Policy):
    """Least recently used, whatever its size and load time."""

    name = "lru"
    spares = False

    def score(self, model: Hashable) -> float:
        return float(self.facts.get(model, _UNKNOWN).last)


class Gdsf(Policy):
    """Greedy-Dual-Size-Frequency: H = L + uses × load seconds / bytes, where L is the H of the last victim.

    Source: L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching
    Policy", HP Laboratories HPL-98-69R1, 1998.
    """

    name = "gdsf"

    def __init__(self) -> None:
        super().__init__()
        self.inflation = 0.0

    def score(self, model: Hashable) -> float:
        return self.facts.get(model, _UNKNOWN).priority

    def evicted(self, model: Hashable) -> None:
        facts = self.facts.get(model)
        if facts is not None:
            self.inflation = max(self.inflation, facts.priority)
        super().evicted(model)

    def _refresh(self, facts: Facts) -> None:
        if facts.size_bytes:
            facts.priority = self.inflation + max(1, facts.count) * facts.load_s / facts.size_bytes


POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Cost, Lru, Gdsf)}


def make(policy: Any) -> Policy:
    """A policy by name, or a copy of one of your own, since what it learns is of one manager's models.

    Raises:
        InvalidSetting: no such policy, or it can't be copied.
    """
    if isinstance(policy, Policy):
        try:
            return copy.deepcopy(policy)
        except Exception as error:
            raise InvalidSetting(f"policy={policy!r}: it can't be copied: {type(error).__name__}: {error}.") from error
    kind = POLICIES.get(policy) if isinstance(policy, str) else None
    if kind is None:
        raise InvalidSetting(
            f"policy={policy!r}: give one of {', '.join(map(repr, POLICIES))}, or an object of a class of your own "
            "that is a kit.manager.policy.Policy."
        )
    return kind()


def tell(note: Callable[..., None], *facts: Any) -> None:
    """Call a method that notes something; where one of the user's own fails, requests are served all the same."""
    try:
        note(*facts)
    except Exception:
        traceback.print_exc()


def worth(policy: Policy, model: Hashable) -> float:
    """The score of a model for a table; NaN where a policy of the user's can't tell."""
    try:
        return float(policy.score(model))
    except Exception:
        return math.nan


def victims(policy: Policy, idle: Iterable[tuple[Hashable, int]], need_bytes: int) -> list[Hashable]:
    """Models to evict so that `need_bytes` come free, out of the `idle` ones with their bytes.

    The worth least go first. When the last of them frees much, some of the others may stay after all; the
    worth most are looked at first. If all idle models together aren't enough, they all are returned.
    """
    order = sorted(idle, key=lambda item: policy.score(item[0]))
    chosen: list[tuple[Hashable, int]] = []
    freed = 0
    for item in order:
        if freed >= need_bytes:
            break
        chosen.append(item)
        freed += item[1]
    if policy.spares:
        for item in reversed(chosen[:-1]):
            if freed - item[1] >= need_bytes:
                chosen.remove(item)
                freed -= item[1]
    return [model for model, _ in chosen]
