"""The encoding of what travels between kernels and named deployments: fixed, checked, not executable.

    body = head | buffers, each at a multiple of 64 bytes

The head is a tagged tree of None, bool, int, float, str, bytes, tuple, list, dict, datetimes, numpy and torch
arrays, DataFrames (Arrow), PredictionResult and Failure. Elements of arrays and large bytes are buffers. A decoder
checks each count and size against the bytes that are there before it makes anything. Nothing is unpickled
unless the owner of the deployment said `allow_pickle=True`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from kit import errors
from kit.daemon import blocks
from kit.engine.codec import Rows
from kit.engine.requests import Failure
from kit.engine.trouble import Trouble
from kit.handler import PredictionResult

DEPTH = 64
#: Bytes objects above this size are buffers.
LARGE_BYTES = 4096
_U32, _I64, _F64 = struct.Struct("<I"), struct.Struct("<q"), struct.Struct("<d")
_TYPES = "None, bool, int, float, str, bytes, tuple, list, dict, datetime, numpy arrays, tensors, DataFrames"


class Malformed(Exception):
    """Bytes that aren't an encoded value; the connection that they came over is closed."""


class Encoder:
    """Collects the head and the buffers of one value.

    Attributes:
        head: what was encoded so far.
        buffers: size of each buffer, and the function that writes it into memory.
    """

    def __init__(self, *, allow_pickle: bool = False) -> None:
        self.head = bytearray()
        self.buffers: list[tuple[int, Callable[[memoryview], None]]] = []
        self._allow_pickle = allow_pickle
        self._depth = 0

    def add(self, value: Any) -> Encoder:
        """Encode one more value.

        Raises:
            UnsupportedType: naming the type.
        """
        writer = _WRITERS.get(type(value))
        if writer is not None:
            writer(self, value)
        else:
            self._other(value)
        return self

    def examples(self, values: Any) -> Encoder:
        """Encode a list or Rows; equal arrays are stacked and come out as Rows."""
        if type(values) is list and values:
            block = blocks.stackable(values)
            if block is not None:
                self.head += b"R"
                block.write(self)
                return self
        return self.add(values)

    def count(self, number: int) -> None:
        """A count or size of up to 32 bits."""
        if number > 0xFFFFFFFF:
            raise errors.UnsupportedType(f"a collection of {number} elements is too large; send it in parts.")
        self.head += _U32.pack(number)

    def text(self, value: str) -> None:
        """A str without its tag."""
        data = value.encode("utf-8", "surrogatepass")
        self.count(len(data))
        self.head += data

    def buffer(self, size: int, fill: Callable[[memoryview], None]) -> None:
        """A buffer to be written by `fill` once its place is known."""
        self.buffers.append((size, fill))

    def items(self, tag: bytes, values: Any) -> None:
        """Any sequence of values."""
        self._depth += 1
        if self._depth >= DEPTH:
            raise errors.UnsupportedType(f"a value is nested more than {DEPTH} deep; flatten it.")
        self.head += tag
        self.count(len(values))
        for value in values:
            self.add(value)
        self._depth -= 1

    def _other(self, value: Any) -> None:
        if isinstance(value, np.generic):
            self.head += b"g"
            blocks.of_numpy(np.asarray(value), value).write(self)
        elif type(value) is np.memmap:
            self.head += b"A"
            blocks.of_numpy(value, value).write(self)
        elif blocks.is_tensor(value):
            self.head += b"A"
            blocks.of_tensor(value).write(self)
        elif blocks.is_frame(value):
            self.head += b"W"
            self.add(blocks.frame_bytes(value))
        elif self._allow_pickle:
            import cloudpickle

            self.head += b"K"
            _write_bytes(self, bytes(cloudpickle.dumps(value, protocol=5)))
        else:
            kind = type(value)
            raise errors.UnsupportedType(
                f"a {kind.__module__}.{kind.__qualname__} can't travel to or from a named deployment, which takes "
                f"{_TYPES}. Convert it, in a post-processing function for example, or serve with allow_pickle=True."
            )


def _write_int(encoder: Encoder, value: int) -> None:
    if -(1 << 63) <= value < 1 << 63:
        encoder.head += b"i" + _I64.pack(value)
    else:
        encoder.head += b"I"
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        encoder.count(len(data))
        encoder.head += data


def _write_str(encoder: Encoder, value: str) -> None:
    encoder.head += b"s"
    encoder.text(value)


def _write_bytes(encoder: Encoder, value: bytes | bytearray | memoryview) -> None:
    if len(value) <= LARGE_BYTES:
        encoder.head += b"b"
        encoder.count(len(value))
        encoder.head += value
        return

    def fill(target: memoryview) -> None:
        target[:] = value

    encoder.head += b"B" + struct.pack("<Q", len(value))
    encoder.buffer(len(value), fill)


