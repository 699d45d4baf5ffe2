"""Weights of a model in one sealed segment that all workers map (mode `shared`).

    load_model() -> pickle: small head + torch storages and numpy buffers out of band
                 -> memfd, each buffer once, 64-byte aligned, sealed
    worker       -> map it privately, unpickle the head: tensors are views of the segment

A worker maps the segment MAP_PRIVATE with write access, so that a stray write (BatchNorm in train
mode) makes a private page and not a crash. This is pickle inside our own process tree.
"""

from __future__ import annotations

import fcntl
import io
import mmap
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kit.engine.arena import anonymous_file
from kit.engine.codec import aligned
from kit.engine.giving_way import PIECE_BYTES, read_ahead
from kit.mapped_files import file_of
from kit.model_bytes import BufferPickler, address, pickled

SEGMENT_NAME = "kit-weights"


class Block(NamedTuple):
    """Bytes in the segment, and the torch storage or numpy buffer that they came from."""

    offset: int
    size: int


class Segment(NamedTuple):
    """How to rebuild a model from a segment: the pickle's head and where each buffer lies."""

    head: bytes
    storages: list[Block]
    buffers: list[Block]
    size: int

    @property
    def weights_bytes(self) -> int:
        """Bytes of storages and buffers, each once."""
        return sum({block.offset: block.size for block in (*self.storages, *self.buffers) if block.size}.values())


def publish(model: Any) -> tuple[int, Segment, BufferPickler]:
    """Write a model into a new sealed segment; returns its descriptor, the recipe, and what `check` compares with.

    Raises:
        Exception: whatever pickling the model raises.
    """
    head, pickler = pickled(model)
    sources = [(_bytes_of(storage), "storage") for storage in pickler.storages]
    sources += [(raw, "buffer") for raw in pickler.buffers]
    placed: dict[tuple[int, int], Block] = {}
    blocks: dict[str, list[Block]] = {"storage": [], "buffer": []}
    size = 0
    for raw, kind in sources:
        key = (address(raw), raw.nbytes)
        block = placed.get(key) if raw.nbytes else None
        if block is None:
            block = placed[key] = Block(size, raw.nbytes)
            size += aligned(raw.nbytes)
        blocks[kind].append(block)
    fd = anonymous_file(SEGMENT_NAME, max(size, 1))
    for (raw, _), block in zip(sources, [*blocks["storage"], *blocks["buffer"]], strict=True):
        _write(fd, raw, block.offset)
    _seal(fd)
    return fd, Segment(head, blocks["storage"], blocks["buffer"], max(size, 1)), pickler


def attach(fd: int, segment: Segment) -> Any:
    """Rebuild the model over a private mapping of the segment; the descriptor may be closed afterwards."""
    return _attach(fd, segment)[0]


def _attach(fd: int, segment: Segment) -> tuple[Any, int]:
    """The model, and the address of the mapping."""
    mapped = mmap.mmap(fd, segment.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    whole = memoryview(mapped)
    read_ahead(address(whole), segment.size)
    unpickler = pickle.Unpickler(
        io.BytesIO(segment.head), buffers=[whole[b.offset : b.offset + b.size] for b in segment.buffers]
    )
    storages: dict[int, Any] = {}

    def persistent_load(reference: tuple[int, str | None]) -> Any:
        import torch

        index, dtype = reference
        if index not in storages:
            block = segment.storages[index]
            if block.size:
                view = torch.frombuffer(mapped, dtype=torch.uint8, count=block.size, offset=block.offset)
                storages[index] = view.untyped_storage()
            else:
                storages[index] = torch.UntypedStorage(0)
        if dtype is None:
            return storages[index]
        return torch.storage.TypedStorage(wrap_storage=storages[index], dtype=getattr(torch, dtype), _internal=True)

    unpickler.persistent_load = persistent_load  # type: ignore[method-assign]
    return unpickler.load(), address(whole)


def attach_segment(fd: int, segment: Segment) -> tuple[Any, dict[str, Any]]:
    """`attach` for a worker: closes the descriptor; reports load_s, weights_bytes, mapped and private bytes.

    Private is what a model of this process alone would be weighed at, less what lies in the segment.
    """
    start = time.monotonic()
    model, begin = _attach(fd, segment)
    load_s = time.monotonic() - start
    mapped = {file_of(fd): segment.weights_bytes}
    os.close(fd)
    head, pickler = pickled(model)
    outside = [size for at, size in pickler.spans() if not begin <= at < begin + segment.size]
    report = {"load_s": load_s, "weights_bytes": segment.weights_bytes, "mapped": [mapped]}
    return model, {**report, "private_bytes": len(head) + sum(outside)}


def check(ours: BufferPickler, rebuilt: Any) -> str | None:
    """Compare a published model with its rebuilt twin byte for byte; returns what differs, or None.

    Storages must be equal, met in the same order (so ties and views are kept), and lie elsewhere.
    """
    _, theirs = pickled(rebuilt)
    if theirs.trail != ours.trail:
        return "tied or shared tensors come back in another arrangement"
    for number, (one, other) in enumerate(zip(ours.storages, theirs.storages, strict=True)):
        if not _equal_bytes(_bytes_of(one), _bytes_of(other)):
            return f"the bytes of tensor storage {number} differ"
    if len(ours.buffers) != len(theirs.buffers):
        return "numpy arrays come back in another arrangement"
    for number, (first, second) in enumerate(zip(ours.buffers, theirs.buffers, strict=True)):
        if not _equal_bytes(first, second):
            return f"the bytes of numpy array {number} differ"
    return None


def equal_outputs(one: Any, other: Any) -> bool:
    """True when two results of inference are equal bit for bit (NaN equals NaN)."""
    if type(one) is not type(other):
        return False
    if hasattr(one, "unbind") or isinstance(one, (np.ndarray, np.generic)):
        first, second = (np.asarray(x.detach().cpu() if hasattr(x, "detach") else x) for x in (one, other))
        return bool(first.shape == second.shape and first.dtype == second.dtype and first.tobytes() == second.tobytes())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_outputs(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal_outputs, one, other))
    return bool(one == other or (one != one and other != other))


def _bytes_of(storage: Any) -> memoryview:
    torch = sys.modules["torch"]
    if not storage.nbytes():
        return memoryview(b"")
    tensor = torch.empty(0, dtype=torch.uint8).set_(storage)
    return memoryview(tensor.numpy())


def _equal_bytes(one: memoryview, other: memoryview) -> bool:
    return bool(np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)))


def _write(fd: int, raw: memoryview, offset: int) -> None:
    raw = raw.cast("B") if raw.nbytes else raw
    done = 0
    while done < raw.nbytes:
        done += os.pwrite(fd, raw[done : done + PIECE_BYTES], offset + done)


def _seal(fd: int) -> None:
    seal: Callable[..., Any] = fcntl.fcntl
    if hasattr(fcntl, "F_ADD_SEALS"):
        seal(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
