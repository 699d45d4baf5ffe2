"""The daemon's socket and the lock that says whose it is; both again where something removed them while it serves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
from pathlib import Path

from kit.daemon import paths

#: How often is looked whether the path is still there, seconds.
LOOK_S = 1.0
_RETRY_S = 0.02


class Listener:
    """The daemon's end of ``daemon.sock`` in a folder.

    Args:
        folder: the runtime folder.
        wanted: the write end of a pipe; when nobody reads it any more, nobody waits for this daemon.

    Raises:
        BrokenPipeError: nobody waits any more, and another daemon still has the folder.
        OSError: the lock or the socket can't be made.
    """

    def __init__(self, folder: Path, wanted: int) -> None:
        self._folder = folder
        self._lock = _taken(folder)
        gone = select.poll()
        gone.register(wanted, 0)
        while self._lock < 0:  # one that is ending has it for a moment
            if gone.poll(_RETRY_S * 1000):
                raise BrokenPipeError("nobody waits for this daemon any more")
            self._lock = _taken(folder)
        self._open()

    def _open(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with paths.address(self._folder) as path:
            Path(path).unlink(missing_ok=True)
            self.socket.bind(path)
        os.chmod(self._folder / paths.SOCKET, 0o600)
        self.socket.listen(128)
        self._file = _file(self._folder / paths.SOCKET)

    def _is_there(self) -> bool:
        found = _file(self._folder / paths.SOCKET)
        return found is not None and found == self._file

    def mend(self) -> bool:
        """Make path and lock again if they are gone; False when another daemon has the folder by now."""
        if self._is_there():
            return True
        with contextlib.suppress(OSError):  # such as a full disk, or no folder to make it in: the next look tries again
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if _file(self._folder / paths.LOCK) != _file(self._lock):
                lock = _taken(self._folder)
                if lock < 0:
                    return False
                os.close(self._lock)
                self._lock = lock
            self.socket.close()
            self._open()
        return True

    def close(self) -> None:
        """Close it, and take its path away unless that is another's; the lock goes with this process."""
        if self._is_there():
            (self._folder / paths.SOCKET).unlink(missing_ok=True)
        self.socket.close()


def _taken(folder: Path) -> int:
    """A descriptor of the folder's lock, which this process has now; -1 when another has it."""
    lock = os.open(folder / paths.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return -1
    return lock


def _file(of: Path | int) -> tuple[int, int] | None:
    """Which file a path or a descriptor means, None when there is none."""
    try:
        found = os.stat(of)
    except OSError:
        return None
    return found.st_dev, found.st_ino
