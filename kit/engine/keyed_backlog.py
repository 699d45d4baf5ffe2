"""What waits to be computed by models by key: a queue for each model, so that every chunk is of one model.

    request --split by key--> queues --turns--> chunk + lease --> a lane of the model's home
                                 |                  ^
                                 '--no model there--'  (wanted, loading, arrived)

Queues whose model is loaded take turns and overtake those that wait for a load. That wait is bounded by the
model manager: once a load has waited ``patience_s`` for room, the models that must go take no new leases.

Requests take turns with their loads: each one's first goes before any other's next, see `LoadThreads` and `Room`.
A load that nobody waits for any more isn't begun.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.engine.homes import least_busy
from kit.engine.keyed_requests import Group, Router
from kit.engine.lane import free_lane
from kit.engine.model_queue import ModelQueue
from kit.engine.prepared import Prepared, nothing
from kit.engine.requests import Chunk, Request
from kit.engine.trouble import Trouble
from kit.key_routes import Route

if TYPE_CHECKING:
    from kit.engine.lane import Lane
    from kit.engine.model_places import ModelPlaces
    from kit.metrics import Counters

#: Empty queues are forgotten above this number.
MOST_QUEUES = 4096


class KeyedBacklog:
    """Requests for models by key; the dispatcher uses it in the place of a `Backlog`, under its lock.

    Attributes:
        queued: examples that wait.
        due_at: after `next` gave None: when it is to be asked again (monotonic seconds), None for not at all.
    """

    def __init__(self, places: ModelPlaces, counters: Counters) -> None:
        self.queued = 0
        self.due_at: float | None = None
        self.batch_size: int | None = None
        self._places = places
        self._counters = counters
        self._router: Router | None = None
        self._queues: dict[Route, ModelQueue] = {}
        self._turns: deque[ModelQueue] = deque()

    @property
    def router(self) -> Router:
        """Finds models for keys."""
        assert self._router is not None
        return self._router

    def use(self, handler: Any) -> None:
        """Take routes from `handler`; what waits is sorted by them anew."""
        if self._router is not None and self._router.handler is handler:
            return
        self._router = Router(handler)
        for queue in list(self._queues.values()):
            groups = list(queue.backlog.requests)
            queue.backlog.requests.clear()
            self.queued -= queue.backlog.queued
            queue.backlog.queued = 0
            for group in groups:
                assert isinstance(group, Group)
                try:
                    found = self._router.again(group)
                except errors.KitError as error:
                    group.fail_all(error)
                    continue
                group.whole.groups += found
                for part in found:
                    self._add(part)

    # ---- taking ------------------------------------------------------------------------------

    def prepare(self, request: Request) -> Prepared:
        """Split a request by model; runs without the lock."""
        try:
            groups, troubles = self.router.split(request)
        except errors.KitError as error:
            return Prepared(nothing, partial(request.fail_all, error))
        request.groups = groups
        return Prepared(partial(self._add_all, groups), partial(self._fail, request, troubles))

    def _add_all(self, groups: list[Group]) -> None:
        for group in groups:
            self._add(group)

    def _fail(self, request: Request, troubles: dict[int, Trouble]) -> None:
        self._counters.failed += len(troubles)
        for position, trouble in troubles.items():
            request.fail(position, trouble)

    def _add(self, group: Group) -> None:
        queue = self._queue(group.route)
        queue.backlog.add(group)
        self.queued += group.count
        if queue.loading and not queue.under_way:
            self._places.fetches.want(queue, [group.whole])
        self._enter(queue)

    def _queue(self, route: Route) -> ModelQueue:
        queue = self._queues.get(route)
        if queue is None:
            if len(self._queues) >= MOST_QUEUES:
                busy = {route: queue for route, queue in self._queues.items() if queue.in_turn or queue.loading}
                self._queues = busy
            queue = self._queues[route] = ModelQueue(route, self._places.specs.of(route))
        return queue

    def _enter(self, queue: ModelQueue) -> None:
        if not (queue.in_turn or queue.loading):
            queue.in_turn = True
            self._turns.append(queue)

    def put_again(self, chunks: list[Chunk]) -> None:
        """Give out these chunks, in their order, before anything else of their models."""
        for chunk in reversed(chunks):
            request = chunk.parts[0].request
            assert isinstance(request, Group)
            queue = self._queue(request.route)
            queue.backlog.put_again([chunk])
            self._enter(queue)

    def forget(self, request: Request) -> None:
        """Drop what is left of a request that has ended."""
        for group in request.groups:
            queue = self._queues.get(group.route)
            if queue is not None:
                before = queue.backlog.queued
                queue.backlog.forget(group)
                self.queued += queue.backlog.queued - before
                if queue.loading and not queue.waits() and self._places.fetches.unwant(queue):
                    queue.loading = False
        request.groups = []

    # ---- giving ------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """True when something may be there to be given out."""
        return bool(self._turns)

    def next(self, lanes: list[Lane], now: float) -> tuple[Lane, Chunk] | None:
        """A chunk and the lane that is to have it; None when nothing can be given out now."""
        due: list[float] = []
        if free_lane(lanes, 2, now) is None:
            if self._turns:  # all workers are busy; one of several hosts may be idle
                self._places.copies.consider(self._turns[0], lanes, now)
            return None
        for _ in range(len(self._turns)):
            queue = self._turns.popleft()
            queue.in_turn = False
            if not queue.backlog.waiting:
                queue.let_go()
                continue
            found = self._give(queue, lanes, now)
            if not queue.loading:
                self._enter(queue)  # behind the others
            if found is not None:
                return found
            if queue.backlog.due_at is not None:
                due.append(queue.backlog.due_at)
        self.due_at = min(due, default=None)
        return None

    def _give(self, queue: ModelQueue, lanes: list[Lane], now: float) -> tuple[Lane, Chunk] | None:
        backlog = queue.backlog
        backlog.due_at = None
        places = self._places.ready(queue.route.model)
        if places:
            able = [lane for lane in lanes if any(place.serves(lane) for place in places)]
            lane = free_lane(able, backlog.depth(), now)
            if lane is None:
                self._places.copies.consider(queue, lanes, now)
                return None
            place = least_busy(places, lane, lanes)
            own = queue.take_lease(place)  # who waited for the load hasn't found the model there
            lease = own or self._places.manager.lease_if_ready(place)
            about = place.about(queue.spec)
            if lease is not None and about is None:
                lease.release()  # its process has just died
            elif lease is not None:
                before = backlog.queued
                chunk = backlog.next_chunk(len(able), now, reserve=bool(lane.in_flight))
                self.queued += backlog.queued - before
                if chunk is None:
                    if own is None:
                        lease.release()
                    queue.lease = own or queue.lease
                    return None
                chunk.lease, chunk.about = lease, about
                queue.let_go()
                return lane, chunk
        queue.let_go()
        asked_by = queue.asked_by()
        queue.loading = bool(asked_by)
        self._places.fetches.want(queue, asked_by)
        return None

    def begins(self, queue: ModelQueue) -> Request | None:
        """The load for a queue may begin: one of the requests that wait for it; None when none does any more."""
        if queue.under_way or not queue.loading:
            return None
        asked_by = queue.asked_by()
        queue.loading = queue.under_way = bool(asked_by)
        return asked_by[0] if asked_by else None

    def given_up(self, queue: ModelQueue) -> None:
        """The load for a queue came to nothing, since nobody waited for it any more."""
        queue.loading = queue.under_way = False
        if queue.waits():  # somebody does again
            self._enter(queue)

    def arrived(self, queue: ModelQueue, lease: Any) -> None:
        """The model that a queue waits for is there."""
        queue.loading = queue.under_way = False
        queue.let_go()
        if queue.backlog.waiting:
            queue.lease = lease
            self._enter(queue)
        else:
            lease.release()

    def refused(self, queue: ModelQueue) -> list[Chunk]:
        """The model that a queue waits for can't be had: all that waits there, to be failed."""
        queue.loading = queue.under_way = False
        self.queued -= queue.backlog.queued
        return queue.take_all()

    @property
    def cost_s(self) -> float:
        """Seconds that an example costs, of the model that costs most; 0 while unknown."""
        return max((queue.backlog.cost_s for queue in self._turns), default=0.0)

    # ---- notes -------------------------------------------------------------------------------

    def note_answer(self, chunk: Chunk, seconds: float) -> None:
        """Note how long a chunk took."""
        self._of(chunk).backlog.note_answer(chunk, seconds)

    def note_sent(self, chunk: Chunk, size: int) -> None:
        """Note the bytes of a chunk just sent."""
        self._of(chunk).backlog.note_sent(chunk, size)

    def _of(self, chunk: Chunk) -> ModelQueue:
        request = chunk.parts[0].request
        assert isinstance(request, Group)
        return self._queue(request.route)

    def live(self) -> set[Request]:
        """Requests that wait, wholly or in part."""
        return {request for queue in self._queues.values() for request in queue.backlog.live()}
