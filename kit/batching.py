"""Batches by count, weight or tokens, with like lengths together, and the size that pays best.

Covers how examples at hand are cut into batches, and how long one waits for more to come.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kit.batch_options import OUR_NAMES

#: Largest batch when the handler sets none. Beam's default is 10,000; the time per example of the
#: models that we measured no longer falls beyond a few hundred, while latency goes on growing.
MAX_BATCH_SIZE = 1024
#: Longest that an example waits for a batch to fill, seconds, where the handler asks for waiting and says no time.
WAIT_S = 0.1
#: Examples of a stream among which like lengths are brought together.
WINDOW = 512


def options_of(handler: Any) -> dict[str, Any]:
    """Batching options of a handler of ours or of Beam's, under the names of `kit.ModelHandler`."""
    own = getattr(handler, "batching_options", None)
    if own is not None:
        return dict(own())
    kwargs: dict[str, Any] = getattr(handler, "batch_elements_kwargs", dict)()
    return {OUR_NAMES.get(name, name): value for name, value in kwargs.items() if value is not None}


def wait_of(options: Mapping[str, Any]) -> float:
    """Longest that an example waits for others to share its batch, seconds; 0 unless the options ask for waiting."""
    asked = options.get("max_batch_duration_secs")
    if asked is not None:
        return float(asked)
    return WAIT_S if options.get("min_batch_size", 1) > 1 else 0.0


def lengths_of(examples: Sequence[Any], options: Mapping[str, Any]) -> list[float] | None:
    """Length of each example, or None when the handler gives no length function."""
    function = options.get("batch_length_fn")
    return None if function is None else [function(example) for example in examples]


def bounded(options: Mapping[str, Any]) -> bool:
    """True when the options say how large a batch may be: its examples, their weight, or their tokens."""
    names = ("max_batch_size", "max_batch_weight", "max_batch_tokens")
    return any(options.get(name) for name in names)


def plan(
    examples: Sequence[Any],
    options: Mapping[str, Any],
    size: int | None = None,
    lengths: Sequence[float] | None = None,
    order: Sequence[int] | None = None,
) -> list[Sequence[int]]:
    """Cut examples into batches.

    Args:
        examples: the examples.
        options: batching options, see `options_of`.
        size: examples a batch when the options set no bound of their own, see `bounded`.
        lengths: length of each example when they are known already.
        order: indices to cut, in the order of an earlier plan; None for all.

    Returns:
        Indices of the examples of each batch; each index stands in exactly one batch. Without a
        length function the batches are ranges in input order. With one, the longest come first.
        An example that alone exceeds the weight or token limit is a batch of its own.
    """
    count = len(examples)
    most = options.get("max_batch_size") or (None if bounded(options) else size) or MAX_BATCH_SIZE
    if lengths is None:
        lengths = lengths_of(examples, options)
    weigh = options.get("element_size_fn", _one) if options.get("max_batch_weight") else None
    if lengths is None and weigh is None:
        first = order[0] if order else 0
        return [range(start, min(start + most, count)) for start in range(first, count, most)]
    if order is None:
        order = range(count)
        if lengths is not None:
            order = sorted(order, key=lengths.__getitem__, reverse=True)
    weights = [weigh(example) for example in examples] if weigh else None
    return list(_cut(order, most, options, lengths, weights))


def _one(example: Any) -> int:
    """The weight of an example where the handler gives no function, as in Beam."""
    return 1


def _cut(
    order: Sequence[int],
    most: int,
    options: Mapping[str, Any],
    lengths: Sequence[float] | None,
    weights: Sequence[float] | None,
) -> Iterator[list[int]]:
    tokens = options.get("max_batch_tokens") if lengths is not None else None
    heaviest = options.get("max_batch_weight")
    boundaries = options.get("batch_bucket_boundaries") if lengths is not None else None
    batch: list[int] = []
    longest = weight = 0.0
    bucket = -1
    for index in order:
        length = lengths[index] if lengths is not None else 0
        example_weight = weights[index] if weights is not None else 0
        its_bucket = bisect_right(boundaries, length) if boundaries else -1
        full = bool(batch) and (
            len(batch) >= most
            or its_bucket != bucket
            or (tokens is not None and (len(batch) + 1) * max(longest, length) > tokens)
            or (weights is not None and heaviest is not None and weight + example_weight > heaviest)
        )
        if full:
            yield batch
            batch, longest, weight = [], 0.0, 0.0
        batch.append(index)
        longest = max(longest, length)
        weight += example_weight
        bucket = its_bucket
    if batch:
        yield batch


class BatchSizer:
    """Finds the batch size beyond which more examples no longer lower the time per example.

    Doubles the size while the best time per example falls by at least 7 %, as measured over two
    batches a size, and stays below `longest_s` a batch; batches that take under `short_s` are
    always worth doubling. Not thread-safe: one for each thread.
    """

    gain = 0.93
    short_s = 0.002
    longest_s = 1.0

    def __init__(self, smallest: int = 4, largest: int = MAX_BATCH_SIZE) -> None:
        self.size = max(1, min(smallest, largest))
        self.largest = largest
        self.settled = self.size >= largest
        self._best: dict[int, float] = {}
        self._seen = 0

    def record(self, count: int, seconds: float) -> None:
        """Note that a batch of `count` examples took `seconds`."""
        if self.settled or count != self.size:
            return
        cost = seconds / count
        self._best[count] = min(cost, self._best.get(count, cost))
        self._seen += 1
        if self._seen < 2:
            return
        self._seen = 0
        before = self._best.get(count // 2)
        if before is not None and seconds > self.short_s and self._best[count] > self.gain * before:
            self.size, self.settled = count // 2, True
        elif seconds >= self.longest_s or count * 2 > self.largest:
            self.settled = True
        else:
            self.size = count * 2


class CostCurve:
    """Best time of batches by size, to say whether two batches are better computed as one.

    Sizes are kept by power of two. A size never tried counts as worth trying.
    """

    trials = 3
    gain = 0.97

    def __init__(self) -> None:
        self._best: dict[int, float] = {}
        self._tried: dict[int, int] = {}

    def record(self, count: int, seconds: float) -> None:
        """Note that a batch of `count` examples took `seconds`."""
        size = count.bit_length()
        self._tried[size] = self._tried.get(size, 0) + 1
        # Slowly forgets, so that a size spoiled by noise gets another chance.
        self._best[size] = min(seconds / count, self._best.get(size, seconds / count) * 1.01)

    def pays(self, one: int, other: int) -> bool:
        """True when a batch of `one` + `other` examples takes less time than the two apart."""
        together = one + other
        size = together.bit_length()
        if self._tried.get(size, 0) < self.trials:
            return True
        apart = self._cost(one) + self._cost(other)
        return self._cost(together) < self.gain * apart

    def _cost(self, count: int) -> float:
        best = self._best.get(count.bit_length())
        if best is None:
            nearest = min(self._best, key=lambda size: abs(size - count.bit_length()))
            best = self._best[nearest]
        return best * count
