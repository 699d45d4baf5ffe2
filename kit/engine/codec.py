"""Turning batches into buffers and back, for processes of one deployment only.

A payload is a small head and a list of buffers that are written to shared memory in place:

    list of equal-shaped arrays or tensors  ->  one stacked block        (kind NUMPY, TORCH)
    anything else                           ->  pickle protocol 5 head, buffers out of band (PICKLE)

Pickle is used only between an owner and the processes that it forked itself.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import cloudpickle
import numpy as np

from kit.engine import tensor_bytes
from kit.engine.tensor_bytes import TensorBytes

PICKLE, NUMPY, TORCH, LONG = 0, 1, 2, 3
ALIGN = 64

Fill = Callable[[memoryview], None]


class Rows(Sequence[Any]):
    """Examples or predictions that lie in one block, `stacked[i]` being the i-th of them.

    `stacked` is a numpy array or a torch tensor of shape [n, ...], or its `TensorBytes`. Rows are made on demand.
    """

    __slots__ = ("stacked",)

    def __init__(self, stacked: Any) -> None:
        self.stacked = stacked

    def __len__(self) -> int:
        return len(self.stacked)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Rows(self.stacked[index])
        return self.stacked[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows at `indices`, copied unless they are a contiguous range."""
        first, n = indices[0], len(indices)
        if indices[-1] - first == n - 1 and (
            isinstance(indices, range) or list(indices) == list(range(first, first + n))
        ):
            return Rows(self.stacked[first : first + n])
        return Rows(self.stacked[list(indices)])

    def tolist(self) -> list[Any]:
        """The rows as a list of views."""
        unbind = getattr(self.stacked, "unbind", None)
        return list(unbind(0)) if unbind is not None else list(self.stacked)


def concatenate(parts: list[Any]) -> Any:
    """Join lists and `Rows`: Rows where all are alike, a list otherwise."""
    if all(type(part) is Rows for part in parts):
        blocks = [part.stacked for part in parts]
        first = blocks[0]
        if all(b.dtype == first.dtype and b.shape[1:] == first.shape[1:] for b in blocks):
            if isinstance(first, TensorBytes):
                return Rows(tensor_bytes.joined(blocks))
            if hasattr(first, "unbind"):
                import torch

                return Rows(torch.cat(blocks))
            return Rows(np.concatenate(blocks))
    values: list[Any] = []
    for part in parts:
        values += part
    return values


class Payload:
    """An encoded object: `head` bytes, sizes of the buffers, and how to write each one."""

    __slots__ = ("fills", "head", "kind", "sizes")

    def __init__(self, kind: int, head: bytes, sizes: list[int], fills: list[Fill]) -> None:
        self.kind = kind
        self.head = head
        self.sizes = sizes
        self.fills = fills


class NoBlock(Exception):
    """The rows of a list turned out not to fit into one block; use `encode_any`."""


def encode(value: Any) -> Payload:
    """Encode a list, a `Rows` or any picklable object.

    Whether the rows of a list are all of one shape shows only when they are stacked: filling a buffer
    may raise NoBlock.

    Raises:
        Exception: whatever pickling the object raises.
    """
    if value is None:
        return _NONE
    if type(value) is Rows:
        payload = _encode_block(value.stacked)
        if payload is not None:
            return payload
        value = value.tolist()
    if type(value) is list and value:
        payload = _encode_stack(value)
        if payload is not None:
            return payload
    return encode_any(value)


_DTYPE_OF, _NEEDS_GRAD = attrgetter("dtype"), attrgetter("requires_grad")
_NONE = Payload(PICKLE, pickle.dumps(None, protocol=5), [], [])


def decode(kind: int, head: bytes | memoryview, buffers: list[Any]) -> Any:
    """The inverse of `encode`; arrays and tensors are views of `buffers`."""
    if kind == PICKLE:
        return pickle.loads(head, buffers=buffers)
    if kind == LONG:
        return decode(*long_parts(head, buffers[0]))
    dtype, shape = _layout(bytes(head))
    if kind == TORCH and tensor_bytes.wanted():
        return Rows(TensorBytes.of(dtype, shape, buffers[0]))
    flat = np.frombuffer(buffers[0], dtype=np.uint8 if kind == TORCH else dtype)
    if kind == NUMPY:
        return Rows(flat.reshape(shape))
    return Rows(tensor_bytes.tensor_from(dtype, shape, flat))


@lru_cache(maxsize=512)
def _layout(head: bytes) -> Any:
    return pickle.loads(head)


@lru_cache(maxsize=512)
def _layout_head(dtype: Any, shape: tuple[int, ...]) -> tuple[bytes, int]:
    size = dtype.itemsize
    for length in shape:
        size *= length
    if not isinstance(dtype, np.dtype):
        dtype = str(dtype).removeprefix("torch.")
    return pickle.dumps((dtype, shape), protocol=5), size


