"""The model manager: budget, leases, single loads, overtaking, hysteresis, failures, the host tier, and real memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kit import errors
from kit.manager import ModelManager

WAIT_S = 30


class Model:
    """A pretended model of some bytes."""

    def __init__(self, name: Any, size: int) -> None:
        self.name = name
        self.size = size
        self.where = "device"


class Clock:
    """Time that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    """Loads pretended models; notes every load, and lets a test hold one up or make it fail."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.loads: list[str] = []
        self.held: dict[str, threading.Event] = {}
        self.begun: dict[str, threading.Event] = {name: threading.Event() for name in sizes}
        self.broken: set[str] = set()

    def load(self, name: Any) -> Model:
        self.loads.append(name)
        self.begun[name].set()
        if name in self.held:
            assert self.held[name].wait(WAIT_S)
        if name in self.broken:
            raise OSError(f"{name} is corrupt")
        return Model(name, self.sizes[name])

    def manager(self, budget: Any = None, *, known: bool = True, **options: Any) -> ModelManager:
        if known:
            options["size_of"] = self.sizes.get
        return ModelManager(self.load, budget=budget, measure=lambda model: model.size, **options)


def states(manager: ModelManager) -> dict[Any, str]:
    return {row["name"]: row["state"] for row in manager.rows()}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


# ---- budget --------------------------------------------------------------------------------------


def test_models_are_loaded_once_and_kept_within_the_budget() -> None:
    shelf = Shelf({"a": 40, "b": 40, "c": 40})
    manager = shelf.manager(100)
    for name in "aabbab":
        with manager.acquire(name) as lease:
            assert lease.model.name == name
    assert shelf.loads == ["a", "b"]
    assert manager.used_bytes == 80
    with manager.acquire("c"):
        assert manager.used_bytes == 80
    assert sorted(states(manager).values()) == ["evicted", "resident", "resident"]


def test_a_model_larger_than_the_budget_is_refused_with_both_numbers_before_it_is_loaded() -> None:
    shelf = Shelf({"a": 40, "big": 101})
    manager = shelf.manager(100)
    manager.preload(["a"])
    with pytest.raises(errors.BudgetExceeded, match=r"'big' takes 101 B.*budget is 100 B"):
        manager.acquire("big")
    assert shelf.loads == ["a"]
    assert states(manager)["a"] == "resident"
    manager.resize(200)
    assert manager.acquire("big").model.size == 101


def test_a_budget_lowered_during_a_load_is_no_overshoot_of_that_load() -> None:
    shelf = Shelf({"a": 60, "b": 30})
    manager = shelf.manager(budget=100)
    shelf.held["b"] = threading.Event()
    with manager.acquire("a"), ThreadPoolExecutor(1) as pool:
        loading = pool.submit(manager.preload, ["b"])
        assert shelf.begun["b"].wait(WAIT_S)
        manager.resize(80)
        shelf.held["b"].set()
        loading.result(WAIT_S)
    assert (manager.used_bytes <= 80, manager.overshoot_bytes) == (True, 0)


def test_the_table_tells_why_a_model_cannot_be_loaded_for_as_long_as_it_cannot() -> None:
    manager = Shelf({"huge": 120, "small": 40}).manager(100)
    with pytest.raises(errors.BudgetExceeded) as caught:
        manager.acquire("huge")
    manager.preload(["small"])

    def said() -> dict[str, Any]:
        return {row["name"]: row["error"] for row in manager.rows()}

    assert said() == {"huge": caught.value.args[0], "small": None}
    manager.resize(150)
    assert said() == {"huge": None, "small": None}
    manager.pin(["small"])
    assert "40 B of it are pinned" in said()["huge"]


def test_a_model_of_unknown_size_is_measured_and_its_overshoot_is_reported() -> None:
    shelf = Shelf({"a": 60, "b": 60, "big": 150})
    manager = shelf.manager(100, known=False)
    manager.preload(["a"])
    assert manager.overshoot_bytes == 0
    manager.preload(["b"])  # as large as the last one, it is supposed
    assert (states(manager), manager.overshoot_bytes) == ({"a": "evicted", "b": "resident"}, 0)
    with pytest.raises(errors.BudgetExceeded, match="150 B"):
        manager.acquire("big")
    assert manager.overshoot_bytes == 50
    assert manager.used_bytes == 0
    with pytest.raises(errors.BudgetExceeded):
        manager.acquire("big")
    assert shelf.loads.count("big") == 1  # its size is known by now


def test_a_model_of_unknown_size_loads_alone(pool: ThreadPoolExecutor) -> None:
    shelf = Shelf({"a": 10, "b": 10})
    shelf.held["a"] = threading.Event()
    manager = shelf.manager(100, known=False)
    first = pool.submit(manager.acquire, "a")
    assert shelf.begun["a"].wait(WAIT_S)
    with pytest.raises(errors.DeadlineExceeded, match="room for the model of 'b'"):
        manager.acquire("b", timeout=0)
    shelf.held["a"].set()
    first.result(WAIT_S).release()
    manager.acquire("b", timeout=0).release()


def test_the_number_of_models_can_be_limited_too() -> None:
    manager = Shelf({"a": 1, "b": 1, "c": 1}).manager(max_models=2)
    manager.preload("abc")
    assert sorted(states(manager).values()) == ["evicted", "resident", "resident"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0}, "memory_budget=0"),
        ({"policy": "mru"}, "policy='mru': give one of 'cost', 'lru', 'gdsf'"),
        ({"max_models": 0}, "max_models=0"),
        ({"patience_s": -1}, "patience_s=-1"),
        ({"keep_alive": 0}, "keep_alive=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidSetting, match=words):
        ModelManager(str, **options)


def test_a_budget_lowered_below_what_is_in_use_is_reached_when_the_leases_end() -> None:
    manager = Shelf({"a": 40, "b": 40}).manager(100)
    leases = [manager.acquire("a"), manager.acquire("b")]
    manager.resize(50)
    assert manager.used_bytes == 80  # in use, so nothing could go
    assert [lease.model.size for lease in leases] == [40, 40]
    leases[0].release()
    assert manager.used_bytes == 40
    leases[1].release()
    assert states(manager) == {"a": "evicted", "b": "resident"}
    manager.resize(30)
    assert manager.used_bytes == 0
    with pytest.raises(errors.BudgetExceeded, match=r"40 B.*30 B"):
        manager.acquire("b")


# ---- loads ---------------------------------------------------------------------------------------


def test_many_who_ask_at_once_share_one_load(pool: ThreadPoolExecutor) -> None:
    shelf = Shelf({"a": 10})
    shelf.held["a"] = threading.Event()
    manager = shelf.manager(100)
    asked = [pool.submit(manager.acquire, "a") for _ in range(6)]
    assert shelf.begun["a"].wait(WAIT_S)
    shelf.held["a"].set()
    assert len({id(future.result(WAIT_S).model) for future in asked}) == 1
    assert shelf.loads == ["a"]
    assert manager.rows()[0]["in_use"] == 6


def test_a_load_holds_up_no_request_for_another_model(pool: ThreadPoolExecutor) -> None:
    shelf = Shelf({"a": 10, "slow": 10, "b": 10})
    shelf.held["slow"] = threading.Event()
    manager = shelf.manager(100)
    manager.preload("a")
    slow = pool.submit(manager.acquire, "slow")
    assert shelf.begun["slow"].wait(WAIT_S)
    manager.acquire("a", timeout=0).release()
    manager.acquire("b", timeout=0).release()  # loads beside it
    assert states(manager)["slow"] == "loading"
    shelf.held["slow"].set()
    slow.result(WAIT_S).release()


def test_a_failed_load_fails_its_own_requests_and_is_tried_again_with_back_off(pool: ThreadPoolExecutor) -> None:
    shelf, clock = Shelf({"a": 10, "bad": 10}), Clock()
    shelf.broken.add("bad")
    shelf.held["bad"] = threading.Event()
    manager = shelf.manager(100, clock=clock, backoff_s=2.0)
    asked = [pool.submit(manager.acquire, "bad") for _ in range(3)]
    assert shelf.begun["bad"].wait(WAIT_S)
    shelf.held["bad"].set()
    for future in asked:
        assert "bad is corrupt" in str(future.exception(WAIT_S))
    assert manager.used_bytes == 0
    manager.acquire("a", timeout=0).release()
    tries = len(shelf.loads)
    with pytest.raises(errors.ModelLoadFailed, match=r"failed 1 time, and the next one is tried in 2\.0 s.*corrupt"):
        manager.acquire("bad")
    assert len(shelf.loads) == tries
    clock.now += 2.5
    with pytest.raises(errors.ModelLoadFailed, match="loading the model of 'bad' failed: OSError"):
        manager.acquire("bad")
    clock.now += 2.5
    with pytest.raises(errors.ModelLoadFailed, match=r"2 times in a row, and the next one is tried in 1\.5 s"):
        manager.acquire("bad")
    clock.now += 1.6
    shelf.broken.clear()
    assert manager.acquire("bad").model.name == "bad"
    assert states(manager)["bad"] == "resident"


def test_an_interrupted_load_leaves_the_next_request_free_to_load() -> None:
    shelf = Shelf({"a": 10})
    interrupts = [KeyboardInterrupt()]

    def load(name: Any) -> Model:
        if interrupts:
            raise interrupts.pop()
        return shelf.load(name)

    manager = ModelManager(load, budget=100, measure=lambda model: model.size)
    with pytest.raises(KeyboardInterrupt):
        manager.acquire("a")
    assert manager.used_bytes == 0
    assert manager.acquire("a", timeout=0).model.name == "a"


# ---- leases, overtaking, hysteresis --------------------------------------------------------------


def test_a_leased_model_is_never_evicted_and_its_room_comes_with_its_release(pool: ThreadPoolExecutor) -> None:
    shelf = Shelf({"a": 60, "b": 60})
    manager = shelf.manager(100)
    lease = manager.acquire("a")
    with pytest.raises(errors.DeadlineExceeded, match=r"60 B of 100 B are taken, by 1 model, 1 in use"):
        manager.acquire("b", timeout=0)
    waiting = pool.submit(manager.acquire, "b")
    assert lease.model.name == "a"
    lease.release()
    lease.release()  # idempotent
    waiting.result(WAIT_S).release()
    assert states(manager) == {"a": "evicted", "b": "resident"}


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    turn = threading.Event()
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        turn.wait(0.01)
    raise AssertionError("it never came")


def test_requests_for_a_resident_model_overtake_a_waiting_load_but_not_for_ever(pool: ThreadPoolExecutor) -> None:
    shelf, clock = Shelf({"a": 60, "b": 60}), Clock()
    manager = shelf.manager(100, clock=clock, patience_s=5.0)
    held = manager.acquire("a")
    waiting = pool.submit(manager.acquire, "b")
    wait_until(lambda: states(manager).get("b") == "loading")
    for _ in range(3):
        # Always in use: without a bound the load would starve.
        new = manager.acquire("a", timeout=0)
        held.release()
        held = new
        clock.now += 1.5
    assert not waiting.done()
    clock.now += 1.0
    with manager._changed:
        manager._changed.notify_all()  # the clock is ours, so nothing wakes the load at 5 s
    wait_until(lambda: not manager.resident("a"))
    with pytest.raises(errors.DeadlineExceeded):
        manager.acquire("a", timeout=0)
    late = pool.submit(manager.acquire, "a")
    held.release()
    b = waiting.result(WAIT_S)
    assert b.model.name == "b"
    assert not late.done()
    b.release()
    clock.now += 10.0
    with manager._changed:
        manager._changed.notify_all()
    assert late.result(WAIT_S).model.name == "a"


def test_a_model_in_demand_stays_for_as_long_as_its_load_took() -> None:
    clock = Clock()
    sizes = {"a": 60, "b": 60}

    def load(name: Any) -> Model:
        clock.now += 4.0
        return Model(name, sizes[name])

    manager = ModelManager(load, budget=100, size_of=sizes.get, measure=lambda model: model.size, clock=clock)
    # model_bytes takes the time with the real clock, so the load's seconds are told to the manager here.
    manager.preload("a")
    manager._entries["a"].load_s = 4.0
    manager.acquire("a").release()
    clock.now += 1.0
    manager.acquire("a").release()  # asked for every second
    with pytest.raises(errors.DeadlineExceeded):
        manager.acquire("b", timeout=0)
    clock.now += 3.5  # more than its load took
    manager.acquire("b", timeout=0).release()
    assert manager.events[-1].name == "b"


def test_a_model_nobody_asks_for_any_more_goes_at_once() -> None:
    shelf, clock = Shelf({"a": 60, "b": 60}), Clock()
    manager = shelf.manager(100, clock=clock)
    manager.preload("a")
    manager._entries["a"].load_s = 40.0
    clock.now += 3.0
    manager.acquire("b", timeout=0).release()
    assert states(manager) == {"a": "evicted", "b": "resident"}


def test_a_small_load_goes_before_a_large_one_that_waits_but_not_for_ever(pool: ThreadPoolExecutor) -> None:
    shelf, clock = Shelf({"a": 60, "large": 90, "small": 10, "late": 10}), Clock()
    manager = shelf.manager(100, clock=clock, patience_s=5.0)
    lease = manager.acquire("a")
    large = pool.submit(manager.acquire, "large")
    wait_until(lambda: states(manager).get("large") == "loading")
    manager.acquire("small", timeout=0).release()
    clock.now += 6.0
    with pytest.raises(errors.DeadlineExceeded):
        manager.acquire("late", timeout=0)
    lease.release()
    large.result(WAIT_S).release()


# ---- pin, unload, forget, keep alive, close ------------------------------------------------------


def test_a_pinned_model_stays() -> None:
    manager = Shelf({"a": 60, "b": 40, "c": 40, "d": 50}).manager(100, policy="lru")
    manager.pin("a")
    for name in "bcbc":
        manager.acquire(name).release()
    assert states(manager)["a"] == "resident"
    with pytest.raises(errors.BudgetExceeded, match=r"'d' takes 50 B .*60 B of it are pinned"):
        manager.acquire("d")
    with pytest.raises(errors.BudgetExceeded, match=r"pinned models take 60 B, and the new memory budget is 50 B"):
        manager.resize(50)
    manager.unpin("a")
    manager.acquire("d").release()
    assert states(manager)["a"] == "evicted"


def test_of_several_models_all_are_pinned_or_none() -> None:
    manager = Shelf({"a": 40, "b": 40, "c": 40}).manager(100)
    manager.pin("a")
    with pytest.raises(errors.BudgetExceeded, match="40 B of it are pinned, and 40 B are to be pinned with it"):
        manager.pin("abc")
    assert {row["name"]: row["pinned"] for row in manager.rows()} == {"a": True, "b": False, "c": False}
    manager.pin("c")


def test_unload_waits_for_the_last_lease() -> None:
    shelf = Shelf({"a": 60})
    manager = shelf.manager(100)
    lease = manager.acquire("a")
    manager.unload(["a", "never asked for"])
    assert lease.model.size == 60
    assert not manager.resident("a")
    lease.release()
    assert manager.used_bytes == 0
    manager.acquire("a").release()
    assert shelf.loads == ["a", "a"]


def test_forget_gives_the_next_request_a_new_version_while_the_old_one_is_in_use() -> None:
    manager = Shelf({"a": 40}).manager(100)
    old = manager.acquire("a")
    manager.forget(["a"])
    new = manager.acquire("a", timeout=0)
    assert new.model is not old.model
    assert manager.used_bytes == 80
    old.release()
    assert manager.used_bytes == 40
    new.release()
    assert manager.resident("a")


def test_a_retired_lease_takes_its_own_model_along_and_no_later_one() -> None:
    shelf = Shelf({"a": 40})
    manager = shelf.manager(100)
    first, second = manager.acquire("a"), manager.acquire("a")
    manager.retire(first)
    manager.acquire("a").release()
    manager.retire(second)  # who notices late that the model is of no use leaves the next one alone
    assert manager.resident("a")
    assert manager.used_bytes == 40
    assert shelf.loads == ["a", "a"]


def test_a_load_waits_for_what_goes_anyway_rather_than_evicting_another(pool: ThreadPoolExecutor) -> None:
    shelf, clock = Shelf({"a": 40, "b": 40, "c": 40}), Clock()
    manager = shelf.manager(100, clock=clock)
    lease = manager.acquire("a")
    manager.acquire("b").release()
    manager.unload(["a"])  # goes with its lease
    waiting = pool.submit(manager.acquire, "c")
    wait_until(lambda: states(manager).get("c") == "loading")
    assert manager.resident("b")
    lease.release()
    waiting.result(WAIT_S).release()
    assert states(manager) == {"a": "evicted", "b": "resident", "c": "resident"}


def test_a_load_waits_no_longer_than_its_patience_for_what_goes_anyway(pool: ThreadPoolExecutor) -> None:
    shelf, clock = Shelf({"a": 40, "b": 40, "c": 40}), Clock()
    manager = shelf.manager(100, clock=clock, patience_s=5.0)
    lease = manager.acquire("a")
    manager.acquire("b").release()
    manager.unload(["a"])
    waiting = pool.submit(manager.acquire, "c")
    wait_until(lambda: states(manager).get("c") == "loading")
    clock.now += 5.0
    with manager._changed:
        manager._changed.notify_all()
    waiting.result(WAIT_S).release()
    assert states(manager)["b"] == "evicted"
    lease.release()


def test_a_model_is_unloaded_when_nobody_uses_it_for_a_while() -> None:
    shelf = Shelf({"a": 60})
    manager = shelf.manager(100, keep_alive=0.05)
    lease = manager.acquire("a")
    assert manager.sweep(0.0) is None  # in use
    assert manager.resident("a")
    lease.release()
    wait_until(lambda: manager.used_bytes == 0)
    manager.close()


def test_the_thread_that_unloads_ends_with_its_manager() -> None:
    manager = Shelf({"a": 60}).manager(keep_alive=60)
    thread = manager._sweeper._thread  # type: ignore[union-attr]
    assert thread.is_alive()
    del manager
    gc.collect()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_closing_unloads_everything_and_ends_those_who_wait(pool: ThreadPoolExecutor) -> None:
    shelf = Shelf({"a": 60, "b": 60, "slow": 10})
    shelf.held["slow"] = threading.Event()
    manager = shelf.manager(100)
    lease = manager.acquire("a")
    waiting = pool.submit(manager.acquire, "b")
    loading = pool.submit(manager.acquire, "slow")
    assert shelf.begun["slow"].wait(WAIT_S)
    manager.close()
    manager.close()
    shelf.held["slow"].set()
    for future in (waiting, loading):
        assert isinstance(future.exception(WAIT_S), errors.DeploymentClosed)
    assert lease.model.name == "a"
    lease.release()
    assert manager.used_bytes == 0
    with pytest.raises(errors.DeploymentClosed):
        manager.acquire("a")


def test_rows_tell_what_became_of_each_model() -> None:
    shelf = Shelf({"a": 60, "b": 60, "bad": 10})
    shelf.broken.add("bad")
    manager = shelf.manager(100)
    manager.preload("aab")
    with pytest.raises(errors.ModelLoadFailed):
        manager.acquire("bad")
    rows = {row["name"]: row for row in manager.rows()}
    assert (rows["a"]["state"], rows["a"]["hits"], rows["a"]["loads"], rows["a"]["evictions"]) == ("evicted", 1, 1, 1)
    assert (rows["b"]["state"], rows["b"]["size_bytes"], rows["b"]["in_use"]) == ("resident", 60, 0)
    assert rows["b"]["load_total_s"] == rows["b"]["load_s"] >= 0
    assert rows["bad"]["state"] == "failed"
    assert "corrupt" in rows["bad"]["error"]
    assert [(event.kind, event.name) for event in manager.events] == [
        ("load", "a"), ("evict", "a"), ("load", "b"), ("fail", "bad"),
    ]  # fmt: skip


# ---- host tier -----------------------------------------------------------------------------------


class Moves:
    """A pretended device."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, str]] = []
        self.broken = False

    def to_host(self, model: Model) -> Model:
        if self.broken:
            raise MemoryError("no host memory")
        self.moves.append((model.name, "host"))
        model.where = "host"
        return model

    def to_device(self, model: Model) -> Model:
        self.moves.append((model.name, "device"))
        model.where = "device"
        return model

    def trim(self) -> None:
        return


