"""Counters of all processes of a deployment in one page of shared memory.

Each slot has one writer at a time, so nothing is locked; anybody may read, without a message, also after the
writer died.
"""

from __future__ import annotations

import mmap
import os
import time

from kit.engine.arena import anonymous_file

SLOTS = 512
FIELDS = 16
(
    EXAMPLES,  # examples computed
    BATCHES,  # batches computed
    BUSY_NS,  # time spent on chunks or batches, nanoseconds; a worker thread's waits for hosts aren't
    SINCE_NS,  # until when that was counted of the chunk in hand, 0 when idle
    HEARTBEAT_NS,  # monotonic clock, written twice a second
    TARGET,  # 1 + index of the model host that this worker thread asks, 0 when none
    COALESCED,  # requests that shared a batch with another's
    COMPUTING_NS,  # start of the step in which a worker thread's chunk is, 0 while it waits for a host to take it
    CANCELLED,  # id of a worker thread's chunk that nobody waits for any more; written by the owner
    ALSO_CANCELLED,  # id of another
) = range(10)


class Board:
    """The page; `fd` is passed to children."""

    def __init__(self, fd: int | None = None) -> None:
        size = SLOTS * FIELDS * 8
        self.fd = anonymous_file("kit-board", size) if fd is None else fd
        self._map = mmap.mmap(self.fd, size)
        self._cells = memoryview(self._map).cast("q")
        self._free = list(range(SLOTS - 1, 0, -1))  # slot 0 holds the number of slots ever used

    def take(self) -> int:
        """A zeroed slot for a new process or thread.

        Raises:
            IndexError: all are taken.
        """
        slot = self._free.pop()
        self._cells[0] = max(self._cells[0], slot + 1)
        for field in range(FIELDS):
            self._cells[slot * FIELDS + field] = 0
        return slot

    def give_back(self, slot: int) -> None:
        """Let the slot be used again."""
        self.put(slot, TARGET, 0)
        self._free.append(slot)

    @property
    def used(self) -> int:
        """One above the highest slot ever taken."""
        return self._cells[0]

    def get(self, slot: int, field: int) -> int:
        return self._cells[slot * FIELDS + field]

    def put(self, slot: int, field: int, value: int) -> None:
        self._cells[slot * FIELDS + field] = value

    def add(self, slot: int, field: int, value: int) -> None:
        self._cells[slot * FIELDS + field] += value

    def begin(self, slot: int) -> int:
        """Note the start of a piece of work; returns it, in nanoseconds."""
        now = time.monotonic_ns()
        self._cells[slot * FIELDS + SINCE_NS] = now
        return now

    def pause(self, slot: int) -> None:
        """Note that another process goes on with it, until `begin`."""
        cells, at = self._cells, slot * FIELDS
        if since := cells[at + SINCE_NS]:
            cells[at + BUSY_NS] += time.monotonic_ns() - since
            cells[at + SINCE_NS] = 0

    def end(self, slot: int, examples: int, batches: int) -> None:
        """Note its end."""
        self.pause(slot)
        cells, at = self._cells, slot * FIELDS
        cells[at + EXAMPLES] += examples
        cells[at + BATCHES] += batches

    def busy_ns(self, slot: int, now: int) -> int:
        """Time spent so far, the work in hand included, nanoseconds."""
        since = self.get(slot, SINCE_NS)
        return self.get(slot, BUSY_NS) + (max(0, now - since) if since else 0)

    def close(self) -> None:
        self._cells.release()
        self._map.close()
        os.close(self.fd)
