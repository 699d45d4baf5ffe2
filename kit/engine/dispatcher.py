"""The owner's queue: which examples go to which worker thread, and what happens to their answers.

    submit -> requests (round robin) -> chunks -> lanes (at most 2 each) -> answers -> futures
                                          ^                         |
                                          '---- dead, lost, merged and failed

How requests are cut into chunks is in `chunking`, what becomes of answers in `answers`. A chunk is
held until its answer is in: when its process dies it goes to another, and after two deaths to
quarantine. A process that was killed on purpose says nothing about what it computed.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kit import batching, errors
from kit.engine.answers import Answers
from kit.engine.chunking import Backlog
from kit.engine.keyed_backlog import KeyedBacklog
from kit.engine.lane import Lane
from kit.engine.requests import Chunk, Request
from kit.engine.trouble import Trouble

if TYPE_CHECKING:
    from kit.engine.model_places import ModelPlaces

#: Accepted examples that may wait before `submit` blocks.
MAX_QUEUED = 1 << 20
MAX_ATTEMPTS = 3


class Dispatcher:
    """Queue and bookkeeping of one deployment.

    Args:
        handler: for batching options.
        quarantine: called with a chunk that has killed twice.
        at: calls a function at a time (monotonic seconds), in a thread of its own.
        places: of a handler with models by key: where they are.
    """

    def __init__(
        self,
        handler: Any,
        quarantine: Callable[[Chunk], None],
        at: Callable[[float, Callable[[], None]], None],
        places: ModelPlaces | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.room = threading.Condition(self.lock)
        self.lanes: list[Lane] = []
        self.draining: list[Lane] = []  # of a topology that is being replaced
        self.paused = False  # until another topology serves
        self.held = False  # until the weights of mode `shared` are proved
        self.closed: errors.KitError | None = None
        self.answers = Answers(self.lock)
        self.counters = self.answers.counters
        self.latency = self.answers.latency
        self.keyed = None if places is None else KeyedBacklog(places, self.counters)
        self.backlog: Backlog | KeyedBacklog = Backlog(self.counters) if self.keyed is None else self.keyed
        self._at = at
        self._awake_at: float | None = None  # when `pump` is called next, if that has been asked for
        self._quarantine = quarantine
        self.on_first: Callable[[Request], None] | None = None  # called once with the next request
        self.sample: list[Any] = []  # a few examples that were answered, to verify another copy of the model with
        self.use(handler)

    def use(self, handler: Any) -> None:
        """Take batching options from `handler`."""
        options = batching.options_of(handler)
        # After pre-processing an example is another thing, so only the worker can plan batches then.
        self.request_options = None if handler.get_preprocess_fns() else options
        with self.lock:
            self.backlog.use(handler)

    @property
    def batch_size(self) -> int | None:
        """The handler's ``max_batch_size``."""
        return self.backlog.batch_size

    @property
    def queued(self) -> int:
        """Examples accepted and not given out yet."""
        return self.backlog.queued

    @property
    def latest(self) -> dict[str, Any]:
        """The last answer: example, result, pid, mode, seconds; empty before the first."""
        return self.answers.latest

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
        prepared = self.backlog.prepare(request)
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
            prepared.queue()
            on_first, self.on_first = self.on_first, None
        if on_first is not None:
            on_first(request)
        prepared.finish()
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
            self.backlog.forget(request)
            if left:
                for lane in (*self.lanes, *self.draining):
                    lane.cancel()
            self.room.notify_all()

    # ---- giving out work ---------------------------------------------------------------------

    def pump(self) -> None:
        """Give free lanes work while there is any."""
        while True:
            with self.lock:
                backlog = self.backlog
                if self.paused or self.held or not backlog.waiting:
                    return
                now = time.monotonic()
                backlog.due_at = None
                found = backlog.next(self.lanes, now)
                if found is None:
                    self._pump_at(backlog.due_at)
                    return
                lane, chunk = found
                if backlog.queued < MAX_QUEUED:
                    self.room.notify_all()
                chunk.attempts += 1
                chunk.sent_at = now
                lane.assign(chunk)
            self._send(lane, chunk)

    def _pump_at(self, when: float | None) -> None:
        if when is not None and (self._awake_at is None or when < self._awake_at):
            self._awake_at = when
            self._at(when, self._pump_again)

    def _pump_again(self) -> None:
        with self.lock:
            self._awake_at = None
        self.pump()

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
                f"an example can't be sent to a worker process: {type(error).__name__}: {str(error).rstrip('.')}. "
                "Examples must be picklable; convert them first, or do it in a pre-processing function from a path."
            )
            self._refuse(lane, chunk, trouble)
        else:
            self.backlog.note_sent(chunk, size)

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
            self.backlog.note_answer(chunk, now - message.stamp)
            self.answers.note_times(lane, chunk, message, now)
            self.room.notify_all()
        if not self.sample and not value[3]:
            self.sample = list(chunk.payload()[:8])
        self.pump()
        self.answers.deliver(chunk, *value)

    def failed(self, lane: Lane, message: Any) -> None:
        """A worker thread reports that a chunk failed as a whole."""
        with self.lock:
            chunk = lane.take_back(message.request)
        if chunk is not None:
            self._fail_apart(chunk, message.value)
        self.pump()

    def _fail_apart(self, chunk: Chunk, trouble: Trouble) -> None:
        pieces = self.answers.fail(chunk, trouble)
        with self.lock:
            self.backlog.put_again(pieces)

    # ---- deaths ------------------------------------------------------------------------------

    def lost(self, lane: Lane, request_id: int, suspicious: bool) -> None:
        """The model host that computed a chunk is gone, or none was there; the worker is fine.

        `suspicious`: the chunk may be why.
        """
        with self.lock:
            chunk = lane.take_back(request_id)
            lane.avoid_until = time.monotonic() + 0.02
            if chunk is not None:
                self._try_again(chunk, blame=suspicious, counts=suspicious)

    def died(self, lane: Lane) -> None:
        """The worker of a lane is gone: what it computed is suspect, what waited is not."""
        suspicious = not lane.process.expected_death
        with self.lock:
            for lanes in (self.lanes, self.draining):
                if lane in lanes:
                    lanes.remove(lane)
            chunks = lane.take_back_all()
            for position, chunk in reversed(list(enumerate(chunks))):
                self._try_again(chunk, blame=suspicious and position == 0, counts=suspicious)

    def _try_again(self, chunk: Chunk, *, blame: bool, counts: bool) -> None:
        if chunk.ended:
            return
        self.counters.retried += chunk.count
        chunk.deaths += blame
        chunk.attempts -= not counts
        for piece in chunk.split() if blame else [chunk]:
            if piece.deaths >= 2 or piece.attempts >= MAX_ATTEMPTS:
                self._quarantine(piece)
            else:
                self.backlog.put_again([piece])

    # ---- all of it ---------------------------------------------------------------------------

    def live_requests(self) -> set[Request]:
        """Requests that wait or are computed; the lock is held."""
        found = self.backlog.live()
        for lane in (*self.lanes, *self.draining):
            for chunk in lane.in_flight:
                found.update(part.request for part in chunk.parts)
        return {request.whole for request in found}

    def close(self, error: errors.KitError) -> None:
        """Refuse new requests and fail all that wait; the first reason given stays."""
        with self.lock:
            if self.closed is None:
                self.closed = error
            waiting = self.live_requests()
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
            return not any(lane.in_flight or lane.shutting for lane in lanes)
