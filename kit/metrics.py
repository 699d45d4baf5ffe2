"""Counters and latency histograms of a deployment.

All of it is written by several threads without locks. Each write is one `x[i] += n` or `self.x += n`
with nothing called in between; CPython switches threads only at calls and backward jumps, so under
its global lock no count is lost. Without that lock (free-threaded builds) a few could be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_LOWEST_S, _HIGHEST_S = 1e-6, 1e3
_RATIO = 1.1  # of the bounds of a bucket; its middle is within 4.9 % of all that it holds
_PER_LOG = 1 / math.log(_RATIO)
_OFFSET = 1 - math.log(_LOWEST_S) * _PER_LOG
_BUCKETS = int(math.log(_HIGHEST_S) * _PER_LOG + _OFFSET) + 1


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """The counts of a `LatencyHistogram` at one moment."""

    counts: tuple[int, ...]
    sum_s: float


class LatencyHistogram:
    """How often which latency was seen, from 1 µs to 1000 s, to within 5 %.

    What lies outside is counted at the nearer end.
    """

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        self.sum_s = 0.0

    def record(self, seconds: float, count: int = 1) -> None:
        """Count `count` latencies of `seconds` each."""
        if seconds >= _HIGHEST_S:
            index = _BUCKETS - 1
        elif seconds > _LOWEST_S:
            index = int(math.log(seconds) * _PER_LOG + _OFFSET)
        else:
            index = 0
        self.counts[index] += count
        self.sum_s += seconds * count

    @property
    def count(self) -> int:
        """How many latencies were recorded."""
        return sum(self.counts)

    @property
    def mean_s(self) -> float:
        """Mean latency in seconds (exact), nan when empty."""
        count = self.count
        return self.sum_s / count if count else math.nan

    def quantile(self, q: float) -> float:
        """Latency in seconds that a share `q` (0 to 1) of the recorded ones doesn't exceed; nan when empty."""
        return self.quantiles(q)[0]

    def quantiles(self, *shares: float) -> list[float]:
        """`quantile` of each of `shares`, all of the same moment."""
        counts = tuple(self.counts)
        total = sum(counts)
        if total == 0:
            return [math.nan] * len(shares)
        return [_middle_s(_bucket_of_rank(counts, max(1, math.ceil(share * total)))) for share in shares]

    def merge(self, other: LatencyHistogram | HistogramSnapshot) -> LatencyHistogram:
        """Add what `other` counted; returns self."""
        for index, count in enumerate(other.counts):
            if count:
                self.counts[index] += count
        self.sum_s += other.sum_s
        return self

    def snapshot(self) -> HistogramSnapshot:
        """The counts now, for `since`."""
        return HistogramSnapshot(tuple(self.counts), self.sum_s)

    def since(self, snapshot: HistogramSnapshot) -> LatencyHistogram:
        """A histogram of what was recorded after `snapshot` was taken."""
        later = LatencyHistogram()
        later.counts = [now - then for now, then in zip(self.counts, snapshot.counts, strict=True)]
        later.sum_s = self.sum_s - snapshot.sum_s
        return later

    def __repr__(self) -> str:
        p50, p99 = self.quantiles(0.5, 0.99)
        return f"LatencyHistogram({self.count} recorded, p50 {p50:.3g} s, p99 {p99:.3g} s)"


def _bucket_of_rank(counts: tuple[int, ...], rank: int) -> int:
    seen = 0
    for index, count in enumerate(counts):
        seen += count
        if seen >= rank:
            return index
    return len(counts) - 1


def _middle_s(index: int) -> float:
    if index == 0:
        return _LOWEST_S
    return float(min(_HIGHEST_S, _LOWEST_S * _RATIO ** (index - 0.5)))


#: The parts of a request's latency; they add up to the total.
LATENCY_PARTS = ("queue", "compute", "transport")


class LatencySplit:
    """Latency of requests, in total and split into waiting, computing and travelling.

    Attributes:
        queue: from acceptance until a worker takes it up.
        compute: pre-processing, inference and post-processing.
        transport: the rest, from process to process.
        total: from acceptance to answer.
    """

    def __init__(self) -> None:
        self.queue = LatencyHistogram()
        self.compute = LatencyHistogram()
        self.transport = LatencyHistogram()
        self.total = LatencyHistogram()

    def record(self, total_s: float, queue_s: float, compute_s: float, count: int = 1) -> None:
        """Count `count` requests; what is neither waiting nor computing is transport."""
        self.total.record(total_s, count)
        self.queue.record(queue_s, count)
        self.compute.record(compute_s, count)
        self.transport.record(max(0.0, total_s - queue_s - compute_s), count)

    def snapshot(self) -> dict[str, HistogramSnapshot]:
        """Snapshots of the four histograms by name, for `summary`."""
        return {name: getattr(self, name).snapshot() for name in ("total", *LATENCY_PARTS)}

    def summary(self, since: Mapping[str, HistogramSnapshot] | None = None) -> dict[str, float]:
        """p50, p95 and p99 of the total and p50 and p99 of each part, in seconds, after `since` if given.

        Keys: "p50_s", "p95_s", "p99_s", "queue_p50_s", "queue_p99_s", "compute_p50_s", and so on.
        """
        found: dict[str, float] = {}
        for name in ("total", *LATENCY_PARTS):
            histogram: LatencyHistogram = getattr(self, name)
            if since is not None:
                histogram = histogram.since(since[name])
            shares = (50, 95, 99) if name == "total" else (50, 99)
            prefix = "" if name == "total" else name + "_"
            values = histogram.quantiles(*(share / 100 for share in shares))
            found.update({f"{prefix}p{share}_s": value for share, value in zip(shares, values, strict=True)})
        return found


class Counters:
    """What happened to a deployment's examples and processes so far.

    Add with `counters.answered += n`, n being a name or a number: a call there would let in other threads.

    Attributes:
        accepted: examples taken in.
        answered, failed, cancelled: examples that ended so; the three and those in flight add up to accepted.
        retried: examples sent again because their process died.
        batches: batches answered, so that `answered / batches` is their mean size.
        deaths: processes that died unasked.
    """

    NAMES = ("accepted", "answered", "failed", "cancelled", "retried", "batches", "deaths")

    def __init__(self) -> None:
        self.accepted = 0
        self.answered = 0
        self.failed = 0
        self.cancelled = 0
        self.retried = 0
        self.batches = 0
        self.deaths = 0

    @property
    def in_flight(self) -> int:
        """Examples accepted and not ended yet."""
        return self.accepted - self.answered - self.failed - self.cancelled

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return {name: getattr(self, name) for name in self.NAMES}

    def rates_since(self, earlier: Mapping[str, int], seconds: float) -> dict[str, float]:
        """Counts a second since `earlier` (an `as_dict` of `seconds` ago), as "answered_per_s" and so on."""
        if seconds <= 0:
            return {f"{name}_per_s": math.nan for name in self.NAMES}
        return {f"{name}_per_s": (value - earlier.get(name, 0)) / seconds for name, value in self.as_dict().items()}

    def __repr__(self) -> str:
        return f"Counters({', '.join(f'{name}={value}' for name, value in self.as_dict().items())})"
