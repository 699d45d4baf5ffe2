"""Models by key of a deployment: the owner's books of what is loaded where, under one memory budget.

    ModelQueue --want--> load thread --acquire--> ModelManager --load--> a home: worker, host, or loader
                              '--lease--> dispatcher            '--drop--> UNLOAD_MODEL, and wait for the answer

One manager counts for all processes, so the sum of their models never exceeds the budget, and a model may be
as large as all of it. Homes: in mode default a worker, in large and medium a host, the one with the fewest
bytes of models (among equals by rendezvous hashing, so that a model comes back to where it was); in shared all
workers map one segment. A model whose requests wait longer than its load takes, while another home is idle, gets
a copy there as long as nothing has to go for it; copies go first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.engine.homes import Place
from kit.engine.keyed_requests import Specs
from kit.engine.load_threads import LoadThreads
from kit.engine.model_copies import Copies
from kit.engine.model_fetches import Fetches
from kit.engine.model_loads import ModelLoads
from kit.engine.model_pins import Pins
from kit.key_routes import KeyModel, Route, Routes
from kit.manager import ModelManager

if TYPE_CHECKING:
    from kit.engine.core import Engine
    from kit.engine.process import Process
    from kit.engine.topology import Topology
    from kit.settings import Settings

#: Loads at once; more of them, one by one, while those are slow or wait for room.
LOADERS, MOST_LOADERS = 4, 64


class ModelPlaces:
    """Where the models by key of one deployment are.

    Attributes:
        engine: the deployment's.
        manager: knows models by `Place`.
        fetches: has the models loaded that requests wait for.
        specs: numbers of models and handlers.
    """

    def __init__(self, engine: Engine, handler: Any, settings: Settings) -> None:
        self.specs = Specs()
        self.topology: Topology | None = None
        self.engine = engine
        self._places: dict[KeyModel, list[Place]] = {}  # of the topology that serves
        self._lock = threading.Lock()  # held where `topology`, `_places` and what has died change
        self.pins = Pins(self)
        self._routes: Routes = handler.routes
        self._policy = handler.policy
        self._loads = LoadThreads("kit-load", LOADERS, MOST_LOADERS)
        self.fetches = Fetches(self, self._loads)
        self._evictions = LoadThreads("kit-evict", 1)  # of its own: loads wait for these
        self._moves = ModelLoads(self)
        self.copies = Copies(self)
        self.manager = ModelManager(
            self._moves.load,  # type: ignore[arg-type]  # places are the only names
            size_of=self._moves.size_of,  # type: ignore[arg-type]
            budget=settings.memory_budget,
            policy=handler.policy,
            max_models=_most_models(handler, settings),
            keep_alive=handler.keep_alive,
            timed=True,
            drop=self._moves.drop,
            later=self._evictions.run,
        )

    # ---- what the dispatcher asks; its lock is held ------------------------------------------

    def ready(self, model: KeyModel) -> list[Place]:
        """Places where a model is loaded."""
        return [place for place in self._places.get(model, ()) if place.resident is not None]

    # ---- leases and places -------------------------------------------------------------------

    def lease(
        self,
        route: Route,
        timeout: float | None = None,
        whom: Hashable = None,
        wanted: Callable[[], bool] | None = None,
    ) -> Any:
        """A lease of a model, loaded first where it isn't; arguments and errors are those of `ModelManager.acquire`."""
        while True:
            place = self.place(route)
            self.copies.make_room(place)
            try:
                self.pins.keep(place, timeout)
                lease = self.manager.acquire(place, timeout, whom=whom, wanted=wanted)
            except errors.KitError:
                if self.serves(place) or self.engine.dispatcher.closed:
                    raise
                self.manager.forget([place])  # it may have been entered anew
                continue  # another topology serves now, or its process has died
            with self._lock:
                resident = place.resident
                known = place in self._places.get(route.model, ())
                if known and resident is not None and resident is lease.model and resident.there:
                    return lease
            # Its process has died meanwhile, or its topology was replaced.
            self.manager.retire(lease)

    def place(self, route: Route, copy: int = 0) -> Place:
        """The place of a model, or of its copy of that number, in the topology that serves."""
        with self._lock:
            topology = self.topology
            assert topology is not None
            places = self._places.setdefault(route.model, [])
            for place in places:
                if place.copy == copy:
                    return place
            place = Place(route.model, self.specs.of(route), topology, copy)
            places.append(place)
            return place

    def serves(self, place: Place) -> bool:
        """False for a place whose topology was replaced, or whose process died: another one is in use."""
        if place.topology is not self.topology:
            return False
        with self._lock:
            return place.fixed is not None or place in self._places.get(place.model, ())

    def all(self) -> list[Place]:
        """All places of the topology that serves."""
        return [place for places in list(self._places.values()) for place in list(places)]

    # ---- processes come and go ---------------------------------------------------------------

    def publish(self, topology: Topology, handler: Any) -> None:
        """Another topology serves from now on; the models of the former one go with their last request."""
        self.resize(handler, topology.settings)
        self.manager.loading_factor = _loading_factor(topology.settings)
        with self._lock:
            former = self.all()
            self._places, self.topology = {}, topology
        self._moves.homes_changed()
        self.manager.forget(former)
        self._take_over(handler)
        self.carry_pins(handler)
        self.pins.load_again()

    def _take_over(self, handler: Any) -> None:
        """Go by the policy and the `keep_alive` of a handler."""
        if handler.policy is not self._policy and handler.policy != self._policy:
            self._policy = handler.policy
            self.manager.use(policy=handler.policy)
        self.manager.use(keep_alive=handler.keep_alive)

    @property
    def listed(self) -> bool:
        """False where a function finds the handlers of keys."""
        return self._routes.listed

    def carry_pins(self, handler: Any) -> list[KeyModel]:
        """Keep the pins of keys that lead to other models from now on; the models to be loaded for that."""
        before, self._routes = self._routes, handler.routes
        return [route.model for route in self.pins.carry(before, self._routes)]

    def check(self, handler: Any, settings: Settings) -> None:
        """Raise BudgetExceeded when pinned models alone take more than these settings allow."""
        self.pins.check(settings.memory_budget, _most_models(handler, settings), _loading_factor(settings))

    def resize(self, handler: Any, settings: Settings) -> None:
        """Take the budget of these settings.

        Raises:
            BudgetExceeded: pinned models alone take more.
        """
        budget = settings.memory_budget
        self.check(handler, settings)
        models = _most_models(handler, settings)
        if budget != self.manager.budget or models != self.manager.max_models:
            self.manager.resize(budget, models)

    def introduce(self, process: Process) -> None:
        """A process was started in the place of a dead one, and is ready."""
        if process.role == "worker" and self.topology is not None and self.topology.settings.mode == "shared":
            self._moves.segments.attach_all(process)
        self._moves.homes_changed()

    def lost(self, process: Process) -> None:
        """A process has died, and its models with it; called in any thread."""
        gone: list[Place] = []
        with self._lock:  # whoever looks meanwhile would load into a place that is about to go
            for place in self.all():
                resident = place.resident
                if resident is not None and process in resident.homes:
                    resident.homes.remove(process)
                    if not (resident.homes or resident.fd >= 0):
                        self._places[place.model].remove(place)  # a new one takes its part, so that no two loads mix
                        place.resident = None
                        gone.append(place)
        if gone:
            self.manager.forget(gone)
            self.pins.load_again([place.model for place in gone])

    @contextlib.contextmanager
    def at(self, route: Route, process: Process) -> Any:
        """The spec of a model that is loaded in a process which doesn't serve, for the length of a ``with``."""
        assert self.topology is not None
        place = Place(route.model, self.specs.of(route), self.topology, copy=0, fixed=process)
        try:
            with self.manager.acquire(place):
                assert place.resident is not None
                yield place.resident.spec
        finally:
            self.manager.forget([place])

    # ---- what users ask for ------------------------------------------------------------------

    def preload(self, routes: Iterable[Route], timeout: float | None = None) -> None:
        """Load models now; see `ModelManager.preload`."""
        for route in routes:
            self.lease(route, timeout).release()

    def pin(self, routes: Iterable[Route], timeout: float | None = None) -> None:
        """Load models and never evict them; see `ModelManager.pin`."""
        self.pins.pin(routes, timeout)

    def unpin(self, routes: Iterable[Route]) -> None:
        """Let pinned models be evicted again."""
        self.pins.unpin(routes)

    def unload(self, models: Iterable[KeyModel]) -> None:
        """Unload models and their copies: now, or as soon as nobody uses them; pins are lifted."""
        found = list(models)
        self.pins.lift(found)
        self.manager.unload([place for model in found for place in self._places.get(model, ())])

    def forget(self, models: Iterable[KeyModel]) -> None:
        """Unload models that no key leads to any more."""
        for model in models:
            with self._lock:
                places = self._places.pop(model, [])
            self.manager.forget(places)

    def size_of(self, model: KeyModel) -> int | None:
        """Bytes of a model as measured at its last load."""
        return self._moves.measured(model)

    def rows(self, keys: dict[KeyModel, list[Hashable]]) -> list[dict[str, Any]]:
        """The rows of `Deployment.models`."""
        from kit.engine.model_rows import model_rows

        return model_rows(self.manager.rows(), keys, self.pins)

    def soon(self, action: Callable[[], None]) -> None:
        """Run something in a load thread."""
        self._loads.run(action)

    def close(self) -> None:
        """End all loads and threads, once the processes have ended; idempotent."""
        self.manager.close()
        self._moves.homes_changed()
        self._loads.close()
        self._evictions.close()
        self._moves.segments.close()


def _most_models(handler: Any, settings: Settings) -> int | None:
    """Models loaded at once in all processes; the handler's number is for each place that has a copy."""
    return None if handler.max_models is None else handler.max_models * settings.copies


def _loading_factor(settings: Settings) -> float:
    """Bytes that a load takes, in bytes of the model: a loader has a copy of its own until the segment is filled."""
    return 2.0 if settings.mode == "shared" else 1.0
