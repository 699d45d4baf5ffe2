"""A job: examples that go to a named deployment in windows, a few under way at a time.

So a job of a million examples takes little memory on either side, stops soon after it is cancelled, and leaves
room for other kernels' requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from itertools import chain, repeat
from typing import Any

from kit import batching, errors
from kit.daemon.connection import Connection
from kit.daemon.decoder import PickleNotRebuilt, trouble_of
from kit.daemon.frames import Frame
from kit.daemon.interrupts import Deferred
from kit.daemon.protocol import RUN
from kit.daemon.wire import Malformed
from kit.engine.answer_future import AnswerFuture
from kit.engine.codec import Rows
from kit.engine.requests import Failure, results_of
from kit.engine.runner import Batch, pick
from kit.engine.unreadable import PREDICTIONS
from kit.example_bytes import num_bytes

#: Examples and bytes of a window at most, and windows under way.
WINDOW, WINDOW_BYTES, AHEAD = 8192, 4 << 20, 3
#: Examples of a window where each one's length is measured before it is queued: that holds others up.
WINDOW_MEASURED = 2 * batching.WINDOW


#: Rows that become objects at a time, of `Unmade`.
FEW = 64


class Unmade:
    """Predictions that are made one by one when they are read, so that never all of them are objects at once.

    Thousands of objects that live for a moment have Python's garbage collector look through all that the process has.
    """

    __slots__ = ("_examples", "_model_ids", "_plain", "_values")

    def __init__(self, examples: Any, values: Any, model_ids: Any, *, plain: bool) -> None:
        self._examples = examples
        self._values = values
        self._model_ids = model_ids if isinstance(model_ids, list) else repeat(model_ids)
        self._plain = plain

    def __len__(self) -> int:
        return len(self._values)

    def made(self, prediction: Callable[[Any], Any], bare: Callable[[Any], Any]) -> Iterator[Any]:
        """Each of them; `prediction` is given (example, value, model id), `bare` a result of a handler's own."""
        rows = self._values
        values: Iterable[Any] = rows
        if isinstance(rows, Rows):
            few = (rows[start : start + FEW].tolist() for start in range(0, len(rows), FEW))
            values = chain.from_iterable(few)
        if self._plain:
            return map(bare, values)
        return map(prediction, zip(self._examples, values, self._model_ids))  # noqa: B905 - repeat has no end


