"""Batches that wait for company: requests of several callers share them when the handler asks for it."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest

import kit
from kit.engine import chunking
from kit.engine.requests import Request

LONG_S = 30.0


class Sizes(kit.ModelHandler):
    """Answers with the size of the batch that an example was in."""

    def load_model(self) -> Any:
        return object()

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[int]:
        return [len(batch)] * len(batch)


class Gated(Sizes):
    """Computes only once a file exists."""

    def __init__(self, gate: str, **options: Any) -> None:
        super().__init__(**options)
        self.gate = gate

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[int]:
        import os

        while not os.path.exists(self.gate):
            time.sleep(0.005)
        return super().run_inference(batch, model)


def sizes(futures: Any) -> list[int]:
    return [p.inference for future in futures for p in future.result(60)]


@pytest.mark.parametrize("mode", ["default", "medium", "large", "shared"])
def test_requests_of_several_callers_share_a_batch_until_the_smallest_size_is_reached(mode):
    handler = Sizes(min_batch_size=4, max_batch_size=8, max_batch_duration_secs=LONG_S)
    with kit.deploy(handler, mode=mode, processes=2, sample=[0]) as deployment:
        barrier = threading.Barrier(4)
        futures: list[Any] = []

        def ask(number: int) -> None:
            barrier.wait()
            futures.append(deployment.submit([number]))

        callers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        # They would wait for LONG_S if they didn't count as one batch.
        began = time.monotonic()
        assert sizes(futures) == [4] * 4
        assert time.monotonic() - began < LONG_S


def test_a_lone_request_goes_when_its_time_is_over_and_a_full_one_at_once():
    with kit.deploy(Sizes(min_batch_size=4, max_batch_duration_secs=0.3), processes=1) as deployment:
        began = time.monotonic()
        lone = deployment.submit([1])
        assert sizes([deployment.submit([2, 3, 4, 5], inference_args={"other": 1})]) == [4] * 4
        assert not lone.done() or time.monotonic() - began >= 0.3  # the full one overtook it
        assert sizes([lone]) == [1]
        assert time.monotonic() - began >= 0.3


def test_requests_with_other_arguments_do_not_share_and_do_not_hold_each_other_up():
    handler = Sizes(min_batch_size=2, max_batch_duration_secs=LONG_S)
    with kit.deploy(handler, processes=1) as deployment:
        one = deployment.submit([1], inference_args={"a": 1})
        others = [deployment.submit([2]), deployment.submit([3])]
        assert sizes(others) == [2, 2]
        assert not one.done()
        more = deployment.submit([4], inference_args={"a": 1})
        assert sizes([one, more]) == [2, 2]


def test_a_deadline_is_not_spent_on_waiting_for_company():
    with kit.deploy(Sizes(min_batch_size=100, max_batch_duration_secs=LONG_S), processes=1) as deployment:
        assert sizes([deployment.submit([1], deadline=8.0)]) == [1]


@pytest.mark.parametrize(
    "limit",
    [
        {"max_batch_tokens": 12, "batch_length_fn": len},
        {"max_batch_weight": 12, "element_size_fn": len},
    ],
)
def test_tokens_and_weight_fill_a_batch_too(limit):
    handler = Sizes(min_batch_size=100, max_batch_duration_secs=LONG_S, **limit)
    with kit.deploy(handler, processes=1) as deployment:
        assert sizes([deployment.submit(["abcd"]) for _ in range(3)]) == [3] * 3
        # Two of a caller share with the one of another: 3 texts of at most 4, or 12 letters.
        assert sizes([deployment.submit(["abcd", "abcd"]), deployment.submit(["abcd"])]) == [3] * 3


def test_a_length_function_that_fails_is_the_examples_fault_and_not_the_callers_wait():
    handler = Sizes(min_batch_size=100, max_batch_duration_secs=LONG_S, max_batch_tokens=9, batch_length_fn=len)
    with kit.deploy(handler, processes=1) as deployment, pytest.raises(kit.errors.InferenceFailed, match="len"):
        deployment.submit([7]).result(20)


def test_without_these_options_nothing_waits(tmp_path):
    gate = tmp_path / "gate"
    with kit.deploy(Gated(str(gate), max_batch_size=8), processes=2) as deployment:
        futures = [deployment.submit([1]), deployment.submit([2])]
        # Both workers have one each: neither waited for the other.
        until = time.monotonic() + 20
        while deployment._engine.dispatcher.queued and time.monotonic() < until:
            time.sleep(0.01)
        assert deployment._engine.dispatcher.queued == 0
        gate.touch()
        assert sizes(futures) == [1, 1]


def test_a_job_and_its_rest_wait_for_nobody():
    handler = Sizes(min_batch_size=8, max_batch_size=8, max_batch_duration_secs=LONG_S)
    with kit.deploy(handler, processes=2) as deployment:
        assert sizes([deployment.submit(list(range(83)))]) == [8] * 80 + [3] * 3


# ---- the policy alone ----------------------------------------------------------------------------


def backlog_of(**options: Any) -> chunking.Backlog:
    backlog = chunking.Backlog()
    backlog.use(Sizes(**options))
    return backlog


def test_chunks_lose_no_example_and_take_none_twice_whatever_waits():
    options = {"min_batch_size": 5, "max_batch_size": 6, "max_batch_duration_secs": 1.0}
    for counts in itertools.product([1, 2, 5, 13], repeat=3):
        backlog = backlog_of(**options)
        arguments = itertools.cycle([None, {"a": 1}])
        requests = [Request(list(range(count)), next(arguments), options=options) for count in counts]
        for request in requests:
            backlog.add(request)
        taken: dict[int, list[int]] = {id(request): [] for request in requests}
        late = time.monotonic() + 2  # all have waited long enough
        while (chunk := backlog.next_chunk(2, late)) is not None:
            assert len({str(part.request.inference_args) for part in chunk.parts}) == 1
            for part in chunk.parts:
                taken[id(part.request)] += part.indices
        assert backlog.queued == 0
        for request in requests:
            assert sorted(taken[id(request)]) == list(range(request.count))


def test_the_time_to_look_again_is_that_of_the_oldest():
    backlog = backlog_of(min_batch_size=5, max_batch_duration_secs=1.0)
    first, second = Request([1], None), Request([2], {"a": 1})
    backlog.add(first)
    backlog.add(second)
    assert backlog.next_chunk(1, first.accepted_at) is None
    assert backlog.due_at == first.accepted_at + 1.0
    chunk = backlog.next_chunk(1, first.accepted_at + 1.0)
    assert chunk is not None
    assert [part.request for part in chunk.parts] == [first]