def test_a_model_that_leaves_the_device_waits_in_host_memory() -> None:
    shelf, device = Shelf({"a": 60, "b": 60, "c": 60, "d": 60}), Moves()
    manager = shelf.manager(100, device=device, host_budget=120, policy="lru")
    manager.preload("a")
    manager.preload("b")
    assert states(manager) == {"a": "host tier", "b": "resident"}
    with manager.acquire("a") as lease:
        assert lease.model.where == "device"
    assert states(manager) == {"a": "resident", "b": "host tier"}
    assert shelf.loads == ["a", "b"]
    manager.preload("c")
    manager.preload("d")  # the tier holds two, and "b" was used before the others
    assert states(manager) == {"a": "host tier", "b": "evicted", "c": "host tier", "d": "resident"}
    manager.unload("a")
    assert states(manager)["a"] == "evicted"
    assert manager._traffic.tier.used_bytes == 60
    device.broken = True
    manager.preload("a")
    assert states(manager)["d"] == "evicted"  # couldn't be moved, so it was dropped
    assert manager._traffic.tier.used_bytes == 60


def test_a_torch_module_moves_between_devices_and_answers_alike() -> None:
    import torch

    from kit.manager.device import TorchDevice

    layer = torch.nn.Linear(4, 2).eval()
    device = TorchDevice("cpu")
    manager = ModelManager(lambda name: layer if name == "a" else torch.nn.Linear(4, 2), budget=1000, device=device)
    with manager.acquire("a") as lease, torch.no_grad():
        before = lease.model(torch.ones(1, 4))
    manager.preload("b")
    assert states(manager)["a"] == "host tier"
    with manager.acquire("a") as lease, torch.no_grad():
        assert torch.equal(lease.model(torch.ones(1, 4)), before)
    assert [row["loads"] for row in manager.rows()] == [1, 1]


