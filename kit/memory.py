"""Bytes: of processes, of shared segments, of GPUs, of this machine; parsing and printing them.

A process's PSS (proportional set size) counts each page divided by the number of processes that map
it, so that the PSS of several processes add up to what they take together. RSS doesn't: it counts a
shared page once a process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kit.gpu_memory import gpu_bytes_of, gpu_present
from kit.machine import cpu_count, memory_limit, total_and_available
from kit.sizes import format_bytes, parse_bytes

__all__ = [
    "MemorySampler",
    "ProcessMemory",
    "Sample",
    "SegmentMemory",
    "cpu_count",
    "format_bytes",
    "gpu_bytes_of",
    "gpu_present",
    "memory_limit",
    "parse_bytes",
    "process_memory",
    "segment_memory",
    "total_and_available",
]


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of one process, bytes.

    Attributes:
        rss_bytes: resident pages, shared ones counted in full.
        pss_bytes: resident pages, each divided by the number of processes that map it. Where the
            system doesn't know it (macOS), the same as `uss_bytes`.
        uss_bytes: pages that this process alone maps (private, clean and dirty).
        shared_bytes: resident pages that others map too.
        read_s: CPU seconds that this reading cost.
        at: `time.monotonic()` of the reading.
        anonymous_bytes: resident pages that belong to no file: heap, stacks, written pages of private
            mappings. A mapped segment or library adds nothing, however many map it, while `uss_bytes` counts
            it as private to its only mapper. Where the system doesn't know it, the same as `uss_bytes`.
    """

    rss_bytes: int
    pss_bytes: int
    uss_bytes: int
    shared_bytes: int
    read_s: float
    at: float
    anonymous_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SegmentMemory:
    """Memory of a process's mappings of shared segments, bytes.

    Attributes:
        size_bytes, rss_bytes, pss_bytes: as for a process, of these mappings only.
        private_dirty_bytes: the kernel's Private_Dirty. A memfd's pages are always dirty, so with one
            mapper alone this is the whole segment, written to or not.
        anonymous_bytes: pages that this process wrote to and so has a copy of its own of. 0 as long
            as the weights are shared, with one mapper or many: this is the figure to watch.
        inodes: distinct inodes, ascending; one inode in several processes is one segment.
        mappings: how many mappings.
    """

    size_bytes: int
    rss_bytes: int
    pss_bytes: int
    private_dirty_bytes: int
    anonymous_bytes: int
    inodes: tuple[int, ...]
    mappings: int


def process_memory(pid: int) -> ProcessMemory | None:
    """Memory of process `pid`, None when there is no such process (any more).

    The kernel walks the process's pages for it: 1 ms for each 100 MB or so. Read it seldom
    (`MemorySampler` does).
    """
    began = time.thread_time()
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            text = file.read()
    except (FileNotFoundError, PermissionError):
        return _portable_memory(pid, began)
    except ProcessLookupError:
        return None
    fields = _fields(text)
    if not fields:
        return None
    return ProcessMemory(
        rss_bytes=fields[b"Rss"],
        pss_bytes=fields[b"Pss"],
        uss_bytes=fields[b"Private_Clean"] + fields[b"Private_Dirty"],
        shared_bytes=fields[b"Shared_Clean"] + fields[b"Shared_Dirty"],
        read_s=time.thread_time() - began,
        at=time.monotonic(),
        anonymous_bytes=fields[b"Anonymous"],
    )


