"""Limits of models by key that hold together: a number of models, pins, a budget; and what is said of them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import kit
from kit import KeyedModelHandler, KeyModelMapping, ModelManager, errors
from kit.manager.policy import Lru

MODES = ["default", "large", "shared"]


class Times(kit.ModelHandler):
    """Multiplies by its factor; its model takes 1 MB, and its load waits for a file, if it is given one."""

    def __init__(self, factor: float, gate: Path | None = None, megabytes: int = 1) -> None:
        super().__init__()
        self.factor = factor
        self.gate = gate
        self.megabytes = megabytes

    def load_model(self) -> Any:
        import numpy as np

        if self.gate is not None:
            self.gate.with_suffix(".begun").touch()
            while not self.gate.exists():
                threading.Event().wait(0.01)
        return np.full(self.megabytes * 250_000, self.factor, np.float32)

    def estimate_model_bytes(self) -> int:
        return self.megabytes * 1_000_000

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[float]:
        return [float(example * model[0]) for example in batch]


def keyed(**options: Any) -> KeyedModelHandler:
    return KeyedModelHandler([KeyModelMapping([key], Times(key)) for key in range(1, 7)], **options)


def states(deployment: Any) -> dict[Any, str]:
    return {keys[0]: state for keys, state in deployment.models()[["keys", "state"]].values}


# ---- pins and a number of models -----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_pins_that_take_all_places_leave_no_waiting_requests(mode: str) -> None:
    with kit.deploy(keyed(max_models_per_worker_hint=2), mode=mode, processes=1) as deployment:
        deployment.pin([1, 2])
        words = (
            r"the model of 3 has no place: max_models_per_worker_hint allows 2 models at once in all, and 2 of them are"
            r" pinned\. Raise max_models_per_worker_hint, or unpin a model"
        )
        with pytest.raises(errors.BudgetExceeded, match=words):
            deployment.predict([(3, 1)], timeout=60)
        with pytest.raises(errors.BudgetExceeded, match="1 of them are pinned, and 1 are to be pinned with it"):
            deployment.unpin([2]).pin([3, 4])
        assert deployment.predict([(1, 5)], timeout=60)[0][1].inference == 5.0
        deployment.predict([(5, 1)], timeout=60)
        assert list(deployment.models().query("pinned")["keys"]) == [[1]]
        deployment.pin([5])
        said = deployment.models().query("state == 'evicted' and requests > 0")["error"]
        assert all("has no place" in words for words in said)


def test_more_pins_than_places_are_refused() -> None:
    with kit.deploy(keyed(max_models_per_worker_hint=2), processes=1) as deployment:
        with pytest.raises(errors.BudgetExceeded, match=r"and 2 are to be pinned with it\. .* or pin less"):
            deployment.pin([1, 2, 3])
        assert not deployment.models()["pinned"].any()
        deployment.switch(processes=2).pin([1, 2, 3, 4])
        words = r"4 models are pinned, and max_models_per_worker_hint would allow 2 models at once in all: unpin some"
        with pytest.raises(errors.BudgetExceeded, match=words):
            deployment.switch(processes=1)
        with pytest.raises(errors.BudgetExceeded, match="would allow 2 models"):
            deployment.update_model(keyed(max_models_per_worker_hint=1))
        assert len(deployment.predict([(key, 1) for key in range(1, 5)], timeout=60)) == 4


@pytest.mark.parametrize("mode", MODES)
def test_another_handlers_number_of_models_is_taken_over_also_where_it_has_none(mode: str) -> None:
    with kit.deploy(keyed(max_models_per_worker_hint=1), mode=mode, processes=1) as deployment:
        pairs = [(key, 1) for key in range(1, 7)]
        deployment.predict(pairs)
        assert list(states(deployment).values()).count("resident") == 1
        deployment.update_model(keyed()).predict(pairs)
        assert list(states(deployment).values()).count("resident") == 6


def test_a_manager_keeps_its_number_of_models_unless_it_is_given_another() -> None:
    manager = ModelManager(str, max_models=2)
    manager.pin("ab")
    manager.resize("1MB")
    assert manager.max_models == 2
    with pytest.raises(errors.BudgetExceeded, match="2 models are pinned"):
        manager.resize("1MB", 1)
    manager.resize("1MB", None)
    assert manager.max_models is None


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (
            {"max_models": 1},
            r"give more time or a larger max_models_per_worker_hint \(1 B are taken, by 1 model of 1 at",
        ),
        ({"budget": 1}, r"give more time or a larger memory_budget \(1 B of 1 B are taken, by 1 model, 1 in use\)"),
    ],
)
def test_who_waits_in_vain_for_room_is_told_what_there_is_too_little_of(options: Any, advice: str) -> None:
    manager = ModelManager(str, size_of=lambda name: 1, measure=lambda model: 1, **options)
    with manager.acquire("a"), pytest.raises(errors.DeadlineExceeded, match=advice):
        manager.acquire("b", timeout=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("lift", "keys", "told"), [("unload", ["a", "b"], "b"), ("unpin", ["a"], "a"), ("unpin", ["b"], "b")]
)
def test_a_pin_says_when_it_was_taken_back_while_its_models_were_loaded(
    mode: str, lift: str, keys: list[str], told: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    handler = KeyedModelHandler([KeyModelMapping(["a"], Times(1)), KeyModelMapping(["b"], Times(2, gate))])
    words = rf"the model of '{told}' isn't pinned: it was unloaded or unpinned"
    with kit.deploy(handler, mode=mode, processes=1) as deployment, ThreadPoolExecutor(1) as pool:
        pinned = pool.submit(deployment.pin, ["a", "b"])
        while not gate.with_suffix(".begun").exists():
            threading.Event().wait(0.01)
        getattr(deployment, lift)(keys)
        gate.touch()
        with pytest.raises(errors.ModelLoadFailed, match=words):
            pinned.result(60)
        assert not deployment.models()["pinned"].any()
        if lift == "unload":
            until = time.monotonic() + 20
            while set(states(deployment).values()) != {"evicted"}:
                assert time.monotonic() < until
                time.sleep(0.01)
        deployment.pin(["a", "b"])
        assert set(states(deployment).values()) == {"resident"}
        assert deployment.models()["pinned"].all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lift", ["unload", "unpin"])
def test_a_pin_that_is_taken_back_while_its_model_is_loaded_again_is_gone(mode: str, lift: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    handler = KeyedModelHandler([KeyModelMapping(["a"], Times(1, gate)), KeyModelMapping(["b"], Times(2))])
    with kit.deploy(handler, mode=mode, processes=1) as deployment:
        deployment.pin(["a"])
        gate.with_suffix(".begun").unlink()
        gate.unlink()
        deployment.switch(threads=2)
        while not gate.with_suffix(".begun").exists():
            threading.Event().wait(0.01)
        getattr(deployment, lift)(["a"])
        gate.touch()
        assert deployment.predict([("a", 3)], timeout=20)[0][1].inference == 3.0
        assert not deployment.models()["pinned"].any()
        deployment.switch(memory_budget="500KB")


@pytest.mark.parametrize(("mode", "role"), [("default", "worker"), ("large", "host")])
def test_a_pin_ends_where_a_process_died_with_a_model_that_was_pinned_before(
    mode: str, role: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    handler = KeyedModelHandler([KeyModelMapping(["a"], Times(1)), KeyModelMapping(["b"], Times(2, gate))])
    with kit.deploy(handler, mode=mode, processes=1) as deployment, ThreadPoolExecutor(1) as pool:
        deployment.pin(["a"])
        pinned = pool.submit(deployment.pin, ["b", "a"])
        while not gate.with_suffix(".begun").exists():
            threading.Event().wait(0.01)
        deployment.kill(role)
        until = time.monotonic() + 20
        while states(deployment)["a"] == "resident" and time.monotonic() < until:
            time.sleep(0.001)
        while states(deployment)["a"] != "resident" and time.monotonic() < until:
            time.sleep(0.01)
        gate.touch()
        pinned.result(20)
        assert states(deployment) == {"a": "resident", "b": "resident"}
        assert deployment.models()["pinned"].all()


# ---- a policy of one's own -----------------------------------------------------------------------


class Raising(Lru):
    """Fails at the first model that goes."""

    def __init__(self) -> None:
        super().__init__()
        self.raised = False

    def evicted(self, model: Any) -> None:
        if not self.raised:
            self.raised = True
            raise KeyError("evicted")
        super().evicted(model)


def test_a_policy_that_fails_at_an_eviction_keeps_no_model_from_going(capfd: pytest.CaptureFixture[str]) -> None:
    manager = ModelManager(str, budget=2, size_of=lambda name: 1, measure=lambda model: 1, policy=Raising())
    for name in "abcab":
        manager.acquire(name, timeout=20).release()
    assert "KeyError: 'evicted'" in capfd.readouterr().err
    assert manager.used_bytes == 2
    manager.close()
    assert manager.used_bytes == 0


class Newest(Lru):
    """The model that was used last goes first; it can't tell of those that it hasn't seen."""

    def score(self, model: Any) -> float:
        return -float(self.facts[model].last)


def test_another_policy_knows_what_is_loaded() -> None:
    manager = ModelManager(str, budget=2, size_of=lambda name: 1, measure=lambda model: 1, policy="lru", hysteresis=0)
    manager.preload("ab")
    manager.use(policy=Newest())
    manager.preload("c")
    assert {row["name"] for row in manager.rows() if row["state"] == "resident"} == {"a", "c"}
    with pytest.raises(errors.InvalidSetting, match="policy='mru'"):
        manager.use(policy="mru")
    with pytest.raises(errors.InvalidSetting, match="keep_alive=0"):
        manager.use(keep_alive=0)


@pytest.mark.parametrize("mode", MODES)
def test_another_handlers_policy_and_keep_alive_are_taken_over(mode: str) -> None:
    budget = "2.5MB" if mode != "shared" else "3.5MB"  # where the loader has one more
    with kit.deploy(keyed(memory_budget=budget, policy="lru"), mode=mode, processes=1) as deployment:
        deployment.preload([1, 2, 3])
        assert states(deployment)[1] == "evicted"
        deployment.update_model(keyed(memory_budget=budget, policy=Newest())).preload([1, 2])
        time.sleep(0.2)  # or the model that was just loaded would be kept a little
        deployment.preload([3])
        assert {key for key, state in states(deployment).items() if state == "resident"} == {1, 3}
        deployment.update_model(keyed(memory_budget=budget, policy="lru", keep_alive=0.2)).preload([1])
        until = time.monotonic() + 20
        while states(deployment)[1] != "evicted":
            assert time.monotonic() < until
            time.sleep(0.01)
        deployment.update_model(keyed(memory_budget=budget)).preload([1])
        assert deployment._engine.places.manager._sweeper is None


# ---- above the budget ----------------------------------------------------------------------------


def test_a_load_is_not_blamed_for_a_budget_that_was_lowered_meanwhile(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    handler = KeyedModelHandler(
        [KeyModelMapping(["a"], Times(1, megabytes=4)), KeyModelMapping(["b"], Times(2, gate, megabytes=4))],
        memory_budget="20MB",
    )
    with kit.deploy(handler, processes=1) as deployment, ThreadPoolExecutor(1) as pool:
        gate.touch()
        deployment.pin(["a"]).preload(["b"]).unload(["b"])  # their sizes are known from now on
        gate.unlink()
        gate.with_suffix(".begun").unlink()
        answer = pool.submit(deployment.predict, [("b", 1)])
        while not gate.with_suffix(".begun").exists():
            threading.Event().wait(0.01)
        deployment.switch(memory_budget="6MB")
        gate.touch()
        with pytest.raises(errors.BudgetExceeded):
            answer.result(60)
        loads = [event.text for event in deployment._engine.history.events() if event.kind == "load"]
        assert len(loads) == 3
        assert not any("above the budget" in text for text in loads)


class Odd(Lru):
    """Fails where it is told to, once."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = ""

    def used(self, model: Any) -> None:
        if self.fails == "used":
            self.fails = ""
            raise KeyError("used")
        super().used(model)

    def score(self, model: Any) -> float:
        if self.fails == "score":
            self.fails = ""
            raise KeyError("score")
        return super().score(model)


