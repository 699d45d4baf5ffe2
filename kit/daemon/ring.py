"""The shared memory of a link: a ring with a half for each direction, and memory of single messages.

The ring is made and sealed by the deployment, and single descriptors must be sealed by their sender: memory that
could be truncated under its reader would kill it (SIGBUS).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from collections import deque
from typing import Any

from kit.daemon.wire import Malformed
from kit.engine.arena import ARENA_BYTES, Arena, anonymous_file

SHARED = hasattr(os, "memfd_create")
SEALS = 0x2 | 0x4  # F_SEAL_SHRINK, F_SEAL_GROW


class Ring:
    """One side of the ring, whose other side is another process.

    Args:
        fd: its memory, twice ARENA_BYTES; not kept.
        first: True for the side that made it.
    """

    def __init__(self, fd: int, *, first: bool) -> None:
        self._out = Arena(fd, 0 if first else ARENA_BYTES, ARENA_BYTES)
        self._in = Arena(fd, ARENA_BYTES if first else 0, ARENA_BYTES)
        self._freed: deque[int] = deque()
        self._leases: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def make(cls) -> tuple[Ring | None, int]:
        """A new ring and its descriptor, the caller's to close; (None, -1) where memory can't be sealed."""
        if not SHARED:
            return None, -1
        fd = anonymous_file("kit-link", 2 * ARENA_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS | 0x1)
        return cls(fd, first=True), fd

    @classmethod
    def of(cls, fd: int) -> Ring:
        """The ring that the other side has made; closes `fd`."""
        try:
            check_sealed(fd, 2 * ARENA_BYTES)
            return cls(fd, first=False)
        finally:
            os.close(fd)

    def allocate(self, total: int) -> tuple[int, int, memoryview] | None:
        """A slot to write a message of `total` bytes to: its number, offset, memory; None when there is no room."""
        return self._out.allocate(total)

    def release(self, mask: int) -> None:
        """The other side has read these slots."""
        self._out.release(mask)

    def take_freed(self) -> int:
        """The slots that this side has read since it was last asked, as a mask."""
        mask = 0
        while self._freed:
            mask |= 1 << self._freed.popleft()
        return mask

    def lease(self, slot: int, offset: int, total: int) -> memoryview:
        """What the other side wrote to a slot, which is free again once no view of it is left.

        Raises:
            Malformed: there is no such slot, or it is leased.
        """
        if offset + total > ARENA_BYTES or slot >= 64 or slot in self._leases:
            raise Malformed("a slot that isn't there")
        block = self._in.array(offset, total)
        leases, freed = self._leases, self._freed

        def ended(_: object) -> None:
            # May run in any thread, so it only does what is atomic.
            leases.pop(slot, None)
            freed.append(slot)

        leases[slot] = weakref.ref(block, ended)
        return memoryview(block)  # type: ignore[arg-type]


def own_memory(total: int) -> tuple[int, memoryview]:
    """Memory for one message, for which the ring has no room: its descriptor and a view."""
    fd = anonymous_file("kit-message", total)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd, memoryview(mmap.mmap(fd, total))


def their_memory(fd: int, total: int) -> memoryview:
    """The memory of a message that came with a descriptor; closes it."""
    try:
        check_sealed(fd, total)
        return memoryview(mmap.mmap(fd, max(total, 1)))
    finally:
        os.close(fd)


def check_sealed(fd: int, size: int) -> None:
    """Refuse memory that could shrink.

    Raises:
        Malformed: it isn't sealed, or is smaller than `size`.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise Malformed("a descriptor that isn't sealed memory") from error
    if seals & SEALS != SEALS or os.fstat(fd).st_size < size:
        raise Malformed("memory that isn't sealed, or is too small")
