"""Examples of a bundle that are sent to the deployment at once, and where each of them belongs."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from apache_beam.utils.windowed_value import WindowedValue

from kit.deployment import Deployment
from kit.engine.runner import Batch
from kit.example_bytes import num_bytes

#: Examples and bytes that are sent at once.
AT_ONCE, AT_ONCE_BYTES = 512, 4 << 20


@dataclass
class Window:
    """Examples that are sent at once.

    Attributes:
        places: the elements as they came, with window and timestamp.
        batches: those in which they were computed, once they are answered.
    """

    examples: list[Any] = field(default_factory=list)
    places: list[WindowedValue] = field(default_factory=list)
    most: int = AT_ONCE
    future: Future[list[Any]] | None = None
    deployment: Deployment | None = None
    batches: list[Batch] = field(default_factory=list)
    tries: int = 0

    def add(self, element: Any, place: WindowedValue) -> bool:
        """Take one more; True when it is full."""
        self.examples.append(element)
        self.places.append(place)
        count = len(self.examples)
        if count == 1:
            self._fit(element)
        return count >= self.most

    def _fit(self, element: Any) -> None:
        """A whole number of the handler's batches."""
        most = max(1, min(AT_ONCE, AT_ONCE_BYTES // max(1, num_bytes(element))))
        self.most = most if self.most > most else max(self.most, most // self.most * self.most)

    @property
    def done(self) -> bool:
        """True when its answer is there."""
        return self.future is not None and self.future.done()