# ---- memory ---------------------------------------------------------------------------------


def test_the_garbage_collector_runs_only_for_models_that_are_cycles() -> None:
    runs: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            runs.append(phase)

    from kit.manager import memory

    gc.collect()
    gc.callbacks.append(note)
    try:
        memory.drop([Model("a", 1), [Model("b", 1), {"x": Model("c", 1)}], 3, "text"])
        assert runs == []
        cycle = Model("d", 1)
        cycle.name = cycle
        trace = weakref.ref(cycle)
        models = [cycle]
        del cycle
        memory.drop(models)
        assert trace() is None
        assert runs == ["start"]
    finally:
        gc.callbacks.remove(note)


@pytest.mark.skipif(sys.platform != "linux", reason="PSS is Linux's")
def test_the_memory_of_evicted_models_comes_back() -> None:
    code = """
        import os, torch
        from kit.manager import ModelManager
        from kit.memory import process_memory

        def load(name):
            # Small tensors come from the allocator's heap, which keeps what is freed.
            generator = torch.Generator().manual_seed(name)
            return torch.nn.Sequential(*[
                layer for _ in range(20) for layer in
                (torch.nn.utils.skip_init(torch.nn.Linear, 160, 160), torch.nn.ReLU())
            ]).requires_grad_(False).apply(
                lambda m: m.weight.uniform_(-1, 1, generator=generator) if hasattr(m, "weight") else None
            )

        torch.set_num_threads(1)
        manager = ModelManager(load, size_of=lambda name: None)
        manager.preload(range(100))
        before, full = manager.used_bytes, process_memory(os.getpid()).pss_bytes
        manager.resize(before // 10)
        print(before - manager.used_bytes, full - process_memory(os.getpid()).pss_bytes)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=120, check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    evicted, fell = map(int, done.stdout.split())
    assert evicted > 150e6
    assert fell >= 0.8 * evicted
