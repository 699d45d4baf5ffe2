"""Models by key that are pinned: loaded again wherever they are served next, also as other versions of their keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from kit import errors
from kit.key_routes import KeyModel, Route, Routes
from kit.manager.pins import check_pins, not_pinned
from kit.sizes import format_bytes

if TYPE_CHECKING:
    from kit.engine.homes import Place
    from kit.engine.model_places import ModelPlaces


class Pins:
    """The pinned models of a deployment; the manager knows those of them that are loaded."""

    def __init__(self, places: ModelPlaces) -> None:
        self._places = places
        self._routes: dict[KeyModel, Route] = {}

    def __contains__(self, model: object) -> bool:
        return model in self._routes

    def pin(self, routes: Iterable[Route], timeout: float | None) -> None:
        """Load models and never evict them; see `ModelManager.pin`."""
        found = list(routes)
        added = [route for route in found if route.model not in self._routes]
        # First, so that one whose process dies meanwhile is loaded again.
        self._routes.update({route.model: route for route in added})
        lifted: list[Route] = []
        try:
            self._pin_where_served(found, timeout)
            lifted = [route for route in found if route.model not in self._routes]
            if lifted:
                raise not_pinned(lifted[0].model)
            self._places.preload(found, timeout)
        except BaseException:
            self.unpin([*added, *lifted])
            raise

    def _pin_where_served(self, routes: list[Route], timeout: float | None) -> None:
        places = self._places
        while True:
            wanted = [places.place(route) for route in routes]
            failure = None
            try:
                places.manager.pin(wanted, timeout)
            except errors.KitError as error:
                failure = error
            gone = [place for place in wanted if not places.serves(place)]
            places.manager.forget(gone)  # they may have been entered anew
            if failure is not None and (not gone or places.engine.dispatcher.closed):
                raise failure
            if not gone:
                return

    def keep(self, place: Place, timeout: float | None) -> None:
        """Pin the model of a place if it is to be, unless that is taken back meanwhile; see `ModelManager.pin`."""
        if place.model not in self._routes:
            return
        try:
            self._places.manager.pin([place], timeout)
        except errors.ModelLoadFailed:
            if place.model in self._routes:
                raise
        if place.model not in self._routes:
            self._places.manager.unpin([place])

    def unpin(self, routes: Iterable[Route]) -> None:
        """Let pinned models be evicted again."""
        found = list(routes)
        self.lift(route.model for route in found)
        self._places.manager.unpin([self._places.place(route) for route in found])

    def lift(self, models: Iterable[KeyModel]) -> None:
        """Forget the pins of models that go."""
        for model in models:
            self._routes.pop(model, None)

    def carry(self, before: Routes, after: Routes) -> list[Route]:
        """Pin what the keys of pinned models lead to from now on; what there is to be loaded for that."""
        if after is before:
            return []
        added = []
        known = after.keys_of()
        for model, keys in before.keys_of().items():
            for key in keys if model in self._routes and after.listed else ():
                with contextlib.suppress(errors.UnknownKey):
                    route = after.of(key)
                    if route.model not in self._routes:
                        self._routes[route.model] = route
                        added.append(route)
        self.lift([model for model in self._routes if model not in known])
        return added

    def load_again(self, models: Iterable[KeyModel] | None = None) -> None:
        """Load these, or all, in load threads as far as they are pinned."""
        wanted = list(self._routes) if models is None else list(models)
        for route in [self._routes[model] for model in wanted if model in self._routes]:
            self._places.soon(partial(self._load, route))

    def _load(self, route: Route) -> None:
        with contextlib.suppress(errors.KitError):  # its requests will say what is wrong
            self._places.lease(route).release()

    def check(self, budget: int | None, most: int | None, loading_factor: float = 1.0) -> None:
        """Raise BudgetExceeded when the pinned models alone take more, as far as it is known what they take.

        Args:
            most: models loaded at once.
            loading_factor: bytes that one takes while it is loaded, in its bytes.
        """
        check_pins(len(self._routes), most)
        sizes = [self._places.size_of(model) or 0 for model in list(self._routes)]
        pinned, more = sum(sizes), int((loading_factor - 1.0) * max(sizes, default=0))
        if budget is not None and pinned + more > budget:
            beside = f", and {format_bytes(more)} more while the largest of them is loaded" if more else ""
            raise errors.BudgetExceeded(
                f"the pinned models take {format_bytes(pinned)}{beside}, and the new memory budget is "
                f"{format_bytes(budget)}: unpin some first, or raise memory_budget."
            )
