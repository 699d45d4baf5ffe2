"""The runtime folder: where the daemon's socket, lock and logs lie, for this user alone."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import sys
from collections.abc import Container, Iterator
from pathlib import Path

from kit.errors import DaemonUnavailable, InvalidSetting

VARIABLE = "KIT_RUNTIME_DIR"
SOCKET, LOCK, STARTING, LOG = "daemon.sock", "daemon.lock", "starting.lock", "daemon.log"
_LOG_ENDING = ".deployment.log"
#: Logs of ended deployments that are kept.
KEPT_LOGS = 5
#: Bytes of a socket's path that the kernel takes.
_LONGEST = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: object) -> str:
    """The name of a deployment.

    Raises:
        InvalidSetting: it has other letters than those of a file name, or more than 64.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidSetting(f"name={name!r}: give 1 to 64 letters, digits, '.', '_' or '-', such as 'minilm'.")
    return name


def log_of(folder: Path, name: str) -> Path:
    """Where a deployment's processes print to; never the daemon's own log, whatever the name."""
    return folder / f"{name}{_LOG_ENDING}"


def forget_old_logs(folder: Path, serving: Container[str]) -> None:
    """Remove the logs of ended deployments, but for the latest."""
    found = []
    for path in folder.glob(f"*{_LOG_ENDING}"):
        if path.name.removesuffix(_LOG_ENDING) not in serving:
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path))
    for _, path in sorted(found)[:-KEPT_LOGS]:
        with contextlib.suppress(OSError):
            path.unlink()


def runtime_folder() -> Path:
    """The folder: $KIT_RUNTIME_DIR, or serving-kit in $XDG_RUNTIME_DIR, or /tmp/serving-kit-UID; made if missing.

    Raises:
        DaemonUnavailable: it can't be made, or isn't ours alone (mode 0700, our own user's, no link).
    """
    given = os.environ.get(VARIABLE)
    session = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        folder = Path(given)
        if not folder.is_absolute():  # each notebook would have a daemon of its own
            raise DaemonUnavailable(
                f"{VARIABLE}={given!r} would be another folder for each notebook: give a full path."
            )
    elif session and os.path.isdir(session) and os.access(session, os.W_OK):
        folder = Path(session) / "serving-kit"
    else:
        folder = Path("/tmp") / f"serving-kit-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=bool(given))
    except FileExistsError:
        pass
    except OSError as error:
        raise DaemonUnavailable(
            f"the runtime folder {folder} can't be made: {error.strerror}. Name a writable one in {VARIABLE}."
        ) from error
    _check_ours(folder)
    return folder


def _check_ours(folder: Path) -> None:
    found = os.lstat(folder)
    wrong = None
    if not stat.S_ISDIR(found.st_mode):
        wrong = "is a link, which isn't followed" if stat.S_ISLNK(found.st_mode) else "isn't a folder"
    elif found.st_uid != os.getuid():
        wrong = f"belongs to user {found.st_uid}, not to you ({os.getuid()})"
    elif found.st_mode & 0o077:
        wrong = f"has mode {stat.S_IMODE(found.st_mode):04o}, so others can reach it: chmod 700 {folder}"
    if wrong is not None:
        raise DaemonUnavailable(f"the runtime folder {folder} {wrong}. Remove it, or name another in {VARIABLE}.")


@contextlib.contextmanager
def address(folder: Path) -> Iterator[str]:
    """The socket's path, by way of a descriptor of its folder where it is too long for the kernel."""
    path = str(folder / SOCKET)
    if len(os.fsencode(path)) <= _LONGEST:
        yield path
        return
    if sys.platform != "linux":
        raise DaemonUnavailable(f"the path {path} is too long for a socket: name a shorter folder in {VARIABLE}.")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


def peer_of(sock: socket.socket) -> tuple[int, int] | None:
    """Pid and uid of the process at the other end, None where the system doesn't tell (the folder protects us then)."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, 12))
    return pid, uid


def is_ours(sock: socket.socket) -> bool:
    """True when the other end's user is ours."""
    peer = peer_of(sock)
    return peer is None or peer[1] == os.getuid()
