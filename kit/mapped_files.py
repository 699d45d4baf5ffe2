"""Which bytes of a model lie in pages of mapped files, which the kernel keeps once for all processes."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

#: A file, as (device, inode).
File = tuple[int, int]


def file_of(fd: int) -> File:
    """The file behind a descriptor."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


class _Mapping(NamedTuple):
    start: int
    end: int
    file: File


#: A mapping of a file in /proc/self/maps: range, permissions, offset, device, inode (0 is no file).
_LINE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ ([0-9a-f]+):([0-9a-f]+) ([1-9]\d*)", re.MULTILINE)
_SIZES = re.compile(rb"^Rss: +(\d+) kB\nPss: +(\d+) kB", re.MULTILINE)
#: Of an entry of /proc/self/pagemap: the page is there; it belongs to a file.
_PRESENT, _OF_FILE = 1 << 63, 1 << 61


def in_mapped_files(spans: Iterable[tuple[int, int]]) -> dict[File, int]:
    """Bytes of (address, size) spans of this process that lie in mapped files, by file.

    Pages that this process has written to are its own, and aren't counted. Empty where the system has no
    /proc (macOS): there all is taken for the process's own.
    """
    mappings = _mappings()
    starts = [mapping.start for mapping in mappings]
    sizes: dict[_Mapping, int] = {}
    for address, size in spans:
        index = bisect_right(starts, address) - 1
        if index >= 0 and address + size <= mappings[index].end:
            mapping = mappings[index]
            sizes[mapping] = sizes.get(mapping, 0) + size
    found: dict[File, int] = {}
    for mapping, size in sizes.items():
        found[mapping.file] = found.get(mapping.file, 0) + max(0, size - _written_bytes(mapping))
    return found


class Mapped(NamedTuple):
    """What a process has in memory of a file that it maps: bytes, and their part where n map a page, an nth of it."""

    rss_bytes: int = 0
    pss_bytes: int = 0


def mapped_by(pid: int, files: Collection[File]) -> dict[File, Mapped]:
    """What a process has in memory of some files; nothing without /proc.

    The kernel walks all pages of the process for it: tens of ms.
    """
    found = dict.fromkeys(files, Mapped())
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            text = file.read()
    except OSError:
        return found
    inodes = {inode for _, inode in files}
    for header in _LINE.finditer(text):
        if int(header[5]) in inodes:
            mapped = os.makedev(int(header[3], 16), int(header[4], 16)), int(header[5])
            sizes = _SIZES.search(text, header.end())
            if mapped in found and sizes is not None:
                rss, pss = (int(size) * 1024 for size in sizes.groups())
                found[mapped] = Mapped(found[mapped].rss_bytes + rss, found[mapped].pss_bytes + pss)
    return found


def _mappings() -> list[_Mapping]:
    """This process's mappings of files, by address.

    Not of /proc/self/smaps, for which the kernel walks all pages of the process: tens of ms at each load.
    """
    try:
        with open("/proc/self/maps", "rb") as file:
            text = file.read()
    except OSError:
        return []
    return [
        _Mapping(int(start, 16), int(end, 16), (os.makedev(int(major, 16), int(minor, 16)), int(inode)))
        for start, end, major, minor, inode in _LINE.findall(text)
    ]


def _written_bytes(mapping: _Mapping) -> int:
    """Bytes of a mapping's pages that this process has copies of its own of, as it has written to them."""
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(mapping.start // page * 8)
            entries = np.frombuffer(file.read((mapping.end - mapping.start) // page * 8), np.uint64)
    except OSError:
        return 0
    own = (entries & np.uint64(_PRESENT | _OF_FILE)) == np.uint64(_PRESENT)
    return int(np.count_nonzero(own)) * page
