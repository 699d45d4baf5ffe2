"""A request for models by key, split by model: each group is queued, cut into chunks and answered for itself."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from kit import batching, errors
from kit.engine.keyed_runner import groups_of
from kit.engine.requests import Request, results_of
from kit.engine.runner import Runner, pick
from kit.engine.trouble import Trouble
from kit.key_routes import KeyModel, Route, check_key


class Spec(NamedTuple):
    """What a model by key is called in all processes of a deployment.

    Attributes:
        model: number of the loaded weights, 0 for none; route: number of the handler that runs on them.
        key: the first key that led to the handler; path: what its ``update_model_path`` was given last, or None.
    """

    model: int
    route: int
    key: Hashable
    path: str | None


class Group(Request):
    """The examples of a request that go to one handler; its answers and failures are the request's."""

    def __init__(
        self,
        whole: Request,
        route: Route,
        positions: list[int],
        pairs: list[Any],
        options: Mapping[str, Any] | None,
        finished: bool,
    ) -> None:
        super().__init__(
            [pair[1] for pair in pairs],
            whole.inference_args,
            isolate=whole.isolate,
            deadline=whole.deadline,
            batch_timeout_s=whole.batch_timeout_s,
            options=options,
            as_given=whole.as_given,
        )
        self._whole = whole
        self.future = whole.future
        self.turn = whole.turn
        self.batches = whole.batches
        self.accepted_at = whole.accepted_at
        self.route = route
        self.positions = positions
        self.pairs = pairs
        self.sent = pairs if finished else self.examples
        self._finished = finished  # a worker makes (key, prediction) itself

    @property
    def whole(self) -> Request:
        """The request that this is a part of."""
        return self._whole

    def answer(self, indices: Sequence[int], values: Any, model_ids: Any, plain: bool) -> None:
        """Put results in their places among those of the whole request, with their keys."""
        results: list[Any] = list(values) if plain else results_of(pick(self.examples, indices), values, model_ids)
        places, pairs = self.positions, self.pairs
        if not self._finished:
            results = [(pairs[index][0], result) for index, result in zip(indices, results, strict=True)]
        self._whole.answer([places[index] for index in indices], results, None, True)

    def note_batch(self, indices: Sequence[int], seconds: float) -> None:
        """Note that a batch was computed, as one of the whole request."""
        self._whole.note_batch([self.positions[index] for index in indices], seconds)

    def fail(self, index: int, trouble: Trouble) -> None:
        """Note that one example failed, with the whole request's."""
        self._whole.fail(self.positions[index], trouble)

    def shown(self, index: int) -> tuple[Any, Any]:
        """The example at `index` and its result, as the caller sees them."""
        return self._whole.shown(self.positions[index])

    def rest(self) -> tuple[list[int], list[Any]]:
        """Positions and pairs that nobody has taken; they are taken by this."""
        indices: list[int] = []
        while self.untaken:
            indices += self.take(self.untaken)
        return [self.positions[index] for index in indices], [self.pairs[index] for index in indices]


class Router:
    """Finds the handlers for the keys of requests, in the owner.

    Functions added to the keyed handler itself see pairs, and may give or change the key: those before inference
    run here, in the caller's thread; those after it run in the workers.

    Args:
        handler: a keyed handler with models by key.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self.routes = handler.routes
        self.finished = bool(handler.get_postprocess_fns())
        self._pre = list(handler.get_preprocess_fns())
        self._asked: dict[Hashable, Route] = {}  # where the handlers are known to the serving processes only

    def of(self, key: Any) -> Route:
        """The route of a key; a function from keys to handlers isn't asked here, so each of its keys has a model.

        Raises:
            UnknownKey, UnsupportedInput.
        """
        if self.routes.listed:
            route: Route = self.routes.of(key)
            return route
        try:
            found = self._asked.get(key)
        except TypeError:
            return self.routes.of(key)  # type: ignore[no-any-return]  # says what is wrong with it
        if found is None:
            check_key(key)
            found = self._asked.setdefault(key, Route(None, KeyModel(None, key)))
        return found

    def split(self, request: Request) -> tuple[list[Group], dict[int, Trouble]]:
        """The groups of a request, and the examples that can't be in any.

        Raises:
            KitError: without isolation, for the first such example.
        """
        troubles: dict[int, Trouble] = {}
        pairs = list(request.examples)
        if self._pre:
            outer = Runner(self.handler, _never)
            pairs = outer.apply(self._pre, pairs, troubles, "pre-processing", request.isolate)
        return self._groups(request, list(range(len(pairs))), pairs, troubles), troubles

    def again(self, group: Group) -> list[Group]:
        """What is left of a group, by the routes of now."""
        return self._groups(group.whole, *group.rest(), {})

    def _groups(
        self, request: Request, places: list[int], pairs: list[Any], troubles: dict[int, Trouble]
    ) -> list[Group]:
        found = groups_of(pairs, self.of, troubles, isolate=request.isolate)
        groups = []
        for route, positions in found.items():
            options = None
            if route.handler is not None and not route.handler.get_preprocess_fns():
                options = batching.options_of(route.handler)
            mine = [pairs[position] for position in positions]
            groups.append(
                Group(request, route, [places[position] for position in positions], mine, options, self.finished)
            )
        return groups

    def keys_of(self) -> dict[KeyModel, list[Hashable]]:
        """The keys of each model, as far as they are known."""
        if self.routes.listed:
            found: dict[KeyModel, list[Hashable]] = self.routes.keys_of()
            return found
        return {route.model: [key] for key, route in list(self._asked.items())}


class Specs:
    """Numbers for models and handlers, the same for as long as a deployment lives."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._specs: dict[Route, Spec] = {}

    def of(self, route: Route) -> Spec:
        """The spec of a route."""
        spec = self._specs.get(route)
        if spec is None:
            key = route.model.first_key if route.key is None else route.key
            spec = self._specs.setdefault(route, Spec(0, next(self._numbers), key, route.path))
        return spec

    def loaded(self, spec: Spec) -> Spec:
        """A spec for another load of the model of a spec."""
        return spec._replace(model=next(self._numbers))


def _never(batch: Any, inference_args: Mapping[str, Any] | None) -> Any:
    raise errors.InferenceFailed("no model is computed on while requests are split.")
