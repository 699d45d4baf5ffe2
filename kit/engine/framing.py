"""How the buffers of a message lie one after the other, and the descriptors that travel beside it."""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets of buffers laid out one after the other, aligned, and the bytes that they take."""
    if len(sizes) == 1:
        return [0], sizes[0]
    offsets, total = [], 0
    for size in sizes:
        offsets.append(total)
        total += (size + 63) & ~63
    return offsets, total


def fds_of(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    """Descriptors that came with a message."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)
