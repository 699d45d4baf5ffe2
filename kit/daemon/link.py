"""A connection between a kernel and a deployment: a Unix socket for frames, a shared-memory ring for arrays.

    frame = header (52 bytes) | body inline                   up to 16 KB
    frame = header, body in the sender's half of the ring     what fits there
    frame = header with a descriptor, body in its memory      what doesn't

The ring is made and sealed by the deployment, and single descriptors must be sealed by their sender: memory that
could be truncated under its reader would kill it (SIGBUS). Structure is copied out of shared memory before it
is checked; only elements of arrays are read in place. Sending never waits: what the socket doesn't take is kept
and sent by whoever receives, so that a kernel that stands still stalls nobody else.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections import deque
from typing import Any, NamedTuple

from kit.daemon.blocks import aligned
from kit.daemon.protocol import VERSION
from kit.daemon.wire import Decoder, Encoder, Malformed
from kit.engine.arena import ARENA_BYTES, Arena, anonymous_file

MAGIC = 0x4B44
# magic, version, kind | slot, descriptors | number | offset | freed mask | bytes of body, of head
HEADER = struct.Struct("<HBBHHQQQQQ")
NO_SLOT, OWN_FD = 0xFFFF, 0xFFFE
INLINE_BYTES = 16 << 10
SHARED = hasattr(os, "memfd_create")
#: What a peer may send inline, in all, and as structure; bytes.
MAX_INLINE, MAX_BODY, MAX_HEAD = (1 << 20 if SHARED else 1 << 30), 8 << 30, 1 << 30
#: Unsent bytes that a peer which doesn't read may pile up here, before the link is closed.
MAX_UNSENT = 64 << 20
_SEALS = 0x2 | 0x4  # F_SEAL_SHRINK, F_SEAL_GROW
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


class Link:
    """One end of a connection; any thread may send, one at a time may receive.

    Args:
        sock: a connected stream socket.
        keep: True when what is received is kept for long: arrays are copied out of the ring.
        allow_pickle: objects of other types may be pickled, both ways.

    Attributes:
        unsent_bytes: what was sent from here and waits for the other side to read.
    """

    def __init__(self, sock: socket.socket, *, keep: bool = False, allow_pickle: bool = False) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.keep = keep
        self.allow_pickle = allow_pickle
        self._lock = threading.Lock()
        self._buffer = bytearray(64 << 10)
        self._start = self._end = 0
        self._fds: deque[int] = deque()
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.unsent_bytes = 0
        self._out: Arena | None = None
        self._in: Arena | None = None
        self._freed: deque[int] = deque()
        self._leases: dict[int, weakref.ref[Any]] = {}
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._poll.register(self._wake_read, select.POLLIN)
        self._peer_fd = -1
        self._polls_out = False
        self.closed = False

    # ---- shared memory -----------------------------------------------------------------------

    def make_ring(self) -> int:
        """Make the ring; the descriptor is for the other side's `use_ring`. -1 where memory can't be sealed."""
        if not SHARED:
            return -1
        fd = anonymous_file("kit-link", 2 * ARENA_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | 0x1)
        self._map(fd, first=True)
        return fd

    def use_ring(self, fd: int) -> None:
        """Use the ring that the other side has made; closes `fd`."""
        try:
            _check_sealed(fd, 2 * ARENA_BYTES)
            self._map(fd, first=False)
        finally:
            os.close(fd)

    def _map(self, fd: int, *, first: bool) -> None:
        self._out = Arena(fd, 0 if first else ARENA_BYTES, ARENA_BYTES)
        self._in = Arena(fd, ARENA_BYTES if first else 0, ARENA_BYTES)

    def watch_peer(self, pidfd: int) -> None:
        """Take the end of a process for the end of the link too: a fork of it may hold the socket open."""
        self._peer_fd = pidfd
        self._poll.register(pidfd, select.POLLIN)

    # ---- sending -----------------------------------------------------------------------------

    def encoder(self) -> Encoder:
        """An encoder for what is to be sent."""
        return Encoder(allow_pickle=self.allow_pickle)

    def send(self, kind: int, encoder: Encoder | None = None, number: int = 0, fd: int = -1) -> int:
        """Send a frame, with a descriptor if one is given; returns the bytes of its body.

        Raises:
            LinkClosed: the other side is gone.
        """
        head: Any = b"" if encoder is None else encoder.head
        buffers = [] if encoder is None else encoder.buffers
        total = aligned(len(head)) + sum(aligned(size) for size, _ in buffers)
        fds = () if fd < 0 else (fd,)
        with self._lock:
            if self.closed:
                raise LinkClosed("closed")
            slot, offset, target, extra = self._place(total)
            try:
                _write(target, head, buffers)
                del buffers
                freed = self._take_freed() if self._freed else 0
                header = HEADER.pack(MAGIC, VERSION, kind, slot, len(fds), number, offset, freed, total, len(head))
                body = bytes(target) if slot == NO_SLOT and total else b""
                self._put(header + body, fds if extra < 0 else (*fds, extra))
            except BaseException:
                if slot < OWN_FD and self._out is not None:
                    self._out.release(1 << slot)
                raise
            finally:
                if extra >= 0:
                    os.close(extra)
        return total

    def _place(self, total: int) -> tuple[int, int, memoryview, int]:
        if total <= INLINE_BYTES or not SHARED:
            return NO_SLOT, 0, memoryview(bytearray(total)), -1
        found = self._out.allocate(total) if self._out is not None else None
        if found is not None:
            return (*found, -1)
        fd = anonymous_file("kit-message", total)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return OWN_FD, 0, memoryview(mmap.mmap(fd, total)), fd

    def _take_freed(self) -> int:
        mask = 0
        while self._freed:
            mask |= 1 << self._freed.popleft()
        return mask

    def _put(self, data: bytes, fds: tuple[int, ...]) -> None:
        sent = 0 if self._unsent else self._send_now(data, fds)
        if sent == len(data):
            return
        if self.unsent_bytes + len(data) > MAX_UNSENT:
            self._hang_up()
            raise LinkClosed(f"the other side has left {self.unsent_bytes} bytes unread")
        kept = tuple(os.dup(fd) for fd in fds) if sent == 0 else ()
        self._unsent.append((data[sent:], kept))
        self.unsent_bytes += len(data) - sent
        self.wake()

    def _send_now(self, data: bytes, fds: tuple[int, ...]) -> int:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self.sock.sendmsg([data], rights)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkClosed(str(error)) from error

    def _flush(self) -> None:
        with self._lock:
            while self._unsent:
                data, fds = self._unsent[0]
                sent = self._send_now(data, fds)
                self.unsent_bytes -= sent
                if sent:
                    for fd in fds:
                        os.close(fd)
                if sent < len(data):
                    self._unsent[0] = (data[sent:], () if sent else fds)
                    return
                self._unsent.popleft()

    def wake(self) -> None:
        """Have the receiving thread look around."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    # ---- receiving ---------------------------------------------------------------------------

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """The next frame; None when none came in time, or on `wake`.

        Raises:
            LinkClosed: the other side is gone; VersionDiffers.
            Malformed: the bytes aren't a frame.
        """
        while True:
            if self.buffered:
                frame = self._parse()
                if frame is not None:
                    return frame
            if not self.look(timeout_s):
                return None
            frame = self.advance()
            if frame is not None:
                return frame

    def look(self, timeout_s: float | None = None, spin_s: float = 0.0) -> bool:
        """Wait until there is something to do; False when there is not, in time or on `wake`. Changes nothing else.

        Args:
            spin_s: how long to look again and again before sleeping: being woken costs more than a short answer.
        """
        if self.closed:
            raise LinkClosed("closed")
        if bool(self._unsent) != self._polls_out:
            self._polls_out = not self._polls_out
            self._poll.modify(self.sock, select.POLLIN | (select.POLLOUT if self._polls_out else 0))
        found = self._spin(spin_s) if spin_s else []
        found = found or self._poll.poll(None if timeout_s is None else timeout_s * 1000)
        for fd, _ in found:
            if fd == self._wake_read:
                os.read(fd, 4096)
            elif fd == self._peer_fd and len(found) == 1:
                raise LinkClosed("the other side has ended")
            else:
                return True
        return False

    def _spin(self, seconds: float) -> list[tuple[int, int]]:
        poll, until = self._poll.poll, time.monotonic() + seconds
        while not (found := poll(0)) and time.monotonic() < until:
            os.sched_yield()  # the other side may need this very core
        return found

    @property
    def buffered(self) -> bool:
        """True when something was read that may be a frame."""
        return self._end - self._start >= HEADER.size

    def advance(self) -> Frame | None:
        """Do what can be done without waiting; the next frame, if it is there whole."""
        frame = self._parse()
        if frame is None:
            if self._unsent:
                self._flush()
            self._read()
            frame = self._parse()
        return frame

    def _read(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._buffer):
            self._make_room()
        view = memoryview(self._buffer)[self._end :]
        try:
            size, ancillary, flags, _ = self.sock.recvmsg_into([view], 256, _CLOEXEC)
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

    def _parse(self) -> Frame | None:
        waiting = self._end - self._start
        if waiting < HEADER.size:
            return None
        fields = HEADER.unpack_from(self._buffer, self._start)
        magic, version, kind, slot, descriptors, number, offset, freed, total, head_size = fields
        if magic != MAGIC:
            raise Malformed("not a frame of the kit")
        if version != VERSION:
            raise VersionDiffers(f"protocol {version}, expected {VERSION}")
        if total > MAX_BODY or head_size > min(total, MAX_HEAD) or descriptors > 1:
            raise Malformed(f"a body of {total} bytes with a head of {head_size}")
        inline = total if slot == NO_SLOT else 0
        if inline > MAX_INLINE:
            raise Malformed(f"{inline} bytes inline")
        if waiting < HEADER.size + inline:
            return None
        at = self._start + HEADER.size
        self._start = at + inline
        fd = self._take_fd() if descriptors else -1
        if freed and self._out is not None:
            with self._lock:
                self._out.release(freed)
        if slot == NO_SLOT:
            # Writable memory of its own, as torch wants it for views.
            body, copy = memoryview(bytearray(memoryview(self._buffer)[at : at + inline])), False
        else:
            body, copy = (self._own(total), False) if slot == OWN_FD else (self._lease(slot, offset, total), self.keep)
        head = bytes(body[:head_size])
        return Frame(kind, number, Decoder(head, body, copy=copy, allow_pickle=self.allow_pickle), fd)

    def _take_fd(self) -> int:
        if not self._fds:
            raise Malformed("a descriptor is missing")
        return self._fds.popleft()

    def _own(self, total: int) -> memoryview:
        fd = self._take_fd()
        try:
            _check_sealed(fd, total)
            return memoryview(mmap.mmap(fd, max(total, 1)))
        finally:
            os.close(fd)

    def _lease(self, slot: int, offset: int, total: int) -> memoryview:
        if self._in is None or offset + total > ARENA_BYTES or slot >= 64 or slot in self._leases:
            raise Malformed("a slot that isn't there")
        block = self._in.array(offset, total)
        leases, freed = self._leases, self._freed

        def ended(_: object) -> None:
            # May run in any thread, so it only does what is atomic.
            leases.pop(slot, None)
            freed.append(slot)

        leases[slot] = weakref.ref(block, ended)
        return memoryview(block)  # type: ignore[arg-type]

    # ---- end ---------------------------------------------------------------------------------

    def _hang_up(self) -> None:
        self.closed = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def hang_up(self) -> None:
        """End the connection; a thread that receives gets LinkClosed, and then calls `close`."""
        self._hang_up()
        self.wake()

    def drain(self, timeout_s: float) -> None:
        """Send what is left, for `timeout_s` seconds at most; nothing is received any more."""
        with contextlib.suppress(LinkClosed):
            while self._unsent and select.select([], [self.sock], [], timeout_s)[1]:
                self._flush()

    def close(self) -> None:
        """Close all descriptors; idempotent. Shared memory goes with the last view of it."""
        with self._lock:
            self.closed = True
            kept = [fd for _, fds in self._unsent for fd in fds]
            own = [fd for fd in (self._wake_read, self._wake_write, self._peer_fd) if fd >= 0]
            self._wake_read = self._wake_write = self._peer_fd = -1
            for fd in (*kept, *self._fds, *own):
                os.close(fd)
            self._fds.clear()
            self._unsent.clear()
            self.sock.close()
            self._out = self._in = None


def _write(target: memoryview, head: Any, buffers: Any) -> None:
    target[: len(head)] = head
    at = aligned(len(head))
    for size, fill in buffers:
        fill(target[at : at + size])
        at += aligned(size)


def _check_sealed(fd: int, size: int) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise Malformed("a descriptor that isn't sealed memory") from error
    if seals & _SEALS != _SEALS or os.fstat(fd).st_size < size:
        raise Malformed("memory that isn't sealed, or is too small")
