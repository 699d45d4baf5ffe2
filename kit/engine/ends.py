"""The two ends of a new channel, as descriptors that can be passed to another process."""

from __future__ import annotations

import os
import socket
import sys
from typing import NamedTuple

from kit.engine.arena import ARENA_BYTES, anonymous_file
from kit.engine.transport import MAX_MESSAGE, Channel

SOCKET_KIND = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM


class Ends(NamedTuple):
    """Descriptors of one end of a channel, to be passed to another process."""

    sock: int
    memory: int

    def close(self) -> None:
        """Close both; the other process has its own."""
        os.close(self.sock)
        os.close(self.memory)

    def open(self, *, first: bool, copy: bool = False) -> Channel:
        """Build the channel and close the descriptors that it no longer needs."""
        channel = Channel(socket.socket(fileno=self.sock), self.memory, first=first, copy=copy)
        os.close(self.memory)
        return channel


def channel_pair() -> tuple[Ends, Ends]:
    """Descriptors of the two ends of a new channel; the first end opens with first=True."""
    left, right = socket.socketpair(socket.AF_UNIX, SOCKET_KIND)
    for sock in (left, right):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
    memory = anonymous_file("kit-ring", 2 * ARENA_BYTES)
    return Ends(left.detach(), memory), Ends(right.detach(), os.dup(memory))
