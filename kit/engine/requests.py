"""A request: examples of one caller, cut into parts on demand, and the future that collects answers."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import InvalidStateError
from functools import partial
from typing import Any, NamedTuple

from kit import batching, errors
from kit.engine.answer_future import AnswerFuture
from kit.engine.codec import concatenate
from kit.engine.runner import Batch, as_list, pick
from kit.engine.trouble import Trouble
from kit.engine.turn import Turn
from kit.handler import PredictionResult


class Failure(NamedTuple):
    """An example that failed, with its error; stands in place of its prediction."""

    example: Any
    error: errors.KitError


_make_result = partial(tuple.__new__, PredictionResult)


def results_of(examples: Any, values: Any, model_ids: Any) -> list[PredictionResult]:
    """Build PredictionResults; several times as fast as calling the class for each."""
    if not isinstance(model_ids, list):
        model_ids = itertools.repeat(model_ids)
    return list(map(_make_result, zip(examples, values, model_ids)))  # noqa: B905 - repeat has no end


class Request:
    """Examples of one caller.

    Args:
        examples: list or Rows.
        inference_args: for `run_inference`.
        isolate: a failing example becomes a `Failure` and the others go on.
        deadline: monotonic seconds after which the request fails, None for never.
        batch_timeout_s: longest time that one batch may be computed, seconds.
        options: batching options; None when batches can't be planned before pre-processing.
        on_progress: called with a number of examples whenever that many more are done.
        batches: to be filled with each batch that is computed, before the answer is there; see `note_batch`.
        as_given: bare values come as the handler gives them, and not in a PredictionResult.

    Attributes:
        turn: says how it takes turns with others; None for one after the other.
        deaths: how many processes have died over it before it came here.
    """

    turn: Turn | None = None
    deaths = 0

    def __init__(
        self,
        examples: Any,
        inference_args: Mapping[str, Any] | None,
        *,
        isolate: bool = False,
        deadline: float | None = None,
        batch_timeout_s: float | None = None,
        options: Mapping[str, Any] | None = None,
        on_progress: Callable[[int], None] | None = None,
        batches: list[Batch] | None = None,
        as_given: bool = False,
    ) -> None:
        self.examples = examples
        self.count = len(examples)
        self.inference_args = inference_args
        self.isolate = isolate
        self.deadline = deadline
        self.batch_timeout_s = batch_timeout_s
        self.on_progress = on_progress
        self.batches = batches
        self.as_given = as_given
        self.accepted_at = time.monotonic()
        self.future = AnswerFuture()
        self.results: list[Any] = [None] * self.count
        self.sent = examples  # what goes to a worker
        self.groups: list[Any] = []  # of models by key: its parts by model, as far as they wait
        self.left = self.count  # examples without an answer
        self.untaken = self.count  # examples not yet in any part
        self._position = 0
        self._batches: deque[list[int]] | None = None
        if options and self.count > 1 and ("batch_length_fn" in options or options.get("max_batch_weight")):
            self._batches = deque(list(part) for part in batching.plan(examples, options))
        self.longest = self.weight = 0.0
        if options and batching.wait_of(options):
            self._measure(options)

    @property
    def ended(self) -> bool:
        """True once the caller has its answer, an error, or has lost interest."""
        return self.future.done()

    @property
    def planned(self) -> bool:
        """True when whole batches are taken, and not just any number of examples."""
        return self._batches is not None

    @property
    def whole(self) -> Request:
        """The request that the caller made, of which this may be a part."""
        return self

    def _measure(self, options: Mapping[str, Any]) -> None:
        """Note the longest example and the sum of weights, which say when a batch is full."""
        if self._batches is not None and len(self._batches) > 1:
            self.longest = self.weight = math.inf  # full already
            return
        try:
            self.longest = max(batching.lengths_of(self.examples, options) or [0.0])
            if options.get("max_batch_weight") and options.get("element_size_fn"):
                self.weight = sum(map(options["element_size_fn"], self.examples))
        except Exception:
            self.longest = self.weight = math.inf  # waits for nobody: the worker says what is wrong with it

    def take(self, most: int) -> Sequence[int]:
        """The next indices: about `most` examples, whole batches where these are planned and its turn isn't shorter."""
        limit = None if self.turn is None else self.turn.most(self)
        taken = self._next(most if limit is None else min(most, limit), limit)
        self.untaken -= len(taken)
        if self.turn is not None:
            self.turn.took(len(taken))
        return taken

    def _next(self, most: int, limit: int | None) -> Sequence[int]:
        if self._batches is None:
            start = self._position
            self._position = stop = min(self.count, start + most)
            return range(start, stop)
        batch = self._batches.popleft()
        if limit is not None and len(batch) > limit:
            self._batches.appendleft(batch[limit:])
            return batch[:limit]
        taken = list(batch)
        while self._batches and len(taken) + len(self._batches[0]) <= most:
            taken += self._batches.popleft()
        return taken

    def skip(self, indices: Collection[int]) -> None:
        """Never take these; nothing has been taken yet."""
        plan = self._batches or [[index] for index in range(self.count)]
        kept = ([index for index in batch if index not in indices] for batch in plan)
        self._batches = deque(filter(None, kept))
        self.untaken -= len(indices)

    def answer(self, indices: Sequence[int], values: Any, model_ids: Any, plain: bool) -> None:
        """Store the results of the examples at `indices`; the last ones resolve the future."""
        if plain:
            results = list(values)
        else:
            results = results_of(pick(self.examples, indices), values, model_ids)
        if type(indices) is range:
            self.results[indices.start : indices.stop] = results
        else:
            for index, result in zip(indices, results, strict=True):
                self.results[index] = result
        self._done(len(results))

    def settle(
        self, indices: Sequence[int], values: Any, model_ids: Any, plain: bool, troubles: Mapping[int, Trouble]
    ) -> None:
        """`answer` the examples at `indices` but those whose position among them is in `troubles`: these `fail`."""
        if not troubles:
            self.answer(indices, values, model_ids, plain)
            return
        good = [at for at in range(len(indices)) if at not in troubles]
        if good:
            ids = [model_ids[at] for at in good] if isinstance(model_ids, list) else model_ids
            self.answer([indices[at] for at in good], [values[at] for at in good], ids, plain)
        for at, trouble in troubles.items():
            self.fail(indices[at], trouble)

    def note_batch(self, indices: Sequence[int], seconds: float) -> None:
        """Note that a batch was computed: which examples of this request were in it, and how long it took."""
        if self.batches is not None:
            self.batches.append((indices, seconds))

    def fail(self, index: int, trouble: Trouble) -> None:
        """Note that one example failed: a Failure in its place, or the end of the request."""
        error = trouble.error()
        if self.isolate:
            self.results[index] = Failure(self.examples[index], error)
            self._done(1)
        else:
            self.fail_all(error)

    def shown(self, index: int) -> tuple[Any, Any]:
        """The example at `index` and its result."""
        return self.examples[index], self.results[index]

    def fail_all(self, error: BaseException) -> None:
        """End the request with an error, unless it has ended already."""
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            return

    def _done(self, count: int) -> None:
        self.left -= count
        if self.on_progress is not None:
            try:
                self.on_progress(count)
            except Exception as error:  # the caller's own, who is told; the thread goes on for others
                self.on_progress = None
                self.fail_all(error)
        if self.left == 0:
            try:
                self.future.set_result(self.results)
            except InvalidStateError:
                return  # cancelled by the caller


