"""Models by key under fire: deaths while loading and after, failing loads, overtaking, updates, copies, memory."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import kit
from kit import KeyedModelHandler, KeyModelMapping, KeyModelPathMapping, RunInference, errors
from kit.memory import process_memory
from tests.models import clients


class Times(kit.ModelHandler):
    """Multiplies by its factor; its model weighs `megabytes`."""

    def __init__(self, factor: float, megabytes: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor
        self.megabytes = megabytes
        self.model_id = None

    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path is not None:
            self.factor, self.model_id = float(model_path), model_path

    def load_model(self) -> Any:
        import numpy as np

        return np.full(self.megabytes * 250_000, self.factor, np.float32)

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[float]:
        return [float(example * model[0]) for example in batch]


class Gated(Times):
    """Its load says its pid through one pipe and waits for a word through another."""

    def __init__(self, factor: float, pipes: Path) -> None:
        super().__init__(factor)
        self.pipes = pipes
        for name in ("started", "go"):
            os.mkfifo(pipes / name)

    def load_model(self) -> Any:
        (self.pipes / "started").write_text(str(os.getpid()))
        (self.pipes / "go").read_text()
        return super().load_model()


class Broken(Times):
    """Can't be loaded."""

    def load_model(self) -> Any:
        raise OSError("no such disk")


class Killing(Times):
    """Ends the process that loads it."""

    def load_model(self) -> Any:
        threading.Event().wait(0.1)  # others are being loaded beside it
        os._exit(9)


class Deadly(Times):
    """Ends its process at the example 13."""

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[float]:
        if 13 in batch:
            os._exit(9)
        return super().run_inference(batch, model, inference_args)


class Patient(Times):
    """Takes 5 ms an example, and answers with its process."""

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[Any]:
        threading.Event().wait(0.005 * len(batch))
        return [os.getpid() for _ in batch]


def keyed(**handlers: Any) -> KeyedModelHandler:
    return KeyedModelHandler([KeyModelMapping([key], handler) for key, handler in handlers.items()])


def row_of(deployment: Any, key: str) -> Any:
    table = deployment.models()
    return table[table["keys"].map(lambda keys: key in keys)].iloc[0]


@pytest.mark.parametrize("mode", ["default", "large", "shared"])
def test_a_process_that_is_killed_while_it_loads_costs_nobody_an_answer(mode: str, tmp_path: Path) -> None:
    with kit.deploy(keyed(a=Gated(2, tmp_path), b=Times(3)), mode=mode, processes=2) as deployment:
        waiting = deployment.submit([("a", 1), ("b", 1)])
        os.kill(int((tmp_path / "started").read_text()), 9)
        int((tmp_path / "started").read_text())  # it is tried once more
        assert deployment.predict([("b", 5)], timeout=60) == [("b", (5, 15.0, None))]
        (tmp_path / "go").write_text("go")
        assert waiting.result(60) == [("a", (1, 2.0, None)), ("b", (1, 3.0, None))]
        assert row_of(deployment, "a").loads == 1


@pytest.mark.parametrize("mode", ["default", "large", "shared"])
def test_a_key_whose_load_kills_fails_its_own_requests_only_however_often_it_is_asked(mode: str) -> None:
    good = {f"good{number}": Times(number, megabytes=8) for number in range(4)}
    with kit.deploy(keyed(bad=Killing(1), **good), mode=mode, processes=2, memory_budget="20MB") as deployment:
        failed = tries = 0
        while tries < 3:  # more deaths than a deployment is given up for
            request = deployment.submit([("bad", 1)])
            for number in range(4):  # two of these fit: they are loaded beside it
                assert deployment.predict([(f"good{number}", 5)], timeout=60)[0][1].inference == 5.0 * number
            with pytest.raises(errors.ModelLoadFailed, match="'bad'") as raised:
                request.result(60)
            failed += 1
            tries += "in a row. See" in str(raised.value)
            threading.Event().wait(0.2)
        assert row_of(deployment, "bad").state == "failed"
        assert failed == deployment.counters["failed"]


