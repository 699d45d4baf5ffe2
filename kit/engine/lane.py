"""The owner's end of a worker thread's lane."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.engine import board as fields
from kit.engine import protocol
from kit.engine.transport import Channel, ChannelClosed
from kit.engine.unreadable import PREDICTIONS, Unreadable
from kit.machine import cpu_count

if TYPE_CHECKING:
    from kit.engine.dispatcher import Dispatcher
    from kit.engine.process import Process
    from kit.engine.requests import Chunk
    from kit.engine.runner import Batch
    from kit.engine.topology import Topology
    from kit.settings import Settings


def computed_at_once(lanes: Sequence[Lane]) -> int:
    """Batches that the threads behind these lanes compute at once, each on a core of its own."""
    settings = lanes[0].topology.settings
    return _at_once(settings) if settings.remote else min(len(lanes), _at_once(settings))


@functools.lru_cache(maxsize=64)  # asked at each chunk, and counting cores reads files
def _at_once(settings: Settings) -> int:
    workers, hosts = settings.processes * settings.threads, settings.model_copies * settings.host_threads
    return min(hosts if settings.remote else workers, cpu_count())


class Lane:
    """A channel to one worker thread, and the chunks that it has been given, oldest first.

    Attributes:
        hosts: indices of the model hosts that the thread can reach; None when it computes itself.
        avoid_until: monotonic seconds before which no chunk is given, after a host was lost.
        doors: 1 while a caller asks the thread directly, too, or it computes what such a one has left; 0 otherwise.
        overran_since: start of the last batch that ran too long, monotonic seconds.
        shutting: True while the thread is to finish what it was asked directly, and then to take no more of it.
    """

    def __init__(self, process: Process, channel: Channel, slot: int, topology: Topology, *, remote: bool) -> None:
        self.process = process
        self.channel = channel
        self.slot = slot
        self.topology = topology
        self.mode = topology.settings.mode
        self.hosts: set[int] | None = set() if remote else None
        self.avoid_until = 0.0
        self.overran_since: float | None = None
        self.doors = 0
        self.shutting = False
        self.in_flight: deque[Chunk] = deque()
        self._args: Any = None
        self._about: Any = None
        self._sending = threading.Lock()  # a chunk follows what was said about it
        self._model_ids: Any = None
        self._batches: tuple[int, list[Batch]] = (0, [])  # of the chunk with that id

    @property
    def head(self) -> Chunk | None:
        """The chunk that the thread is computing."""
        return self.in_flight[0] if self.in_flight else None

    def usable(self, now: float) -> bool:
        """True when the thread can compute."""
        return self.process.alive and self.hosts != set() and now >= self.avoid_until

    def assign(self, chunk: Chunk) -> None:
        """Note that the chunk is the lane's; the dispatcher's lock is held."""
        self.in_flight.append(chunk)

    def take_back(self, chunk_id: int) -> Chunk | None:
        """Remove a chunk, None when it isn't the lane's any more; the dispatcher's lock is held."""
        for chunk in self.in_flight:
            if chunk.id == chunk_id:
                self.in_flight.remove(chunk)
                chunk.let_go()
                return chunk
        return None

    def cancel(self) -> None:
        """Let the thread stop at chunks that nobody waits for any more; the dispatcher's lock is held."""
        board = self.topology.engine.board
        for field, chunk in zip((fields.CANCELLED, fields.ALSO_CANCELLED), self.in_flight, strict=False):
            board.put(self.slot, field, chunk.id if chunk.ended else 0)

    def batches_of(self, chunk: Chunk, message: Any) -> list[Batch]:
        """In which batches a chunk that is being answered was computed, as far as the thread was asked to tell."""
        told, batches = self._batches
        if told == chunk.id:
            return batches
        return [(range(chunk.count), message.spent)] if message.attempt == 1 else []

    def take_back_all(self) -> list[Chunk]:
        """Remove all chunks, oldest first."""
        chunks = list(self.in_flight)
        self.in_flight.clear()
        for chunk in chunks:
            chunk.let_go()
        return chunks

    def send(self, chunk: Chunk, payload: Any) -> int:
        """Send a chunk; returns its bytes.

        Raises:
            WorkerDied: the process is gone.
            Exception: the examples can't be pickled.
        """
        flags = protocol.ISOLATE if chunk.isolate else 0
        if chunk.batch_timeout_s is not None:
            flags |= protocol.ALONE
        if chunk.asks_for_batches:
            flags |= protocol.TELL_BATCHES
        if chunk.parts[0].request.as_given:
            flags |= protocol.AS_GIVEN
        try:
            with self._sending:
                if chunk.about != self._about:
                    self.channel.send(protocol.MODEL, chunk.about)
                    self._about = chunk.about
                if chunk.inference_args != self._args:
                    self.channel.send(protocol.ARGS, chunk.inference_args)
                    self._args = chunk.inference_args
                return self.channel.send(
                    protocol.RUN, payload, request=chunk.id, flags=flags, attempt=min(chunk.attempts, 0xFFFF)
                )
        except ChannelClosed as error:
            raise errors.WorkerDied(f"worker (pid {self.process.pid}) is gone.") from error

    def open_door(self, door: str, about: dict[str, Any], fds: tuple[int, ...]) -> None:
        """Have the thread also take requests that come over a descriptor of `fds`, through the class named `door`.

        Raises:
            WorkerDied: the process is gone.
        """
        try:
            self.channel.send(protocol.OPEN_DOOR, (door, about), fds=fds)
        except ChannelClosed as error:
            raise errors.WorkerDied(f"worker (pid {self.process.pid}) is gone.") from error
        self.doors += 1
        self.shutting = False

    def shut_door(self) -> None:
        """Have it take requests of the lane only, again."""
        self.shutting = self.doors > 0
        with contextlib.suppress(ChannelClosed):
            self.channel.send(protocol.SHUT_DOOR)

    def read(self, dispatcher: Dispatcher, on_closed: Callable[[Lane], None]) -> None:
        """Take one message from the thread to the dispatcher."""
        try:
            message = self.channel.recv(block=False)
        except ChannelClosed:
            on_closed(self)
            return
        except Unreadable as error:
            self._unreadable(dispatcher, error)
            return
        if message is None:
            return
        kind, value = message.kind, message.value
        if kind == protocol.RESULT:
            dispatcher.answered(self, message, (value, self._model_ids, False, {}))
        elif kind == protocol.FULL_RESULT:
            dispatcher.answered(self, message, value)
        elif kind == protocol.META:
            self._model_ids = value
        elif kind == protocol.BATCHES:
            self._batches = message.request, value
        elif kind == protocol.LATEST:
            dispatcher.answers.show(self, *value)
        elif kind == protocol.DOOR_SHUT:
            self.doors -= 1
            self.shutting = self.shutting and self.doors > 0
        elif kind == protocol.FAILED:
            dispatcher.failed(self, message)
        elif kind == protocol.LOST:
            dispatcher.lost(self, message.request, self.topology.deaths.suspicious(value))
            dispatcher.pump()

    def _unreadable(self, dispatcher: Dispatcher, error: Unreadable) -> None:
        """Fail the chunk whose answer can't be rebuilt here; an example to be shown isn't missed."""
        if error.message.kind != protocol.LATEST:
            dispatcher.failed(self, error.message._replace(value=error.trouble(PREDICTIONS)))

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


def free_lane(lanes: Iterable[Lane], depth: int, now: float) -> Lane | None:
    """The lane with the fewest chunks, of those that can compute and have fewer than `depth`."""
    best = None
    for lane in lanes:
        load = len(lane.in_flight)
        if load < depth and lane.usable(now) and (best is None or _busier(best, lane)):
            best = lane
            if load == 0 and not lane.doors:
                break
    return best


def _busier(one: Lane, other: Lane) -> bool:
    """True when `other` has less to do; who asks a thread directly counts as a chunk."""
    return len(one.in_flight) + one.doors > len(other.in_flight) + other.doors
