"""Standard output and error of processes that nobody looks at: into a log file, and never in anybody's way."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

#: Bytes of a log file at most.
MAX_LOG = 16 << 20


class QuietText(io.TextIOBase):
    """A text stream on descriptor 2: what can't be written (disk full, log too long) is dropped."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        try:
            if os.fstat(2).st_size < MAX_LOG:
                os.write(2, text.encode("utf-8", "replace"))
        except OSError:
            return len(text)  # a full disk must not end a deployment
        return len(text)


def use_log(path: Path, *, anew: bool = False) -> None:
    """Send output and error of this process and its children to a file that only we can read."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | (os.O_TRUNC if anew else 0)
        fd = os.open(path, flags, 0o600)
    except OSError:
        fd = os.open(os.devnull, os.O_WRONLY)
    if os.fstat(fd).st_size > MAX_LOG:
        os.ftruncate(fd, 0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(null)
    os.close(fd)
    sys.stdout = sys.stderr = QuietText()
