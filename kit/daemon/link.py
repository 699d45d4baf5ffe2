"""A connection between a kernel and a deployment: a Unix socket for frames, a shared-memory ring for arrays.

Structure is copied out of shared memory before it is checked; only elements of arrays are read in place. Sending
never waits: what the socket doesn't take is kept and sent by whoever receives, so that a kernel that stands still
stalls nobody else.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import threading
from collections import deque
from typing import Any

from kit.daemon.blocks import aligned
from kit.daemon.decoder import Decoder
from kit.daemon.encoder import Encoder
from kit.daemon.frames import HEADER, INLINE_BYTES, MAGIC, MAX_BODY, NO_SLOT, OWN_FD, Frame, Header, Inbox, LinkClosed
from kit.daemon.protocol import VERSION
from kit.daemon.ring import SHARED, Ring, own_memory, their_memory
from kit.daemon.wire import Malformed
from kit.engine.parting import Parting

#: Unsent bytes that a peer which doesn't read may pile up here, before the link is closed.
MAX_UNSENT = 64 << 20


class Link:
    """One end of a connection; any thread may send, one at a time may receive.

    Args:
        sock: a connected stream socket.
        keep: True when what is received is kept for long: arrays are copied out of the ring.
        allow_pickle: objects of other types may be pickled, both ways.
        most_bytes: of what the other side may send at once.

    Attributes:
        unsent_bytes: what was sent from here and waits for the other side to read.
    """

    def __init__(
        self, sock: socket.socket, *, keep: bool = False, allow_pickle: bool = False, most_bytes: int = MAX_BODY
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.keep = keep
        self.allow_pickle = allow_pickle
        self._lock = threading.Lock()
        self._inbox = Inbox(sock, most_bytes)
        self._ring: Ring | None = None
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.unsent_bytes = 0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._poll.register(self._wake_read, select.POLLIN)
        self._peer_fd = -1
        self._polls_out = False
        self._parting = Parting()
        self.closed = False

    # ---- shared memory -----------------------------------------------------------------------

    def make_ring(self) -> int:
        """Make the ring; the descriptor is for the other side's `use_ring`. -1 where memory can't be sealed."""
        self._ring, fd = Ring.make()
        return fd

    def use_ring(self, fd: int) -> None:
        """Use the ring that the other side has made; closes `fd`."""
        self._ring = Ring.of(fd)

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
        total = 0 if encoder is None else encoder.size
        fds = () if fd < 0 else (fd,)
        with self._lock:
            if self.closed:
                raise LinkClosed("closed")
            slot, offset, target, extra = self._place(total)
            try:
                lay_out(target, head, buffers)
                del buffers
                freed = self._ring.take_freed() if self._ring is not None else 0
                header = HEADER.pack(MAGIC, VERSION, kind, slot, len(fds), number, offset, freed, total, len(head))
                body = bytes(target) if slot == NO_SLOT and total else b""
                self._put(header + body, fds if extra < 0 else (*fds, extra))
            except BaseException:
                if slot < OWN_FD and self._ring is not None:
                    self._ring.release(1 << slot)
                raise
            finally:
                if extra >= 0:
                    os.close(extra)
        return total

    def _place(self, total: int) -> tuple[int, int, memoryview, int]:
        if total <= INLINE_BYTES or not SHARED:
            return NO_SLOT, 0, memoryview(bytearray(total)), -1
        found = self._ring.allocate(total) if self._ring is not None else None
        if found is not None:
            return (*found, -1)
        fd, target = own_memory(total)
        return OWN_FD, 0, target, fd

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

    def hung_up(self) -> bool:
        """True when the other side has closed the connection."""
        with self._lock:
            poll = select.poll()
            if not self.closed:
                poll.register(self.sock, 0)  # reports the end only
            return self.closed or bool(poll.poll(0))

    def wake(self) -> None:
        """Have the receiving thread look around."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    # ---- receiving ---------------------------------------------------------------------------

    def receive(self, timeout_s: float | None = None, spin_s: float = 0.0) -> Frame | None:
        """The next frame; None when none came in time, or on `wake`.

        Raises:
            LinkClosed: the other side is gone; VersionDiffers.
            Malformed: the bytes aren't a frame.
        """
        while True:
            if self.buffered:
                frame = self.parse()
                if frame is not None:
                    return frame
            if not self.look(timeout_s, spin_s):
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
        found = self._parting.wait(self._poll.poll, spin_s) if spin_s else []
        found = found or self._poll.poll(None if timeout_s is None else timeout_s * 1000)
        for fd, _ in found:
            if fd == self._wake_read:
                os.read(fd, 4096)
            elif fd == self._peer_fd and len(found) == 1:
                raise LinkClosed("the other side has ended")
            else:
                return True
        return False

    @property
    def buffered(self) -> bool:
        """True when something was read that may be a frame."""
        return self._inbox.maybe_frame

    def advance(self) -> Frame | None:
        """Do what can be done without waiting; the next frame, if it is there whole."""
        frame = self.parse()
        if frame is None:
            if self._unsent:
                self._flush()
            self._inbox.read()
            frame = self.parse()
        return frame

    def parse(self) -> Frame | None:
        """The next frame of what was read already, if it is there whole."""
        header = self._inbox.next()
        if header is None:
            return None
        if header.freed and self._ring is not None:
            with self._lock:
                self._ring.release(header.freed)
        try:
            body, copy = self._body(header)
        except BaseException:
            if header.fd >= 0:
                os.close(header.fd)
            raise
        decoder = Decoder(bytes(body[: header.head]), body, copy=copy, allow_pickle=self.allow_pickle)
        return Frame(header.kind, header.number, decoder, header.fd)

    def _body(self, header: Header) -> tuple[memoryview, bool]:
        """Its memory, and True when arrays are to be copied out of it."""
        if header.slot == NO_SLOT:
            return self._inbox.body(header), False
        if header.slot == OWN_FD:
            return their_memory(self._inbox.take_fd(), header.total), False
        if self._ring is None:
            raise Malformed("a slot without a ring")
        return self._ring.lease(header.slot, header.offset, header.total), self.keep

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
            for fd in (*kept, *own):
                os.close(fd)
            self._inbox.close()
            self._unsent.clear()
            self.sock.close()
            self._ring = None


def lay_out(target: memoryview, head: Any, buffers: Any) -> None:
    """Write a body into its memory."""
    target[: len(head)] = head
    at = aligned(len(head))
    for size, fill in buffers:
        fill(target[at : at + size])
        at += aligned(size)
