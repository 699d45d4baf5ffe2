from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from kit.bare_loop import BareLoop
from kit.compare_run import CHEAP_START_S, Contender, Result, _PeakPss, measure
from kit.errors import (
    BudgetExceeded,
    ModelLoadFailed,
    WorkerDied,
    WrongPredictionCount,
)
from kit.handler import ModelHandler, PredictionResult
from kit.memory import process_memory
from kit.metrics import LatencyHistogram
from tests.models import Doubling

GB, MB = 1_000_000_000, 1_000_000


# ---- measuring, with contenders that the test controls --------------------------------------------


class Fake:
    """Something served, that notes what is asked of it."""

    weights_bytes = 7 * MB

    def __init__(self, name: str, diary: list[str], throughput: float = 100.0) -> None:
        self.name, self.diary, self.figure = name, diary, throughput

    def start(self) -> None:
        self.diary.append(f"{self.name} start")

    def pids(self) -> list[int]:
        return [os.getpid()]

    def warm_up(self, seconds: float) -> None:
        self.diary.append(f"{self.name} warm-up")

    def throughput(self, seconds: float) -> float:
        self.diary.append(f"{self.name} measure")
        return self.figure

    def latency(self, seconds: float) -> LatencyHistogram:
        histogram = LatencyHistogram()
        histogram.record(0.01, 100)
        return histogram

    def close(self) -> None:
        self.diary.append(f"{self.name} close")

    abort = close


def fake(name: str, diary: list[str], make: Any = None) -> Contender:
    return Contender(make or (lambda: Fake(name, diary)), Result(name, name, {}, 2, 1))


def test_cheap_modes_are_measured_in_rounds_each_time_in_fresh_processes() -> None:
    diary: list[str] = []
    contenders = [fake("a", diary), fake("b", diary)]
    steps: list[tuple[int, str]] = []
    measure(contenders, 3, 0.1, lambda done, label: steps.append((done, label)))
    once = [["start", "warm-up", "measure", "close"]] * 3
    for name in "ab":
        assert [line.split()[1] for line in diary if line[0] == name] == [word for words in once for word in words]
    assert [line[0] for line in diary if line.endswith("measure")] == ["a", "b", "b", "a", "a", "b"]
    assert steps == [(done, label) for label in "abbaab" for done in (0, 1)]
    result = contenders[0].result
    assert result.throughputs == [100.0] * 3
    assert (result.throughput, result.spread) == (100.0, 0.0)
    assert result.latency.count == 300
    assert result.weights_bytes == 7 * MB
    mine = process_memory(os.getpid())
    assert mine is not None
    assert result.peak_pss_bytes == pytest.approx(mine.pss_bytes, rel=0.2)


def test_modes_that_start_slowly_are_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    diary: list[str] = []
    clock = {"late": 0.0}
    real = time.perf_counter

    def slow() -> Fake:
        clock["late"] += CHEAP_START_S + 1
        return Fake("slow", diary)

    monkeypatch.setattr("kit.compare_run.time.perf_counter", lambda: real() + clock["late"])
    contenders = [fake("slow", diary, slow), fake("quick", diary)]
    measure(contenders, 2, 0.1)
    assert [line for line in diary if line.startswith("slow")] == [
        *("slow start", "slow warm-up", "slow measure", "slow warm-up", "slow measure", "slow close")
    ]
    assert diary.count("quick start") == 2
    assert contenders[0].result.starts_s[0] > CHEAP_START_S


def test_a_mode_that_cannot_run_has_a_note_and_the_others_go_on() -> None:
    diary: list[str] = []

    def refuse() -> Fake:
        raise BudgetExceeded("2 × 400 MB don't fit 512 MB.")

    contenders = [fake("a", diary), fake("b", diary, refuse)]
    steps: list[int] = []
    measure(contenders, 3, 0.1, lambda done, label: steps.append(done))
    refused = contenders[1].result
    assert not refused.measured
    assert refused.note == "2 × 400 MB don't fit 512 MB."
    assert np.isnan(refused.throughput)
    assert len(contenders[0].result.throughputs) == 3
    assert sum(steps) == 6


