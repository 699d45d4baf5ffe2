"""Whatever is asked of the model manager in whatever order: its promises hold after every step."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kit import errors
from kit.manager import Lease, ModelManager
from kit.manager.entry import HOST_TIER, LOADING, RESIDENT
from tests.test_manager import Clock, Model, Moves

NAMES = "abcdefgh"
names = st.sampled_from(NAMES)


class Machine(RuleBasedStateMachine):
    """Acquire, release, fail, pin, unload, forget, resize, in any order and in one thread."""

    @initialize(
        policy=st.sampled_from(["cost", "lru", "gdsf"]),
        known=st.booleans(),
        most=st.sampled_from([None, 3]),
        on_device=st.booleans(),
        sizes=st.lists(st.integers(1, 60), min_size=len(NAMES), max_size=len(NAMES)),
    )
    def start(self, policy: str, known: bool, most: int | None, on_device: bool, sizes: list[int]) -> None:
        self.sizes = dict(zip(NAMES, sizes, strict=True))
        self.known = known
        self.most = most
        self.clock = Clock()
        self.broken: set[str] = set()
        self.loading: set[str] = set()
        self.leases: list[tuple[str, Lease]] = []
        self.asked = self.answered = self.refused = 0
        self.tells_both_numbers = True
        self.manager = ModelManager(
            self.load,
            budget=100,
            size_of=self.sizes.get if known else lambda name: None,
            measure=lambda model: model.size,
            policy=policy,
            max_models=most,
            clock=self.clock,
            device=Moves() if on_device else None,
            host_budget=90,
        )

    def load(self, name: Any) -> Model:
        entry = self.manager._entries[name]
        assert entry.state == LOADING
        assert name not in self.loading
        self.loading.add(name)
        self.clock.now += 0.5
        # A promise is kept while the load goes on, too.
        budget = self.manager.budget
        if budget is not None and not self.held_over():
            assert self.manager.used_bytes <= budget
        self.loading.discard(name)
        if name in self.broken:
            raise OSError("corrupt")
        return Model(name, self.sizes[name])

    def held_over(self) -> bool:
        """True while models in use keep the manager above a lowered budget."""
        return any(lease.model is not None for _, lease in self.leases)

    @rule(name=names)
    def acquire(self, name: str) -> None:
        self.asked += 1
        was_leased = {id(lease.model): lease.model.name for _, lease in self.leases}
        try:
            lease = self.manager.acquire(name, timeout=0)
        except errors.BudgetExceeded as error:
            self.refused += 1
            if "max_models_per_worker_hint" in str(error):
                assert self.pinned_others(name) == self.most
            else:
                self.tells_both_numbers &= f"({self.sizes[name]} bytes)" in str(error)
        except (errors.ModelLoadFailed, errors.DeadlineExceeded):
            self.refused += 1
        else:
            self.answered += 1
            assert lease.model.name == name
            assert lease.model.where == "device"
            self.leases.append((name, lease))
        assert all(self.leases_hold(model_id, n) for model_id, n in was_leased.items())

    def pinned_others(self, name: str) -> int:
        return sum(entry.pinned and entry.name != name for entry in self.manager._room.present)

    def leases_hold(self, model_id: int, name: str) -> bool:
        return any(id(lease.model) == model_id and lease.model.name == name for _, lease in self.leases)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(0, len(self.leases) - 1))
        self.leases.pop(position)[1].release()

    @rule(name=names)
    def break_or_mend(self, name: str) -> None:
        self.broken ^= {name}

    @rule(name=names)
    def pin(self, name: str) -> None:
        self.asked += 1
        try:
            self.manager.pin([name], timeout=0)
        except (errors.BudgetExceeded, errors.ModelLoadFailed, errors.DeadlineExceeded):
            self.refused += 1
            assert not self.manager._entries[name].pinned or self.manager.resident(name)
        else:
            self.answered += 1
            assert self.manager._entries[name].pinned

    @rule(name=names)
    def unpin(self, name: str) -> None:
        self.manager.unpin([name])

    @rule(name=names)
    def unload(self, name: str) -> None:
        self.manager.unload([name])

    @rule(name=names)
    def forget(self, name: str) -> None:
        self.manager.forget([name])

    @rule(budget=st.integers(20, 200))
    def resize(self, budget: int) -> None:
        try:
            self.manager.resize(budget)
        except errors.BudgetExceeded:
            assert self.manager._room.pinned_bytes() > budget

    @rule(policy=st.sampled_from(["cost", "lru", "gdsf"]))
    def change_policy(self, policy: str) -> None:
        self.manager.use(policy=policy)

    @rule(most=st.sampled_from([None, 2, 4]))
    def change_number(self, most: int | None) -> None:
        try:
            self.manager.resize(self.manager.budget, most)
        except errors.BudgetExceeded:
            assert most is not None
            assert sum(entry.pinned for entry in self.manager._room.present) > most
        else:
            self.most = most

    @rule(seconds=st.floats(0.1, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(seconds=st.floats(1, 50))
    def sweep(self, seconds: float) -> None:
        self.manager.sweep(seconds)

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "manager"):
            return
        room = self.manager._room
        assert room.used_bytes == sum(entry.held_bytes for entry in room.present)
        assert not room.line
        assert room.loading == 0
        assert not any(entry.leaving or entry.reserved_bytes for entry in room.present)
        for entry in self.manager._entries.values():
            assert (entry.model is not None) == (entry.state in (RESIDENT, HOST_TIER))
            assert (entry in room.present) == (entry.state == RESIDENT)
        tier = self.manager._traffic.tier
        assert tier.used_bytes == sum(e.size_bytes or 0 for e in self.manager._entries.values() if e.state == HOST_TIER)
        assert tier.used_bytes <= 90

    @invariant()
    def within_the_budget_unless_models_in_use_are_not(self) -> None:
        if not hasattr(self, "manager"):
            return
        room, budget = self.manager._room, self.manager.budget
        idle = [entry for entry in room.present if entry.idle]
        assert budget is not None
        if room.used_bytes > budget:
            assert not idle
        if self.known and not self.leases:
            assert room.used_bytes <= budget
        if self.most is not None:
            assert sum(entry.pinned for entry in room.present) <= self.most
            assert len(room.present) <= self.most or not idle

    @invariant()
    def leased_models_are_there(self) -> None:
        for name, lease in getattr(self, "leases", []):
            assert lease.model is not None
            assert lease.model.name == name
            assert lease.entry is not None
            assert lease.entry.state == RESIDENT
            assert lease.entry.model is lease.model

    @invariant()
    def every_request_is_answered_once(self) -> None:
        if hasattr(self, "manager"):
            assert self.asked == self.answered + self.refused
            assert self.tells_both_numbers

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            for _, lease in self.leases:
                lease.release()
            self.manager.close()
            assert self.manager.used_bytes == 0
            assert self.manager._traffic.tier.used_bytes == 0


Machine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase


@pytest.mark.parametrize("policy", ["cost", "lru"])
@pytest.mark.parametrize("known", [True, False])
def test_racing_threads_keep_every_promise(policy: str, known: bool) -> None:
    sizes = {number: 10 + number for number in range(12)}
    loading: set[int] = set()
    wrong: list[str] = []
    guard = threading.Lock()

    def load(name: Any) -> Model:
        with guard:
            if name in loading:
                wrong.append(f"{name} is loaded twice at once")
            loading.add(name)
        over = manager.used_bytes - 60
        if known and over > 0:
            wrong.append(f"{over} bytes too much")
        if random.random() < 0.1:
            with guard:
                loading.discard(name)
            raise OSError("corrupt")
        with guard:
            loading.discard(name)
        return Model(name, sizes[name])

    manager = ModelManager(
        load,
        budget=60,
        size_of=sizes.get if known else lambda name: None,
        measure=lambda model: model.size,
        policy=policy,
        patience_s=0.01,
        backoff_s=0.001,
    )
    answered = [0] * 8

    def ask(number: int) -> None:
        draw = random.Random(number)
        for _ in range(150):
            name = min(int(draw.expovariate(0.3)), 11)
            try:
                with manager.acquire(name, timeout=60) as lease:
                    if lease.model is None or lease.model.name != name:
                        wrong.append(f"asked for {name}, got {lease.model}")
            except errors.ModelLoadFailed:
                pass
            except BaseException as error:
                wrong.append(repr(error))
                return
            answered[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert answered == [150] * 8
    room = manager._room
    assert room.used_bytes == sum(entry.held_bytes for entry in room.present) <= 60
    manager.close()
    assert manager.used_bytes == 0
