"""Bytes into values, by the encoding of `wire`: every size is checked before anything is made of it."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from kit import errors
from kit.daemon import blocks, tables
from kit.daemon.wire import DEPTH, F64, I64, U32, Malformed
from kit.engine.codec import PICKLE, Rows
from kit.engine.requests import Failure
from kit.engine.trouble import Trouble
from kit.engine.unreadable import NotRebuilt
from kit.handler import PredictionResult


class PickleNotRebuilt(NotRebuilt, Malformed):
    """A value of another type, which the owner allows, can't be unpickled: no nonsense, unless nobody knows of what."""


class Decoder:
    """Reads values from a head and the buffers behind it, with every size checked first.

    Args:
        head: the head's own bytes, which nobody else can change meanwhile.
        body: memory that the buffers lie in, from the body's start.
        copy: True to copy arrays; otherwise they are views of `body`.
    """

    def __init__(self, head: bytes, body: memoryview, *, copy: bool, allow_pickle: bool = False) -> None:
        self._head = memoryview(head)
        self._at = 0
        self._body = body
        self._next = blocks.aligned(len(head))
        self.copy = copy
        self._allow_pickle = allow_pickle
        self._depth = 0

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return len(self._body)

    def value(self) -> Any:
        """The next value.

        Raises:
            Malformed: the bytes aren't an encoded value.
        """
        try:
            return self.read()
        except Malformed:
            raise
        except Exception as error:  # numpy, Arrow and zoneinfo raise whatever they like on bad data
            raise Malformed(f"{type(error).__name__}: {error}") from error

    def read(self) -> Any:
        reader = _READERS.get(self.bytes(1))
        if reader is None:
            raise Malformed("unknown tag")
        return reader(self)

    def bytes(self, size: int) -> bytes:
        """The next `size` bytes of the head."""
        at = self._at
        if size > len(self._head) - at:
            raise Malformed("ends early")
        self._at = at + size
        return bytes(self._head[at : at + size])

    def count(self, size: int = 1) -> int:
        """A count of elements of at least `size` bytes each that are all there."""
        found = int(U32.unpack(self.bytes(4))[0])
        if found * size > len(self._head) - self._at:
            raise Malformed("a count exceeds the message")
        return found

    def text(self) -> str:
        """A str without its tag."""
        return str(self.bytes(self.count()), "utf-8", "surrogatepass")

    def buffer(self, size: int) -> memoryview:
        """The next buffer."""
        start = self._next
        if not 0 <= size <= len(self._body) - start:
            raise Malformed("a buffer exceeds the message")
        self._next = start + blocks.aligned(size)
        return self._body[start : start + size]

    def items(self) -> list[Any]:
        """A counted sequence of values."""
        self._depth += 1
        if self._depth > DEPTH:
            raise Malformed("nested too deep")
        found = [self.read() for _ in range(self.count())]
        self._depth -= 1
        return found

    def pickled(self) -> Any:
        """An object of another type, where the owner allows it."""
        if not self._allow_pickle:
            raise Malformed("a pickled object, which this deployment doesn't allow")
        import cloudpickle

        data = self.read()
        try:
            return cloudpickle.loads(data)
        except Exception as error:
            raise PickleNotRebuilt(error, (PICKLE, data, [])) from error


def _read_texts(decoder: Decoder) -> list[str]:
    count = decoder.count(4)
    sizes = np.frombuffer(decoder.bytes(4 * count), dtype="<u4")
    ends = np.cumsum(sizes, dtype=np.uint64).tolist()
    data = decoder.bytes(ends[-1] if ends else 0)
    starts = [0, *ends[:-1]]
    return [str(data[start:end], "utf-8", "surrogatepass") for start, end in zip(starts, ends, strict=True)]


def _read_numbers(kind: str) -> Callable[[Decoder], list[Any]]:
    def read(decoder: Decoder) -> list[Any]:
        return array(kind, decoder.bytes(8 * decoder.count(8))).tolist()

    return read


def _read_dict(decoder: Decoder) -> dict[Any, Any]:
    parts = decoder.items()
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _read_datetime(decoder: Decoder) -> datetime:
    found = datetime.fromisoformat(decoder.text())
    key, _, fold = decoder.text().rpartition(" ")
    return found.replace(tzinfo=ZoneInfo(key) if key else found.tzinfo, fold=int(fold))


def _read_time(decoder: Decoder) -> time:
    found = time.fromisoformat(decoder.text())
    return found.replace(fold=decoder.bytes(1)[0])


def _read_prediction(decoder: Decoder) -> PredictionResult:
    return PredictionResult(*decoder.items())


def _read_failure(decoder: Decoder) -> Failure:
    example, trouble = decoder.read(), decoder.read()
    return Failure(example, trouble_of(trouble).error())


def trouble_of(parts: Any) -> Trouble:
    """A Trouble from its decoded parts: class name, message, traceback text."""
    if not (isinstance(parts, list) and len(parts) == 3 and all(type(part) is str for part in parts)):
        raise Malformed("not an error")
    cls = getattr(errors, parts[0], None)
    is_ours = isinstance(cls, type) and issubclass(cls, errors.KitError)
    return Trouble(parts[0] if is_ours else "InferenceFailed", parts[1], parts[2])


_READERS: dict[bytes, Callable[[Decoder], Any]] = {
    b"N": lambda decoder: None,
    b"T": lambda decoder: True,
    b"F": lambda decoder: False,
    b"i": lambda decoder: I64.unpack(decoder.bytes(8))[0],
    b"I": lambda decoder: int.from_bytes(decoder.bytes(decoder.count()), "little", signed=True),
    b"f": lambda decoder: F64.unpack(decoder.bytes(8))[0],
    b"s": lambda decoder: decoder.text(),
    b"b": lambda decoder: decoder.bytes(decoder.count()),
    b"B": lambda decoder: bytes(decoder.buffer(struct.unpack("<Q", decoder.bytes(8))[0])),
    b"t": lambda decoder: tuple(decoder.items()),
    b"l": lambda decoder: decoder.items(),
    b"p": _read_numbers("d"),
    b"q": _read_numbers("q"),
    b"u": _read_texts,
    b"d": _read_dict,
    b"D": _read_datetime,
    b"e": lambda decoder: date.fromisoformat(decoder.text()),
    b"h": _read_time,
    b"m": lambda decoder: timedelta(*struct.unpack("<qqq", decoder.bytes(24))),
    b"G": blocks.read_kind,
    b"A": lambda decoder: blocks.read(decoder),
    b"g": lambda decoder: blocks.read(decoder)[()],
    b"R": lambda decoder: Rows(blocks.read(decoder, rows=True)),
    b"W": tables.read,
    b"Q": lambda decoder: tables.parted(decoder.read(), tables.read(decoder)),
    b"c": lambda decoder: Decimal(decoder.text()),
    b"P": _read_prediction,
    b"x": _read_failure,
    b"K": lambda decoder: decoder.pickled(),
}
