"""What a worker thread has answered directly, for the deployment's process to count: records in shared memory.

The worker writes before it answers, so whoever has an answer finds it counted. Both are of one process tree; no kernel
gets this memory.
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

from kit.engine.arena import anonymous_file

RECORDS = 2048


class Record(NamedTuple):
    """One request; times on the monotonic clock, in seconds."""

    asked_at: float
    began_at: float
    ended_at: float
    compute_s: float
    examples: float
    batches: float
    size_bytes: float
    failed: float


_WIDTH = len(Record._fields)
_WRITTEN, _READ, _FIRST = 0, 1, 2
SIZE = 8 * (_FIRST + RECORDS * _WIDTH)


class Ledger:
    """One side of it; a new one without `fd`, which stays the caller's to close."""

    def __init__(self, fd: int) -> None:
        self._cells = memoryview(mmap.mmap(fd, SIZE)).cast("d")

    @staticmethod
    def make() -> int:
        """Memory for a new ledger."""
        return anonymous_file("kit-ledger", SIZE)

    @property
    def full(self) -> bool:
        """True when a record more would overwrite one that nobody has read."""
        return self._cells[_WRITTEN] - self._cells[_READ] >= RECORDS

    def add(self, record: Record) -> None:
        """Write a record; the worker's side."""
        cells = self._cells
        written = int(cells[_WRITTEN])
        at = _FIRST + written % RECORDS * _WIDTH
        for value in record:
            cells[at] = value
            at += 1
        cells[_WRITTEN] = written + 1

    def take(self) -> list[Record]:
        """The records that weren't read yet; the other side."""
        cells = self._cells
        read, written = int(cells[_READ]), int(cells[_WRITTEN])
        found = []
        for number in range(read, written):
            at = _FIRST + number % RECORDS * _WIDTH
            found.append(Record(*cells[at : at + _WIDTH]))
        cells[_READ] = written
        return found