class Part(NamedTuple):
    """Some examples of a request."""

    request: Request
    indices: Sequence[int]


class Chunk:
    """What a worker thread is given at once: parts of one or several requests.

    Attributes:
        deaths: how many processes died while computing it; not of those that were killed on purpose.
        attempts: how often it was sent; without what such a death undid.
        about: with models by key: the model's spec, and the pid of the model host that has it.
        lease: keeps that model where it is.
        long: of a request that others shouldn't have to wait for.
    """

    __slots__ = ("about", "attempts", "count", "deaths", "id", "lease", "long", "parts", "sent_at")

    _ids = itertools.count(1)

    def __init__(self, parts: list[Part], *, deaths: int = 0, attempts: int = 0, long: bool = False) -> None:
        self.id = next(self._ids)
        self.parts = parts
        self.count = sum(len(part.indices) for part in parts)
        self.deaths = deaths
        self.attempts = attempts
        self.long = long
        self.sent_at = 0.0
        self.about: Any = None
        self.lease: Any = None

    @property
    def ended(self) -> bool:
        """True when nobody waits for any of it any more."""
        return all(part.request.ended for part in self.parts)

    @property
    def inference_args(self) -> Mapping[str, Any] | None:
        return self.parts[0].request.inference_args

    @property
    def isolate(self) -> bool:
        return self.parts[0].request.isolate

    @property
    def batch_timeout_s(self) -> float | None:
        return self.parts[0].request.batch_timeout_s

    @property
    def asks_for_batches(self) -> bool:
        """True when somebody wants to know in which batches it is computed."""
        return any(part.request.batches is not None for part in self.parts)

    def let_go(self) -> None:
        """Release its model."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.release()

    def payload(self) -> Any:
        """The examples, as a list or Rows."""
        if len(self.parts) == 1:
            part = self.parts[0]
            return as_list(pick(part.request.sent, part.indices))
        return concatenate([pick(part.request.sent, part.indices) for part in self.parts])

    def singles(self) -> list[Chunk]:
        """One chunk for each example."""
        pieces = [Part(request, range(index, index + 1)) for request, indices in self.parts for index in indices]
        return [Chunk([piece], deaths=self.deaths, attempts=self.attempts) for piece in pieces]

    def split(self) -> list[Chunk]:
        """One chunk for each part."""
        return [Chunk([part], deaths=self.deaths, attempts=self.attempts) for part in self.parts]