class Job:
    """One `submit`; its future resolves to the predictions in order.

    Args:
        rows: list or Rows.
        deadline: monotonic seconds, or None.
        window: examples that travel at once, at most.
        deaths: of workers that were asked directly before.
        unmade: the future may resolve to `Unmade` predictions.
        batches: to be filled with each batch that is computed, before the answer is there.
    """

    def __init__(
        self,
        connection: Connection,
        rows: Any,
        inference_args: Mapping[str, Any] | None,
        *,
        isolate: bool = False,
        deadline: float | None = None,
        batch_timeout_s: float | None = None,
        on_progress: Callable[[int], None] | None = None,
        window: int = WINDOW,
        deaths: int = 0,
        unmade: bool = False,
        batches: list[Batch] | None = None,
    ) -> None:
        self.future = AnswerFuture()
        self._connection = connection
        self._rows = rows
        self._args = None if inference_args is None else dict(inference_args)
        self._isolate = isolate
        self._deadline = deadline
        self._batch_timeout_s = batch_timeout_s
        self._on_progress = on_progress
        self._deaths = deaths
        self._unmade = unmade
        self._batches = batches
        self._results: Any = [None] * len(rows)
        self._left = len(rows)
        self._next = 0
        self._size = _window(rows, window)
        self._under_way: set[int] = set()
        self._lock = threading.RLock()

    @property
    def small(self) -> bool:
        """True when all of it travels at once."""
        return len(self._rows) <= self._size

    def start(self) -> Job:
        """Send the first windows.

        Raises:
            UnsupportedType: an example's type doesn't travel. DeploymentLost.
        """
        if not len(self._rows):
            self.future.set_result([])
            return self
        self.future.add_done_callback(self._done)
        try:
            for _ in range(AHEAD):
                self._send()
        except BaseException:
            self.future.cancel()  # interrupted: nobody has the job, and so nobody else cancels it
            raise
        return self

    def _send(self) -> None:
        with self._lock:
            start = self._next
            stop = min(start + self._size, len(self._rows))
            if start == stop or self.future.done():
                return
            self._next = stop
        window = self._rows if stop - start == len(self._rows) else self._rows[start:stop]
        deadline_s = None if self._deadline is None else max(1e-3, self._deadline - time.monotonic())
        connection = self._connection
        options = (
            self._isolate,
            deadline_s,
            self._batch_timeout_s,
            self._args,
            self._deaths,
            self._batches is not None,
        )
        encoder = connection.link.encoder().add(options).examples(window)
        with Deferred():  # what was sent must be known, or nothing cancels it
            number = connection.ask(RUN, encoder, partial(self._answered, start, stop))
            self._under_way.add(number)
        if self.future.done():  # cancelled just then
            connection.cancel(number)

    # ---- answers, in the link's thread ---------------------------------------------------------

    def _answered(self, start: int, stop: int, found: Frame | errors.KitError) -> None:
        try:
            if isinstance(found, errors.KitError):
                raise found
            self._under_way.discard(found.number)
            if self.future.done():
                return
            self._place(start, found)
            self._send()
            if self._on_progress is not None:
                self._on_progress(stop - start)
        except Exception as error:
            self._fail(_as_ours(error))
            return
        with self._lock:
            self._left -= stop - start
            finished = self._left == 0
        if finished:
            try:
                self.future.set_result(self._results)
            except InvalidStateError:
                return  # cancelled by the caller

    def _place(self, start: int, frame: Frame) -> None:
        decoder, results = frame.decoder, self._results
        troubles = decoder.value()
        for _ in range(decoder.value()):
            (where, plain, model_ids), values = decoder.value(), decoder.value()
            indices = _indices(where)
            if len(values) != len(indices):
                raise Malformed("an answer of another length")
            if self._unmade and where == (0, len(self._rows)):
                self._results = Unmade(self._rows, values, model_ids, plain=plain)
                break
            there = range(start + indices.start, start + indices.stop) if isinstance(indices, range) else None
            values = values.tolist() if isinstance(values, Rows) else values
            if there is not None:
                mine = values if plain else results_of(pick(self._rows, there), values, model_ids)
                results[there.start : there.stop] = mine
            else:
                at = [start + index for index in indices]
                mine = values if plain else results_of([self._rows[index] for index in at], values, model_ids)
                for index, result in zip(at, mine, strict=True):
                    results[index] = result
        for index, trouble in troubles.items():
            results[start + index] = Failure(self._rows[start + index], trouble_of(trouble).error())
        if self._batches is not None:
            for where, seconds in decoder.value():
                indices = _indices(where)
                shifted = indices if not start else [start + index for index in indices]
                self._batches.append((shifted, seconds))

    # ---- end ---------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            return

    def _done(self, future: Future[list[Any]]) -> None:
        for number in list(self._under_way):
            self._connection.cancel(number)


def _indices(where: Any) -> Sequence[int]:
    """Indices that came as such or as (start, stop)."""
    return range(*where) if isinstance(where, tuple) else where


def _as_ours(error: Exception) -> Exception:
    if isinstance(error, PickleNotRebuilt):
        return error.trouble(PREDICTIONS).error()
    if isinstance(error, Malformed):
        return errors.InferenceFailed(f"an answer couldn't be read: {error}.")
    return error


def _window(rows: Any, most: int) -> int:
    """Examples of a window."""
    if not len(rows):
        return 1
    if isinstance(rows, Rows):
        each = int(rows.stacked.nbytes) // len(rows)
    else:
        few = rows[:16]
        each = sum(map(num_bytes, few)) // len(few)
    return max(1, min(most, WINDOW_BYTES // max(1, each)))
