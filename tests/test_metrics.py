from __future__ import annotations

import math
import pickle
import threading

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.history import History
from kit.metrics import Counters, LatencyHistogram, LatencySplit


def filled(*seconds: float) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for value in seconds:
        histogram.record(value)
    return histogram


# ---- histogram -----------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e3))
def test_any_latency_comes_back_within_5_percent(seconds: float) -> None:
    assert filled(seconds).quantile(0.5) == pytest.approx(seconds, rel=0.05)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50), st.floats(0, 1))
def test_quantiles_are_those_of_the_sorted_values(values: list[float], q: float) -> None:
    rank = max(1, math.ceil(q * len(values)))
    assert filled(*values).quantile(q) == pytest.approx(sorted(values)[rank - 1], rel=0.05)


def test_quantiles_of_many_values_against_numpy() -> None:
    values = np.random.default_rng(1).lognormal(-6, 1.5, 20_000)
    histogram = filled(*values)
    for q in (0.01, 0.5, 0.95, 0.99, 0.999):
        assert histogram.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.055)
    assert histogram.count == 20_000
    assert histogram.mean_s == pytest.approx(values.mean())


def test_out_of_range_is_counted_at_the_ends() -> None:
    histogram = filled(-1.0, 0.0, 1e-9, 1e-6)
    assert histogram.quantile(1.0) == 1e-6
    histogram = filled(1e3, 1e6, math.inf)
    assert histogram.quantile(0.0) == pytest.approx(1e3, rel=0.05)
    assert histogram.count == 3


def test_empty_is_nan() -> None:
    assert math.isnan(LatencyHistogram().quantile(0.5))
    assert math.isnan(LatencyHistogram().mean_s)


def test_count_merge_snapshot_since_and_pickling() -> None:
    histogram = filled(0.001, 0.001)
    histogram.record(0.1, count=7)
    before = histogram.snapshot()
    histogram.record(2.0, count=3)
    later = histogram.since(before)
    assert later.count == 3
    assert later.mean_s == pytest.approx(2.0)
    assert later.quantile(0.0) == pytest.approx(2.0, rel=0.05)
    merged = LatencyHistogram().merge(before).merge(later)
    assert merged.counts == histogram.counts
    assert merged.sum_s == pytest.approx(histogram.sum_s)
    copy = pickle.loads(pickle.dumps(histogram))
    assert copy.counts == histogram.counts
    assert copy.count == 12


def test_no_count_is_lost_between_threads() -> None:
    histogram, counters = LatencyHistogram(), Counters()

    def work() -> None:
        for _ in range(50_000):
            histogram.record(0.01)
            counters.answered += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert histogram.count == counters.answered == 200_000


# ---- split and counters --------------------------------------------------------------------------


def test_latency_split_gives_transport_the_rest() -> None:
    split = LatencySplit()
    split.record(total_s=0.010, queue_s=0.004, compute_s=0.005, count=10)
    before = split.snapshot()
    split.record(total_s=0.100, queue_s=0.060, compute_s=0.030)
    assert split.transport.quantile(0.1) == pytest.approx(0.001, rel=0.05)
    everything, later = split.summary(), split.summary(since=before)
    assert everything["p50_s"] == pytest.approx(0.010, rel=0.05)
    assert everything["p99_s"] == pytest.approx(0.100, rel=0.05)
    assert later["queue_p50_s"] == pytest.approx(0.060, rel=0.05)
    assert later["transport_p99_s"] == pytest.approx(0.010, rel=0.05)
    assert list(later) == [
        *("p50_s", "p95_s", "p99_s", "queue_p50_s", "queue_p99_s"),
        *("compute_p50_s", "compute_p99_s", "transport_p50_s", "transport_p99_s"),
    ]


def test_counters() -> None:
    counters = Counters()
    counters.accepted += 100
    counters.answered += 70
    before = counters.as_dict()
    counters.answered += 20
    counters.failed += 4
    counters.cancelled += 1
    assert counters.in_flight == 5
    rates = counters.rates_since(before, 2.0)
    assert (rates["answered_per_s"], rates["failed_per_s"], rates["accepted_per_s"]) == (10.0, 2.0, 0.0)
    assert math.isnan(counters.rates_since(before, 0.0)["answered_per_s"])
    assert "answered=90" in repr(counters)


# ---- history -------------------------------------------------------------------------------------


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def test_history_puts_each_event_with_the_row_that_covers_it() -> None:
    clock = Clock()
    history = History(clock=clock)
    history.event("start", "default, 2 processes", pid=11)
    for second in range(1, 4):
        clock.now += 1
        history.add({"throughput_elements_per_s": 100.0 * second, "mode": "default"})
    history.event("death", "worker 12 was killed by signal 9", pid=12, at=clock.now - 1.5)
    history.event("switch", "to large", at=clock.now - 1.2)
    history.event("close", at=clock.now + 0.5, mode="large")
    frame = history.to_frame()
    assert list(frame.columns) == ["time", "elapsed_s", "throughput_elements_per_s", "mode", "events"]
    assert list(frame["events"]) == [
        "start: default, 2 processes",
        "death: worker 12 was killed by signal 9; switch: to large",
        "",
        "close",
    ]
    assert list(frame["elapsed_s"]) == [1.0, 2.0, 3.0, 3.5]
    assert pd.api.types.is_datetime64_dtype(frame["time"])
    assert frame["time"].diff().iloc[1] == pd.Timedelta(seconds=1)
    assert frame["throughput_elements_per_s"].iloc[:3].tolist() == [100.0, 200.0, 300.0]
    assert math.isnan(frame["throughput_elements_per_s"].iloc[3])
    assert list(frame["mode"]) == ["default"] * 3 + ["large"]
    assert [(event.kind, event.pid) for event in history.events()][:2] == [("start", 11), ("death", 12)]


def test_history_is_bounded_and_drops_events_with_their_rows() -> None:
    clock = Clock()
    history = History(capacity=5, max_events=3, clock=clock)
    for second in range(20):
        clock.now += 1
        history.event("load", f"second {second}", at=clock.now - 0.5)
        history.add({"queue_elements": second})
    assert len(history) == len(history.rows()) == 5
    assert [row["queue_elements"] for row in history.rows()] == [15, 16, 17, 18, 19]
    assert [row["events"] for row in history.rows()][1:3] == [[], ["load: second 17"]]
    history = History(capacity=2, clock=clock)
    history.event("start")
    for _ in range(4):
        clock.now += 1
        history.add({})
    assert list(history.to_frame()["events"]) == ["", ""]


def test_an_empty_history_is_an_empty_frame() -> None:
    frame = History().to_frame()
    assert list(frame.columns) == ["time", "elapsed_s", "events"]
    assert len(frame) == 0
