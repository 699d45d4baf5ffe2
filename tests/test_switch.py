"""Switching and updating a deployment under load: nothing fails, is lost, answered twice or out of order."""

from __future__ import annotations

import itertools
import random
import threading
import time

import pytest

import kit
from kit import errors
from kit.local import forget
from tests.models import Doubling, Wide, clients

# A walk through all 12 ordered pairs of modes.
WALK = ["default", "medium", "default", "large", "default", "shared", "medium"]
WALK += ["large", "medium", "shared", "large", "shared", "default"]
assert len(set(itertools.pairwise(WALK))) == 12


def assert_nothing_lost(deployment, wrong, answered):
    assert wrong == []
    assert min(answered) > 0
    counters = deployment.counters
    assert counters["failed"] == 0
    assert counters["answered"] == counters["accepted"] == sum(answered)


def test_all_twelve_switches_under_load_with_minilm():
    import numpy as np

    texts = kit.assets.texts("tickets")
    handler = kit.assets.handler("minilm")
    bare = {p.example: p.inference for p in texts | kit.RunInference(handler)}
    forget(handler)

    def check(request, predictions):
        # Other batch mates pad differently, which moves the last digits.
        return all(
            p.example == text and np.allclose(p.inference, bare[text], atol=1e-5)
            for text, p in zip(request, predictions, strict=True)
        )

    def draw_request(draw: random.Random) -> list[str]:
        return draw.sample(texts, draw.randrange(1, 6))

    with kit.deploy(handler, mode=WALK[0], sample=texts[:4]) as deployment:
        with clients(deployment, draw_request, check) as (wrong, answered):
            for mode in WALK[1:]:
                before = sum(answered)
                deployment.switch(mode)
                assert deployment.mode == mode
                while sum(answered) <= before and not wrong:
                    time.sleep(0.01)
        assert_nothing_lost(deployment, wrong, answered)
        events = [str(event) for event in deployment._engine.history.events() if event.kind == "switch"]
        assert len(events) == 12


