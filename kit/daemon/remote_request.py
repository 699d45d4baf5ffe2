"""A request of another process: it keeps values in blocks, to be encoded as such, and makes no prediction objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kit.daemon.encoder import Encoder
from kit.daemon.wire import Malformed
from kit.engine.codec import concatenate
from kit.engine.requests import Request
from kit.engine.runner import as_list
from kit.engine.trouble import Trouble
from kit.handler import PredictionResult

if TYPE_CHECKING:
    from kit.daemon.session import Session
    from kit.engine.dispatcher import Dispatcher

#: Where the examples stand, (start, stop) or indices; whether values are results as they are; model ids; the values.
Piece = tuple[tuple[Any, bool, Any], Any]
_OPTIONS: tuple[Any, ...] = (bool, (float, int, type(None)), (float, int, type(None)), (dict, type(None)), int, bool)


class RemoteRequest(Request):
    """A request whose answers go to another process.

    Attributes:
        pieces: (indices, plain, model ids) and values, as they came from the workers.
        troubles: what went wrong with single examples, by index.
    """

    pieces: list[Piece]
    troubles: dict[int, Trouble]
    session: Session
    dispatcher: Dispatcher

    @classmethod
    def make(cls, options: Any, examples: Any, session: Session) -> RemoteRequest:
        """A request from its decoded parts.

        Raises:
            Malformed: these aren't what they should be.
        """
        if type(options) is not tuple or len(options) != 6 or not all(map(isinstance, options, _OPTIONS)):
            raise Malformed("not a request's options")
        isolate, deadline_s, batch_timeout_s, inference_args, deaths, tell_batches = options
        if not 0 <= deaths <= 1:
            raise Malformed("more deaths than there can be")
        if not len(examples):
            raise Malformed("a request without examples")
        dispatcher = session.served.serving()._engine.dispatcher
        request = cls(
            examples,
            inference_args,
            isolate=isolate,
            deadline=None if deadline_s is None else time.monotonic() + deadline_s,
            batch_timeout_s=batch_timeout_s,
            options=dispatcher.request_options,
            batches=[] if tell_batches else None,
        )
        request.pieces = []
        request.troubles = {}
        request.session = session
        request.dispatcher = dispatcher
        request.deaths = deaths
        request.turn = session.served.turns.asks(session, request, dispatcher)
        return request

    def answer(self, indices: Sequence[int], values: Any, model_ids: Any, plain: bool) -> None:
        """Keep the values of the examples at `indices`."""
        self.pieces.append(((_where(indices), plain, model_ids), values))
        # One result for whoever shows the latest answer; the others are made where they are asked for.
        model_id = model_ids[-1] if isinstance(model_ids, list) else model_ids
        value, last = values[len(indices) - 1], indices[-1]
        self.results[last] = value if plain else PredictionResult(self.examples[last], value, model_id)
        self._done(len(indices))

    def fail(self, index: int, trouble: Trouble) -> None:
        """Note that one example failed, or end the request."""
        if self.isolate:
            self.troubles[index] = trouble
            self._done(1)
        else:
            self.fail_all(trouble.error())

    def encode(self, encoder: Encoder) -> Encoder:
        """The body of an ANSWER.

        Raises:
            UnsupportedResult: a prediction is of a type that doesn't travel.
        """
        encoder.add({index: list(trouble) for index, trouble in self.troubles.items()})
        pieces = _joined(self.pieces)
        encoder.add(len(pieces))
        for about, values in pieces:
            encoder.add(about)
            encoder.results(values)
        if self.batches is not None:
            encoder.add([(_where(indices), seconds) for indices, seconds in self.batches])
        return encoder


def _where(indices: Sequence[int]) -> tuple[int, int] | list[int]:
    """Indices as they travel: (start, stop) of a range."""
    return (indices.start, indices.stop) if isinstance(indices, range) else list(indices)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Pieces in order, those that follow on each other as one where they are alike: fewer, larger blocks."""
    pieces = [(about, as_list(values)) for about, values in pieces]
    # None at all where each example failed.
    if len(pieces) < 2 or not all(isinstance(where, tuple) for (where, _, _), _ in pieces):
        return pieces
    pieces.sort(key=lambda piece: piece[0][0])
    (first, plain, model_ids), _ = pieces[0]
    end = first[0]
    for (where, its_plain, its_ids), _ in pieces:
        if where[0] != end or its_plain != plain or its_ids != model_ids or isinstance(model_ids, list):
            return pieces
        end = where[1]
    return [(((first[0], end), plain, model_ids), concatenate([values for _, values in pieces]))]
