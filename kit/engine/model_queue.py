"""What waits for one handler of models by key."""

from __future__ import annotations

from typing import Any

from kit.engine.chunking import Backlog
from kit.engine.homes import Place
from kit.engine.keyed_requests import Spec
from kit.engine.requests import Chunk, Part, Request
from kit.key_routes import Route


class ModelQueue:
    """What waits for one handler.

    Attributes:
        lease: of a model that has just been loaded for this queue, until its first chunk has its own.
        in_turn: among those that are given lanes; loading: its model has been asked for.
        under_way: its load is no longer one of those that wait for their turn.
        copying: a copy of its model has been asked for.
    """

    def __init__(self, route: Route, spec: Spec) -> None:
        self.route = route
        self.spec = spec
        self.backlog = Backlog()
        self.lease: Any = None
        self.in_turn = self.loading = self.under_way = self.copying = False
        if route.handler is not None:
            self.backlog.use(route.handler)

    def waits(self) -> bool:
        """True while anybody waits; may be asked without the lock."""
        return self.backlog.waiting

    def asked_by(self) -> list[Request]:
        """The requests that wait here, each once."""
        return list(dict.fromkeys(one.whole for one in self.backlog.live() if not one.ended))

    def let_go(self) -> None:
        """Release the lease of its load."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.release()

    def take_lease(self, place: Place) -> Any:
        """The lease of its load, when that was of this place and is still there."""
        if self.lease is None or self.lease.model is not place.resident:
            return None
        lease, self.lease = self.lease, None
        return lease

    def take_all(self) -> list[Chunk]:
        """All that waits, as chunks."""
        backlog = self.backlog
        chunks = [chunk for chunk in backlog.again if not chunk.ended]
        backlog.again.clear()
        for request in list(backlog.requests):
            parts = []
            while request.untaken:
                parts.append(Part(request, request.take(request.untaken)))
            chunks += [Chunk([part]) for part in parts]
        backlog.requests.clear()
        backlog.queued = 0
        return chunks
