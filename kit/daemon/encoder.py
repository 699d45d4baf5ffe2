"""Values into bytes, by the encoding of `wire`."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from kit import errors
from kit.daemon import blocks, moments, tables
from kit.daemon.wire import DEPTH, F64, I64, U32
from kit.engine.codec import Rows
from kit.engine.requests import Failure
from kit.engine.tensor_bytes import TensorBytes
from kit.engine.trouble import Trouble
from kit.handler import PredictionResult

#: Bytes objects above this size are buffers.
LARGE_BYTES = 4096
_TYPES = "None, bool, int, float, str, bytes, tuple, list, dict, datetime, Decimal, numpy arrays, tensors, DataFrames"


class _TooDeep(Exception):
    pass


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

    @property
    def size(self) -> int:
        """Bytes of the body so far."""
        return blocks.aligned(len(self.head)) + sum(blocks.aligned(size) for size, _ in self.buffers)

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
        """Encode a list or Rows; equal arrays are stacked and come out as Rows.

        Raises:
            UnsupportedType: an example can't travel.
        """
        return self._rows_of(values, "an example", errors.UnsupportedType)

    def results(self, values: Any) -> Encoder:
        """Encode what a handler made of examples, likewise.

        Raises:
            UnsupportedResult: a result can't travel.
        """
        return self._rows_of(values, "a result of the handler", errors.UnsupportedResult)

    def _rows_of(self, values: Any, what: str, kind: type[errors.UnsupportedType]) -> Encoder:
        try:
            return self._rows(values)
        except errors.UnsupportedType as error:
            raise kind(f"in {what}: {error.args[0]}") from None

    def _rows(self, values: Any) -> Encoder:
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
        self.head += U32.pack(number)

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
        self._depth = depth = self._depth + 1
        if depth >= DEPTH:
            raise _TooDeep
        self.head += tag
        self.count(len(values))
        try:
            for value in values:
                self.add(value)
        except _TooDeep:
            if depth > 1:
                raise
            # From here, without the frames of all those levels.
            words = f"a value is nested more than {DEPTH} deep, or holds itself; flatten it."
            raise errors.UnsupportedType(words) from None
        self._depth = depth - 1

    def _other(self, value: Any) -> None:
        if isinstance(value, np.generic):
            self.head += b"g"
            blocks.of_numpy(np.asarray(value), value).write(self)
        elif type(value) is np.memmap:
            self.head += b"A"
            blocks.of_numpy(value, value).write(self)
        elif blocks.is_tensor(value):
            self._tensor(value)
        elif tables.is_frame(value):
            self._frame(value)
        elif self._allow_pickle:
            self._pickled(value)
        else:
            kind = type(value)
            raise errors.UnsupportedType(
                f"a {kind.__module__}.{kind.__qualname__} can't travel to or from a named deployment, which takes "
                f"{_TYPES}. Convert it, in a post-processing function for example, or serve with allow_pickle=True."
            )

    def _prepared(self, make: Callable[[], Any]) -> Any:
        """What `make` makes of a value; None where it can't and the value may be pickled."""
        try:
            return make()
        except errors.UnsupportedType:
            if not self._allow_pickle:
                raise
            return None

    def _tensor(self, value: Any) -> None:
        made = self._prepared(lambda: (blocks.of_tensor(value), blocks.of_kind(value)))
        if made is None:
            self._pickled(value)
            return
        block, kind = made
        self.head += b"G" + bytes([kind]) if kind else b"A"
        block.write(self)

    def _frame(self, value: Any) -> None:
        table = self._prepared(lambda: tables.table(value))
        if table is None:
            self._pickled(value)
            return
        self.head += b"W"
        table.write(self)

    def _pickled(self, value: Any) -> None:
        import cloudpickle

        self.head += b"K"
        _write_bytes(self, bytes(cloudpickle.dumps(value, protocol=5)))

    def frames(self, values: list[Any]) -> bool:
        """DataFrames that are alike, as one; False where they can't travel as such, or aren't."""
        if not tables.alike(values):
            return False
        table = self._prepared(lambda: tables.joined(values))
        if table is None:
            return False
        self.head += b"Q"
        self.add([len(frame) for frame in values])
        table.write(self)
        return True


def _write_int(encoder: Encoder, value: int) -> None:
    if -(1 << 63) <= value < 1 << 63:
        encoder.head += b"i" + I64.pack(value)
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
        if tables.is_frame(values[0]) and encoder.frames(values):
            return
    encoder.items(b"l", values)


def _write_dict(encoder: Encoder, value: dict[Any, Any]) -> None:
    encoder.items(b"d", [part for item in value.items() for part in item])


def _write_array(encoder: Encoder, value: np.ndarray[Any, Any]) -> None:
    encoder.head += b"A"
    blocks.of_numpy(value, value).write(encoder)


def _write_rows(encoder: Encoder, value: Rows) -> None:
    encoder.head += b"R"
    stacked = value.stacked
    if type(stacked) is TensorBytes:
        blocks.of_bytes(stacked).write(encoder)
        return
    (blocks.of_tensor(stacked) if blocks.is_tensor(stacked) else blocks.of_numpy(stacked, stacked)).write(encoder)


def _write_tensor_bytes(encoder: Encoder, value: TensorBytes) -> None:
    encoder.head += b"A"
    blocks.of_bytes(value).write(encoder)


def _write_failure(encoder: Encoder, value: Failure) -> None:
    encoder.head += b"x"
    encoder.add(value.example)
    encoder.add(list(Trouble.of(value.error)))


_WRITERS: dict[type, Callable[[Encoder, Any], None]] = {
    type(None): lambda encoder, value: encoder.head.extend(b"N"),
    bool: lambda encoder, value: encoder.head.extend(b"T" if value else b"F"),
    int: _write_int,
    float: lambda encoder, value: encoder.head.extend(b"f" + F64.pack(value)),
    str: _write_str,
    bytes: _write_bytes,
    tuple: lambda encoder, value: encoder.items(b"t", value),
    list: _write_list,
    dict: _write_dict,
    datetime: moments.write_datetime,
    date: moments.write_date,
    time: moments.write_time,
    timedelta: moments.write_timedelta,
    Decimal: moments.write_decimal,
    np.ndarray: _write_array,
    Rows: _write_rows,
    TensorBytes: _write_tensor_bytes,
    PredictionResult: lambda encoder, value: encoder.items(b"P", value),
    Failure: _write_failure,
}
