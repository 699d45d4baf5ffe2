"""The direct line: a kernel that is alone asks a worker thread itself, and this process is no stop on the way.

It is given to a kernel that waits for one request after the other, as long as no other kernel is about: then there
are no turns to take, and no requests to join. It is taken back when another kernel asks. A switch, an update or a
death ends it with its process; in all cases the kernel sends what has no answer by the ordinary way, where all that
`Deployment` promises is kept.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from kit import batching, errors
from kit.daemon.frames import LinkClosed
from kit.daemon.ledger import Ledger
from kit.daemon.protocol import DIRECT
from kit.engine import board as fields
from kit.engine.chunking import CHUNK_S, LEAST_CHUNK_S, Backlog
from kit.engine.lane import free_lane

if TYPE_CHECKING:
    from kit.daemon.served import Served
    from kit.daemon.session import Session
    from kit.engine.core import Engine
    from kit.engine.lane import Lane

DOOR = "kit.daemon.door.Door"
#: How often what was answered directly is counted, seconds.
COUNT_S = 0.1
#: Time within which a worker's death is noticed, seconds.
NOTICED_S = 0.1
#: Bytes of a request over the line at most: larger ones are cut into chunks, which others can come between.
MOST_BYTES = 1 << 20


class DirectLine:
    """The one of a deployment, and whose it is."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._lane: Lane | None = None
        self._ledger: Ledger | None = None
        self._counting = False

    # ---- giving and taking back ----------------------------------------------------------------

    def ask(self, session: Session) -> None:
        """A kernel would like to have it, and gets it if it is alone."""
        deployment = self._served.deployment
        if deployment is None or self._served.state != "serving":
            return
        engine = deployment._engine
        with self._lock:
            self.take_back()
            if not self._served.turns.alone(session) or not _possible(engine):
                return
            lane = free_lane(list(engine.dispatcher.lanes), 1 << 30, time.monotonic())
            if lane is not None:
                self._give(session, engine, lane)

    def _give(self, session: Session, engine: Engine, lane: Lane) -> None:
        ours, theirs = socket.socketpair()
        ledger = Ledger.make()
        most = _most_examples(engine)
        about = {"most": most, "most_bytes": MOST_BYTES, "allow_pickle": self._served.allow_pickle}
        try:
            lane.open_door(DOOR, about, (ours.fileno(), ledger))
            self._session, self._lane, self._ledger = session, lane, Ledger(ledger)
            encoder = session.link.encoder().add((most, MOST_BYTES))
            session.link.send(DIRECT, encoder, fd=theirs.fileno())
        except (errors.WorkerDied, LinkClosed):
            self.take_back()
        finally:
            ours.close()
            theirs.close()
            os.close(ledger)
        if not self._counting:
            self._counting = True
            engine.reactor.soon(self._count_again)

    def asks(self, session: Session) -> None:
        """A kernel asks the ordinary way: if it is another one, the line is taken back."""
        if self._session is not None and self._session is not session:
            self.take_back()

    def broke(self, session: Session) -> None:
        """A kernel's line broke with a request under way: its worker has died, which is noticed here soon."""
        with self._lock:
            if self._session is session and self._lane is not None:
                # What went there before would be taken for what killed it.
                self._lane.avoid_until = time.monotonic() + NOTICED_S
                self.take_back()

    def leaves(self, session: Session) -> None:
        """A kernel is gone."""
        if self._session is session:
            self.take_back()

    def take_back(self) -> None:
        """End the line; what the worker computes is answered still."""
        with self._lock:
            self.count()
            lane, self._session, self._lane, self._ledger = self._lane, None, None, None
        if lane is not None:
            lane.shut_door()

    # ---- counting ------------------------------------------------------------------------------

    def under_way(self, session: Session) -> int:
        """A kernel's requests that are computed directly just now."""
        return int(self._session is session and self.busy)

    @property
    def busy(self) -> bool:
        """True while its worker computes."""
        lane = self._lane
        return lane is not None and bool(lane.topology.engine.board.get(lane.slot, fields.COMPUTING_NS))

    def count(self) -> None:
        """Count what was answered since the last time, as requests that came the ordinary way are."""
        with self._lock:
            session, ledger, deployment = self._session, self._ledger, self._served.deployment
            if session is None or ledger is None or deployment is None:
                return
            records = ledger.take()
            if not records:
                return
            engine = deployment._engine
            counters = engine.dispatcher.counters
            for record in records:
                count = int(record.examples)
                total = record.ended_at - record.asked_at
                with engine.dispatcher.lock:
                    counters.accepted += count
                    counters.batches += int(record.batches)
                    if record.failed:
                        counters.failed += count
                    else:
                        counters.answered += count
                        queue = record.began_at - record.asked_at
                        engine.dispatcher.latency.record(total, queue, min(record.compute_s, total - queue), count)
                session.count(count)
            self._served.turns.heard(session, [record.size_bytes for record in records])
            self._served.used_at = max(self._served.used_at, records[-1].ended_at)

    def _count_again(self) -> None:
        """In the reactor, as long as somebody has the line."""
        with self._lock:
            deployment = self._served.deployment
            if self._session is None or deployment is None or deployment.closed:
                self._counting = False
                return
            self.count()
        deployment._engine.reactor.at(time.monotonic() + COUNT_S, self._count_again)


def _possible(engine: Engine) -> bool:
    """False where requests take another way than from lane to model: models by key, company, a switch."""
    dispatcher = engine.dispatcher
    backlog = dispatcher.backlog
    return (
        isinstance(backlog, Backlog)
        and not (backlog.pairs is not None and backlog.pairs.maybe)  # whole requests are looked at here
        and engine.switching is None
        and dispatcher.closed is None
        and not (dispatcher.paused or dispatcher.held)
        and dispatcher.on_first is None
        and not backlog.waits_for_company
    )


def _most_examples(engine: Engine) -> int:
    """Examples of a request that would go to one worker thread as one chunk anyway."""
    dispatcher = engine.dispatcher
    cost_s = dispatcher.backlog.cost_s
    seconds = CHUNK_S if len(dispatcher.lanes) == 1 else LEAST_CHUNK_S
    most = int(seconds / cost_s) if cost_s else 1
    return max(1, min(most, dispatcher.batch_size or batching.MAX_BATCH_SIZE))