def encode_any(value: Any) -> Payload:
    """Encode any picklable object."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    except Exception:
        # Classes and functions of a notebook cell: only cloudpickle carries them by value.
        buffers.clear()
        head = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    else:
        if b"__main__" in head:
            # A class of __main__ pickles by reference, and a worker's __main__ isn't the notebook.
            buffers.clear()
            head = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raws = [buffer.raw() for buffer in buffers]
    return Payload(PICKLE, head, [raw.nbytes for raw in raws], [_copier(raw) for raw in raws])


def _copier(source: memoryview) -> Fill:
    def fill(target: memoryview) -> None:
        target[:] = source

    return fill


def _encode_block(block: Any) -> Payload | None:
    if isinstance(block, np.ndarray):
        if block.dtype.hasobject or block.dtype.names:
            return None
        return _numpy_payload(block.shape, block.dtype, lambda out: np.copyto(out, block))
    if isinstance(block, TensorBytes):
        return Payload(TORCH, tensor_bytes.head_of(block), [block.nbytes], [tensor_bytes.copier(block)])
    torch = sys.modules["torch"]
    if block.dtype in _torch_plain(torch):
        return _torch_payload(torch, tuple(block.shape), block.dtype, lambda out: out.copy_(block))
    return None


def _encode_stack(values: list[Any]) -> Payload | None:
    # Looking at every row costs about as much as copying it, so only what stacking wouldn't refuse is looked at.
    first = values[0]
    kind = type(first)
    if kind is np.ndarray:
        dtype = first.dtype
        if dtype.hasobject or dtype.names or not first.size or not _alike(values, kind, dtype):
            return None
        return _numpy_payload((len(values), *first.shape), dtype, lambda out: _stacked(np.stack, values, out))
    torch = sys.modules.get("torch")
    if torch is None or kind is not getattr(torch, "Tensor", None):  # half imported, by another thread
        return None
    dtype = first.dtype
    if dtype not in _torch_plain(torch) or not first.numel() or not _alike(values, kind, dtype):
        return None
    if any(map(_NEEDS_GRAD, values)):
        return None
    return _torch_payload(torch, (len(values), *first.shape), dtype, lambda out: _stacked(torch.stack, values, out))


def _alike(values: list[Any], kind: type, dtype: Any) -> bool:
    count = len(values)
    # count() compares by identity first.
    return list(map(type, values)).count(kind) == count and list(map(_DTYPE_OF, values)).count(dtype) == count


def _stacked(stack: Callable[..., Any], values: list[Any], out: Any) -> None:
    try:
        stack(values, out=out)
    except Exception as error:  # another shape, another device, a sparse tensor
        raise NoBlock from error


_TORCH_PLAIN: set[Any] = set()


def _torch_plain(torch: Any) -> set[Any]:
    if not _TORCH_PLAIN:
        _TORCH_PLAIN.update(getattr(torch, name) for name in tensor_bytes.DTYPES if hasattr(torch, name))
    return _TORCH_PLAIN


def _numpy_payload(shape: tuple[int, ...], dtype: np.dtype[Any], write: Callable[[Any], Any]) -> Payload:
    head, size = _layout_head(dtype, shape)

    def fill(target: memoryview) -> None:
        if size:
            write(np.frombuffer(target, dtype=dtype).reshape(shape))

    return Payload(NUMPY, head, [size], [fill])


def _torch_payload(torch: Any, shape: tuple[int, ...], dtype: Any, write: Callable[[Any], Any]) -> Payload:
    head, size = _layout_head(dtype, shape)

    def fill(target: memoryview) -> None:
        if size:
            write(torch.from_numpy(np.frombuffer(target, dtype=np.uint8)).view(dtype).view(shape))

    return Payload(TORCH, head, [size], [fill])


def with_long_head(payload: Payload) -> Payload:
    """The same payload as one buffer: a table of sizes, the head, the buffers, for heads too long for a socket."""
    kind, head, sizes, fills = payload.kind, payload.head, payload.sizes, payload.fills
    table = pickle.dumps((kind, len(head), sizes), protocol=5)
    starts, at = [], aligned(len(table)) + aligned(len(head))
    for size in sizes:
        starts.append(at)
        at += aligned(size)

    def fill(target: memoryview) -> None:
        target[: len(table)] = table
        start = aligned(len(table))
        target[start : start + len(head)] = head
        for size, start, write in zip(sizes, starts, fills, strict=True):
            write(target[start : start + size])

    return Payload(LONG, struct.pack("<I", len(table)), [at], [fill])


def long_parts(head: bytes | memoryview, block: Any) -> tuple[int, memoryview, list[Any]]:
    """What `with_long_head` was given: kind, head, buffers."""
    (table_size,) = struct.unpack("<I", head)
    kind, head_size, sizes = pickle.loads(block[:table_size])
    start = aligned(table_size)
    inner = block[start : start + head_size]
    start += aligned(head_size)
    buffers = []
    for size in sizes:
        buffers.append(block[start : start + size])
        start += aligned(size)
    return kind, inner, buffers


def aligned(size: int) -> int:
    """`size` rounded up to whole cache lines."""
    return (size + ALIGN - 1) & -ALIGN