def test_everything_is_closed_when_a_measurement_is_interrupted() -> None:
    diary: list[str] = []

    class Interrupted(Fake):
        def throughput(self, seconds: float) -> float:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure([fake("a", diary, lambda: Interrupted("a", diary))], 1, 0.1)
    assert diary[-1] == "a close"


def test_peak_pss_keeps_the_highest_sum() -> None:
    code = f"input(); block = b'x' * {100 * MB}; print(flush=True); input(); del block; print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def go_on() -> None:
            other.stdin.write("\n")
            other.stdin.flush()

        with _PeakPss(lambda: [other.pid]) as peak:
            limit = time.monotonic() + 20
            while peak.bytes == 0 and time.monotonic() < limit:  # the first reading
                time.sleep(0.01)
            before = peak.bytes
            go_on()
            other.stdout.readline()
            # A reading may come while the block is being written.
            while peak.bytes - before <= 95 * MB and time.monotonic() < limit:
                time.sleep(0.01)
            go_on()
            other.stdout.readline()
            memory = process_memory(other.pid)
        go_on()
    assert memory is not None
    assert memory.pss_bytes - before < 50 * MB
    assert peak.bytes - before > 95 * MB


# ---- the bare loop --------------------------------------------------------------------------------


def test_the_bare_loop_measures_in_a_process_of_its_own() -> None:
    handler = ModelHandler.from_callable(
        lambda: np.ones(20 * MB, np.uint8), lambda batch, model: [example * 2 for example in batch], max_batch_size=16
    )
    loop = BareLoop(handler, list(range(1000)))
    try:
        loop.start()
        assert loop.pids() == [loop.pid]
        assert loop.pid != os.getpid()
        assert loop.weights_bytes == pytest.approx(20 * MB, rel=0.01)
        memory = process_memory(loop.pid)
        assert memory is not None
        assert memory.uss_bytes > 20 * MB
        loop.warm_up(0.05)
        assert loop.throughput(0.1) > 1000
        latency = loop.latency(0.1)
        assert latency.count > 10
        assert latency.quantile(0.5) < 0.05
    finally:
        loop.close()
        loop.close()
    assert process_memory(loop.pid) is None


def test_the_bare_loop_does_the_whole_job() -> None:
    from kit.bare_loop import _Loop

    handler = (
        Doubling(max_batch_size=4, batch_length_fn=lambda example: example)
        .with_preprocess_fn(lambda example: example + 1)
        .with_postprocess_fn(lambda value: value - 1)
    )
    loop = _Loop(handler, [5, 1, 4, 2, 3])
    assert loop.run(loop.examples) == [11, 3, 9, 5, 7]
    assert loop.model == [4, 1]
    plain = _Loop(Doubling(), [1, 2])
    assert plain.run([1, 2]) == [PredictionResult(1, 2), PredictionResult(2, 4)]
    whole = _Loop(Doubling().with_no_batching(), [[1, 2], [3]])
    assert whole.run(whole.examples) == [[2, 4], [6]]


def test_the_bare_loop_finds_a_batch_size_when_none_is_set() -> None:
    from kit.bare_loop import _Loop

    loop = _Loop(Doubling(), list(range(5000)))
    loop.warm_up(0.2)
    assert loop.sizer.size > 64


@pytest.mark.parametrize(
    ("load", "run", "error", "text"),
    [
        (lambda: 1 / 0, lambda batch, model: batch, ModelLoadFailed, "ZeroDivisionError"),
        (lambda: print("last words", flush=True) or os._exit(3), lambda b, m: b, WorkerDied, "code 3(.|\n)*last words"),
        (lambda: None, lambda batch, model: batch[1:], WrongPredictionCount, "returned 0 predictions for a batch of 1"),
    ],
)
def test_failures_of_the_bare_loop(load: Any, run: Any, error: type[Exception], text: str) -> None:
    loop = BareLoop(ModelHandler.from_callable(load, run), [1, 2])
    try:
        with pytest.raises(error, match=text) as caught:
            loop.start()
    finally:
        loop.close()
    assert "in the process that ran it" in str(caught.value)
