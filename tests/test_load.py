from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from kit.errors import DeploymentClosed, InferenceFailed, InvalidSetting
from kit.handler import PredictionResult
from kit.load import LoadGenerator


class Service:
    """A deployment's `submit`, answering example x with x + 1 from a few threads of this process."""

    def __init__(self, threads: int = 2, room: int | None = None) -> None:
        self.pool = ThreadPoolExecutor(threads)
        self.room = threading.Semaphore(room) if room else None
        self.flowing = threading.Event()
        self.flowing.set()
        self.submitted: list[tuple[float, list[Any]]] = []
        self.waiting = 0
        self.most_waiting = 0
        self.lock = threading.Lock()
        self.answer: Callable[[Any], Any] = lambda example: example + 1

    def submit(self, examples: Any) -> Future[Any]:
        if self.room is not None:
            self.room.acquire()
        with self.lock:
            self.submitted.append((time.perf_counter(), list(examples)))
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
        return self.pool.submit(self.compute, list(examples))

    def compute(self, examples: list[Any]) -> list[PredictionResult]:
        try:
            self.flowing.wait()
            return [PredictionResult(example, self.answer(example)) for example in examples]
        finally:
            with self.lock:
                self.waiting -= 1
            if self.room is not None:
                self.room.release()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.flowing.set()
    made.pool.shutdown()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    limit = time.monotonic() + 10
    for thread in threading.enumerate():
        if thread.name.startswith("kit-load"):
            thread.join(max(0.0, limit - time.monotonic()))
            assert not thread.is_alive()


def wait_until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    limit = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < limit, "it didn't come true in time"
        time.sleep(0.002)


def running_threads() -> int:
    return sum(thread.name.startswith("kit-load") for thread in threading.enumerate())


def test_as_fast_as_possible_keeps_so_many_in_flight_and_counts_every_example(service: Service) -> None:
    load = LoadGenerator(service, range(10), batch=3, clients=4, check=lambda x, p: p.inference == x + 1).start()
    wait_until(lambda: load.report().answered > 3000)
    report = load.stop().report()
    assert report.answered == 3 * len(service.submitted)
    assert (report.failed, report.wrong, report.unanswered, report.errors) == (0, 0, 0, ())
    assert 1 <= service.most_waiting <= 4
    assert report.throughput == pytest.approx(report.answered / report.seconds)
    assert 0 < report.p50_s <= report.p99_s < 1
    assert 0 < report.longest_gap_s < report.seconds
    # The examples are taken in turn, over and over.
    sent = [example for _, batch in service.submitted for example in batch]
    assert sent == [index % 10 for index in range(len(sent))]
    assert running_threads() == 0
    assert "failed in" in repr(report)
    assert repr(load).startswith("LoadGenerator(stopped: ")
    before = load.report()
    assert load.stop().report() == before  # stopping again changes nothing


def test_open_loop_sends_at_its_rate_whatever_the_answers_do(service: Service) -> None:
    service.flowing.clear()  # nothing is answered
    began = time.perf_counter()
    with LoadGenerator(service, [1], rate=200, poisson=False) as load:
        time.sleep(1.0)
        assert load.report().answered == 0
        sent, seconds = len(service.submitted), time.perf_counter() - began
        service.flowing.set()
    assert 0.75 * 200 * seconds <= sent <= 200 * seconds
    assert load.report().answered == len(service.submitted)


def test_a_stall_is_seen_by_all_requests_that_were_due_in_it() -> None:
    # Room for two only: submit blocks, as a deployment with a full queue does, yet latency counts from when
    # a request was due.
    service = Service(threads=1, room=2)
    load = LoadGenerator(service, [1], rate=200, poisson=False).start()
    wait_until(lambda: load.report().answered >= 20)
    service.flowing.clear()
    time.sleep(0.6)
    service.flowing.set()
    wait_until(lambda: load.report().answered >= 180)
    report = load.stop().report()
    service.pool.shutdown()
    assert 0.55 < report.longest_gap_s < 1.5
    assert report.p99_s > 0.5
    # 120 of the 180 or so were due in the stall: half of all waited some tenths of a second.
    assert report.p50_s > 0.05
    assert report.failed == report.unanswered == 0


def test_poisson_arrivals_repeat_with_their_seed_and_have_the_right_mean(service: Service) -> None:
    def gaps(seed: int) -> list[float]:
        generator = LoadGenerator(service, [1], rate=50, seed=seed)
        generator.start().stop()
        assert generator._run is not None
        return [generator._run.gap_to_next() for _ in range(2000)]

    first, again, other = gaps(7), gaps(7), gaps(8)
    # A run that was stopped at once may have drawn one or two arrivals more.
    assert set(first[5:-5]) <= set(again)
    assert not set(first) & set(other)
    assert sum(first) / len(first) == pytest.approx(1 / 50, rel=0.1)


