"""Bytes of a loaded model, and how long loading it took."""

from __future__ import annotations

import io
import os
import pickle
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from kit.mapped_files import File, in_mapped_files

#: Smaller numpy buffers stay in the pickle: a mapping entry would cost more than it saves.
SMALL_BYTES = 1024


class BufferPickler(cloudpickle.Pickler):
    """Collects torch storages and numpy buffers in place of pickling them."""

    def __init__(self, file: io.BytesIO) -> None:
        self.buffers: list[memoryview] = []
        # With a method the pickler would be a cycle, and keep the model until the next garbage collection.
        super().__init__(file, protocol=5, buffer_callback=partial(_take_buffer, self.buffers))
        self.storages: list[Any] = []
        #: order in which storages were met, as indices: equal for equal structures and ties
        self.trail: list[int] = []
        self._known: dict[tuple[int, int], int] = {}
        self._torch = sys.modules.get("torch")

    def persistent_id(self, obj: Any) -> Any:
        torch = self._torch
        if torch is None or not isinstance(obj, (torch.storage.TypedStorage, torch.UntypedStorage)):
            return None
        typed = isinstance(obj, torch.storage.TypedStorage)
        storage = obj._untyped_storage if typed else obj
        if storage.device.type != "cpu":
            raise pickle.PicklingError(f"a tensor lies on {storage.device}, and only CPU memory can be mapped")
        key = (storage.data_ptr(), storage.nbytes())
        # Empty storages have no address of their own.
        index = self._known.get(key) if key[1] else None
        if index is None:
            index = len(self.storages)
            self.storages.append(storage)
            self._known[key] = index
        self.trail.append(index)
        return (index, str(obj.dtype).removeprefix("torch.") if typed else None)

    def spans(self) -> set[tuple[int, int]]:
        """Where the storages and buffers lie: (address, bytes), each once."""
        found = {(int(storage.data_ptr()), int(storage.nbytes())) for storage in self.storages if storage.nbytes()}
        return found | {(address(raw), raw.nbytes) for raw in self.buffers}


def _take_buffer(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Collect a buffer, unless it is to stay in the pickle."""
    raw = buffer.raw()
    if raw.nbytes < SMALL_BYTES:
        return True
    buffers.append(raw)
    return False


def pickled(model: Any, kind: type[BufferPickler] = BufferPickler) -> tuple[bytes, BufferPickler]:
    file = io.BytesIO()
    pickler = kind(file)
    pickler.dump(model)
    return file.getvalue(), pickler


class Weighed(NamedTuple):
    """Bytes of a loaded model.

    Attributes:
        size_bytes: storages and buffers, each once, and the pickled rest.
        mapped: of them those in mapped files, by (device, inode).
        device_bytes: of them those outside the machine's memory, on a GPU.
    """

    size_bytes: int
    mapped: dict[File, int]
    device_bytes: int


def weigh(model: Any) -> Weighed | None:
    """What a loaded model weighs; None if it can't be pickled."""
    try:
        head, pickler = pickled(model, _AnyDevice)
    except Exception:
        return None
    elsewhere = sum(int(storage.nbytes()) for storage in pickler.elsewhere)
    spans = pickler.spans()
    size = len(head) + sum(size for _, size in spans) + elsewhere
    return Weighed(size, in_mapped_files(spans), elsewhere)


class _AnyDevice(BufferPickler):
    """Collects storages of other devices as well, each once, in `elsewhere`."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.elsewhere: list[Any] = []

    def persistent_id(self, obj: Any) -> Any:
        try:
            return super().persistent_id(obj)
        except pickle.PicklingError:
            storage = getattr(obj, "_untyped_storage", obj)
            if storage.device.type == "meta":  # a shape without memory
                return ("meta", storage.nbytes())
            key = (storage.data_ptr(), storage.nbytes())
            if key not in self._known:
                self._known[key] = len(self.elsewhere)
                self.elsewhere.append(storage)
            return (str(storage.device), self._known[key])


def address(raw: memoryview) -> int:
    return int(np.frombuffer(raw, dtype=np.uint8).__array_interface__["data"][0]) if raw.nbytes else 0


class Loaded(NamedTuple):
    """A loaded model, the seconds that it took and its bytes, as `Weighed` has them."""

    model: Any
    load_s: float
    size_bytes: int
    mapped: dict[File, int]
    device_bytes: int = 0


def timed_load(load: Callable[[], Any], measure: Callable[[Any], int | None] | None = None) -> Loaded:
    """Load a model and see what it weighs.

    ``size_bytes`` is what `measure` says, or else `weigh`; where that is None, as for a model that can't be
    pickled, it is the growth of this process's memory, mapped files included.
    """
    before = _resident_bytes()
    start = time.monotonic()
    model = load()
    load_s = time.monotonic() - start
    grown = _resident_bytes() - before  # before weighing, which may set off a garbage collection
    if measure is None:
        weighed = weigh(model)
        if weighed is not None:
            return Loaded(model, load_s, *weighed)
    size = measure(model) if measure is not None else None
    if size is None:
        size = max(0, grown)
    return Loaded(model, load_s, int(size), {})


def _resident_bytes() -> int:
    """What the process has in memory, from a counter: to tell its own pages apart, the kernel would walk them all."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import psutil

        return int(psutil.Process().memory_info().rss)