def _portable_memory(pid: int, began: float) -> ProcessMemory | None:
    """Without smaps_rollup (macOS, another user's process): what psutil can tell."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        rss = int(process.memory_info().rss)
        try:
            uss = int(process.memory_full_info().uss)
        except psutil.AccessDenied:
            uss = rss
    except psutil.NoSuchProcess:
        return None
    cost = time.thread_time() - began
    return ProcessMemory(rss, uss, uss, max(0, rss - uss), cost, time.monotonic(), uss)


def segment_memory(pid: int, name_prefix: str) -> SegmentMemory | None:
    """Memory of the mappings of `pid` whose path starts with `name_prefix`, such as "/memfd:kit-weights".

    All zero when it has none; None when there is no such process, or no /proc (macOS).
    """
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    sums = dict.fromkeys((b"Size", b"Rss", b"Pss", b"Private_Dirty", b"Anonymous"), 0)
    prefix, inodes, mappings = name_prefix.encode(), set(), 0
    # Jump from hit to hit: a process with torch has thousands of mappings, and a few are ours.
    found = text.find(b" " + prefix)
    while found >= 0:
        start = text.rfind(b"\n", 0, found) + 1
        end = text.find(b"\nVmFlags", found)
        end = len(text) if end < 0 else end
        header, _, body = text[start:end].partition(b"\n")
        parts = header.split(None, 5)  # range, permissions, offset, device, inode, path
        if len(parts) == 6 and parts[5].startswith(prefix):
            inodes.add(int(parts[4]))
            mappings += 1
            fields = _fields(body)
            for name in sums:
                sums[name] += fields.get(name, 0)
        found = text.find(b" " + prefix, end)
    return SegmentMemory(
        size_bytes=sums[b"Size"],
        rss_bytes=sums[b"Rss"],
        pss_bytes=sums[b"Pss"],
        private_dirty_bytes=sums[b"Private_Dirty"],
        anonymous_bytes=sums[b"Anonymous"],
        inodes=tuple(sorted(inodes)),
        mappings=mappings,
    )


def _fields(text: bytes) -> dict[bytes, int]:
    """Bytes by name from the "Name:   123 kB" lines of smaps."""
    fields = {}
    for line in text.splitlines():
        if line.endswith(b" kB"):
            name, _, rest = line.partition(b":")
            fields[name] = int(rest[:-3]) * 1024
    return fields


# ---- sampling ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """The latest reading of one process.

    Attributes:
        pid, role: as given by the sampler's `processes`.
        memory: the reading; `memory.at` is its `time.monotonic()`.
        gpu_bytes: bytes held on GPUs, None where no GPU was read.
        age_s: seconds since the reading.
    """

    pid: int
    role: str
    memory: ProcessMemory
    gpu_bytes: int | None
    age_s: float


class MemorySampler:
    """Keeps readings of several processes fresh for less than 1 % of a core, on average.

    It has no thread of its own: some thread calls `tick`, once a second say. Every reading is paid
    for by its measured CPU cost, out of an allowance that grows at `share` CPU seconds a second.
    Processes never read come first (and aren't made to wait), then those whose reading is oldest.

    Args:
        processes: returns the (pid, role) of the processes to watch now.
        share: cores that reading may cost.
        min_interval_s: least time between two readings of one process.
    """

    def __init__(
        self,
        processes: Callable[[], Sequence[tuple[int, str]]],
        *,
        share: float = 0.01,
        min_interval_s: float = 1.0,
        read: Callable[[int], ProcessMemory | None] = process_memory,
    ) -> None:
        self._processes = processes
        self._share = share
        self._min_interval_s = min_interval_s
        self._read = read
        self._readings: dict[int, tuple[str, ProcessMemory]] = {}
        self._gpu: dict[int, int] | None = None
        self._allowed_at = -float("inf")
        self._busy = threading.Lock()

    def tick(self, now: float | None = None) -> int:
        """Read those that are due; how many were. `now` is `time.monotonic()`.

        A call made while another thread is in one returns 0 at once.
        """
        if not self._busy.acquire(blocking=False):
            return 0
        try:
            return self._tick(time.monotonic() if now is None else now)
        finally:
            self._busy.release()

    def latest(self, now: float | None = None) -> list[Sample]:
        """The latest reading of each process that is still watched, in no particular order."""
        now = time.monotonic() if now is None else now
        gpu = self._gpu
        return [
            Sample(pid, role, memory, None if gpu is None else gpu.get(pid, 0), max(0.0, now - memory.at))
            for pid, (role, memory) in list(self._readings.items())
        ]

    def _tick(self, now: float) -> int:
        watched = dict(self._processes())
        for pid in [pid for pid in self._readings if pid not in watched]:
            self._readings.pop(pid, None)
        # Time that went unused isn't saved up for more than a second: no bursts.
        self._allowed_at = max(self._allowed_at, now - 1.0)
        count = 0
        for pid in sorted(watched, key=self._read_at):
            fresh = pid not in self._readings
            # Ticks come a little early or late; a tenth less isn't worth waiting for the next.
            too_soon = now - self._read_at(pid) < 0.9 * self._min_interval_s
            if not fresh and (self._allowed_at > now or too_soon):
                break  # the rest was read more recently
            reading = self._read(pid)
            if reading is None:
                self._readings.pop(pid, None)
                continue
            self._readings[pid] = (watched[pid], reading)
            self._pay(reading.read_s)
            count += 1
        if count and gpu_present():
            began = time.monotonic()  # another process may do this work, so the wall clock counts
            self._gpu = gpu_bytes_of(watched)
            self._pay(time.monotonic() - began)
        return count

    def _pay(self, cost_s: float) -> None:
        self._allowed_at += cost_s / self._share

    def _read_at(self, pid: int) -> float:
        reading = self._readings.get(pid)
        return reading[1].at if reading is not None else -float("inf")