def test_the_rate_can_be_set_live_and_paused(service: Service) -> None:
    load = LoadGenerator(service, [1], rate=0).start()
    time.sleep(0.1)
    assert service.submitted == []
    load.rate = 400
    assert load.rate == 400
    wait_until(lambda: len(service.submitted) >= 100)
    load.rate = 0
    wait_until(lambda: load.report().unanswered == 0)
    paused_at = len(service.submitted)
    time.sleep(0.5)
    assert len(service.submitted) <= paused_at + 1
    load.rate = None
    wait_until(lambda: len(service.submitted) >= paused_at + 100)
    report = load.stop().report()
    assert report.answered == len(service.submitted)
    assert report.longest_gap_s < 0.4  # a pause is no gap


def test_errors_are_counted_with_their_texts(service: Service) -> None:
    def answer(example: int) -> int:
        if example % 5 == 0:
            raise InferenceFailed(f"example {example} is bad")
        return example

    service.answer = answer
    load = LoadGenerator(service, range(20), clients=2).start()
    wait_until(lambda: load.report().answered >= 100)
    report = load.stop().report()
    sent = [batch[0] for _, batch in service.submitted]
    assert report.failed == sum(example % 5 == 0 for example in sent)
    assert report.answered == sum(example % 5 != 0 for example in sent)
    assert set(report.errors) == {f"InferenceFailed: example {n} is bad" for n in (0, 5, 10, 15)}
    assert "InferenceFailed: example 5 is bad" in repr(report)


def test_wrong_predictions_are_counted(service: Service) -> None:
    service.answer = lambda example: example + (2 if example == 3 else 1)
    load = LoadGenerator(service, range(10), batch=10, clients=1, check=lambda x, p: p.inference == x + 1).start()
    wait_until(lambda: load.report().answered >= 100)
    report = load.stop().report()
    assert report.wrong == report.answered // 10
    assert "wrong" in repr(report)


def test_a_check_that_raises_counts_as_wrong_and_is_told(service: Service) -> None:
    def check(example: Any, prediction: Any) -> bool:
        raise KeyError("label")

    load = LoadGenerator(service, [1], clients=1, check=check).start()
    wait_until(lambda: load.report().wrong >= 3)
    assert load.stop().report().errors == ("KeyError: 'label'",)


def test_a_closed_deployment_ends_the_load() -> None:
    class Closed:
        def submit(self, examples: Any) -> Future[Any]:
            raise DeploymentClosed("The deployment was closed; deploy the handler again.")

    load = LoadGenerator(Closed(), [1], clients=2).start()
    wait_until(lambda: not load.running)
    report = load.stop().report()
    assert (report.answered, report.failed) == (0, 1)
    assert report.errors[0].startswith("DeploymentClosed: ")


def test_a_wrong_number_of_predictions_is_a_failure(service: Service) -> None:
    class Short(Service):
        def compute(self, examples: list[Any]) -> list[PredictionResult]:
            return super().compute(examples)[:-1]

    short = Short()
    load = LoadGenerator(short, [1, 2], batch=2, clients=1).start()
    wait_until(lambda: load.report().failed >= 2)
    assert load.stop().report().errors == ("ValueError: 1 predictions for 2 examples",)
    short.pool.shutdown()


def test_stop_gives_up_on_what_is_never_answered(service: Service) -> None:
    service.flowing.clear()
    load = LoadGenerator(service, [1], clients=4, batch=2).start()
    wait_until(lambda: len(service.submitted) == 4)
    began = time.monotonic()
    report = load.stop(timeout_s=0.2).report()
    assert time.monotonic() - began < 5
    assert (report.answered, report.failed, report.unanswered) == (0, 0, 8)
    assert report.longest_gap_s > 0
    service.flowing.set()
    assert running_threads() == 0


def test_a_generator_that_is_dropped_stops(service: Service) -> None:
    load = LoadGenerator(service, [1], rate=100).start()
    wait_until(lambda: len(service.submitted) > 5)
    del load
    gc.collect()
    wait_until(lambda: running_threads() == 0)


def test_it_can_be_started_again(service: Service) -> None:
    load = LoadGenerator(service, [1], clients=1)
    for _ in range(2):
        with load:
            assert load.start() is load  # a second start while running changes nothing
            assert running_threads() == 2
            wait_until(lambda: load.report().answered >= 10)
        assert not load.running
    assert load.report().answered < len(service.submitted)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"examples": []}, "no examples"),
        ({"rate": -1}, "rate=-1"),
        ({"rate": float("inf")}, "rate=inf"),
        ({"rate": True}, "rate=True"),
        ({"batch": 0}, "batch=0"),
        ({"clients": 1.5}, "clients=1.5"),
    ],
)
def test_bad_settings(service: Service, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidSetting, match=text):
        LoadGenerator(service, **{"examples": [1], **settings})


def test_a_report_before_the_start(service: Service) -> None:
    load = LoadGenerator(service, [1])
    with pytest.raises(InvalidSetting, match="start"):
        load.report()
    assert repr(load) == "LoadGenerator(not started)"
    assert load.stop() is load