@pytest.mark.parametrize("mode", ["default", "large", "medium", "shared"])
def test_models_of_a_process_that_was_killed_are_loaded_again(mode: str) -> None:
    handler = KeyedModelHandler([KeyModelMapping([key], Times(key)) for key in range(5)])

    def draw(chance: random.Random) -> list[Any]:
        return [(chance.randrange(5), chance.randrange(100)) for _ in range(20)]

    def right(request: list[Any], predictions: list[Any]) -> bool:
        return predictions == [(key, (number, float(key * number), None)) for key, number in request]

    with (
        kit.deploy(handler, mode=mode, processes=2, memory_budget="8MB") as deployment,
        clients(deployment, draw, right, count=2) as (wrong, answered),
    ):
        deployment.preload(range(5))
        for role in ("worker", "host") if deployment.settings.remote else ("worker",):
            before = sum(answered)
            pid = deployment.kill(role, 0)
            while pid in set(deployment.stats().pid) or sum(answered) < before + 200:
                assert not wrong
            deployment.preload(range(5))
            assert (deployment.models().state == "resident").all()
            assert deployment.models().resident_bytes.sum() <= 8_000_000
        assert wrong == []


@pytest.mark.parametrize("load", ["preload", "pin"])
@pytest.mark.parametrize("mode", ["default", "large"])
def test_what_is_asked_for_before_a_death_is_in_the_books_is_loaded_all_the_same(
    mode: str, load: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = KeyedModelHandler([KeyModelMapping([key], Times(key)) for key in range(4)])
    with kit.deploy(handler, mode=mode, processes=2).preload(range(4)) as deployment:
        places, noted = deployment._engine.places, threading.Event()
        lost = places.lost

        def late(process: Any) -> None:
            time.sleep(0.5)
            lost(process)
            noted.set()

        monkeypatch.setattr(places, "lost", late)
        pid = deployment.kill("host" if deployment.settings.remote else "worker", 0)
        while pid in set(deployment.stats().pid):
            time.sleep(0.01)
        getattr(deployment, load)(range(4), timeout=60)
        assert noted.wait(60)
        models = deployment.models()
        assert (models.state == "resident").all()
        assert models.pinned.all() == (load == "pin")


@pytest.mark.parametrize("mode", ["default", "large", "shared"])
def test_a_load_that_fails_fails_its_own_requests_only_and_is_not_tried_at_once(mode: str) -> None:
    with kit.deploy(keyed(good=Times(2), bad=Broken(1)), mode=mode, processes=2) as deployment:
        answers = [("good", 1), ("bad", 1), ("good", 2)] | RunInference(deployment).with_exception_handling()
        assert [answers[0], answers[2]] == [("good", (1, 2.0, None)), ("good", (2, 4.0, None))]
        said = str(answers[1].error.args[0])
        assert said == "loading the model of 'bad' failed: OSError: no such disk"
        assert deployment.history["events"].str.contains(f"fail: 'bad': {said}", regex=False).any()
        with pytest.raises(errors.ModelLoadFailed, match="the next one is tried in"):
            deployment.predict([("bad", 1)])
        assert row_of(deployment, "bad").state == "failed"
        assert "no such disk" in row_of(deployment, "bad").error
        assert deployment.predict([("good", 3)]) == [("good", (3, 6.0, None))]


@pytest.mark.parametrize("mode", ["default", "large", "shared"])
def test_requests_for_loaded_models_overtake_those_that_wait_for_a_load(mode: str, tmp_path: Path) -> None:
    with kit.deploy(keyed(slow=Gated(2, tmp_path), b=Times(3)), mode=mode, processes=1) as deployment:
        waiting = deployment.submit([("slow", 1)])
        int((tmp_path / "started").read_text())
        for number in range(20):
            assert deployment.predict([("b", number)], timeout=60) == [("b", (number, 3.0 * number, None))]
        assert row_of(deployment, "slow").state == "loading"
        with pytest.raises(errors.DeadlineExceeded):
            deployment.predict([("slow", 1)], timeout=0.05)
        assert not waiting.done()
        (tmp_path / "go").write_text("go")
        assert waiting.result(60) == [("slow", (1, 2.0, None))]


@pytest.mark.parametrize("mode", ["default", "large"])
def test_slow_loads_keep_no_other_key_waiting_however_many_they_are(mode: str, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(6)]
    for folder in folders:
        folder.mkdir()
    slow = {f"slow {folder.name}": Gated(2, folder) for folder in folders}
    with kit.deploy(keyed(b=Times(3), **slow), mode=mode, processes=1) as deployment:
        waiting = [deployment.submit([(key, 1)]) for key in slow]
        for folder in folders:
            int((folder / "started").read_text())
        assert deployment.predict([("b", 2)], timeout=60) == [("b", (2, 6.0, None))]
        assert not any(future.done() for future in waiting)
        for folder in folders:
            (folder / "go").write_text("go")
        assert [future.result(60) for future in waiting] == [[(key, (1, 2.0, None))] for key in slow]


@pytest.mark.parametrize("mode", ["default", "large"])
def test_a_slow_function_for_handlers_keeps_other_keys_from_nothing(mode: str, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    os.mkfifo(started)
    os.mkfifo(go)
    here = os.getpid()

    def handler_of(key: str) -> Any:
        if key == "slow" and os.getpid() != here:  # in a serving process
            with (tmp_path / "asked").open("a") as asked:
                first = asked.tell() == 0
                asked.write(f"{os.getpid()} {threading.current_thread().name}\n")
            if first:
                started.write_text("started")
                go.read_text()
        return Times({"a": 2, "slow": 3}[key])

    with kit.deploy(KeyedModelHandler(handler_of), mode=mode, processes=1) as deployment:
        assert deployment.predict([("a", 1)]) == [("a", (1, 2.0, None))]
        waiting = deployment.submit([("slow", 1)])
        started.read_text()
        for number in range(5):
            assert deployment.predict([("a", number)], timeout=60) == [("a", (number, 2.0 * number, None))]
        assert not waiting.done()
        go.write_text("go")
        assert waiting.result(60) == [("slow", (1, 3.0, None))]
        for line in (tmp_path / "asked").read_text().splitlines():
            assert line.endswith("kit-load"), "a thread that serves waits for no user's function"


def test_overtaking_ends_when_a_load_has_been_patient() -> None:
    """With room for one model and a stream of requests for it that never ends, the other still gets its turn."""
    handler = keyed(a=Times(2), b=Times(3))

    def draw(chance: random.Random) -> list[Any]:
        return [("a", chance.randrange(100)) for _ in range(20)]

    def right(request: list[Any], predictions: list[Any]) -> bool:
        return predictions == [("a", (number, 2.0 * number, None)) for _, number in request]

    with (
        kit.deploy(handler, processes=1, memory_budget="1.5MB") as deployment,
        clients(deployment, draw, right, count=4) as (wrong, answered),
    ):
        for number in range(2):
            assert deployment.predict([("b", number)], timeout=60) == [("b", (number, 3.0 * number, None))]
            assert deployment.models().resident_bytes.sum() <= 1_500_000
        before = sum(answered)
        while sum(answered) < before + 100:
            assert not wrong


def test_closing_while_models_load_and_wait_for_room_fails_what_waits(tmp_path: Path) -> None:
    handler = KeyedModelHandler([KeyModelMapping(["a"], Gated(2, tmp_path)), KeyModelMapping([1], Times(1))])
    deployment = kit.deploy(handler, processes=1, memory_budget="1.5MB")
    waiting = [deployment.submit([("a", 1)])]
    int((tmp_path / "started").read_text())
    waiting.append(deployment.submit([(1, 1)]))
    deployment.close()
    for future in waiting:
        with pytest.raises(errors.DeploymentClosed):
            future.result(10)


@pytest.mark.parametrize("mode", ["default", "large", "shared"])
def test_some_keys_get_other_models_while_all_serve(mode: str) -> None:
    handler = KeyedModelHandler([KeyModelMapping(["a", "b"], Times(2)), KeyModelMapping(["c"], Times(3))])

    def draw(chance: random.Random) -> list[Any]:
        return [(chance.choice("bc"), chance.randrange(100)) for _ in range(10)] + [("a", 1)]

    def right(request: list[Any], predictions: list[Any]) -> bool:
        factors = {"b": 2, "c": 3}
        mine = [(key, (number, float(factors[key] * number), None)) for key, number in request[:-1]]
        return predictions[:-1] == mine and predictions[-1][1].inference in (2.0, 7.0)

    with kit.deploy(handler, mode=mode, processes=2, memory_budget="20MB") as deployment:
        with clients(deployment, draw, right, count=2) as (wrong, answered):
            while not sum(answered):
                assert not wrong
            deployment.update_models([KeyModelPathMapping(["a"], "7")])
            assert deployment.predict([("a", 1), ("b", 1)]) == [("a", (1, 7.0, "7")), ("b", (1, 2.0, None))]
            deployment.kill("worker", 0)
            before = sum(answered)
            while sum(answered) < before + 200:
                assert not wrong
        assert wrong == []
        deployment.update_model([KeyModelPathMapping(["b", "c"], "9")])
        assert [one.inference for _, one in deployment.predict([("a", 1), ("b", 1), ("c", 1)])] == [7.0, 9.0, 9.0]
        deployment.switch("default")
        assert [one.inference for _, one in deployment.predict([("a", 1), ("b", 1), ("c", 1)])] == [7.0, 9.0, 9.0]
        with pytest.raises(errors.UnknownKey):
            deployment.update_models([KeyModelPathMapping(["z"], "1")])
    assert handler.routes.of("a").path is None  # the handler that was deployed isn't touched


@pytest.mark.parametrize("mode", ["default", "medium"])
def test_a_model_in_great_demand_is_copied_to_an_idle_process_as_long_as_there_is_room(mode: str) -> None:
    examples = [("a", number) for number in range(300)]
    with kit.deploy(keyed(a=Patient(1, max_batch_size=2)), mode=mode, processes=2, memory_budget="3MB") as deployment:
        pids = {one.inference for _, one in deployment.predict(examples)}
        assert len(pids) == 2
        assert row_of(deployment, "a").copies == 2
        assert row_of(deployment, "a").resident_bytes >= 2_000_000
        deployment.switch(memory_budget="1.5MB")
        assert len({one.inference for _, one in deployment.predict(examples)}) == 1
        assert row_of(deployment, "a").copies == 1


@pytest.mark.parametrize("mode", ["default", "large"])
def test_who_waited_for_a_load_has_not_found_the_model_loaded(mode: str) -> None:
    with kit.deploy(keyed(a=Times(2), b=Times(3)), mode=mode, processes=1, memory_budget="1.5MB") as deployment:
        for number in range(3):
            deployment.predict([("a", number)])  # for which the other goes
            assert deployment.predict([("b", number)])[0][1].inference == 3.0 * number
        assert (row_of(deployment, "b").requests, row_of(deployment, "b").hits) == (3, 0)
        deployment.predict([("b", 1)])
        assert (row_of(deployment, "b").requests, row_of(deployment, "b").hits) == (4, 1)


def test_an_example_that_kills_fails_alone() -> None:
    with kit.deploy(keyed(a=Deadly(2), b=Times(3)), processes=2, memory_budget="3MB") as deployment:
        examples = [("a", number) for number in range(10, 16)] + [("b", 1)]
        answers = examples | RunInference(deployment).with_exception_handling()
        assert [number for number, answer in zip(range(10, 17), answers, strict=True) if len(answer) != 2] == []
        (failure,) = answers.failures
        assert failure.example == ("a", 13)
        assert isinstance(failure.error, errors.WorkerDied)
        assert deployment.models().resident_bytes.sum() <= 3_000_000


@pytest.mark.parametrize("mode", ["default", "large", "shared"])
def test_memory_comes_back_after_evictions(mode: str) -> None:
    keys = [f"k{number}" for number in range(4)]
    handler = KeyedModelHandler([KeyModelMapping([key], Times(2, megabytes=40)) for key in keys])
    with kit.deploy(handler, mode=mode, processes=2) as deployment:
        deployment.preload(keys)
        deployment.predict([(key, 1) for key in keys])
        size_bytes = int(deployment.models().resident_bytes.sum())
        full = sum(_pss_bytes(pid) for pid in deployment.stats().pid)
        deployment.unload(keys)
        assert deployment.models().resident_bytes.sum() == 0
        left = sum(_pss_bytes(pid) for pid in deployment.stats().pid)
        assert full - left >= 0.8 * size_bytes >= 0.8 * 160e6


def _pss_bytes(pid: int) -> int:
    memory = process_memory(pid)
    assert memory is not None
    assert memory.pss_bytes is not None
    return memory.pss_bytes
