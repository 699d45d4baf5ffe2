"""Streams whose source stalls: what was read is answered meanwhile, and nothing is read ahead of need."""

from __future__ import annotations

import contextvars
import gc
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import kit
from kit.streams import Windows
from tests.models import Doubling

#: Longest that anything here may take before it counts as hanging, seconds.
PATIENCE_S = 30.0


class Stalling:
    """Numbers that stop before each of `stops` until its event in `go` is set."""

    def __init__(self, *stops: int, count: int = 1 << 30) -> None:
        self.go = {stop: threading.Event() for stop in stops}
        self.count = count

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            if number in self.go:
                assert self.go[number].wait(PATIENCE_S), "the predictions before never came"
            yield number


@pytest.fixture(params=["here", "default", "large"])
def target(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "here":
        yield Doubling()
    else:
        with kit.deploy(Doubling(), mode=request.param, processes=2) as deployment:
            yield deployment


@pytest.mark.parametrize("stops", [(3,), (1, 2, 6, 60, 61, 1000)])
def test_predictions_come_out_while_the_source_stalls(target, stops):
    source = Stalling(*stops)
    stream = iter(source) | kit.RunInference(target)
    for number in range(stops[-1] + 1):
        assert next(stream).inference == 2 * number
        if number + 1 in source.go:  # it goes on only now, when all predictions before are out
            source.go[number + 1].set()
    stream.close()


def test_a_patient_handler_keeps_the_examples_of_a_stalling_source_together():
    handler = Doubling(min_batch_size=50, max_batch_size=50, max_batch_duration_secs=0.4)
    source = Stalling(7, count=107)
    sizes = []

    class Noting(kit.RunInference):
        def _request(self, rows: Any, on_progress: Any) -> Any:
            sizes.append(len(rows))
            return super()._request(rows, on_progress)

    stream = iter(source) | Noting(handler)
    assert [next(stream).inference for _ in range(7)] == list(range(0, 14, 2))
    assert sizes == [7]
    source.go[7].set()
    assert [p.inference for p in stream] == list(range(14, 214, 2))
    assert sizes == [7, 100]  # whole batches


def test_a_window_is_handed_on_though_the_source_never_goes_on():
    source = Stalling(3)
    windows = Windows(iter(source), {"min_batch_size": 100, "max_batch_duration_secs": 0.05})
    handed_on: list[int] = []
    try:
        while len(handed_on) < 3:  # in one window, unless the source's thread is held up for 50 ms
            handed_on += next(iter(windows))
    finally:
        windows.close()
        source.go[3].set()
    assert handed_on == [0, 1, 2]


def test_what_the_source_raises_after_a_stall_comes_after_all_predictions(target):
    def numbers() -> Iterator[int]:
        yield from Stalling(count=5)
        raise OSError("the line is dead")

    stream = numbers() | kit.RunInference(target)
    assert [next(stream).inference for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(OSError, match="the line is dead"):
        next(stream)


def test_the_source_is_read_by_one_thread_in_the_callers_context():
    import torch

    name = contextvars.ContextVar("name", default="nobody")
    seen = set()

    def rows() -> Iterator[int]:
        connection = sqlite3.connect(":memory:")
        connection.execute("create table numbers (number integer)")
        connection.executemany("insert into numbers values (?)", [(number,) for number in range(300)])
        for (number,) in connection.execute("select number from numbers order by number"):
            seen.add((name.get(), torch.is_grad_enabled(), threading.current_thread().name))
            yield number
        connection.close()

    name.set("somebody")
    with torch.no_grad():
        got = [p.inference for p in rows() | kit.RunInference(Doubling())]
    assert got == list(range(0, 600, 2))
    assert seen == {("somebody", False, "kit-stream")}


def test_no_thread_outlives_a_stream_that_is_dropped_and_none_starts_before_it_is_asked():
    before = set(threading.enumerate())
    stream = iter(range(10_000)) | kit.RunInference(Doubling())
    assert set(threading.enumerate()) == before
    assert next(stream).inference == 0
    (reader,) = set(threading.enumerate()) - before
    del stream
    gc.collect()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()