def test_all_twelve_switches_under_load_with_a_400_mb_model():
    import torch

    handler = Wide(400, max_batch_size=16)
    model = handler.load_model()
    inputs = torch.rand(32, handler.width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        bare = model(inputs)[:, :8]
    del model

    def check(request, predictions):
        return all(
            torch.allclose(p.inference, bare[int(p.example[0] * 0 + index)], atol=1e-4)
            for index, p in zip(request_indices(request), predictions, strict=True)
        )

    rows = list(inputs)
    position = {row.data_ptr(): index for index, row in enumerate(rows)}

    def request_indices(request):
        return [position[row.data_ptr()] for row in request]

    def draw_request(draw: random.Random):
        return draw.sample(rows, draw.randrange(1, 4))

    with kit.deploy(handler, mode=WALK[0], sample=rows[:2]) as deployment:
        with clients(deployment, draw_request, check) as (wrong, answered):
            for mode in WALK[1:]:
                deployment.switch(mode)
        assert_nothing_lost(deployment, wrong, answered)


class Constant(kit.ModelHandler):
    """Answers with its version; loading can be made to fail."""

    def __init__(self, version="one", fails=False, load_s=0.0, megabytes=0):
        super().__init__()
        self.version = version
        self.fails = fails
        self.load_s = load_s
        self.megabytes = megabytes

    @property
    def model_id(self):
        return self.version

    def update_model_path(self, model_path=None):
        self.version = model_path or self.version

    def estimate_model_bytes(self):
        return self.megabytes * 10**6 or None

    def load_model(self):
        time.sleep(self.load_s)
        if self.fails:
            raise RuntimeError("no such weights")
        return self.version

    def run_inference(self, batch, model, inference_args=None):
        time.sleep(0.001)
        return [kit.PredictionResult(example, (example, model), model) for example in batch]


def draw_numbers(draw):
    return [draw.randrange(1000) for _ in range(draw.randrange(1, 30))]


def test_a_switch_that_fails_leaves_the_old_mode_serving():
    import threading

    class Lock(Constant):
        def load_model(self):
            return threading.Lock()

        def run_inference(self, batch, model, inference_args=None):
            return list(batch)

    with kit.deploy(Lock(), mode="large") as deployment:
        with clients(deployment, draw_numbers, lambda r, ps: [p.inference for p in ps] == r) as (wrong, answered):
            with pytest.raises(errors.SharedModeUnavailable, match="large"):
                deployment.switch("shared")
            assert deployment.mode == "large"
            assert deployment.predict([5])[0].inference == 5
        assert_nothing_lost(deployment, wrong, [*answered, 1])


def test_both_at_once_when_they_fit_and_drain_first_when_they_do_not():
    handler = Constant(megabytes=100)
    with kit.deploy(handler, mode="large", memory_budget="250MB") as deployment:
        with clients(deployment, draw_numbers, lambda r, ps: [p.inference for p in ps] == [(n, "one") for n in r]) as (
            wrong,
            answered,
        ):
            deployment.switch("shared")
            assert deployment._engine.last_switch["policy"] == "drain first" or deployment._engine.model_bytes < 10**6
        assert_nothing_lost(deployment, wrong, answered)


@pytest.mark.parametrize(
    ("budget", "policies"),
    [
        ("1 GB", ["side by side", "side by side"]),
        ("150 MB", ["drain first", "side by side"]),  # while `shared` starts, there are two copies
        ("100 MB", ["drain first", "drain first"]),
    ],
)
def test_the_budget_decides_how_to_switch(budget, policies):
    handler = Wide(60, width=1024)
    import torch

    rows = list(torch.rand(8, 1024))
    with kit.deploy(handler, mode="large", memory_budget=budget, processes=1, sample=rows) as deployment:
        with clients(deployment, lambda draw: draw.sample(rows, 2), lambda r, ps: True) as (wrong, answered):
            deployment.switch("shared")
            assert deployment.mode == "shared"
            deployment.switch("default")
        assert_nothing_lost(deployment, wrong, answered)
        switches = [event.text for event in deployment._engine.history.events() if event.kind == "switch"]
        assert len(switches) == 2
        assert all(policy in text for policy, text in zip(policies, switches, strict=True))


def test_a_drained_switch_that_fails_brings_the_old_mode_back():
    handler = Wide(60, width=1024)
    import torch

    rows = list(torch.rand(8, 1024))
    with kit.deploy(handler, mode="large", memory_budget="100 MB", processes=1, sample=rows) as deployment:
        engine = deployment._engine
        broken = Wide(60, width=1024)
        broken.load_model = None  # not callable, so loading fails in the process
        with clients(deployment, lambda draw: draw.sample(rows, 2), lambda r, ps: True) as (wrong, answered):
            with pytest.raises(errors.ModelLoadFailed):
                deployment.update_model(broken)
        assert engine.settings.mode == "large"
        assert_nothing_lost(deployment, wrong, answered)


def test_update_model_under_load_and_each_prediction_names_its_model():
    versions = ("one", "two", "three")

    def check(request, predictions):
        return all(p.inference == (p.example, p.model_id) and p.model_id in versions for p in predictions)

    with kit.deploy(Constant(), mode="default") as deployment:
        with clients(deployment, draw_numbers, check) as (wrong, answered):
            deployment.update_model("two")
            assert deployment.predict([1])[0].model_id == "two"
            with pytest.raises(errors.ModelLoadFailed, match="no such weights"):
                deployment.update_model(Constant("broken", fails=True))
            assert deployment.predict([1])[0].model_id == "two"
            deployment.update_model(Constant("three"))
            assert deployment.predict([1])[0].model_id == "three"
        assert_nothing_lost(deployment, wrong, [*answered, 3])


def test_a_switch_can_be_cancelled_while_the_new_processes_load():
    from concurrent.futures import ThreadPoolExecutor

    with kit.deploy(Constant(), mode="default") as deployment, ThreadPoolExecutor(1) as pool:
        update = pool.submit(deployment.update_model, Constant("slow", load_s=60))
        while not deployment.cancel_switch():
            time.sleep(0.01)
        with pytest.raises(errors.SwitchCancelled, match=r"by cancel_switch\(\)"):
            update.result(20)
        assert deployment.predict([1])[0].model_id == "one"
        assert not deployment.cancel_switch()


def test_processes_threads_and_copies_change_live():
    with kit.deploy(Constant(), processes=1) as deployment:
        deployment.switch(processes=3, threads=2)
        assert (deployment.stats().role == "worker").sum() == 3
        deployment.switch("medium", model_copies=3)
        assert (deployment.stats().role == "host").sum() == 3
        assert deployment.settings.threads == 2
        deployment.switch("large")
        assert (deployment.stats().role == "host").sum() == 1
        assert deployment.predict([1])[0].inference == (1, "one")


def test_the_first_look_after_a_switch_tells_the_true_rates():
    with kit.deploy(Constant(), mode="default", processes=1) as deployment:
        deployment._watch.stop()  # its own look, once a second, might come first
        for mode in ("large", "default"):
            deployment.switch(mode)
            assert len(deployment.predict(list(range(1000)))) == 1000
            table = deployment.stats().set_index("role")
            serving = table.drop("forkserver")
            assert serving[["elements_per_s", "busy_share"]].notna().all(axis=None)
            assert serving["busy_share"].between(0, 1).all()
            worker = table.loc["worker"]
            assert worker["examples"] == 1000
            assert worker["elements_per_s"] == pytest.approx(1000 / worker["uptime_s"], rel=0.2)


def test_memory_is_known_at_the_very_moment_when_another_topology_takes_over():
    with kit.deploy(Doubling(), processes=1) as deployment:
        watch = deployment._watch
        watch.stop()  # what it hasn't read before is read when it is asked for
        deployment.switch("large", processes=2)
        known = watch.memory()["pss_bytes"]
        sizes = [row["pss_bytes"] for row in watch.rows()]
        assert len(sizes) == 4
        assert known == sum(sizes)


def test_switches_of_two_threads_both_hold():
    with kit.deploy(Doubling(), processes=1) as deployment:
        both = threading.Barrier(2)

        def switch(**wanted):
            both.wait()
            deployment.switch(**wanted)

        threads = [threading.Thread(target=switch, kwargs=wanted) for wanted in ({"mode": "large"}, {"processes": 2})]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (deployment.mode, deployment.settings.processes) == ("large", 2)
