"""Model hosts: several worker threads share one, in turns, and each gets its own answers."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import kit
from kit import settings
from kit.handlers import PytorchModelHandlerTensor


class Plus(torch.nn.Module):
    """Adds one, and refuses a negative example."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if bool((rows < 0).any()):
            raise ValueError("negative")
        return rows + self.one


@pytest.fixture
def handler(tmp_path):
    path = os.fspath(tmp_path / "plus.pt")
    torch.save(Plus().state_dict(), path)
    return PytorchModelHandlerTensor(
        state_dict_path=path, model_class=Plus, model_params={}, max_batch_size=4, device="cpu"
    )


def rows(start, count):
    return [torch.full((300,), float(number)) for number in range(start, start + count)]


def firsts(predictions):
    return [float(prediction.inference[0]) for prediction in predictions]


@pytest.mark.parametrize("mode", ["large", "medium", "default"])
def test_chunks_of_many_batches_beside_single_requests_are_answered_each_with_its_own(handler, mode):
    with kit.deploy(handler, mode=mode, processes=2) as deployment, ThreadPoolExecutor(4) as pool:
        long_ones = [pool.submit(deployment.predict, rows(1000 * job, 602)) for job in range(2)]
        singles = [deployment.predict(rows(5000 + number, 1)) for number in range(100)]
        for job, future in enumerate(long_ones):
            assert firsts(future.result(60)) == [1000.0 * job + number + 1 for number in range(602)]
        assert [firsts(one) for one in singles] == [[5001.0 + number] for number in range(100)]


@pytest.mark.parametrize("mode", ["large", "default"])
def test_a_bad_example_amid_many_batches_fails_alone(handler, mode):
    examples = rows(0, 403)
    examples[77] = torch.full((300,), -1.0)
    with kit.deploy(handler, mode=mode, processes=2) as deployment:
        got = deployment.submit(examples, isolate=True).result(60)
        with pytest.raises(kit.errors.InferenceFailed, match="negative"):
            deployment.predict(examples)
        assert firsts(deployment.predict(rows(7, 1))) == [8.0]
    assert isinstance(got[77], kit.Failure)
    assert [float(one.inference[0]) for at, one in enumerate(got) if at != 77] == [
        at + 1.0 for at in range(403) if at != 77
    ]


@pytest.mark.parametrize("mode", ["large", "default"])
def test_examples_that_pre_processing_refuses_leave_the_others_in_place(handler, mode):
    def refuse_some(row: torch.Tensor) -> torch.Tensor:
        if float(row[0]) % 50 == 13:
            raise ValueError("unlucky")
        return row

    with kit.deploy(handler.with_preprocess_fn(refuse_some), mode=mode, processes=1) as deployment:
        got = deployment.submit(rows(0, 300), isolate=True).result(60)
    refused = [at for at, one in enumerate(got) if isinstance(one, kit.Failure)]
    assert refused == [13, 63, 113, 163, 213, 263]
    assert all(float(one.inference[0]) == at + 1 for at, one in enumerate(got) if at not in refused)


class Meeting(kit.ModelHandler):
    """Answers a batch once another one is computed beside it, or tells that none was for a while."""

    def __init__(self, wait_s):
        super().__init__(max_batch_size=1)
        self.wait_s = wait_s

    def load_model(self):
        return threading.Barrier(2)

    def run_inference(self, batch, model, inference_args=None):
        try:
            model.wait(self.wait_s)
        except threading.BrokenBarrierError:
            return ["alone"]
        return ["together"]


@pytest.mark.parametrize(("threads", "found"), [(2, "together"), (1, "alone")])
@pytest.mark.parametrize("mode", ["large", "default"])
def test_one_copy_computes_as_many_batches_at_once_as_a_worker_has_threads(mode, threads, found, monkeypatch):
    monkeypatch.setattr(settings, "cpu_count", lambda: 2)
    with kit.deploy(Meeting(20 if threads == 2 else 0.2), mode=mode, processes=1, threads=threads) as deployment:
        answers = [deployment.submit([number]) for number in range(2)]
        assert [answer.result(60)[0].inference for answer in answers] == [found, found]


class Slow(Plus):
    """The same, each batch long enough that another thread of its host reads on."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        time.sleep(0.002)
        return super().forward(rows)


def test_a_host_of_two_threads_gives_each_its_own_and_counts_every_example(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "cpu_count", lambda: 2)
    path = os.fspath(tmp_path / "slow.pt")
    torch.save(Slow().state_dict(), path)
    slow = PytorchModelHandlerTensor(
        state_dict_path=path, model_class=Slow, model_params={}, max_batch_size=4, device="cpu"
    )
    with kit.deploy(slow, mode="large", processes=2, threads=2) as deployment, ThreadPoolExecutor(8) as pool:
        long_one = pool.submit(deployment.predict, rows(1000, 202))
        bad = rows(0, 103)
        bad[77] = torch.full((300,), -1.0)
        failing = pool.submit(lambda: deployment.submit(bad, isolate=True).result(60))
        singles = [pool.submit(deployment.predict, rows(5000 + number, 1)) for number in range(60)]
        assert firsts(long_one.result(60)) == [1001.0 + number for number in range(202)]
        assert [firsts(single.result(60)) for single in singles] == [[5001.0 + number] for number in range(60)]
        got = failing.result(60)
        assert [at for at, one in enumerate(got) if isinstance(one, kit.Failure)] == [77]
        stats = deployment.stats()
        host = stats[stats.role == "host"].iloc[0]
        # The batch with the bad example is computed again, one by one.
        assert 202 + 102 + 60 <= host.examples <= 202 + 103 + 60
        assert 0 < host.busy_share <= 1
        time.sleep(0.3)
        now = deployment._engine.board.busy_ns(deployment._engine.topology.of_role("host")[0].slot, time.monotonic_ns())
        time.sleep(0.3)
        after = deployment._engine.board.busy_ns(
            deployment._engine.topology.of_role("host")[0].slot, time.monotonic_ns()
        )
        assert after == now  # no thread is left counted as busy


def test_a_worker_that_waits_for_its_host_is_not_busy():
    sleeping = kit.ModelHandler.from_callable(
        lambda: None, lambda batch, model: [time.sleep(0.05) or example for example in batch], max_batch_size=1
    )
    with kit.deploy(sleeping, mode="large", processes=1) as deployment:
        deployment.predict([1])
        deployment.stats()
        deployment.predict(range(20))
        stats = deployment.stats().set_index("role")
        assert stats.busy_share["worker"] < 0.5 * stats.busy_share["host"]
        board, worker = deployment._engine.board, deployment._engine.topology.of_role("worker")[0]
        slot = worker.lane_slots[0]
        assert board.busy_ns(slot, time.monotonic_ns()) == board.busy_ns(slot, time.monotonic_ns() + 10**9)