def _write_list(encoder: Encoder, values: list[Any]) -> None:
    """Lists of one plain type are written at once: an element costs nanoseconds, not a function call."""
    kinds = set(map(type, values))
    if len(kinds) == 1 and len(values) > 1:
        kind = next(iter(kinds))
        if kind is float:
            encoder.head += b"p"
            encoder.count(len(values))
            encoder.head += array("d", values).tobytes()
            return
        if kind is int and min(values) >= -(1 << 63) and max(values) < 1 << 63:
            encoder.head += b"q"
            encoder.count(len(values))
            encoder.head += array("q", values).tobytes()
            return
        if kind is str:
            data = [value.encode("utf-8", "surrogatepass") for value in values]
            encoder.head += b"u"
            encoder.count(len(data))
            encoder.head += np.fromiter(map(len, data), dtype="<u4", count=len(data)).tobytes()
            encoder.head += b"".join(data)
            return
        if blocks.is_frame(values[0]) and blocks.alike(values):
            encoder.head += b"Q"
            encoder.add([len(frame) for frame in values])
            encoder.add(blocks.frames_bytes(values))
            return
    encoder.items(b"l", values)


def _write_dict(encoder: Encoder, value: dict[Any, Any]) -> None:
    encoder.items(b"d", [part for item in value.items() for part in item])


def _write_datetime(encoder: Encoder, value: datetime) -> None:
    key = value.tzinfo.key if isinstance(value.tzinfo, ZoneInfo) else ""
    encoder.head += b"D"
    encoder.text((value.replace(tzinfo=None) if key else value).isoformat())
    encoder.text(f"{key} {value.fold}")


def _write_time(encoder: Encoder, value: time) -> None:
    encoder.head += b"h"
    encoder.text(value.isoformat())
    encoder.head += bytes([value.fold])


def _write_date(encoder: Encoder, value: date) -> None:
    encoder.head += b"e"
    encoder.text(value.isoformat())


def _write_timedelta(encoder: Encoder, value: timedelta) -> None:
    encoder.head += b"m" + struct.pack("<qqq", value.days, value.seconds, value.microseconds)


def _write_array(encoder: Encoder, value: np.ndarray[Any, Any]) -> None:
    encoder.head += b"A"
    blocks.of_numpy(value, value).write(encoder)


def _write_rows(encoder: Encoder, value: Rows) -> None:
    encoder.head += b"R"
    stacked = value.stacked
    (blocks.of_tensor(stacked) if blocks.is_tensor(stacked) else blocks.of_numpy(stacked, stacked)).write(encoder)


def _write_failure(encoder: Encoder, value: Failure) -> None:
    encoder.head += b"x"
    encoder.add(value.example)
    encoder.add(list(Trouble.of(value.error)))


_WRITERS: dict[type, Callable[[Encoder, Any], None]] = {
    type(None): lambda encoder, value: encoder.head.extend(b"N"),
    bool: lambda encoder, value: encoder.head.extend(b"T" if value else b"F"),
    int: _write_int,
    float: lambda encoder, value: encoder.head.extend(b"f" + _F64.pack(value)),
    str: _write_str,
    bytes: _write_bytes,
    tuple: lambda encoder, value: encoder.items(b"t", value),
    list: _write_list,
    dict: _write_dict,
    datetime: _write_datetime,
    date: _write_date,
    time: _write_time,
    timedelta: _write_timedelta,
    np.ndarray: _write_array,
    Rows: _write_rows,
    PredictionResult: lambda encoder, value: encoder.items(b"P", value),
    Failure: _write_failure,
}


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
        found = int(_U32.unpack(self.bytes(4))[0])
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

        return cloudpickle.loads(self.read())


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
    b"i": lambda decoder: _I64.unpack(decoder.bytes(8))[0],
    b"I": lambda decoder: int.from_bytes(decoder.bytes(decoder.count()), "little", signed=True),
    b"f": lambda decoder: _F64.unpack(decoder.bytes(8))[0],
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
    b"A": lambda decoder: blocks.read(decoder),
    b"g": lambda decoder: blocks.read(decoder)[()],
    b"R": lambda decoder: Rows(blocks.read(decoder)),
    b"W": lambda decoder: blocks.frame_of(decoder.read()),
    b"Q": lambda decoder: blocks.frames_of(decoder.read(), decoder.read()),
    b"P": _read_prediction,
    b"x": _read_failure,
    b"K": lambda decoder: decoder.pickled(),
}
