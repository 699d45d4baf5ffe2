"""Load on a deployment: requests at a given rate, or as fast as they are answered."""

from __future__ import annotations

import math
import numbers
import random
import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from kit import inputs
from kit.checks import check_function
from kit.errors import InvalidSetting
from kit.load_run import Check, LoadRun, Submits
from kit.metrics import LatencyHistogram

__all__ = ["LoadGenerator", "LoadReport"]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load met. Counts are of examples.

    Attributes:
        answered: examples answered.
        failed: examples whose request ended in an error.
        wrong: examples whose prediction `check` refused.
        unanswered: examples still without an answer (while running: those in flight).
        errors: texts of the first few distinct errors.
        longest_gap_s: longest time between two successive answers while running, up to now or the stop.
        p50_s, p99_s: latency of a request, from the moment when it was due to its answer, to within 5 %.
        throughput: elements answered a second.
        seconds: from start to the last answer after the stop (while running: to now).
        behind_s: how late the last request was sent, because `submit` was blocked by a full queue.
    """

    answered: int
    failed: int
    wrong: int
    unanswered: int
    errors: tuple[str, ...]
    longest_gap_s: float
    p50_s: float
    p99_s: float
    throughput: float
    seconds: float
    behind_s: float

    def as_dict(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self)

    def __repr__(self) -> str:
        parts = [f"{self.answered:,} answered", f"{self.failed:,} failed"]
        parts += [
            f"{count:,} {name}" for name, count in (("wrong", self.wrong), ("unanswered", self.unanswered)) if count
        ]
        text = (
            f"{', '.join(parts)} in {self.seconds:.1f} s: {self.throughput:,.0f} elements/s, "
            f"p50 {_milliseconds(self.p50_s)}, p99 {_milliseconds(self.p99_s)}, "
            f"longest gap {_milliseconds(self.longest_gap_s)}"
        )
        return text + "".join(f"\n  error: {error}" for error in self.errors)


def _milliseconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1000:,.3g} ms" if seconds < 1 else f"{seconds:,.2f} s"


class LoadGenerator:
    """Sends requests to a deployment from threads of its own, and measures the answers.

    With a `rate` the loop is open: arrivals are drawn ahead of time, come whether or not earlier ones
    were answered, and latency counts from the moment when a request was due. So a stall shows in
    every request that it delayed. Without a rate, `clients` requests are kept in flight.

    Args:
        deployment: anything with `submit(examples) -> Future`.
        examples: taken in turn, over and over.
        rate: requests a second; 0 pauses; None is as fast as possible. `load.rate = 50` sets it live.
        batch: examples a request.
        clients: requests in flight when there is no rate; `load.clients = 8` sets it live.
        poisson: arrivals at random (exponential gaps) rather than evenly spaced.
        seed: of the arrivals, to get the same ones again.
        check: `check(example, prediction)` is False for a wrong prediction; these are counted.

    Raises:
        InvalidSetting: no deployment, no examples, or a setting that can't work.
        UnsupportedInput: a string, a dict.

    Use:
        with kit.LoadGenerator(deployment, texts, rate=50) as load:
            deployment.switch("large")
        load.report()
    """

    def __init__(
        self,
        deployment: Submits,
        examples: Iterable[Any],
        rate: float | None = None,
        *,
        batch: int = 1,
        clients: int = 4,
        poisson: bool = True,
        seed: int | None = None,
        check: Check | None = None,
    ) -> None:
        if not callable(getattr(deployment, "submit", None)):
            raise InvalidSetting(f"deployment={deployment!r}: give what kit.deploy returned.")
        rows = inputs.sized(examples)
        self._examples = list(examples if rows is None else rows)
        if not self._examples:
            raise InvalidSetting("The load generator was given no examples: give at least one.")
        check_function("check", check)
        self._deployment = deployment
        self._batch = _checked_count("batch", batch)
        self._clients = _checked_count("clients", clients)
        self._poisson = poisson
        self._seed = seed
        self._check = check
        self._rate = _checked_rate(rate)
        self._run: LoadRun | None = None

    @property
    def rate(self) -> float | None:
        """Requests a second; 0 while paused, None for as fast as possible. May be set while running."""
        return self._rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        self._rate = _checked_rate(rate)
        if self._run is not None:
            self._run.set_rate(self._rate)

    @property
    def clients(self) -> int:
        """Requests kept in flight when there is no rate. May be set while running."""
        return self._clients

    @clients.setter
    def clients(self, clients: int) -> None:
        self._clients = _checked_count("clients", clients)
        if self._run is not None:
            self._run.set_clients(self._clients)

    @property
    def running(self) -> bool:
        """Whether requests are being sent."""
        return self._run is not None and not self._run.stopping.is_set()

    def start(self) -> Self:
        """Begin to send; returns self. A second call while running changes nothing."""
        if not self.running:
            self._run = run = LoadRun(
                self._deployment,
                self._examples,
                rate=self._rate,
                batch=self._batch,
                clients=self._clients,
                check=self._check,
                arrivals=random.Random(self._seed) if self._poisson else None,
            )
            # The threads know the run, not this object: a generator that is dropped stops.
            weakref.finalize(self, run.end)
            run.start()
        return self

    def stop(self, timeout_s: float = 60.0) -> Self:
        """Send no more, wait for the answers still due (at most `timeout_s`), end the threads; returns self."""
        if self._run is not None:
            self._run.stop(timeout_s)
        return self

    def wait(self, seconds: float) -> Self:
        """Let it run for `seconds`, or until it ends because the deployment was closed; returns self."""
        if self._run is not None:
            self._run.stopping.wait(seconds)
        return self

    @property
    def latency(self) -> LatencyHistogram:
        """Latencies so far, of requests, from when each was due."""
        return LatencyHistogram() if self._run is None else self._run.latency

    def report(self) -> LoadReport:
        """What was met so far, or in all once stopped."""
        if self._run is None:
            raise InvalidSetting("The load generator wasn't started: call start() first.")
        return LoadReport(**self._run.figures())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        if self._run is None:
            return "LoadGenerator(not started)"
        return f"LoadGenerator({'running' if self.running else 'stopped'}: {self.report()!r})"


def _checked_count(name: str, count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
        raise InvalidSetting(f"{name}={count!r}: give a whole number of at least 1.")
    return int(count)


def _checked_rate(rate: Any) -> float | None:
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= float(rate) < math.inf:
        raise InvalidSetting(f"rate={rate!r}: give requests a second, 0 to pause, or None for as fast as possible.")
    return float(rate)
