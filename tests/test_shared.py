"""Mode `shared`: one copy of the weights, mapped by all workers, proved before it serves."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch

import kit
from kit import errors, model_bytes
from kit.memory import process_memory, segment_memory
from tests.models import Doubling, Wide


def workers(deployment):
    return [process.pid for process in deployment._engine.topology.processes if process.role == "worker"]


def segments(deployment):
    found = [segment_memory(pid, "/memfd:kit-weights") for pid in workers(deployment)]
    assert all(found)
    return found


def loaders(deployment):
    return [process for process in deployment._engine.topology.processes if process.role == "loader"]


def wait_until(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it didn't happen"
        time.sleep(0.02)


def test_one_inode_no_private_pages_and_the_loader_is_gone():
    handler = Wide(120, width=1024)
    rows = list(torch.rand(8, 1024))
    with kit.deploy(handler, mode="shared", processes=3, sample=rows[:2]) as deployment:
        assert loaders(deployment) == []
        for _ in range(6):
            deployment.predict(rows)
        found = segments(deployment)
        assert len({inode for memory in found for inode in memory.inodes}) == 1
        assert [memory.private_dirty_bytes for memory in found] == [0, 0, 0]
        weights_bytes = deployment.models().resident_bytes[0]
        assert abs(weights_bytes - 117e6) < 5e6  # 28 layers of 1024 × 1024 float32
        assert sum(memory.pss_bytes for memory in found) < 1.02 * weights_bytes
        # None of the workers has a copy besides.
        for pid in workers(deployment):
            assert process_memory(pid).uss_bytes < 60e6
        stats = deployment.stats()
        assert (stats[stats.role == "worker"].weights_shared_bytes == weights_bytes).all()
        assert (stats[stats.role == "worker"].weights_private_bytes < 5e6).all()


class Awkward(kit.ModelHandler):
    """Tied weights, a non-contiguous view, a non-persistent buffer, an integer buffer, a numpy array."""

    preload = ("torch",)

    def load_model(self):
        torch.manual_seed(0)
        module = torch.nn.Module()
        module.embedding = torch.nn.Embedding(50, 16)
        module.head = torch.nn.Linear(16, 50, bias=False)
        module.head.weight = module.embedding.weight
        module.register_buffer("scale", torch.rand(16, 16).t(), persistent=False)
        module.register_buffer("count", torch.arange(5))
        module.extra = np.arange(4096.0).reshape(64, 64).T
        module.eval()
        return module

    def run_inference(self, batch, model, inference_args=None):
        with torch.no_grad():
            hidden = model.embedding(torch.tensor(batch)) @ model.scale
            out = model.head(hidden) + float(model.extra.sum()) + model.count.sum()
        tied = model.head.weight.data_ptr() == model.embedding.weight.data_ptr()
        return [{"out": row, "tied": tied, "strides": model.scale.stride()} for row in out]


def test_ties_views_strides_and_buffers_survive():
    handler = Awkward()
    expected = list([1, 2, 3] | kit.RunInference(handler))
    with kit.deploy(handler, mode="shared", sample=[1, 2, 3]) as deployment:
        answers = deployment.predict([1, 2, 3])
    for mine, theirs in zip(answers, expected, strict=True):
        assert torch.equal(mine.inference["out"], theirs.inference["out"])
        assert mine.inference["tied"]
        assert mine.inference["strides"] == (1, 16)


def test_a_stray_write_makes_a_private_page_and_no_crash_and_stays_with_its_worker():
    class Training(kit.ModelHandler):
        preload = ("torch",)

        def load_model(self):
            model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.BatchNorm1d(256))
            return model.train()  # BatchNorm writes its running statistics

        def run_inference(self, batch, model, inference_args=None):
            with torch.no_grad():
                return list(model(torch.stack(list(batch))))

    rows = list(torch.rand(16, 256))
    with kit.deploy(Training(max_batch_size=16), mode="shared", processes=1, sample=rows) as deployment:
        for _ in range(4):
            deployment.predict(rows)
        (memory,) = segments(deployment)
        assert 0 < memory.anonymous_bytes <= 64 * 1024
        deployment._watch.look_for_stray_writes()
        assert any("writes to its weights" in event.text for event in deployment._engine.history.events())
        assert "writes to its weights" in deployment.logs()
        row = deployment.stats().set_index("role").loc["worker"]
        assert row.weights_private_bytes >= memory.anonymous_bytes
        weights = deployment._engine.model_bytes
        assert row.weights_private_bytes + row.weights_shared_bytes >= weights > row.weights_shared_bytes


def test_without_a_sample_the_first_batch_is_verified_and_the_loader_ends():
    handler = Wide(20, width=512)
    rows = list(torch.rand(4, 512))
    with kit.deploy(handler, mode="shared") as deployment:
        assert len(loaders(deployment)) == 1
        assert len(deployment.predict(rows)) == 4
        wait_until(lambda: not loaders(deployment))
        kinds = [event.kind for event in deployment._engine.history.events()]
        assert "verify" in kinds


class Forgetful(kit.ModelHandler):
    """A model that pickles, but not as what it was."""

    class Model:
        def __init__(self):
            self.offset = 1

        def __reduce__(self):
            return (Forgetful.empty, ())

    @staticmethod
    def empty():
        model = Forgetful.Model()
        model.offset = 0
        return model

    def load_model(self):
        return Forgetful.Model()

    def run_inference(self, batch, model, inference_args=None):
        return [number + model.offset for number in batch]


def test_a_model_that_comes_back_different_is_refused():
    with pytest.raises(errors.SharedModeUnavailable, match=r"differently.*'large'"):
        kit.deploy(Forgetful(), mode="shared", sample=[1])
    with kit.deploy(Forgetful(), mode="shared") as deployment:
        with pytest.raises(errors.SharedModeUnavailable, match="differently"):
            deployment.predict([1], timeout=20)


def test_a_model_that_cannot_be_pickled_is_refused_with_the_reason():
    handler = kit.ModelHandler.from_callable(threading.Lock, lambda batch, model: list(batch))
    with pytest.raises(errors.SharedModeUnavailable, match=r"pickle.*lock.*'large'"):
        kit.deploy(handler, mode="shared")


def test_time_limits_hold_while_the_first_batch_proves_the_weights():
    handler = kit.ModelHandler.from_callable(int, lambda batch, model: [time.sleep(30 * (x == 2)) or x for x in batch])
    with kit.deploy(handler, mode="shared", processes=2) as deployment:
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            deployment.predict([1, 2], timeout=0.5)
        assert [one.inference for one in deployment.predict([7, 8])] == [7, 8]
        assert time.monotonic() - began < 15
    with kit.deploy(handler, mode="shared", processes=2) as deployment:
        began = time.monotonic()
        results = [1, 2, 3] | kit.RunInference(deployment).with_exception_handling(timeout=0.5)
        assert [type(result).__name__ for result in results] == ["PredictionResult", "Failure", "PredictionResult"]
        assert len(deployment.predict([4, 5])) == 2
        assert time.monotonic() - began < 20
        words: list[str] = []
        while not words and time.monotonic() - began < 60:  # the proof is tried again with a later request
            deployment.predict([6])
            words = [event.text for event in deployment._engine.history.events() if event.kind == "verify"]
        assert words == ["the loader ended before it had compared a batch; only the bytes of the weights were compared"]


def test_requests_that_wait_while_mode_shared_is_switched_to_prove_the_weights():
    handler = kit.ModelHandler.from_callable(lambda: bytes(10**6), lambda batch, model: list(batch))
    with kit.deploy(handler, mode="large", processes=1, memory_budget="2MB") as deployment:
        engine = deployment._engine
        engine.dispatcher.paused = True  # as of a request that comes when the switch has just begun
        waiting = deployment.submit([1, 2])
        deployment.switch("shared")
        assert engine.last_switch["policy"] == "drain first"
        assert [one.inference for one in waiting.result(20)] == [1, 2]
        assert "outputs equal bit for bit" in [event.text for event in deployment._engine.history.events()]


def test_a_random_model_is_reported_and_served():
    class Noisy(kit.ModelHandler):
        def load_model(self):
            return 0

        def run_inference(self, batch, model, inference_args=None):
            return [time.perf_counter_ns() for _ in batch]

    with kit.deploy(Noisy(), mode="shared", sample=[1]) as deployment:
        assert len(deployment.predict([1, 2])) == 2
        assert any("differs from itself" in event.text for event in deployment._engine.history.events())


def test_scikit_learn_is_served_with_equal_answers_and_its_private_copy_is_reported():
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier

    images, labels = load_digits(return_X_y=True)
    forest = RandomForestClassifier(100, random_state=0).fit(images, labels)
    handler = kit.ModelHandler.from_callable(lambda: forest, lambda batch, model: list(model.predict(np.stack(batch))))
    expected = forest.predict(images[:100])
    with kit.deploy(handler, mode="shared", sample=list(images[:5])) as deployment:
        answers = [p.inference for p in deployment.predict(images[:100])]
        assert (np.array(answers) == expected).all()
        stats = deployment.stats()
        # Trees are copied by scikit-learn itself when it rebuilds them.
        assert (stats[stats.role == "worker"].weights_private_bytes > 3e5).all()


def test_a_new_version_is_a_new_segment_and_the_old_one_is_freed():
    rows = list(torch.rand(4, 512))
    with kit.deploy(Wide(40, width=512, seed=0), mode="shared", sample=rows) as deployment:
        before = segments(deployment)[0].inodes
        first = deployment.predict(rows)[0].inference
        deployment.update_model(Wide(40, width=512, seed=1))
        after = segments(deployment)
        assert {memory.inodes for memory in after} != {before}
        assert not torch.equal(deployment.predict(rows)[0].inference, first)
        held = [
            link
            for pid in [psutil.Process().pid, *workers(deployment)]
            for link in (f.path for f in psutil.Process(pid).memory_maps(grouped=False) if "kit-weights" in f.path)
        ]
        assert len(held) == len(workers(deployment))


def test_a_killed_worker_attaches_to_the_same_segment():
    import os
    import signal

    rows = list(torch.rand(4, 512))
    with kit.deploy(Wide(20, width=512), mode="shared", processes=2, sample=rows) as deployment:
        before = segments(deployment)[0].inodes
        victim = workers(deployment)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(workers(deployment)) == 2 and victim not in workers(deployment))
        wait_until(lambda: all(p.ready for p in deployment._engine.topology.processes))
        assert {memory.inodes for memory in segments(deployment)} == {before}


def test_minilm_and_a_text_generation_pipeline_answer_alike_in_shared_mode():
    texts = kit.assets.texts("tickets")[:8]
    handler = kit.assets.handler("minilm")
    with kit.deploy(handler, mode="shared", processes=2, sample=texts) as deployment:
        shared = deployment.predict(texts)
        deployment.switch("large")
        large = deployment.predict(texts)
        for one, other in zip(shared, large, strict=True):
            assert np.allclose(one.inference, other.inference, atol=1e-6)
    generator = kit.assets.handler("smollm2", inference_args={"max_new_tokens": 12, "do_sample": False})
    with kit.deploy(generator, mode="shared", processes=1, sample=["The sky is"]) as deployment:
        (answer,) = deployment.predict(["The sky is"], timeout=120)
        assert answer.inference
        (memory,) = segments(deployment)
        assert memory.size_bytes > 250e6
        assert memory.anonymous_bytes == 0


def test_measuring_counts_tied_storages_once():
    layer = torch.nn.Linear(256, 256, bias=False)
    other = torch.nn.Linear(256, 256, bias=False)
    other.weight = layer.weight
    one = model_bytes.weigh(torch.nn.Sequential(layer)).size_bytes
    both = model_bytes.weigh(torch.nn.Sequential(layer, other)).size_bytes
    assert one >= 256 * 256 * 4
    assert both - one < 4096


def test_weights_are_let_go_of_once_however_many_threads_stop_the_processes(monkeypatch):
    close = os.close

    def slow(fd):
        close(fd)
        time.sleep(0.05)  # long enough for the other threads to find the descriptor still noted

    deployment = kit.deploy(Doubling(), mode="shared", sample=[1])
    try:
        topology = deployment._engine.topology
        monkeypatch.setattr(os, "close", slow)
        with ThreadPoolExecutor(8) as pool:
            stops = [pool.submit(topology.stop, gently=False) for _ in range(8)]
        assert [stop.exception() for stop in stops] == [None] * 8
    finally:
        monkeypatch.undo()
        deployment.close()