def test_a_policy_that_fails_at_a_request_fails_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    handler = keyed(policy=Odd())
    with kit.deploy(handler, processes=1) as deployment:
        deployment.preload([1])
        deployment._engine.places.manager._traffic.policy.fails = "used"
        assert deployment.predict([(1, 2)], timeout=20)[0][1].inference == 2.0
        assert deployment.predict([(1, 2)], timeout=20)[0][1].inference == 2.0
    assert "KeyError: 'used'" in capfd.readouterr().err


def test_a_load_that_ends_with_an_error_of_the_policy_is_nobodys_any_more() -> None:
    sizes = {"a": 1, "b": 2}
    manager = ModelManager(str, budget=2, measure=lambda model: sizes[model], policy=Odd())
    manager.acquire("a").release()
    manager._traffic.policy.fails = "score"  # type: ignore[attr-defined]
    with pytest.raises(KeyError, match="score"):
        manager.acquire("b")  # larger than was reserved for it
    assert [row["in_use"] for row in manager.rows()] == [0, 0]
    manager.acquire("a", timeout=20).release()
    manager.close()


# ---- a load that comes to nothing -----------------------------------------------------------------


def test_a_model_that_was_unloaded_while_it_waited_for_room_in_vain_can_be_pinned() -> None:
    manager = ModelManager(str, budget=1, size_of=lambda name: 1, measure=lambda model: 1)
    with ThreadPoolExecutor(1) as pool:
        with manager.acquire("a"):
            waits = pool.submit(manager.acquire, "b", timeout=0.2)
            while "loading" not in [row["state"] for row in manager.rows()]:
                time.sleep(0.001)
            manager.unload(["b"])
            with pytest.raises(errors.DeadlineExceeded):
                waits.result(20)
        manager.pin(["b"], timeout=20)
    assert [row["state"] for row in manager.rows() if row["name"] == "b"] == ["resident"]
    manager.close()
