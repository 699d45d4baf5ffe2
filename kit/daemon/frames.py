"""Frames as they come in: their header, what a peer may send, and the bytes that are there so far.

frame = header (52 bytes) | body inline                   up to 16 KB
frame = header, body in the sender's half of the ring     what fits there
frame = header with a descriptor, body in its memory      what doesn't
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections import deque
from typing import NamedTuple

from kit.daemon.decoder import Decoder
from kit.daemon.protocol import VERSION
from kit.daemon.ring import SHARED
from kit.daemon.wire import Malformed

MAGIC = 0x4B44
# magic, version, kind | slot, descriptors | number | offset | freed mask | bytes of body, of head
HEADER = struct.Struct("<HBBHHQQQQQ")
NO_SLOT, OWN_FD = 0xFFFF, 0xFFFE
INLINE_BYTES = 16 << 10
#: What a peer may send inline, in all, and as structure; bytes.
MAX_INLINE, MAX_BODY, MAX_HEAD = (1 << 20 if SHARED else 1 << 30), 8 << 30, 1 << 30
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class LinkClosed(Exception):
    """The other side is gone, or this side has closed the link."""


class VersionDiffers(LinkClosed):
    """The other side speaks another version of the protocol."""


class Frame(NamedTuple):
    """A received frame; `decoder` reads its values, `fd` is a descriptor that came with it or -1."""

    kind: int
    number: int
    decoder: Decoder
    fd: int = -1


class Header(NamedTuple):
    """A checked header; `at` is where an inline body begins in the buffer."""

    kind: int
    slot: int
    number: int
    offset: int
    freed: int
    total: int
    head: int
    fd: int
    at: int


class Inbox:
    """Bytes and descriptors that came over a socket and aren't a whole frame yet.

    Args:
        sock: the socket, non-blocking.
        most_bytes: of a body.
    """

    def __init__(self, sock: socket.socket, most_bytes: int = MAX_BODY) -> None:
        self._sock = sock
        self._most_bytes = most_bytes
        self._buffer = bytearray(64 << 10)
        self._start = self._end = 0
        self._fds: deque[int] = deque()

    @property
    def maybe_frame(self) -> bool:
        """True when something was read that may be a frame."""
        return self._end - self._start >= HEADER.size

    def read(self) -> None:
        """Take what is there, without waiting.

        Raises:
            LinkClosed: the other side is gone. Malformed.
        """
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._buffer):
            self._make_room()
        view = memoryview(self._buffer)[self._end :]
        try:
            size, ancillary, flags, _ = self._sock.recvmsg_into([view], 256, _CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            raise LinkClosed(str(error)) from error
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > 64:
            raise Malformed("too many descriptors")
        if size == 0:
            raise LinkClosed("end of stream")
        self._end += size

    def _make_room(self) -> None:
        waiting = self._end - self._start
        if self._start:
            self._buffer[:waiting] = self._buffer[self._start : self._end]
        else:
            self._buffer.extend(bytes(min(len(self._buffer), MAX_INLINE)))
        self._start, self._end = 0, waiting

    def next(self) -> Header | None:
        """The header of the next frame that is there whole, which is consumed; its inline body is read by `body`.

        Raises:
            VersionDiffers, Malformed: the bytes aren't a frame.
        """
        waiting = self._end - self._start
        if waiting < HEADER.size:
            return None
        fields = HEADER.unpack_from(self._buffer, self._start)
        magic, version, kind, slot, descriptors, number, offset, freed, total, head = fields
        if magic != MAGIC:
            raise Malformed("not a frame of the kit")
        if version != VERSION:
            raise VersionDiffers(f"protocol {version}, expected {VERSION}")
        if total > self._most_bytes or head > min(total, MAX_HEAD) or descriptors > 1:
            raise Malformed(f"a body of {total} bytes with a head of {head}")
        inline = total if slot == NO_SLOT else 0
        if inline > MAX_INLINE:
            raise Malformed(f"{inline} bytes inline")
        if waiting < HEADER.size + inline:
            return None
        at = self._start + HEADER.size
        self._start = at + inline
        fd = self.take_fd() if descriptors else -1
        return Header(kind, slot, number, offset, freed, total, head, fd, at)

    def body(self, header: Header) -> memoryview:
        """An inline body, in writable memory of its own, as torch wants it for views."""
        return memoryview(bytearray(memoryview(self._buffer)[header.at : header.at + header.total]))

    def take_fd(self) -> int:
        """The next descriptor that came; the caller's to close."""
        if not self._fds:
            raise Malformed("a descriptor is missing")
        return self._fds.popleft()

    def close(self) -> None:
        """Close descriptors that nobody took."""
        while self._fds:
            os.close(self._fds.popleft())
