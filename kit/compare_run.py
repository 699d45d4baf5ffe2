"""Measuring serving modes one beside the other: fresh processes, warm-up apart, rounds interleaved."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kit.bare_loop import BareLoop
from kit.compare_cancel import Cancel, Served
from kit.errors import InferenceFailed, InvalidSetting, KitError
from kit.inputs import sample_rows
from kit.load import LoadGenerator
from kit.memory import process_memory
from kit.metrics import LatencyHistogram
from kit.settings import Settings

BARE_LOOP = "bare loop"
#: A contender that starts within this is started afresh in every round; a slower one is measured in one go.
CHEAP_START_S = 8.0


@dataclass(slots=True)
class Result:
    """What was measured of one contender.

    Attributes:
        label: its mode, with the settings that set it apart.
        settings: arguments for `kit.deploy`; empty for the bare loop.
        copies: copies of the model.
        throughputs: elements a second, one figure a repeat.
        latency: of requests of one example, all repeats together.
        peak_pss_bytes: highest sum over its processes.
        weights_bytes: bytes of the model's copies together; what they map from the same file or segment counts once.
        starts_s: seconds from the first process to the first answer, one figure a start.
        note: why it couldn't run, "" if it could.
        error: the error behind the note.
    """

    label: str
    mode: str
    settings: dict[str, Any]
    processes: int
    copies: int
    throughputs: list[float] = field(default_factory=list)
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    peak_pss_bytes: int = 0
    weights_bytes: int = 0
    starts_s: list[float] = field(default_factory=list)
    note: str = ""
    error: KitError | None = None

    @property
    def measured(self) -> bool:
        """Whether there are figures."""
        return bool(self.throughputs)

    @property
    def throughput(self) -> float:
        """Median of the repeats, nan without any."""
        return statistics.median(self.throughputs) if self.throughputs else math.nan

    @property
    def spread(self) -> float:
        """(highest - lowest) / median of the repeats' throughputs, nan without any."""
        return (max(self.throughputs) - min(self.throughputs)) / self.throughput if self.throughputs else math.nan


@dataclass(slots=True)
class Contender:
    """A way to serve, and its result so far.

    Attributes:
        make: makes what is to be started, waiting for nothing.
        result: the figures.
        prepared_s: seconds of a start that were spent once for all, before.
    """

    make: Callable[[], Served]
    result: Result
    prepared_s: float = 0.0


def measure(
    contenders: Sequence[Contender],
    repeats: int,
    seconds: float,
    step: Callable[[int, str], None] = lambda done, label: None,
    cancel: Cancel | None = None,
) -> None:
    """Measure each contender `repeats` times, in rounds, every other round in reverse order.

    `step` is called with 0 and the label as each is started, and with the number of measurements done after each:
    for one that fails, all that it would have had.

    Raises:
        InvalidSetting: a contender's settings can't work. Other errors of ours become notes.
        CancelledError: `cancel` was used.
    """
    cancel = cancel or Cancel()
    for number in range(repeats):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            result = contender.result
            missing = repeats - len(result.throughputs)
            if result.error is not None or missing <= repeats - number - 1:
                continue
            cancel.check()
            step(0, result.label)
            try:
                with _started(contender, cancel) as served:
                    expensive = result.starts_s[-1] - contender.prepared_s > CHEAP_START_S
                    for _ in range(missing if expensive else 1):
                        _measure_once(served, result, seconds)
                        step(1, result.label)
            except InvalidSetting:
                raise
            except KitError as error:
                result.note, result.error = str(error.args[0]), error
                step(repeats - len(result.throughputs), result.label)


@contextmanager
def _started(contender: Contender, cancel: Cancel) -> Iterator[Served]:
    began = time.perf_counter()
    served = contender.make()
    try:
        with cancel.watching(served.abort):
            served.start()
            contender.result.starts_s.append(time.perf_counter() - began + contender.prepared_s)
            yield served
    finally:
        served.close()


def _measure_once(served: Served, result: Result, seconds: float) -> None:
    served.warm_up(seconds)
    with _PeakPss(served.pids) as peak:
        throughput = served.throughput(seconds)
        latency = served.latency(seconds)
    result.throughputs.append(throughput)
    result.latency.merge(latency)
    result.peak_pss_bytes = max(result.peak_pss_bytes, peak.bytes)
    result.weights_bytes = served.weights_bytes


