"""An accepted example is answered exactly once, whatever dies."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

import kit
from kit import errors, settings
from kit.engine import core, deaths
from tests.models import clients

MODES = ["default", "large", "medium", "shared"]
KILLER, SLEEPER = -1, -2


class Doubling(kit.ModelHandler):
    """Doubles numbers; -1 kills the process that computes it, -2 hangs in Python code."""

    def load_model(self):
        return 2

    def run_inference(self, batch, model, inference_args=None):
        time.sleep(0.002)
        for number in batch:
            if number == KILLER:
                os.kill(os.getpid(), signal.SIGKILL)
            while number == SLEEPER:
                time.sleep(1)
        return [number * model for number in batch]


def pids(deployment, role):
    """Of those that have loaded: one killed while it loads counts as a failed load."""
    processes = deployment._engine.topology.processes
    return [process.pid for process in processes if process.role == role and process.ready]


def asking(deployment):
    """Clients that ask all the time; each answer is compared."""

    def draw_numbers(draw):
        return [draw.randrange(1000) for _ in range(draw.randrange(1, 80))]

    return clients(
        deployment, draw_numbers, lambda ns, ps: [p.inference for p in ps] == [2 * n for n in ns], timeout=30
    )


@pytest.mark.parametrize("mode", MODES)
def test_killed_workers_and_hosts_cost_nobody_an_answer(mode, monkeypatch):
    monkeypatch.setattr(core, "DEATHS", 10**6)
    with kit.deploy(Doubling(max_batch_size=16), mode=mode, sample=[1]) as deployment:
        with asking(deployment) as (wrong, answered):
            draw = random.Random(0)
            killed: set[int] = set()
            for turn in range(6):
                time.sleep(0.3)
                until = time.monotonic() + 30
                victims: list[int] = []
                while not victims and time.monotonic() < until:
                    found = pids(deployment, "host" if turn % 2 else "worker") or pids(deployment, "worker")
                    victims = [pid for pid in found if pid not in killed]
                    time.sleep(0.01)
                victim = draw.choice(victims)
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
            until = time.monotonic() + 30
            while deployment.counters["deaths"] < 6 and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.3)
        assert wrong == []
        assert min(answered) > 0
        counters = deployment.counters
        assert counters["deaths"] == 6
        assert counters["failed"] == 0
        assert counters["answered"] == counters["accepted"]
        kinds = {event.kind for event in deployment._engine.history.events()}
        assert {"death", "start"} <= kinds


def test_a_killed_host_of_two_threads_costs_nobody_an_answer(monkeypatch):
    monkeypatch.setattr(core, "DEATHS", 10**6)
    monkeypatch.setattr(settings, "cpu_count", lambda: 2)
    with kit.deploy(Doubling(max_batch_size=16), mode="large", processes=2, threads=2, sample=[1]) as deployment:
        with asking(deployment) as (wrong, answered):
            for _ in range(4):
                time.sleep(0.4)
                for host in pids(deployment, "host"):
                    os.kill(host, signal.SIGKILL)
            time.sleep(0.4)
        assert wrong == []
        assert min(answered) > 0
        assert deployment.counters["failed"] == 0
        assert deployment.counters["deaths"] >= 2


def test_a_killed_fork_server_costs_nobody_an_answer():
    with kit.deploy(Doubling(max_batch_size=16), mode="large") as deployment:
        before = deployment._engine.forkserver.pid
        with asking(deployment) as (wrong, answered):
            time.sleep(0.3)
            os.kill(before, signal.SIGKILL)
            time.sleep(1.5)
        assert wrong == []
        assert min(answered) > 0
        assert deployment._engine.forkserver.pid != before


@pytest.mark.parametrize("mode", MODES)
def test_only_the_example_that_kills_alone_fails(mode):
    with kit.deploy(Doubling(max_batch_size=16), mode=mode, sample=[1]) as deployment:
        numbers = [1, 2, KILLER, 4, 5]
        results = list(numbers | kit.RunInference(deployment).with_exception_handling())
        assert [getattr(result, "inference", None) for result in results] == [2, 4, None, 8, 10]
        assert isinstance(results[2], kit.Failure)
        assert isinstance(results[2].error, errors.WorkerDied)
        assert "SIGKILL" in str(results[2].error)
        with pytest.raises(errors.WorkerDied, match="example 0"):
            deployment.predict([KILLER], timeout=30)
        assert deployment.predict([21])[0].inference == 42


def test_five_deaths_in_a_minute_stop_the_respawning_with_an_error():
    with kit.deploy(Doubling(), processes=1) as deployment:
        for _ in range(5):
            deployment.predict([1], timeout=20)  # answered by a worker that is ready
            os.kill(pids(deployment, "worker")[0], signal.SIGKILL)
        with pytest.raises(errors.CrashLoop, match="5 serving processes died"):
            deployment.predict([1], timeout=10)
        assert pids(deployment, "worker") == []


class FailsLater(kit.ModelHandler):
    """Loads the first time; later loads fail."""

    def __init__(self, marker):
        super().__init__()
        self.marker = marker

    def load_model(self):
        if os.path.exists(self.marker):
            raise RuntimeError("the disk is gone")
        return 2

    def run_inference(self, batch, model, inference_args=None):
        return [number * model for number in batch]


def test_a_model_that_no_longer_loads_ends_in_an_error_and_not_in_a_loop(tmp_path):
    marker = tmp_path / "gone"
    with kit.deploy(FailsLater(str(marker)), processes=1) as deployment:
        assert deployment.predict([1])[0].inference == 2
        marker.touch()
        os.kill(pids(deployment, "worker")[0], signal.SIGKILL)
        with pytest.raises(errors.CrashLoop, match="the disk is gone"):
            deployment.predict([1], timeout=30)


@pytest.mark.parametrize("mode", ["default", "large"])
def test_a_batch_beyond_its_time_fails_and_its_process_is_replaced(mode):
    with kit.deploy(Doubling(max_batch_size=1), mode=mode, processes=1) as deployment:
        role = "host" if mode == "large" else "worker"
        before = pids(deployment, role)
        results = list([1, SLEEPER, 3] | kit.RunInference(deployment).with_exception_handling(timeout=2))
        assert [getattr(result, "inference", None) for result in results] == [2, None, 6]
        assert isinstance(results[1].error, errors.DeadlineExceeded)
        assert "2 s" in str(results[1].error)
        assert pids(deployment, role) != before


@pytest.mark.parametrize("mode", ["default", "large"])
def test_examples_behind_a_batch_beyond_its_time_are_answered_however_late_its_process_ends(mode, monkeypatch):
    kill = deaths.system.kill

    def kill_late(pid):
        timer = threading.Timer(0.3, kill, [pid])
        timer.start()
        timers.append(timer)

    timers = []
    monkeypatch.setattr(deaths.system, "kill", kill_late)
    with kit.deploy(Doubling(max_batch_size=1), mode=mode, processes=1) as deployment:
        results = list([1, SLEEPER, 3, 4] | kit.RunInference(deployment).with_exception_handling(timeout=1))
        for timer in timers:
            timer.join()
        assert [getattr(result, "inference", None) for result in results] == [2, None, 6, 8]
        assert [event.kind for event in deployment._engine.history.events()].count("timeout") == 1


def test_a_host_that_hangs_is_replaced_and_its_batches_are_answered(monkeypatch):
    monkeypatch.setattr(deaths, "HANG_S", 1.5)
    with kit.deploy(Doubling(), mode="large", processes=1) as deployment:
        (host,) = pids(deployment, "host")
        os.kill(host, signal.SIGSTOP)
        assert deployment.predict([21], timeout=20)[0].inference == 42
        assert pids(deployment, "host") != [host]


def test_a_deadline_fails_the_request_and_nothing_else():
    with kit.deploy(Doubling(max_batch_size=1), processes=1) as deployment:
        with pytest.raises(errors.DeadlineExceeded, match="200 examples"):
            deployment.predict(list(range(200)), timeout=0.1)
        assert deployment.predict([1])[0].inference == 2


def test_a_cancelled_request_is_dropped_from_the_queue():
    with kit.deploy(Doubling(max_batch_size=1), processes=1) as deployment:
        long = deployment.submit(list(range(5000)))
        began = time.monotonic()
        assert long.cancel()
        assert deployment.predict([1])[0].inference == 2
        assert time.monotonic() - began < 5
        assert deployment.counters["cancelled"] > 4000


def test_a_long_job_does_not_hold_up_a_short_one():
    with kit.deploy(Doubling(max_batch_size=8), processes=1) as deployment:
        long = deployment.submit(list(range(20_000)))
        for _ in range(3):
            deployment.predict([1], timeout=20)
        assert not long.done()
        long.cancel()


def test_requests_of_many_clients_share_batches():
    with kit.deploy(Doubling(max_batch_size=64), processes=1) as deployment:
        futures = [deployment.submit([number]) for number in range(600)]
        assert [future.result(30)[0].inference for future in futures] == [2 * number for number in range(600)]
        assert deployment.counters["batches"] < 300


def test_a_bad_example_of_one_client_does_not_fail_another():
    def run(batch, model):
        time.sleep(0.01)
        return [100 // number for number in batch]

    handler = kit.ModelHandler.from_callable(lambda: None, run, max_batch_size=64)
    with kit.deploy(handler, processes=1) as deployment:
        futures = [deployment.submit([number]) for number in (5, 4, 0, 2, 1) * 20]
        for number, future in zip((5, 4, 0, 2, 1) * 20, futures, strict=True):
            if number:
                assert future.result(30)[0].inference == 100 // number
            else:
                with pytest.raises(errors.InferenceFailed, match="ZeroDivisionError"):
                    future.result(30)


def test_the_queue_is_bounded(monkeypatch):
    from kit.engine import dispatcher

    monkeypatch.setattr(dispatcher, "MAX_QUEUED", 100)
    with kit.deploy(Doubling(max_batch_size=1), processes=1) as deployment:
        first = deployment.submit(list(range(90)))
        with pytest.raises(errors.QueueFull, match="100 at most"):
            deployment.submit(list(range(90)), deadline=5)
        second = deployment.submit(list(range(90)))  # waits for room
        assert len(first.result(30)) == len(second.result(30)) == 90
