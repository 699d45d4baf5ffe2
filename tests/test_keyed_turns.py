"""Requests for many models take turns with others, and what nobody waits for any more isn't loaded."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import kit
from kit import KeyedModelHandler, ModelManager, errors
from kit.engine.load_threads import STALL_S, LoadThreads
from kit.manager.entry import Unwanted

MODES = ["default", "large", "shared"]


def wait_until(true: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


# ---- threads -------------------------------------------------------------------------------------


@pytest.fixture
def blocked() -> Any:
    """One thread that is busy until the event is set, and what it has run since."""
    threads, go, ran = LoadThreads("test", 1), threading.Event(), []
    threads.run(go.wait)
    yield threads, go, ran
    go.set()
    threads.close()


def test_each_ones_first_job_goes_before_anyones_next(blocked: Any) -> None:
    threads, go, ran = blocked
    for whom, count in (("a", 4), ("b", 2), ("c", 1)):
        for number in range(count):
            threads.run(lambda job=f"{whom}{number}": ran.append(job), whom=whom)
    go.set()
    wait_until(lambda: len(ran) == 7)
    assert ran == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_job_that_several_want_runs_once_at_the_first_turn_of_any(blocked: Any) -> None:
    threads, go, ran = blocked
    for number in range(3):
        threads.run(lambda job=number: ran.append(job), name=number, whom="a")
    threads.run(lambda: ran.append(2), name=2, whom="b")
    threads.run(lambda: ran.append("last"), whom="a")
    go.set()
    wait_until(lambda: "last" in ran)
    assert ran == [0, 2, 1, "last"]


def test_a_job_that_is_taken_back_does_not_run(blocked: Any) -> None:
    threads, go, ran = blocked
    for number in range(3):
        threads.run(lambda job=number: ran.append(job), name=number, whom="a")
    assert threads.take_back(1)
    go.set()
    wait_until(lambda: len(ran) == 2)
    assert ran == [0, 2]
    assert not threads.take_back(0)


def test_one_with_many_slow_jobs_leaves_threads_to_others() -> None:
    threads, go, began = LoadThreads("test", 2, 8), threading.Event(), []

    def slow() -> None:
        began.append("a")
        go.wait()

    try:
        for _ in range(20):
            threads.run(slow, whom="a")
        wait_until(lambda: len(began) >= 4)
        time.sleep(6 * STALL_S)  # in which more would have begun
        assert len(began) == 4
        threads.run(lambda: began.append("b"), whom="b")
        wait_until(lambda: "b" in began)
    finally:
        go.set()
        threads.close()
    assert len(began) == 21


# ---- room ----------------------------------------------------------------------------------------


def manager_of_one(loaded: list[str], **options: Any) -> ModelManager:
    """Room for one model at a time; notes what is loaded."""

    def load(name: Any) -> str:
        loaded.append(name)
        return str(name)

    return ModelManager(load, budget=10, size_of=lambda name: 10, measure=lambda model: 10, hysteresis=0, **options)


def line_of(manager: ModelManager, count: int) -> None:
    wait_until(lambda: len(manager._room.line) == count)


def test_loads_that_wait_for_room_take_turns() -> None:
    loaded: list[str] = []
    manager = manager_of_one(loaded)
    held = manager.acquire("held")
    asks = [("a0", "a"), ("a1", "a"), ("a2", "a"), ("b0", "b"), ("b1", "b"), ("c0", None)]
    with ThreadPoolExecutor(len(asks)) as pool:
        for number, (name, whom) in enumerate(asks):
            pool.submit(lambda name=name, whom=whom: manager.acquire(name, 60, whom=whom).release())
            line_of(manager, number + 1)
        held.release()
    assert loaded == ["held", "a0", "b0", "c0", "a1", "b1", "a2"]
    assert not manager._room.line


def test_a_load_that_has_waited_long_is_passed_by_nobody() -> None:
    loaded: list[str] = []
    manager = manager_of_one(loaded, patience_s=0.0)
    held = manager.acquire("held")
    asks = [("a0", "a"), ("a1", "a"), ("b0", "b")]
    with ThreadPoolExecutor(len(asks)) as pool:
        for number, (name, whom) in enumerate(asks):
            pool.submit(lambda name=name, whom=whom: manager.acquire(name, 60, whom=whom).release())
            line_of(manager, number + 1)
        held.release()
    assert loaded == ["held", "a0", "a1", "b0"]


def test_a_load_that_nobody_wants_any_more_leaves_the_line() -> None:
    loaded: list[str] = []
    manager = manager_of_one(loaded)
    held = manager.acquire("held")
    wanted = threading.Event()
    wanted.set()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(manager.acquire, "a", wanted=wanted.is_set)
        line_of(manager, 1)
        second = pool.submit(manager.acquire, "a")  # waits for the same load
        wait_until(lambda: manager._entries["a"].requests == 2)
        wanted.clear()
        manager.look_again()
        with pytest.raises(Unwanted):
            first.result(20)
        line_of(manager, 1)  # the other one tries for itself
        held.release()
        second.result(20).release()
    assert loaded == ["held", "a"]


# ---- deployments ---------------------------------------------------------------------------------


class Gated(kit.ModelHandler):
    """Its load waits for a file, if it is given one."""

    def __init__(self, gate: Path | None) -> None:
        super().__init__()
        self.gate = gate

    def load_model(self) -> Any:
        while self.gate is not None and not self.gate.exists():
            threading.Event().wait(0.01)
        return [2]

    def estimate_model_bytes(self) -> int:
        return 100_000

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[int]:
        return [example * model[0] for example in batch]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("budget", [None, "1MB"])
def test_a_request_for_many_keys_leaves_others_their_turns_and_nothing_behind(
    mode: str, budget: str | None, tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    handler = KeyedModelHandler(lambda key: Gated(gate if key < 300 else None))
    with kit.deploy(handler, mode=mode, processes=2, memory_budget=budget) as deployment:
        many = deployment.submit([(key, 1) for key in range(300)], deadline=time.monotonic() + 600)
        other = deployment.submit([(key, 1) for key in range(1, 300)])
        if budget is None:  # there is room, so these needn't wait for any of those
            time.sleep(1)
            assert deployment.predict([(300, 5)], timeout=60)[0][1].inference == 10
        many.cancel()
        other.cancel()
        gate.touch()
        assert deployment.predict([(301, 5)], timeout=60)[0][1].inference == 10
        keyed = deployment._engine.dispatcher.keyed
        assert keyed is not None
        wait_until(lambda: not any(queue.loading for queue in keyed._queues.values()))
        assert deployment.models().loads.sum() < 150
        assert deployment.predict([(299, 5)], timeout=60)[0][1].inference == 10  # it can be asked for again


def test_keys_of_a_request_that_timed_out_are_not_loaded(tmp_path: Path) -> None:
    gate = tmp_path / "go"
    with kit.deploy(KeyedModelHandler(lambda key: Gated(gate)), processes=1) as deployment:
        with pytest.raises(errors.DeadlineExceeded):
            deployment.predict([(key, 1) for key in range(300)], timeout=1)
        gate.touch()
        deployment.pin([1])
        assert deployment.predict([(299, 5)], timeout=60)[0][1].inference == 10
        keyed = deployment._engine.dispatcher.keyed
        assert keyed is not None
        wait_until(lambda: not any(queue.loading for queue in keyed._queues.values()))
        assert deployment.models().loads.sum() < 60
