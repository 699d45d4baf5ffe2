"""One run of a load generator: the threads, and the bookkeeping."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any, Protocol

from kit.errors import DeploymentClosed
from kit.metrics import LatencyHistogram

Check = Callable[[Any, Any], bool]

_ERRORS_KEPT = 5


class Submits(Protocol):
    """What a load generator needs of a deployment."""

    def submit(self, examples: Any) -> Future[Any]:
        """A future of a list with one prediction for each example."""


class LoadRun:
    """One run: a thread that sends, one that receives, and what they counted.

    It ends by itself once `end` was called and what is in flight is answered.
    """

    def __init__(
        self,
        deployment: Submits,
        examples: list[Any],
        rate: float | None,
        batch: int,
        clients: int,
        check: Check | None,
        arrivals: random.Random | None,
    ) -> None:
        self.deployment = deployment
        self.examples = examples
        self.rate = rate
        self.batch = batch
        self.clients = clients
        self.check = check
        self.arrivals = arrivals
        self.stopping = threading.Event()
        self.changed = threading.Condition()  # a slot is free, the rate is new, or it is time to stop
        self.rate_changes = 0
        self.in_flight: dict[Future[Any], int] = {}
        self.finished: SimpleQueue[tuple[Future[Any], list[Any], float, float] | None] = SimpleQueue()
        self.latency = LatencyHistogram()
        self.answered = self.failed = self.wrong = self.given_up = 0
        self.sent_all = False
        self.errors: dict[str, None] = {}
        self.gap_s = self.behind_s = 0.0
        self.began = self.quiet_since = time.perf_counter()
        self.gap_open = False  # whether an answer came since the start or the last pause
        self.stopped_at: float | None = None
        self.ended_at: float | None = None
        self.sender = threading.Thread(target=self.send, name="kit-load-send", daemon=True)
        self.receiver = threading.Thread(target=self.receive, name="kit-load-receive", daemon=True)

    # ---- control --------------------------------------------------------------------------------

    def start(self) -> None:
        self.began = self.quiet_since = time.perf_counter()
        self.receiver.start()
        self.sender.start()

    def set_rate(self, rate: float | None) -> None:
        with self.changed:
            if self.rate == 0:
                self.quiet_since, self.gap_open = time.perf_counter(), False
            self.rate = rate
            self.rate_changes += 1
            self.changed.notify_all()

    def set_clients(self, clients: int) -> None:
        with self.changed:
            self.clients = clients
            self.changed.notify_all()

    def end(self) -> None:
        """Send no more; the threads end when what is in flight is answered."""
        with self.changed:
            if self.stopped_at is None:
                self.stopped_at = time.perf_counter()
            self.stopping.set()
            self.changed.notify_all()

    def stop(self, timeout_s: float) -> None:
        """`end`, and wait for it; after `timeout_s` what is still in flight is cancelled and given up."""
        self.end()
        limit = time.monotonic() + timeout_s
        # A sender that drops the last reference to a deployment closes it, and may so stop itself.
        if self.sender is not threading.current_thread():
            self.sender.join(timeout_s)
        with self.changed:
            self.changed.wait_for(lambda: not self.in_flight, max(0.0, limit - time.monotonic()))
            left = list(self.in_flight)
        for future in left:
            future.cancel()
        with self.changed:
            self.given_up += sum(self.in_flight.values())  # those that can't be cancelled any more
            self.in_flight.clear()
            if left or self.sender.is_alive():
                self.finished.put(None)
        if self.receiver is not threading.current_thread():
            self.receiver.join()

    # ---- the two threads ------------------------------------------------------------------------

    def send(self) -> None:
        due, position, rate_seen = self.began, 0, -1
        try:
            while True:
                with self.changed:
                    if self.rate_changes != rate_seen:  # a new rate: draw the next arrival anew, from now
                        rate_seen = self.rate_changes
                        due = time.perf_counter() + self.gap_to_next()
                    if not self.wait_for_turn(due, rate_seen):
                        if self.stopping.is_set():
                            return
                        continue
                    if self.rate is None:
                        due = time.perf_counter()
                self.behind_s = time.perf_counter() - due
                if not self.send_one(position, due):
                    return
                position = (position + self.batch) % len(self.examples)
                due += self.gap_to_next()
        finally:
            with self.changed:
                self.sent_all = True
                if not self.in_flight:
                    self.finished.put(None)

    def wait_for_turn(self, due: float, rate_seen: int) -> bool:
        """Wait until the next request is to be sent: True then, False when stopping or the rate changed."""

        def called_off() -> bool:
            return self.stopping.is_set() or self.rate_changes != rate_seen

        if self.rate is None:
            self.changed.wait_for(lambda: called_off() or len(self.in_flight) < self.clients)
        else:
            wait_s = due - time.perf_counter()
            while wait_s > 0 and not called_off():
                # A due time without end (paused) would overflow the wait.
                self.changed.wait_for(called_off, min(wait_s, 3600.0))
                wait_s = due - time.perf_counter()
        return not called_off()

    def gap_to_next(self) -> float:
        """Seconds from one arrival to the next."""
        if self.rate is None:
            return 0.0
        if self.rate == 0:
            return math.inf
        return self.arrivals.expovariate(self.rate) if self.arrivals is not None else 1.0 / self.rate

    def send_one(self, position: int, due: float) -> bool:
        """Submit the next batch; False when there is no point in sending more."""
        count = len(self.examples)
        batch = [self.examples[(position + offset) % count] for offset in range(self.batch)]
        try:
            future = self.deployment.submit(batch)
        except Exception as error:
            self.note_failure(error, len(batch))
            if isinstance(error, DeploymentClosed):
                self.end()
                return False
            if self.rate is None:
                self.stopping.wait(0.01)  # a closed loop would otherwise spin on the error
            return True
        with self.changed:
            self.in_flight[future] = len(batch)

        def done(ended: Future[Any]) -> None:
            self.finished.put((ended, batch, due, time.perf_counter()))
            with self.changed:
                self.in_flight.pop(ended, None)
                if self.sent_all and not self.in_flight:
                    self.finished.put(None)
                if self.rate is None or self.stopping.is_set():
                    self.changed.notify_all()

        future.add_done_callback(done)
        return True

    def receive(self) -> None:
        while (item := self.finished.get()) is not None:
            self.take(*item)
        self.ended_at = time.perf_counter()

    def take(self, future: Future[Any], batch: list[Any], due: float, at: float) -> None:
        """Count one request that ended."""
        try:
            predictions = list(future.result())
            if len(predictions) != len(batch):
                raise ValueError(f"{len(predictions)} predictions for {len(batch)} examples")
        except CancelledError:
            self.given_up += len(batch)
            return
        except Exception as error:
            self.note_failure(error, len(batch))
            return
        self.latency.record(at - due)
        self.answered += len(batch)
        self.note_answer(at)
        if self.check is not None:
            for example, prediction in zip(batch, predictions, strict=True):
                self.wrong += not self.is_right(example, prediction)

    def is_right(self, example: Any, prediction: Any) -> bool:
        assert self.check is not None
        try:
            return bool(self.check(example, prediction))
        except Exception as error:
            self.keep_error(error)
            return False

    def note_answer(self, at: float) -> None:
        with self.changed:
            at = at if self.stopped_at is None else min(at, self.stopped_at)
            if self.gap_open:
                self.gap_s = max(self.gap_s, at - self.quiet_since)
            self.gap_open, self.quiet_since = True, max(at, self.quiet_since)

    def note_failure(self, error: Exception, count: int) -> None:
        self.failed += count
        self.keep_error(error)

    def keep_error(self, error: Exception) -> None:
        if len(self.errors) < _ERRORS_KEPT:
            self.errors[f"{type(error).__name__}: {error}"] = None

    def figures(self) -> dict[str, Any]:
        """The fields of a LoadReport, now."""
        with self.changed:
            now = time.perf_counter()
            gap_s = self.gap_s
            if self.rate != 0 and (self.gap_open or self.answered == 0):
                gap_s = max(gap_s, (self.stopped_at or now) - self.quiet_since)
            seconds = (self.ended_at or now) - self.began
            p50_s, p99_s = self.latency.quantiles(0.5, 0.99)
            return {
                "answered": self.answered,
                "failed": self.failed,
                "wrong": self.wrong,
                "unanswered": sum(self.in_flight.values()) + self.given_up,
                "errors": tuple(self.errors),
                "longest_gap_s": gap_s,
                "p50_s": p50_s,
                "p99_s": p99_s,
                "throughput": self.answered / seconds if seconds > 0 else math.nan,
                "seconds": seconds,
                "behind_s": self.behind_s,
            }
