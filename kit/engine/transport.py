"""A channel between two processes of a deployment: a socket for headers, shared memory for data.

    header (76 bytes) | head bytes | sizes of buffers         over AF_UNIX, one message each
    buffers                                                    in the sender's arena, or, when they
                                                               don't fit, in a memfd of their own
    small messages                                             inline behind the header

A channel has one reader thread and may have several writers. Payloads are pickled or plain arrays
(see codec); a channel never leaves the process tree of its deployment.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
import threading
import weakref
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from kit.engine import codec
from kit.engine.arena import ARENA_BYTES, Arena, anonymous_file
from kit.engine.framing import fds_of, layout
from kit.engine.parting import Parting
from kit.engine.unreadable import Unreadable

VERSION = 1
#: How long a short round trip is worth waiting for awake, seconds. Long against a round trip: once one side sleeps,
#: the scheduler wakes it on the other's core, and there they stay.
SPIN_S = 400e-6
# version, message kind, payload kind, flags | slot, attempt | request id | offset | freed mask |
# stamp, spent (seconds) | bytes of head, of all buffers, number of buffers
HEADER = struct.Struct("<BBBBHHQQQddIQI")
NO_SLOT = 0xFFFF
OWN_FD = 0xFFFE
INLINE_BYTES = 16 << 10
MAX_BUFFERS = 1024
MAX_MESSAGE = 128 << 10


class Message(NamedTuple):
    """A received message; `stamp` and `spent` are seconds (monotonic clock, and a duration)."""

    kind: int
    flags: int
    request: int
    attempt: int
    stamp: float
    spent: float
    value: Any
    fds: tuple[int, ...] = ()


class ChannelClosed(Exception):
    """The other side is gone."""


class Channel:
    """One end of a channel over `sock`, with its arenas in the file `fd` (None: no shared memory)."""

    def __init__(self, sock: socket.socket, fd: int | None = None, *, first: bool = True, copy: bool = False) -> None:
        self.sock = sock
        # A reader that keeps what it receives takes copies, and the slots are free again at once.
        self._copy = copy
        self._lock = threading.Lock()
        self._buffer = bytearray(MAX_MESSAGE)
        self._view = memoryview(self._buffer)
        self._poll: select.poll | None = None
        self._parting = Parting()
        self._freed: deque[int] = deque()
        self._leases: dict[int, weakref.ref[Any]] = {}
        self._out: Arena | None = None
        self._in: Arena | None = None
        if fd is not None:
            halves = (0, ARENA_BYTES)
            self._out = Arena(fd, halves[not first], ARENA_BYTES)
            self._in = Arena(fd, halves[first], ARENA_BYTES)
        self.closed = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(
        self,
        kind: int,
        value: Any = None,
        *,
        request: int = 0,
        flags: int = 0,
        attempt: int = 0,
        stamp: float = 0.0,
        spent: float = 0.0,
        fds: tuple[int, ...] = (),
    ) -> int:
        """Encode `value` and send it; returns the bytes of its buffers and head.

        Raises:
            ChannelClosed: the other side is gone.
            Exception: whatever pickling `value` raises; nothing was sent then.
        """
        about = (kind, request, flags, attempt, stamp, spent, fds)
        try:
            return self._send(codec.encode(value), *about)
        except codec.NoBlock:
            return self._send(codec.encode_any(value), *about)

    def _send(
        self,
        payload: codec.Payload,
        kind: int,
        request: int,
        flags: int,
        attempt: int,
        stamp: float,
        spent: float,
        fds: tuple[int, ...],
    ) -> int:
        head, sizes = payload.head, payload.sizes
        offsets, total = layout(sizes)
        small = total + len(head) <= INLINE_BYTES
        if not small and (len(head) > INLINE_BYTES or len(sizes) > MAX_BUFFERS):
            # Long heads and tables travel as the last buffer.
            payload = codec.with_long_head(payload)
            head, sizes = payload.head, payload.sizes
            offsets, total = layout(sizes)
        with self._lock:
            slot, offset, extra = NO_SLOT, 0, -1
            if small:
                body = bytearray(total)
                target = memoryview(body)
            else:
                slot, offset, target, extra = self._place(total)
            try:
                for size, at, fill in zip(sizes, offsets, payload.fills, strict=True):
                    fill(target[at : at + size])
            except BaseException:
                if extra >= 0:
                    os.close(extra)
                elif slot != NO_SLOT and self._out is not None:
                    self._out.release(1 << slot)
                raise
            freed = self._take_freed() if self._freed else 0
            packed = HEADER.pack(
                VERSION,
                kind,
                payload.kind,
                flags,
                slot,
                attempt,
                request,
                offset,
                freed,
                stamp,
                spent,
                len(head),
                total,
                len(sizes),
            )
            if len(sizes) > 1:
                packed += struct.pack(f"<{len(sizes)}Q", *sizes)
            packed += head
            if small:
                packed += body
            try:
                if extra >= 0 or fds:
                    self._send_with(packed, fds if extra < 0 else (*fds, extra))
                else:
                    self.sock.send(packed)
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            finally:
                if extra >= 0:
                    os.close(extra)
        return total + len(head)

    def _place(self, total: int) -> tuple[int, int, memoryview, int]:
        found = self._out.allocate(total) if self._out is not None else None
        if found is not None:
            slot, offset, view = found
            return slot, offset, view, -1
        fd = anonymous_file("kit-message", max(total, 1))
        return OWN_FD, 0, memoryview(mmap.mmap(fd, max(total, 1))), fd

    def _send_with(self, packed: bytes, fds: tuple[int, ...]) -> None:
        # Reading ancillary data costs on every message, so this one is announced.
        self.sock.send(_ANNOUNCE)
        self.sock.sendmsg([packed], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])

    def recv(self, *, block: bool = True, spin_s: float = 0.0) -> Message | None:
        """The next message, or None when there is none and `block` is False.

        Args:
            spin_s: how long to look again and again before sleeping, seconds. Being woken costs more than
                the rest of a short round trip.

        Raises:
            ChannelClosed: the other side is gone.
            Unreadable: a message came, whose value can't be unpickled; the next one may be fine.
        """
        fds: tuple[int, ...] = ()
        try:
            if spin_s:
                self._spin(spin_s)
            size = self.sock.recv_into(self._buffer, 0, 0 if block else socket.MSG_DONTWAIT)
            if size == 1:
                size, ancillary, _, _ = self.sock.recvmsg_into([self._buffer], 512, _CLOEXEC)
                fds = fds_of(ancillary)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if size < HEADER.size:
            raise ChannelClosed("end of stream")
        return self._parse(size, fds)

    def _spin(self, seconds: float) -> None:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.sock.fileno(), select.POLLIN)
        self._parting.wait(self._poll.poll, seconds)

    def _parse(self, size: int, fds: tuple[int, ...]) -> Message:
        view = self._view
        (version, kind, coding, flags, slot, attempt, request, offset, freed, stamp, spent, head_size, total, count) = (
            HEADER.unpack_from(view)
        )
        if version != VERSION:
            raise ChannelClosed(f"protocol version {version}, expected {VERSION}")
        if freed and self._out is not None:
            with self._lock:
                self._out.release(freed)
        at = HEADER.size + 8 * count if count > 1 else HEADER.size
        head: Any = bytes(view[at : at + head_size])
        buffers: list[Any] = []
        if count:
            if slot == NO_SLOT:
                block = np.frombuffer(bytearray(view[at + head_size : size]), dtype=np.uint8)
            elif slot == OWN_FD:
                block = np.frombuffer(mmap.mmap(fds[-1], max(total, 1)), dtype=np.uint8)
                os.close(fds[-1])
                fds = fds[:-1]
            else:
                block = self._lease(slot, offset, total)
                if self._copy:
                    block = block.copy()
            # A memoryview, since numpy would skip an array when it looks for the owner of a view's memory.
            whole = memoryview(block)  # type: ignore[arg-type]
            buffers.append(whole)
            if count > 1:
                sizes = struct.unpack_from(f"<{count}Q", view, HEADER.size)
                buffers = [whole[start : start + length] for start, length in zip(layout(sizes)[0], sizes, strict=True)]
        try:
            value = codec.decode(coding, head, buffers)
        except BaseException as error:  # user code's, in a thread that others need, too
            message = Message(kind, flags, request, attempt, stamp, spent, None, fds)
            raise Unreadable(message, error, (coding, head, buffers)) from None
        return Message(kind, flags, request, attempt, stamp, spent, value, fds)

    def _lease(self, slot: int, offset: int, total: int) -> np.ndarray[Any, Any]:
        assert self._in is not None
        block = self._in.array(offset, total)
        leases = self._leases

        def ended(_: object, slot: int = slot) -> None:
            # May run in any thread, so it only does what is atomic.
            leases.pop(slot, None)
            self._freed.append(slot)

        # Only when no view of the slot is left may the sender write there again.
        leases[slot] = weakref.ref(block, ended)
        return block

    def _take_freed(self) -> int:
        mask = 0
        while self._freed:
            mask |= 1 << self._freed.popleft()
        return mask

    def close(self) -> None:
        """Close the socket; shared memory goes with the last view of it."""
        self.closed = True
        self.sock.close()


_ANNOUNCE = b"F"
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
