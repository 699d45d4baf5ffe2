"""Running examples through a handler: pre-processing, batches, inference, post-processing.

    examples -> pre-process -> plan batches -> compute -> post-process -> Outcome

The same code serves the calling process (RunInference without a deployment), worker processes and
quarantine; what differs is `compute`, which calls the model here or asks a model host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kit import batching, errors
from kit.engine.codec import Rows
from kit.engine.gather import gather
from kit.engine.local_model import Compute, Computed
from kit.engine.trouble import FAILURES, Trouble
from kit.shorten import counted

#: Which examples were computed in one batch, and in how many seconds.
Batch = tuple[Sequence[int], float]


class Outcome(NamedTuple):
    """Results of some examples, in their order.

    Attributes:
        values: inferences (list or Rows), or finished results when `plain`.
        model_ids: one id for all values, or a list with one each.
        plain: True when the values are to be handed out as they are (post-processed).
        troubles: index -> what went wrong with that example; its value is None.
        batches: those that were computed.
    """

    values: Any
    model_ids: Any
    plain: bool
    troubles: dict[int, Trouble]
    batches: list[Batch]


#: Longest time that batches computed in one go may take together, seconds: cancelling waits for it.
TOGETHER_S = 0.05


class Runner:
    """Runs chunks of examples for one thread; `key` is the first of those that a model by key has."""

    def __init__(self, handler: Any, compute: Compute, key: Any = None) -> None:
        self.compute = compute
        self._of = "" if key is None else f"the model of {key!r}: "
        self._name = self._of + type(handler).__name__
        self._options = batching.options_of(handler)
        self._pre = list(handler.get_preprocess_fns())
        self._post = list(handler.get_postprocess_fns())
        self._skip_batching = bool(handler.should_skip_batching())
        # A keyed handler's predictions come with their keys, and a pipeline wants bare values: both are finished.
        self._as_given = any(getattr(handler, name, False) for name in ("keyed", "as_given"))
        self._check: Callable[[], None] = lambda: None
        self._batch_s: float | None = None  # of the latest batch
        self.batch_size: int | None = self._options.get("max_batch_size")
        smallest = self._options.get("min_batch_size") or 4
        self.sizer = batching.BatchSizer(smallest, max(smallest, batching.MAX_BATCH_SIZE))

    def run(
        self,
        examples: Any,
        inference_args: Mapping[str, Any] | None = None,
        *,
        isolate: bool = False,
        check: Callable[[], None] = lambda: None,
        as_given: bool = False,
    ) -> Outcome:
        """Run a list or Rows of examples.

        With `isolate`, an example that fails is reported in ``troubles`` and the others go on. `check` is
        called before each batch and raises what shall end the run. With `as_given`, bare values are finished.

        Raises:
            InferenceFailed: without `isolate`, on the first failure, with the traceback.
        """
        self._check = check
        troubles: dict[int, Trouble] = {}
        originals = examples
        if self._pre:
            examples = self.apply(self._pre, list(examples), troubles, "pre-processing", isolate)
        alive: Any = examples
        kept: list[int] | None = None
        if troubles:
            kept = [index for index in range(len(examples)) if index not in troubles]
            alive = [examples[index] for index in kept]
        values, model_ids, raw, batches = self._compute_all(alive, inference_args, troubles, kept, isolate)
        if self._post:
            values = self._finish(originals, values, model_ids, raw, troubles, isolate)
        plain = bool(self._post) or ((self._as_given or as_given) and raw)
        return Outcome(values, model_ids, plain, troubles, batches)

    def _compute_all(
        self,
        examples: Any,
        args: Mapping[str, Any] | None,
        troubles: dict[int, Trouble],
        kept: list[int] | None,
        isolate: bool,
    ) -> tuple[Any, Any, bool, list[Batch]]:
        count = len(examples)
        lengths = None if self._skip_batching else batching.lengths_of(examples, self._options)
        if self._skip_batching:
            plan: list[Sequence[int]] = [range(index, index + 1) for index in range(count)]
        else:
            plan = batching.plan(examples, self._options, self.sizer.size, lengths)
        planned = self.sizer.size
        done: list[tuple[Sequence[int], Computed]] = []
        batches: list[Batch] = []
        growing = not (self.sizer.settled or batching.bounded(self._options) or len(plan) < 2)
        position = 0
        while position < len(plan):
            self._check()
            several = 1 if growing else self._several(plan, position)
            if several > 1:
                span = range(plan[position][0], plan[position + several - 1][-1] + 1)
                together = self._together(pick(examples, span), len(plan[position]), args)
                if together is not None:
                    done.append((_at(kept, span), together))
                    each_s = together.seconds / several
                    batches += [(_at(kept, part), each_s) for part in plan[position : position + several]]
                    self._batch_s = together.seconds / several
                    position += several
                    continue
            indices = plan[position]
            position += 1
            batch = pick(examples, indices)
            for part, computed in self._compute(batch, _at(kept, indices), args, troubles, isolate):
                done.append((part, computed))
                batches.append((part, computed.seconds))
                self.sizer.record(len(part), computed.seconds)
                self._batch_s = computed.seconds
            if growing and position < len(plan) and self.sizer.size > planned:
                planned = self.sizer.size
                ranges = type(indices) is range
                rest = range(indices[-1] + 1, count) if ranges else [at for part in plan[position:] for at in part]
                plan, position = batching.plan(examples, self._options, planned, lengths, rest), 0
        total = count if kept is None else count + len(troubles)
        values, model_ids, raw = gather(done, total)
        return values, model_ids, raw, batches

    def _several(self, plan: list[Sequence[int]], position: int) -> int:
        """How many of the next batches may be computed in one go: equal ranges, together under TOGETHER_S."""
        first = plan[position]
        if self._skip_batching or self._batch_s is None or type(first) is not range or len(first) > 0xFFFF:
            return 1
        most = min(len(plan) - position, int(TOGETHER_S / max(self._batch_s, 1e-6)))
        for number in range(1, most):
            part = plan[position + number]
            if type(part) is not range:
                return number
            if len(part) != len(first):  # the rest, which may be shorter
                return number + (position + number == len(plan) - 1 and len(part) < len(first))
        return most

    def _together(self, examples: Any, size: int, args: Mapping[str, Any] | None) -> Computed | None:
        """Compute examples in batches of `size` in one go, which spares what each costs apart from the model's work.

        None when they can't be computed so, or one fails; each is then computed alone, which tells whose
        fault it was.
        """
        several = getattr(self.compute, "several", None)
        if several is None:
            return None
        try:
            computed: Computed | None = several(examples, args, size)
        except FAILURES:
            return None
        return computed

    def _compute(
        self,
        batch: Any,
        indices: Sequence[int],
        args: Mapping[str, Any] | None,
        troubles: dict[int, Trouble],
        isolate: bool,
    ) -> list[tuple[Sequence[int], Computed]]:
        if self._skip_batching:
            # The example is the batch; its predictions are one result.
            return [(indices, self._guard(batch[0], indices, args, troubles, isolate))]
        try:
            return [(indices, self.compute(batch, args))]
        except errors.WrongPredictionCount as error:
            raise self._named(error) from error
        except FAILURES as error:
            if not isolate:
                raise self._failed(error, f"a batch of {counted(len(batch), 'example')}") from error
            if len(batch) == 1:
                troubles[indices[0]] = self._trouble(error, "the example")
                return []
        found = []
        for index, example in zip(indices, batch, strict=True):
            found += self._compute([example], [index], args, troubles, isolate)
        return found

    def _guard(
        self,
        batch: Any,
        indices: Sequence[int],
        args: Mapping[str, Any] | None,
        troubles: dict[int, Trouble],
        isolate: bool,
    ) -> Computed:
        try:
            computed = self.compute(batch, args)
            return computed._replace(values=[list(computed.values)])
        except FAILURES as error:
            if not isolate:
                raise self._failed(error, "a batch given as one example") from error
            troubles[indices[0]] = self._trouble(error, "the example")
            return Computed([None], None, True)

    def apply(
        self, functions: list[Any], items: list[Any], troubles: dict[int, Trouble], what: str, isolate: bool
    ) -> list[Any]:
        """Put each item but the troubled ones through the functions; with `isolate`, failures become troubles.

        Raises:
            InferenceFailed: without `isolate`, on the first failure.
        """
        results: list[Any] = []
        for index, item in enumerate(items):
            if index in troubles:
                results.append(None)
                continue
            function = None
            try:
                for function in functions:
                    item = function(item)
            except FAILURES as error:
                by = getattr(function, "__name__", type(function).__name__)
                if not isolate:
                    raise self._failed(error, f"{what} of an example by {by}") from error
                troubles[index] = self._trouble(error, f"{what} of the example by {by}")
                item = None
            results.append(item)
        return results

    def _finish(
        self, examples: Any, values: Any, model_ids: Any, raw: bool, troubles: dict[int, Trouble], isolate: bool
    ) -> list[Any]:
        from kit.handler import PredictionResult

        items = list(values)
        if not raw:
            ids = model_ids if isinstance(model_ids, list) else [model_ids] * len(items)
            items = list(map(PredictionResult, examples, items, ids))
        return self.apply(self._post, items, troubles, "post-processing", isolate)

    def _failed(self, error: BaseException, what: str) -> errors.KitError:
        if isinstance(error, errors.KitError):
            return self._named(error)
        return self._trouble(error, what).error()

    def _trouble(self, error: BaseException, what: str) -> Trouble:
        if isinstance(error, errors.KitError):
            error = self._named(error)
        return Trouble.of(error, f"{self._name} failed on {what}")

    def _named(self, error: errors.KitError) -> errors.KitError:
        """An error of the model, which names the key."""
        if not self._of or not isinstance(error, errors.InferenceFailed) or str(error.args[0]).startswith(self._of):
            return error
        return type(error)(self._of + str(error.args[0]), error.remote_traceback)


def _at(kept: list[int] | None, indices: Sequence[int]) -> Sequence[int]:
    return indices if kept is None else [kept[index] for index in indices]


def pick(examples: Any, indices: Sequence[int]) -> Any:
    """The examples at `indices`, as a list or Rows."""
    if type(examples) is Rows:
        return examples.take(indices)
    if type(indices) is range:
        if len(indices) == len(examples):
            return examples
        return examples[indices.start : indices.stop]
    return [examples[index] for index in indices]


def as_list(examples: Any) -> Any:
    """A list or Rows of any sequence."""
    return examples if type(examples) in (list, Rows) else list(examples)
