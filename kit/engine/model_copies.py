"""Copies of models by key that are in great demand, in processes that have nothing to do."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from kit import errors
from kit.engine.homes import Place, idle_home

if TYPE_CHECKING:
    from kit.engine.lane import Lane
    from kit.engine.model_places import ModelPlaces
    from kit.engine.model_queue import ModelQueue

#: A copy that nobody uses is unloaded after this time, seconds.
COPY_IDLE_S = 5.0


class Copies:
    """Makes copies while nothing has to go for them, and gives them up first."""

    def __init__(self, places: ModelPlaces) -> None:
        self._places = places

    def consider(self, queue: ModelQueue, lanes: list[Lane], now: float) -> None:
        """Have a copy made of a model that keeps its requests waiting while another home is idle."""
        topology = self._places.topology
        if queue.copying or topology is None or topology.settings.mode == "shared":
            return
        places = self._places.ready(queue.route.model)
        residents = [place.resident for place in places if place.resident is not None]
        if not residents:
            return
        newest = max(residents, key=lambda one: one.at)
        since = max(newest.at, now - queue.backlog.waiting_s(now))
        if now - since <= newest.load_s or not self._fits(newest.size_bytes):
            return
        if idle_home(topology, lanes, residents) is None:
            return
        queue.copying = True
        self._places.soon(partial(self._copy, queue))

    def make_room(self, place: Place) -> None:
        """Give up copies before anything else has to go."""
        if place.resident is None and not self._fits(place.size_bytes or 0):
            self._places.manager.unload(self._copies())

    def _copy(self, queue: ModelQueue) -> None:
        place = self._places.place(queue.route, copy=len(self._places.ready(queue.route.model)))
        try:
            if place.copy:
                with contextlib.suppress(errors.KitError):  # it is served without
                    self._places.manager.preload([place])
        finally:
            queue.copying = False
            self._places.engine.dispatcher.pump()

    def _copies(self) -> list[Place]:
        return [place for place in self._places.all() if place.copy]

    def _fits(self, size_bytes: int) -> bool:
        budget = self._places.manager.budget
        return budget is None or self._places.manager.used_bytes + size_bytes <= budget

    def tick(self) -> None:
        """Give up copies that nobody has used for a while; called about once a second."""
        copies = self._copies()
        if copies:
            idle = {row["name"] for row in self._places.manager.rows() if (row["idle_s"] or 0.0) > COPY_IDLE_S}
            self._places.manager.unload([place for place in copies if place in idle])
