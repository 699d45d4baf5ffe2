"""Model hosts: several worker threads share one, in turns, and each gets its own answers."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import kit
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
