"""Which bytes of a model lie in pages of mapped files, which the kernel keeps once for all processes."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

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
    written_bytes: int  # of pages that this process has copies of its own of


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
        found[mapping.file] = found.get(mapping.file, 0) + max(0, size - mapping.written_bytes)
    return found


def _mappings() -> list[_Mapping]:
    """This process's mappings of files, by address."""
    try:
        with open("/proc/self/smaps", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    found: list[_Mapping] = []
    header: list[bytes] = []
    for line in lines:
        name, _, rest = line.partition(b" ")
        if not name.endswith(b":"):
            header = line.split(None, 5)  # range, permissions, offset, device, inode, path
        elif name == b"Anonymous:" and header[4] != b"0":
            start, _, end = header[0].partition(b"-")
            major, _, minor = header[3].partition(b":")
            device = int(major, 16) << 20 | int(minor, 16)
            found.append(_Mapping(int(start, 16), int(end, 16), (device, int(header[4])), 1024 * int(rest.split()[0])))
    return found
