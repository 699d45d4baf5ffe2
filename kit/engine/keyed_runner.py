"""Running (key, example) pairs for one thread, batched by model.

    (key, example) ... -> one group a model, resident models first -> lease -> Runner -> (key, prediction)

A group is run in slices of about SLICE_S, each under a lease of its own, so that no model is kept from
being evicted for long.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kit import batching, errors
from kit.engine.local_model import Compute
from kit.engine.requests import results_of
from kit.engine.runner import Batch, Outcome, Runner
from kit.engine.trouble import Trouble
from kit.key_routes import Route, key_of

#: Time for which a model is leased at once, seconds, whole batches allowing.
SLICE_S = 0.2
#: Examples of the first slice at least, when nothing is known of the model's speed.
FIRST = 64
#: Models whose runners are kept, with the batch sizes that they have learnt, for each thread.
MOST_RUNNERS = 4096

Call = Callable[[Callable[[], Outcome], int], Outcome]


class KeyedRunner:
    """Runs (key, example) pairs for one thread, batched by model.

    Args:
        route_of: the route of a key.
        lend: gives a route's model for the length of a ``with``.
        is_ready: whether a route's model needn't be loaded.
        maybe: examples may come without keys.
    """

    def __init__(
        self,
        route_of: Callable[[Any], Route],
        lend: Callable[[Route], contextlib.AbstractContextManager[Compute]],
        is_ready: Callable[[Route], bool],
        maybe: bool = False,
    ) -> None:
        self._route_of = route_of
        self._lend = lend
        self._is_ready = is_ready
        self._maybe = maybe
        self._runners: dict[Route, _RouteRunner] = {}
        self._outer: Runner | None = None
        self._pre: list[Any] = []
        self._post: list[Any] = []

    def use(self, handler: Any) -> None:
        """Run a keyed handler's own functions around everything; None for none."""
        self._outer = None if handler is None else Runner(handler, _never)
        self._pre = [] if handler is None else list(handler.get_preprocess_fns())
        self._post = [] if handler is None else list(handler.get_postprocess_fns())

    def run(
        self,
        examples: Any,
        inference_args: Mapping[str, Any] | None = None,
        *,
        isolate: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """All of `parts` in one outcome, in the order of the examples; see `Runner.run`."""
        values: list[Any] = [None] * len(examples)
        troubles: dict[int, Trouble] = {}
        batches: list[Batch] = []
        for positions, outcome in self.parts(examples, inference_args, isolate=isolate, check=check):
            for position, value in zip(positions, outcome.values, strict=True):
                values[position] = value
            troubles.update({positions[at]: trouble for at, trouble in outcome.troubles.items()})
            batches += [([positions[at] for at in where], seconds) for where, seconds in outcome.batches]
        return Outcome(values, None, True, troubles, batches)

    def parts(
        self,
        examples: Any,
        inference_args: Mapping[str, Any] | None = None,
        *,
        isolate: bool = False,
        check: Callable[[], None] = lambda: None,
        call: Call | None = None,
    ) -> Iterator[tuple[list[int], Outcome]]:
        """Outcomes of some examples after the other, with their positions; each position comes once.

        Args:
            call: runs the computation of one batch, given with its number of examples, such as under a time limit.

        Raises:
            KitError: without `isolate`, on the first failure.
        """
        troubles: dict[int, Trouble] = {}
        pairs = list(examples)
        if self._outer is not None and self._pre:
            pairs = self._outer.apply(self._pre, pairs, troubles, "pre-processing", isolate)
        groups = groups_of(pairs, self._route_of, troubles, isolate=isolate, maybe=self._maybe)
        if troubles:
            failed = list(troubles)
            yield failed, _all_failed([troubles[position] for position in failed])
        for route in sorted(groups, key=lambda route: not self._is_ready(route)):
            yield from self._run_group(route, groups[route], pairs, inference_args, isolate, check, call)

    def _run_group(
        self,
        route: Route,
        positions: list[int],
        pairs: list[Any],
        args: Mapping[str, Any] | None,
        isolate: bool,
        check: Callable[[], None],
        call: Call | None,
    ) -> Iterator[tuple[list[int], Outcome]]:
        runner = self._runner_of(route)
        at = 0
        while at < len(positions):
            part = positions[at : at + runner.share(one_batch=call is not None)]
            at += len(part)
            mine = [pairs[position] for position in part]
            try:
                with self._lend(route) as compute:
                    outcome = runner.run(compute, [pair[1] for pair in mine], args, isolate, check, call)
            except errors.KitError as error:
                if isinstance(error, errors.DeadlineExceeded):
                    del self._runners[route]  # the batch that was given up may still be using it
                    runner = self._runner_of(route)
                if not isolate:
                    raise
                yield part, _all_failed([Trouble.of(error)] * len(part))
            else:
                yield part, with_keys(mine, outcome, self._outer, self._post, isolate)

    def _runner_of(self, route: Route) -> _RouteRunner:
        runner = self._runners.get(route)
        if runner is None:
            if len(self._runners) >= MOST_RUNNERS:
                self._runners.clear()
            runner = self._runners[route] = _RouteRunner(route)
        return runner


def groups_of(
    pairs: list[Any],
    route_of: Callable[[Any], Route],
    troubles: dict[int, Trouble],
    *,
    isolate: bool,
    maybe: bool = False,
) -> dict[Route, list[int]]:
    """Positions of (key, example) pairs by route; those in `troubles` are left out, and more are put there.

    Raises:
        UnsupportedInput, UnknownKey: without `isolate`, on the first pair that has no route.
    """
    groups: dict[Route, list[int]] = {}
    by_key: dict[Any, list[int]] = {}  # the lists of `groups`; keys of one route have the same
    if maybe and not any(isinstance(pair, tuple) for pair in pairs):
        pairs[:] = [_Unkeyed((None, example)) for example in pairs]
    skip = set(troubles)
    for position, pair in enumerate(pairs):
        if skip and position in skip:
            continue
        try:
            key = pair[0] if type(pair) is tuple and len(pair) == 2 else key_of(pair, position, maybe=maybe)
            by_key[key].append(position)
        except errors.KitError as error:
            if not isolate:
                raise
            troubles[position] = Trouble.of(error)
        except (KeyError, TypeError):
            # The first of its key, or of a key that can't be one.
            try:
                route = route_of(pair[0])
            except errors.KitError as error:
                if not isolate:
                    raise
                troubles[position] = Trouble.of(error)
            else:
                positions = groups.setdefault(route, [])
                positions.append(position)
                with contextlib.suppress(TypeError):  # one handler for all takes keys that aren't hashable, too
                    by_key[pair[0]] = positions
    return groups


def with_keys(pairs: list[Any], outcome: Outcome, outer: Runner | None, post: list[Any], isolate: bool) -> Outcome:
    """Finished results of (key, example) pairs: (key, prediction), put through the functions `post` by `outer`."""
    results = outcome.values
    if not outcome.plain:
        results = results_of([pair[1] for pair in pairs], results, outcome.model_ids)
    values = [
        result if type(pair) is _Unkeyed else (pair[0], result) for pair, result in zip(pairs, results, strict=True)
    ]
    troubles = dict(outcome.troubles)
    if outer is not None and post:
        values = outer.apply(post, values, troubles, "post-processing", isolate)
    return Outcome(values, None, True, troubles, outcome.batches)


class _Unkeyed(tuple[Any, ...]):
    """A pair made for an example that came without a key."""

    __slots__ = ()


class _RouteRunner:
    """The runner of one route, and how fast its model is."""

    def __init__(self, route: Route) -> None:
        self._runner = Runner(route.handler, _never, route.key)
        self._sorted = "batch_length_fn" in batching.options_of(route.handler)
        self._cost_s = 0.0

    def share(self, *, one_batch: bool) -> int:
        """Examples to run under one lease."""
        size = self._runner.batch_size or self._runner.sizer.size
        if one_batch:
            return self._runner.batch_size or 1
        most = max(1, int(SLICE_S / self._cost_s)) if self._cost_s else FIRST
        least = batching.WINDOW if self._sorted else size
        return max(least, most // size * size)

    def run(
        self,
        compute: Compute,
        examples: list[Any],
        args: Mapping[str, Any] | None,
        isolate: bool,
        check: Callable[[], None],
        call: Call | None,
    ) -> Outcome:
        runner = self._runner
        runner.compute = compute
        began = time.perf_counter()

        def job() -> Outcome:
            return runner.run(examples, args, isolate=isolate, check=check)

        try:
            outcome = job() if call is None else call(job, len(examples))
        finally:
            runner.compute = _never  # or it would keep the model from being evicted
        cost = (time.perf_counter() - began) / len(examples)
        self._cost_s = cost if not self._cost_s else (self._cost_s + cost) / 2
        return outcome


def _all_failed(troubles: list[Trouble]) -> Outcome:
    return Outcome([None] * len(troubles), None, True, dict(enumerate(troubles)), [])


def _never(batch: Any, inference_args: Mapping[str, Any] | None) -> Any:
    raise AssertionError("no model is leased")
