"""A block of shared memory in which one side writes messages and the other reads them in place.

    sender                                        receiver
    allocate(n) -> slot, view; write; send slot   map(offset, n) -> array over the slot
    release(slots)   <--- freed mask -----------  when the last view of the array is gone

Only the sender allocates, so no state is shared but the bytes themselves. A slot is leased until
the receiver has let go of every view of it; the receiver notices that by a weak reference.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SLOTS = 48
#: Address space, not memory: only pages that were written to count.
ARENA_BYTES = 64 << 20


def anonymous_file(name: str, size: int) -> int:
    """A file descriptor of `size` zero bytes in memory (a deleted file where there is no memfd)."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        fd, path = tempfile.mkstemp(prefix=name)
        Path(path).unlink()
    os.ftruncate(fd, size)
    return fd


class Arena:
    """One direction of a channel: `size` bytes at `offset` of the file `fd`."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._map = mmap.mmap(fd, size, offset=offset)
        self._view = memoryview(self._map)
        self._bytes = np.frombuffer(self._view, dtype=np.uint8)
        self._size = size
        self._live: dict[int, tuple[int, int]] = {}

    def allocate(self, size: int) -> tuple[int, int, memoryview] | None:
        """A free slot of `size` bytes as (slot, offset, writable view), or None when there is none."""
        live = self._live
        start = slot = 0
        if len(live) == 1:  # a round trip after the other: by far the most frequent
            ((other, (begin, end)),) = live.items()
            slot = int(other == 0)
            start = 0 if begin >= size else end
        elif live:
            if len(live) >= SLOTS:
                return None
            for begin, end in sorted(live.values()):
                if begin - start >= size:
                    break
                start = end
            slot = next(i for i in range(SLOTS) if i not in live)
        end = start + ((size + 63) & ~63)
        if end > self._size:
            return None
        live[slot] = (start, end)
        return slot, start, self._view[start : start + size]

    def release(self, mask: int) -> None:
        """Free the slots whose bits are set in `mask`."""
        while mask:
            low = mask & -mask
            self._live.pop(low.bit_length() - 1, None)
            mask ^= low

    def array(self, offset: int, size: int) -> np.ndarray[Any, Any]:
        """A new uint8 array over the bytes; hand out memoryviews of it, and it lives while any of them does."""
        return self._bytes[offset : offset + size]


if sys.byteorder != "little":  # the codec sends numbers as they lie in memory
    raise ImportError("kit: only little-endian machines are supported.")