class _PeakPss:
    """Highest sum of the PSS of some processes within a `with`, read for at most 2 % of a core."""

    share = 0.02

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self.bytes = 0
        self._pids = pids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kit-compare-pss", daemon=True)

    def __enter__(self) -> _PeakPss:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._read()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.1, self._read() / self.share)):
            pass

    def _read(self) -> float:
        """Read once; the CPU seconds that it cost."""
        readings = [memory for memory in map(process_memory, self._pids()) if memory is not None]
        self.bytes = max(self.bytes, sum(memory.pss_bytes for memory in readings))
        return sum(memory.read_s for memory in readings)


# ---- the contenders ------------------------------------------------------------------------------


def bare_loop(handler: Any, examples: Any) -> Contender:
    """The plain loop in one process, with one thread."""
    return Contender(lambda: BareLoop(handler, examples), Result(BARE_LOOP, BARE_LOOP, {}, processes=1, copies=1))


def deployed(handler: Any, examples: Any, settings: Mapping[str, Any], server: Any = None) -> Contender:
    """A deployment with `settings`: mode, processes, threads, model_copies, memory_budget.

    Args:
        server: a fork server to start it from; None lets it start one of its own.
    """
    try:
        made = Settings.make(handler, **settings)
    except TypeError:
        known = ("mode", "processes", "threads", "model_copies", "memory_budget")
        unknown = ", ".join(name for name in settings if name not in known)
        raise InvalidSetting(f"modes: {unknown} can't be compared; use {', '.join(known)}.") from None
    full = {"mode": made.mode, "processes": made.processes, "threads": made.threads}
    if made.mode == "medium":
        full["model_copies"] = made.model_copies
    if made.memory_budget is not None:
        full["memory_budget"] = made.memory_budget
    result = Result(made.mode, made.mode, full, made.processes, made.copies)
    return Contender(lambda: _Deployed(handler, examples, made, server), result)


@contextmanager
def fork_server(handler: Any, cancel: Cancel) -> Iterator[tuple[Any, float]]:
    """A fork server with the handler's libraries imported, and the seconds that it took.

    All deployments of a comparison are forked from one: each still has processes of its own, and
    rounds needn't wait for the imports again.
    """
    from kit.engine import system
    from kit.engine.asking import preload_of
    from kit.engine.processes import ForkServer

    began = time.perf_counter()
    server = ForkServer(preload_of(handler)).retain()
    try:
        # Asked to end it would first import all that it was told to, which takes seconds.
        with cancel.watching(lambda: system.kill(server.pid)):
            server.wait_ready()
        yield server, time.perf_counter() - began
    finally:
        server.close()


class _Deployed:
    def __init__(self, handler: Any, examples: Any, settings: Settings, server: Any) -> None:
        from kit.engine import core
        from kit.own_deployment import OwnDeployment

        self._examples = examples
        self._clients = settings.processes * settings.threads
        self._engine = core.Engine(handler, settings, server)
        self._deployment = OwnDeployment(self._engine)
        self._pids: list[int] = []
        self.weights_bytes = 0

    def start(self) -> None:
        self._engine.start(sample_rows(self._examples[:4]))
        self._deployment.predict(self._examples[:1])

    def pids(self) -> list[int]:
        return self._pids

    def warm_up(self, seconds: float) -> None:
        # Growing pieces, so that a slow model isn't warmed up for minutes.
        began, count, position = time.perf_counter(), 8 * self._clients, 0
        while time.perf_counter() - began < seconds:
            self._deployment.predict(self._examples[position : position + count])
            position = position + count if position + count < len(self._examples) else 0
            count *= 2
        self._pids = [int(pid) for pid in self._deployment.stats()["pid"]]
        self.weights_bytes = self._deployment._watch.weights_bytes()

    def throughput(self, seconds: float) -> float:
        began, passes = time.perf_counter(), 0
        while True:
            self._deployment.predict(self._examples)
            passes += 1
            elapsed = time.perf_counter() - began
            if elapsed >= seconds:
                return passes * len(self._examples) / elapsed

    def latency(self, seconds: float) -> LatencyHistogram:
        with LoadGenerator(self._deployment, self._examples, clients=self._clients) as load:
            load.wait(seconds)
        report = load.report()
        if not report.answered:
            raise InferenceFailed(f"No request of one example was answered in {report.seconds:.1f} s: {report!r}")
        return load.latency

    def close(self) -> None:
        self._deployment.close()

    def abort(self) -> None:
        self._engine.close()
