"""Examples for a keyed handler with one handler for all keys: whole requests are looked at before they are cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.engine.codec import Rows
from kit.engine.prepared import Prepared, nothing
from kit.engine.requests import Request
from kit.engine.trouble import Trouble
from kit.key_routes import key_of

if TYPE_CHECKING:
    from kit.metrics import Counters


class PairCheck:
    """Finds the examples of a request that have no key though they need one.

    Args:
        maybe: a request may be all without keys.
    """

    def __init__(self, maybe: bool) -> None:
        self.maybe = maybe

    @classmethod
    def of(cls, handler: Any) -> PairCheck | None:
        """The check for a handler; None where none is needed, or functions have yet to make the pairs."""
        one = getattr(handler, "keyed", False) and handler.unkeyed is not None
        return cls(bool(getattr(handler, "maybe", False))) if one and not handler.get_preprocess_fns() else None

    def prepare(self, request: Request, add: Callable[[], None], counters: Counters | None) -> Prepared:
        """Queue what is right of a request with `add`, and fail the rest."""
        try:
            troubles = self._troubles(request)
        except errors.KitError as error:
            return Prepared(nothing, partial(request.fail_all, error))
        if not troubles:
            return Prepared(add, nothing)
        request.skip(troubles)

        def fail() -> None:
            if counters is not None:
                counters.failed += len(troubles)
            for position, trouble in troubles.items():
                request.fail(position, trouble)

        return Prepared(add, fail)

    def _troubles(self, request: Request) -> dict[int, Trouble]:
        """What is wrong with which example.

        Raises:
            UnsupportedInput: without isolation, for the first of them.
        """
        examples = request.examples
        if self.maybe and (type(examples) is Rows or not any(isinstance(example, tuple) for example in examples)):
            return {}
        if type(examples) is not Rows and all(type(pair) is tuple and len(pair) == 2 for pair in examples):
            return {}
        found: dict[int, Trouble] = {}
        pairs: list[Any] = []
        for position, pair in enumerate(examples):
            try:
                key_of(pair, position, maybe=self.maybe)
            except errors.UnsupportedInput as error:
                if not request.isolate:
                    raise
                found[position] = Trouble.of(error)
                pairs.append(pair)
            else:
                pairs.append(tuple(pair))  # in a shared chunk a list would pass for an example without a key
        request.sent = pairs
        return found
