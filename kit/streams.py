"""Streams: examples that come one by one, cut into windows whose size suits source and model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import Any

from kit import batching
from kit.reader import Reader

#: Computing time that a window aims at, seconds: results come no later than that.
WINDOW_S = 1.0
#: Examples and bytes of a window at most.
LARGEST, LARGEST_BYTES = 4096, 16 << 20
#: Examples of a window at least, once more than the first is asked for.
SMALLEST, SMALLEST_SORTED = 4, 128


class Windows:
    """Lists of examples to be sent at once.

    The first example goes alone, so that a slow source's first answer comes at once. Later windows grow
    to what the model computes in WINDOW_S, in whole batches, and are cut short when the source is slow:
    nothing that was read waits longer than ``max_batch_duration_secs`` (0.1 s) for what wasn't, though the source
    stalls. A window is empty when the source has given nothing for that long and an answer is there to be handed
    out. Iteration ends with the source or when it raises; `error` is then to be raised once all that came
    before it is answered.

    Attributes:
        size: examples of the next window at most.
        patience_s: how long the source took for the last window when it is slow, seconds, otherwise 0: that
            long it may be left alone for an answer.
    """

    def __init__(
        self, examples: Iterator[Any], options: Mapping[str, Any], answer_there: Callable[[], bool] = lambda: False
    ) -> None:
        self._reader = Reader(examples, LARGEST_BYTES)
        self._answer_there = answer_there
        self._batch: int = options.get("max_batch_size") or 1
        self._wait: float = options.get("max_batch_duration_secs") or batching.WAIT_S
        is_sorted = "batch_length_fn" in options
        smallest = SMALLEST_SORTED if is_sorted else SMALLEST
        self._smallest = self._whole(max(smallest, options.get("min_batch_size") or 1))
        self._largest = max(self._smallest, batching.WINDOW if is_sorted else LARGEST)
        patient = "min_batch_size" in options or "max_batch_duration_secs" in options
        self.size = self._smallest if patient else 1
        self.patience_s = 0.0
        self._cost_s: float | None = None  # seconds an example, smoothed

    def __iter__(self) -> Iterator[list[Any]]:
        first = True
        while not self._reader.ended:
            began = time.monotonic()
            window = self._reader.window(self.size, self._wait, self._answer_there)
            took = time.monotonic() - began
            self.patience_s = took if took >= self._wait else self._wait if first else 0.0
            first = False
            if window or not self._reader.ended:
                yield window

    @property
    def error(self) -> BaseException | None:
        """What the source raised, None when it didn't."""
        return self._reader.error

    def wake(self) -> None:
        """Say that an answer is there."""
        self._reader.wake()

    def close(self) -> None:
        """Read no more."""
        self._reader.close()

    def answered(self, count: int, seconds: float) -> None:
        """Note that a window of `count` examples kept the model busy for `seconds`."""
        cost = seconds / count
        # Windows computed side by side end together, so only the mean of several says much.
        self._cost_s = cost if self._cost_s is None else 0.7 * self._cost_s + 0.3 * cost
        fitting = int(WINDOW_S / self._cost_s) if self._cost_s else self._largest
        grown = min(max(4 * self.size, self._smallest), fitting, self._largest)
        self.size = max(self._smallest, self._whole(grown))

    def _whole(self, count: int) -> int:
        return max(self._batch, count // self._batch * self._batch)


class Sent:
    """A window under way, and when its answer came; `wake` is called then."""

    def __init__(self, future: Future[list[Any]], count: int, wake: Callable[[], None]) -> None:
        self.future = future
        self.count = count
        self.sent_at = time.monotonic()
        self._done_at: list[float] = []
        # Not a method: the future would keep this object, and itself with its results, until a full collection.
        done_at = self._done_at

        def done(_: Future[list[Any]]) -> None:
            done_at.append(time.monotonic())
            wake()

        future.add_done_callback(done)

    @property
    def done_at(self) -> float:
        """When the answer came, 0 before."""
        return self._done_at[0] if self._done_at else 0.0

    def ready(self, patience_s: float) -> bool:
        """True when the answer is there, or comes within `patience_s` seconds."""
        if not self.future.done() and patience_s:
            wait([self.future], patience_s)
        return self.future.done()


class PredictionStream(Iterator[Any]):
    """Predictions of a stream, one after the other; ends with its source, or with `close`."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __next__(self) -> Any:
        return next(self._generator)

    def close(self) -> None:
        """Cancel what is under way; the iterator is at its end then."""
        self._generator.close()

    def __repr__(self) -> str:
        return "<predictions of a stream: iterate over them, or list(...)>"
