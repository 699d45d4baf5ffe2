"""The owner's queue: which examples go to which worker thread, and what happens to their answers.

    submit -> requests (round robin) -> chunks -> lanes (at most 2 each) -> answers -> futures
                                          ^                         |
                                          '---- dead, lost, merged and failed

Clients take turns by chunks of about equal computing time, so that a long job delays a short one
little. Small requests of several clients share a chunk. A chunk is held until its answer is in:
when its process dies it goes to another, and after two deaths to quarantine.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from kit import batching, errors
from kit.engine.lane import Lane
from kit.engine.requests import Chunk, Part, Request
from kit.engine.runner import Trouble
from kit.metrics import Counters, LatencySplit

#: Computing time that one chunk aims at, seconds: long against its transport, short against patience.
CHUNK_S = 0.03
#: Computing time below which a chunk isn't split for other lanes, seconds.
LEAST_CHUNK_S = 0.002
#: Below this time a chunk a lane is kept in reserve, so that the worker needn't wait for the next.
PREFETCH_S = 0.1
MAX_CHUNK_BYTES = 8 << 20
#: Accepted examples that may wait before `submit` blocks.
MAX_QUEUED = 1 << 20
MAX_ATTEMPTS = 3


class Dispatcher:
    """Queue and bookkeeping of one deployment.

    Args:
        handler: for batching options.
        quarantine: called with a chunk that has killed twice.
    """

    def __init__(self, handler: Any, quarantine: Callable[[Chunk], None]) -> None:
        self.lock = threading.RLock()
        self.room = threading.Condition(self.lock)
        self.lanes: list[Lane] = []
        self.draining: list[Lane] = []  # of a topology that is being replaced
        self.requests: deque[Request] = deque()
        self.again: deque[Chunk] = deque()
        self.paused = False
        self.closed: errors.KitError | None = None
        self.counters = Counters()
        self.latency = LatencySplit()
        self.queued = 0
        self._quarantine = quarantine
        self.on_first: Callable[[Request], None] | None = None  # called once with the next request
        self._cost_s = 0.0  # seconds an example, smoothed
        self._bytes = 0.0  # bytes an example, smoothed
        self.latest: dict[str, Any] = {}  # the last answer: example, result, pid, mode, seconds
        self._made: dict[str, Any] = {}  # by whom the chunk in hand was computed
        self.sample: list[Any] = []  # a few recent examples, to verify another copy of the model with
        self.use(handler)

    def use(self, handler: Any) -> None:
        """Take batching options from `handler`."""
        options = batching.options_of(handler)
        # After pre-processing an example is another thing, so only the worker can plan batches then.
        self.request_options = None if handler.get_preprocess_fns() else options
        self.batch_size = options.get("max_batch_size")

    # ---- taking requests ---------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            DeploymentClosed, CrashLoop: nothing can be answered any more.
            QueueFull: the queue is full and the request has a deadline; without one, this blocks.
        """
        # Weak: a future keeps its callbacks, and through the request itself, until the next full collection.
        known = weakref.ref(request)
        request.future.add_done_callback(lambda future: self._on_done(known()))
        with self.lock:
            while self.closed is None and self.queued and self.queued + request.count > MAX_QUEUED:
                if request.deadline is not None:
                    raise errors.QueueFull(
                        f"{self.queued} examples wait already and {request.count} more don't fit ({MAX_QUEUED} at most); "  # noqa: E501
                        "send fewer at a time, or without a deadline, which waits for room."
                    )
                self.room.wait(0.2)
            if self.closed is not None:
                raise self.closed.copy()
            self.counters.accepted += request.count
            self.queued += request.count
            self.requests.append(request)
            on_first, self.on_first = self.on_first, None
        if on_first is not None:
            on_first(request)
        self.pump()

    def _on_done(self, request: Request | None) -> None:
        if request is None:
            return
        future = request.future
        with self.lock:
            left = request.left
            if future.cancelled():
                self.counters.cancelled += left
            elif future.exception() is not None:
                self.counters.failed += left
            self.queued -= request.untaken
            request.untaken = 0
            if request in self.requests:
                self.requests.remove(request)
            if left:
                for lane in (*self.lanes, *self.draining):
                    lane.cancel()
            self.room.notify_all()

    # ---- giving out work ---------------------------------------------------------------------

    def pump(self) -> None:
        """Give free lanes work while there is any."""
        while True:
            with self.lock:
                if self.paused or not (self.again or self.requests):
                    return
                lane = self._free_lane()
                if lane is None:
                    return
                chunk = self._next_chunk()
                if chunk is None:
                    return
                chunk.attempts += 1
                chunk.sent_at = time.monotonic()
                lane.assign(chunk)
            self._send(lane, chunk)

    def _free_lane(self) -> Lane | None:
        depth = 2 if self._cost_s * self._typical_count() < PREFETCH_S else 1
        best = None
        now = time.monotonic()
        for lane in self.lanes:
            load = len(lane.in_flight)
            if load < depth and lane.usable(now) and (best is None or load < len(best.in_flight)):
                best = lane
                if load == 0:
                    break
        return best

    def _typical_count(self) -> int:
        return self.batch_size or max(1, self._target())

    def _target(self) -> int:
        """Examples that take about CHUNK_S."""
        target = int(CHUNK_S / self._cost_s) if self._cost_s else 16
        if self._bytes:
            target = min(target, int(MAX_CHUNK_BYTES / self._bytes))
        return max(1, target)

    def _next_chunk(self) -> Chunk | None:
        while self.again:
            chunk = self.again.popleft()
            if not chunk.ended:
                return chunk
        while self.requests and self.requests[0].ended:
            self.requests.popleft()
        if not self.requests:
            return None
        request = self.requests[0]
        parts = [self._take(request, self._share(request))]
        if request.untaken == 0:
            self.requests.popleft()
        else:
            self.requests.rotate(-1)
        self._merge(parts)
        return Chunk(parts)

    def _share(self, request: Request) -> int:
        """How many examples of a request to give out at once."""
        size = self.batch_size
        if request.batch_timeout_s is not None:
            return size or 1  # the time limit is for one batch
        most = self._target()
        lanes = len(self.lanes)
        if lanes > 1:
            # The end of a job is spread over all lanes, but not in pieces that cost less than sending them.
            least = int(LEAST_CHUNK_S / self._cost_s) if self._cost_s else 1
            most = min(most, max(1, least, -(-request.untaken // (2 * lanes))))
        if size is not None:
            return int(max(size, most // size * size))
        return most

    def _take(self, request: Request, most: int) -> Part:
        indices = request.take(most)
        self.queued -= len(indices)
        if self.queued < MAX_QUEUED:
            self.room.notify_all()
        return Part(request, indices)

    def _merge(self, parts: list[Part]) -> None:
        """Add small requests of others that may share the chunk."""
        first = parts[0].request
        if first.untaken or first.batch_timeout_s is not None:
            return
        room = max(self.batch_size or 0, min(self._target(), batching.MAX_BATCH_SIZE)) - len(parts[0].indices)
        while room > 0 and self.requests:
            request = self.requests[0]
            alike = request.isolate == first.isolate and request.inference_args == first.inference_args
            if (
                request.ended
                or not alike
                or request.untaken > room
                or request.planned
                or request.batch_timeout_s is not None
            ):
                return
            part = self._take(request, request.untaken)
            self.requests.popleft()
            parts.append(part)
            room -= len(part.indices)

    def _send(self, lane: Lane, chunk: Chunk) -> None:
        try:
            payload = chunk.payload()
            size = lane.send(chunk, payload)
        except errors.KitError as error:
            # The lane is gone; whoever watches its process brings the chunk back.
            if not isinstance(error, errors.WorkerDied):
                self._refuse(lane, chunk, error)
        except Exception as error:
            trouble = errors.InferenceFailed(
                f"an example can't be sent to a worker process: {type(error).__name__}: {error}. "
                "Examples must be picklable; convert them first, or do it in a pre-processing function from a path."
            )
            self._refuse(lane, chunk, trouble)
        else:
            each = size / max(1, chunk.count)
            self._bytes = each if not self._bytes else 0.8 * self._bytes + 0.2 * each
            if not self.sample:
                self.sample = list(payload[:8])

    def _refuse(self, lane: Lane, chunk: Chunk, error: errors.KitError) -> None:
        with self.lock:
            lane.take_back(chunk.id)
        self._fail_apart(chunk, Trouble.of(error))

    # ---- answers -----------------------------------------------------------------------------

    def answered(self, lane: Lane, message: Any, value: tuple[Any, Any, bool, dict[int, Trouble]]) -> None:
        """A worker thread answered a chunk: values, model ids, plain, troubles."""
        now = time.monotonic()
        with self.lock:
            chunk = lane.take_back(message.request)
            if chunk is None:
                return
            self._note_times(lane, chunk, message, now)
            self.room.notify_all()
        self.pump()
        self.deliver(chunk, *value)

    def _note_times(self, lane: Lane, chunk: Chunk, message: Any, now: float) -> None:
        cost = (now - message.stamp) / max(1, chunk.count)
        self._cost_s = cost if not self._cost_s else 0.7 * self._cost_s + 0.3 * cost
        began = max(message.stamp, chunk.sent_at)
        self.counters.batches += message.attempt
        for part in chunk.parts:
            total = now - part.request.accepted_at
            queue = max(0.0, began - part.request.accepted_at)
            self.latency.record(total, min(queue, total), min(message.spent, total), len(part.indices))
        self._made = {"pid": lane.process.pid, "mode": lane.mode, "seconds": now - began}

    def deliver(self, chunk: Chunk, values: Any, model_ids: Any, plain: bool, troubles: dict[int, Trouble]) -> None:
        """Hand the answers of a chunk to the requests that its parts belong to."""
        start = 0
        for request, indices in chunk.parts:
            stop = start + len(indices)
            if not request.ended:
                mine = values[start:stop] if len(chunk.parts) > 1 else values
                ids = model_ids[start:stop] if isinstance(model_ids, list) else model_ids
                failed = {at - start: trouble for at, trouble in troubles.items() if start <= at < stop}
                with self.lock:
                    self.counters.answered += len(indices) - len(failed)
                    self.counters.failed += len(failed) if request.isolate else 0
                request.settle(indices, mine, ids, plain, failed)
            start = stop
        if start:
            request, indices = chunk.parts[-1]
            # A new dict: who reads it gets an example with its own answer.
            self.latest = {
                **self._made,
                "example": request.examples[indices[-1]],
                "result": request.results[indices[-1]],
            }

    def failed(self, lane: Lane, message: Any) -> None:
        """A worker thread reports that a chunk failed as a whole."""
        with self.lock:
            chunk = lane.take_back(message.request)
        if chunk is not None:
            self._fail_apart(chunk, message.value)
        self.pump()

    def _fail_apart(self, chunk: Chunk, trouble: Trouble) -> None:
        """Fail a chunk; one with several requests, or examples that may fail alone, is first taken apart."""
        if len(chunk.parts) > 1:
            pieces = chunk.split()
        elif chunk.isolate and chunk.count > 1 and trouble.kind != "WrongPredictionCount":
            pieces = chunk.singles()
        else:
            self._all_fail(chunk, trouble)
            return
        with self.lock:
            self.again.extendleft(reversed(pieces))

    def _all_fail(self, chunk: Chunk, trouble: Trouble) -> None:
        if chunk.isolate:
            self.deliver(chunk, [None] * chunk.count, None, False, dict.fromkeys(range(chunk.count), trouble))
        else:
            for request, _ in chunk.parts:
                request.fail_all(trouble.error())

    # ---- deaths ------------------------------------------------------------------------------

    def lost(self, lane: Lane, request_id: int) -> None:
        """The model host that computed a chunk is gone; the worker is fine."""
        with self.lock:
            chunk = lane.take_back(request_id)
            lane.avoid_until = time.monotonic() + 0.02
            if chunk is not None:
                self._try_again(chunk, blame=True)

    def died(self, lane: Lane) -> None:
        """The worker of a lane is gone: what it computed is suspect, what waited is not."""
        with self.lock:
            for lanes in (self.lanes, self.draining):
                if lane in lanes:
                    lanes.remove(lane)
            chunks = lane.take_back_all()
            for position, chunk in reversed(list(enumerate(chunks))):
                self._try_again(chunk, blame=position == 0)

    def _try_again(self, chunk: Chunk, *, blame: bool) -> None:
        if chunk.ended:
            return
        self.counters.retried += chunk.count
        chunk.deaths += blame
        for piece in chunk.split() if blame else [chunk]:
            if piece.deaths >= 2 or piece.attempts >= MAX_ATTEMPTS:
                self._quarantine(piece)
            else:
                self.again.appendleft(piece)

    def expire(self, now: float, computing_since: Callable[[Lane], float | None]) -> list[tuple[Lane, Chunk]]:
        """Fail requests past their deadline; returns chunks whose batch has run too long, off their lanes.

        `computing_since` tells since when a lane's chunk has been computed, None while it waits.
        """
        with self.lock:
            late = [r for r in self._live_requests() if r.deadline is not None and now > r.deadline]
            stuck = []
            for lane in (*self.lanes, *self.draining):
                chunk = lane.head
                if chunk is None or chunk.batch_timeout_s is None:
                    continue
                since = computing_since(lane)
                if since is not None and now - since > chunk.batch_timeout_s:
                    lane.take_back(chunk.id)
                    stuck.append((lane, chunk))
        for request in late:
            request.fail_all(
                errors.DeadlineExceeded(
                    f"{request.left} of {request.count} examples had no answer after "
                    f"{now - request.accepted_at:.3g} s; give more time, or add workers."
                )
            )
        return stuck

    def time_out(self, chunk: Chunk) -> None:
        """Fail the examples of a batch that ran too long."""
        limit = chunk.batch_timeout_s
        message = f"a batch of {chunk.count} examples ran longer than the timeout of {limit} s."
        self._all_fail(chunk, Trouble("DeadlineExceeded", message, ""))

    def _live_requests(self) -> set[Request]:
        found = set(self.requests)
        for lane in (*self.lanes, *self.draining):
            for chunk in lane.in_flight:
                found.update(part.request for part in chunk.parts)
        for chunk in self.again:
            found.update(part.request for part in chunk.parts)
        return found

    def close(self, error: errors.KitError) -> None:
        """Refuse new requests and fail all that wait; the first reason given stays."""
        with self.lock:
            if self.closed is None:
                self.closed = error
            waiting = self._live_requests()
            self.room.notify_all()
        for request in waiting:
            request.fail_all(error.copy())

    def publish(self, lanes: list[Lane]) -> None:
        """Give work to `lanes` from now on; the former ones finish what they have."""
        with self.lock:
            self.draining += self.lanes
            self.lanes = list(lanes)
        self.pump()

    def add(self, lanes: list[Lane]) -> None:
        """Give work to these lanes too."""
        with self.lock:
            self.lanes += [lane for lane in lanes if lane not in self.lanes]

    def idle(self, lanes: list[Lane]) -> bool:
        """True when nothing is in flight on any of `lanes`."""
        with self.lock:
            return not any(lane.in_flight for lane in lanes)
