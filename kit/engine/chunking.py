"""What waits to be computed, and how it is cut into chunks: turns, sizes, sharing, waiting for company.

Clients take turns by chunks of about equal computing time, so that a long job delays a short one
little. Small requests of several clients share a chunk. Where the handler asks for it
(``min_batch_size``, ``max_batch_duration_secs``), requests wait for company until a batch is full.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from kit import batching
from kit.engine.keyed_examples import PairCheck
from kit.engine.lane import computed_at_once, free_lane
from kit.engine.prepared import Prepared, nothing
from kit.engine.requests import Chunk, Part, Request

if TYPE_CHECKING:
    from kit.engine.lane import Lane
    from kit.metrics import Counters

#: Computing time that one chunk aims at, seconds: long against its transport, short against patience.
CHUNK_S = 0.03
#: Computing time below which a chunk isn't split for other lanes, seconds.
LEAST_CHUNK_S = 0.002
MAX_CHUNK_BYTES = 8 << 20
#: Below this time a chunk a lane is kept in reserve.
PREFETCH_S = 0.1
#: Requests among which is looked for the one whose turn it is.
LOOK = 64


class Backlog:
    """Requests that wait, in turns, and chunks to be sent again. Its methods run under the dispatcher's lock.

    Attributes:
        queued: examples that wait in `requests`.
        pairs: looks at requests for a handler that takes pairs; None for others.
        due_at: after `next_chunk` gave None: when it is to be asked again (monotonic seconds), None for not at all.
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = counters
        self.pairs: PairCheck | None = None
        self.requests: deque[Request] = deque()
        self.again: deque[Chunk] = deque()
        self.queued = 0
        self.due_at: float | None = None
        self.batch_size: int | None = None
        self._wait_s = 0.0  # longest that a request waits for company, seconds
        self._least = 1  # examples a chunk should have
        self._full = batching.MAX_BATCH_SIZE  # examples that need no more company
        self._limits: tuple[float | None, float | None] = (None, None)  # the same by tokens and weight
        self._cost_s = 0.0  # seconds an example, smoothed
        self._bytes = 0.0  # bytes an example, smoothed

    def use(self, handler: Any) -> None:
        """Take batching options from `handler`."""
        options = batching.options_of(handler)
        self.batch_size = options.get("max_batch_size")
        self.pairs = PairCheck.of(handler)
        self._wait_s = 0.0 if handler.should_skip_batching() else batching.wait_of(options)
        self._least = options.get("min_batch_size") or 1
        self._full = options.get("min_batch_size") or self.batch_size or batching.MAX_BATCH_SIZE
        self._limits = (options.get("max_batch_tokens"), options.get("max_batch_weight"))

    def note_cost(self, seconds: float) -> None:
        """Note what an example just cost."""
        self._cost_s = seconds if not self._cost_s else 0.7 * self._cost_s + 0.3 * seconds

    def note_bytes(self, size: float) -> None:
        """Note the bytes of an example just sent."""
        self._bytes = size if not self._bytes else 0.8 * self._bytes + 0.2 * size

    @property
    def cost_s(self) -> float:
        """Seconds that an example costs, smoothed; 0 while unknown."""
        return self._cost_s

    @property
    def waits_for_company(self) -> bool:
        """True when requests wait for others to share a batch with."""
        return bool(self._wait_s)

    @property
    def waiting(self) -> bool:
        """True when something may be there to be given out."""
        return bool(self.again or self.requests)

    def next(self, lanes: list[Lane], now: float) -> tuple[Lane, Chunk] | None:
        """A chunk and the lane that is to have it; None when nothing waits or no lane is free."""
        lane = free_lane(lanes, self.depth(), now)
        if lane is None:
            return None
        chunk = self.next_chunk(len(lanes), now, reserve=bool(lane.in_flight) or self._full_of_long_ones(lanes))
        return None if chunk is None else (lane, chunk)

    def _full_of_long_ones(self, lanes: list[Lane]) -> bool:
        """Whether long requests have as many lanes as they may: one is left to short ones."""
        if not self.requests or self.requests[0].turn is None:
            return False
        taken = sum(any(chunk.long for chunk in lane.in_flight) for lane in lanes)
        return taken >= max(1, computed_at_once(lanes) - 1)

    def note_answer(self, chunk: Chunk, seconds: float) -> None:
        """Note how long a chunk took."""
        self.note_cost(seconds / max(1, chunk.count))

    def note_sent(self, chunk: Chunk, size: int) -> None:
        """Note the bytes of a chunk just sent."""
        self.note_bytes(size / max(1, chunk.count))

    def put_again(self, chunks: list[Chunk]) -> None:
        """Give out these chunks, in their order, before anything else."""
        self.again.extendleft(reversed(chunks))

    def live(self) -> set[Request]:
        """Requests that wait, wholly or in part."""
        return {*self.requests, *(part.request for chunk in self.again for part in chunk.parts)}

    def prepare(self, request: Request) -> Prepared:
        """What is to be done to queue a request; runs without the lock."""
        add = partial(self.add, request)
        return Prepared(add, nothing) if self.pairs is None else self.pairs.prepare(request, add, self._counters)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.queued += request.untaken
        if not request.untaken:
            return
        if request.turn is not None and request.turn.early():
            self.requests.appendleft(request)
        else:
            self.requests.append(request)

    def forget(self, request: Request) -> None:
        """Drop what is left of a request that has ended."""
        self.queued -= request.untaken
        request.untaken = 0
        if request in self.requests:
            self.requests.remove(request)
        if self.again:  # or what nobody fetches any more would keep the request
            self.again = deque(chunk for chunk in self.again if not chunk.ended)

    def depth(self) -> int:
        """Chunks that a lane is given at once: where they are short one in reserve, so that the worker needn't wait."""
        return 2 if self._cost_s * (self.batch_size or self._target()) < PREFETCH_S else 1

    def waiting_s(self, now: float) -> float:
        """How long the first of the requests has waited, seconds."""
        return max((now - request.accepted_at for request in islice(self.requests, 1)), default=0.0)

    def _target(self) -> int:
        """Examples that take about CHUNK_S."""
        target = int(CHUNK_S / self._cost_s) if self._cost_s else 16
        if self._bytes:
            target = min(target, int(MAX_CHUNK_BYTES / self._bytes))
        return max(1, target)

    # ---- giving out --------------------------------------------------------------------------

    def next_chunk(self, lanes: int, now: float, *, reserve: bool = False) -> Chunk | None:
        """The next chunk for one of `lanes` lanes; None when nothing waits, or only for company or for an idle lane.

        Args:
            reserve: the lane is computing another one.
        """
        self.due_at = None
        while self.again:
            chunk = self.again.popleft()
            if not chunk.ended:
                return chunk
        while self.requests and self.requests[0].ended:
            self.requests.popleft()
        if not self.requests:
            return None
        request = self._ripe(now) if self._wait_s else self._first(reserve)
        if request is None:
            return None
        if request is not self.requests[0]:
            self.requests.remove(request)
            self.requests.appendleft(request)
        long = request.turn is not None and request.turn.long(request)
        parts = [self._take(request, self._share(request, lanes))]
        if request.untaken == 0:
            self.requests.popleft()
        else:
            self.requests.rotate(-1)
        self._merge(parts)
        return Chunk(parts, deaths=max(part.request.deaths for part in parts), long=long)

    def _first(self, reserve: bool) -> Request | None:
        """The request whose turn it is."""
        first = self.requests[0]
        return first if first.turn is None else first.turn.pick(islice(self.requests, LOOK), reserve=reserve)

    def _ripe(self, now: float) -> Request | None:
        """The first request of those that may share a batch and fill it, or of which one has waited long enough."""
        groups: list[_Group] = []
        for request in self.requests:
            if request.batch_timeout_s is not None or request.untaken < request.count:
                return request  # always alone, or the rest of a job
            group = next((group for group in groups if _alike(group.first, request)), None)
            if group is None:
                group = _Group(request)
                groups.append(group)
            group.add(request)
            due_at = request.accepted_at + self._wait_s
            if request.deadline is not None:
                due_at = min(due_at, (request.accepted_at + request.deadline) / 2)  # the rest is for computing it
            if now >= due_at or group.full(self._full, *self._limits):
                return group.first
            self.due_at = due_at if self.due_at is None else min(self.due_at, due_at)
        return None

    def _share(self, request: Request, lanes: int) -> int:
        """How many examples of a request to give out at once."""
        size = self.batch_size
        if request.batch_timeout_s is not None:
            return size or 1  # the time limit is for one batch
        most = self._target()
        if lanes > 1:
            # The end of a job is spread over all lanes, but not in pieces that cost less than sending them.
            least = int(LEAST_CHUNK_S / self._cost_s) if self._cost_s else 1
            most = min(most, max(1, least, -(-request.untaken // (2 * lanes))))
        most = max(most, self._least)
        if size is not None:
            return int(max(size, most // size * size))
        return most

    def _take(self, request: Request, most: int) -> Part:
        indices = request.take(most)
        self.queued -= len(indices)
        return Part(request, indices)

    def _merge(self, parts: list[Part]) -> None:
        """Add small requests of others that may share the chunk."""
        first = parts[0].request
        if first.untaken or first.batch_timeout_s is not None:
            return
        most = max(self.batch_size or 0, self._least, min(self._target(), batching.MAX_BATCH_SIZE))
        room = most - len(parts[0].indices)
        others: list[Request] = []
        while room > 0 and self.requests:
            request = self.requests[0]
            if not self._may_join(request, first, room):
                if not self._wait_s:
                    break
                others.append(self.requests.popleft())
                continue
            part = self._take(request, min(room, request.untaken))
            if request.untaken == 0:
                self.requests.popleft()
            parts.append(part)
            room -= len(part.indices)
        self.requests.extendleft(reversed(others))

    def _may_join(self, request: Request, first: Request, room: int) -> bool:
        if request.ended or request.batch_timeout_s is not None or not _alike(first, request):
            return False
        if request.turn is not None and request.turn.long(request):
            return False  # too long for those that it would join
        # A batch that was waited for is filled to the brim; otherwise whole requests join, which end together.
        return bool(self._wait_s) or (request.untaken <= room and not request.planned)


def _alike(one: Request, other: Request) -> bool:
    """True when examples of both may be computed in one batch."""
    same = one.isolate == other.isolate and one.as_given == other.as_given
    return same and one.inference_args == other.inference_args


class _Group:
    """Waiting requests that may share a batch: how much they are together."""

    def __init__(self, first: Request) -> None:
        self.first = first
        self._count = 0
        self._longest = self._weight = 0.0

    def add(self, request: Request) -> None:
        self._count += request.untaken
        self._longest = max(self._longest, request.longest)
        self._weight += request.weight

    def full(self, count: int, tokens: float | None, weight: float | None) -> bool:
        return (
            self._count >= count
            or (tokens is not None and self._count * self._longest >= tokens)
            or (weight is not None and self._weight >= weight)
        )
