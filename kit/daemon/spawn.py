"""Reaching the daemon, starting it when there is none, and having it stop a deployment."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kit import errors, search_path
from kit.daemon import hello, paths
from kit.daemon.decoder import trouble_of
from kit.daemon.frames import Frame, LinkClosed, VersionDiffers
from kit.daemon.link import Link
from kit.daemon.listening import LOOK_S
from kit.daemon.protocol import ERROR, HELLO

START_S = 20.0
#: How long the daemon may take to answer where no model is loaded, seconds.
ANSWER_S = 30.0
TRIES = 5
_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from kit.daemon.daemon import start; start({folder!r}, {ready})"


def open_link(
    said: dict[str, Any], *, start: bool = False, timeout_s: float | None = None
) -> tuple[Link, Frame] | None:
    """Connect, say hello, and give the link with the first frame of the answer; None when no daemon runs.

    Args:
        said: the hello.
        start: start the daemon when none runs.
        timeout_s: longest wait for the answer; None where a model may be loaded first.

    Raises:
        DaemonUnavailable: it can't be started or doesn't answer. DaemonMismatch.
        KitError: what the daemon, or the deployment, refuses with.
    """
    folder = paths.runtime_folder()
    for last in range(TRIES - 1, -1, -1):
        sock = connect(folder)
        if sock is None:
            if not start:
                return None
            _start_daemon(folder)
            continue
        link = Link(sock, keep=True)
        try:
            return link, _introduce(link, said, timeout_s)
        except VersionDiffers as error:
            link.close()
            raise errors.DaemonMismatch(
                f"the daemon of {folder} is of another version of the kit ({error}). Install the same version, or end "
                "the daemon's process and serve again."
            ) from error
        except LinkClosed as error:
            # It was ending just then: the last deployment had been stopped.
            link.close()
            if not last:
                raise errors.DaemonUnavailable(
                    f"the daemon of {folder} closes each connection ({error}); see {folder / paths.LOG}."
                ) from error
        except BaseException:
            link.close()
            raise
    raise errors.DaemonUnavailable(f"the daemon ends as soon as it is started; see {folder / paths.LOG}.")


def _introduce(link: Link, said: dict[str, Any], timeout_s: float | None) -> Frame:
    link.send(HELLO, link.encoder().add(said))
    frame = link.receive(timeout_s)
    if frame is None:
        if not said["name"] or said["action"] == hello.STOP:
            raise errors.DaemonUnavailable(f"no answer from the daemon within {timeout_s:g} s.")
        raise errors.DaemonUnavailable(
            f"no answer from {said['name']!r} within {timeout_s:g} s: its process hangs, is stopped, or has too much "
            f"to do. `python -m kit stop {said['name']}` ends it for all kernels."
        )
    if frame.kind == ERROR:
        raise trouble_of(frame.decoder.value()).error()
    return frame


def stop(name: str, *, missing_ok: bool = False) -> None:
    """End a named deployment: its processes end, and kernels that are connected get an error that says so.

    Raises:
        UnknownDeployment: there is none, unless `missing_ok`.
    """
    try:
        found = open_link(hello.hello(hello.STOP, paths.check_name(name)), timeout_s=2 * ANSWER_S)
        if found is None:
            raise hello.unknown(name, "")
        found[0].close()
    except errors.UnknownDeployment:
        if not missing_ok:
            raise


def connect(folder: Path) -> socket.socket | None:
    """A socket to the daemon of `folder`, None when none listens there.

    Raises:
        DaemonUnavailable: another user's process listens, or the socket can't be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with paths.address(folder) as path:
            sock.connect(path)
        if paths.is_ours(sock):
            return sock
        raise errors.DaemonUnavailable(f"a process of another user listens in {folder}: name another {paths.VARIABLE}.")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise errors.DaemonUnavailable(f"the daemon of {folder} can't be reached: {error.strerror}.") from error
    except BaseException:
        sock.close()
        raise


def _start_daemon(folder: Path) -> None:
    """Start the daemon unless another process has just done so; one at a time."""
    try:
        starting = os.open(folder / paths.STARTING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.DaemonUnavailable(f"nothing can be written in {folder}: {error.strerror}.") from error
    try:
        fcntl.flock(starting, fcntl.LOCK_EX)
        sock = connect(folder)
        if sock is not None:
            sock.close()
            return
        _launch(folder)
    finally:
        os.close(starting)


def _launch(folder: Path) -> None:
    for name in (paths.SOCKET, paths.LOCK, paths.LOG):
        if (folder / name).is_dir():
            raise errors.DaemonUnavailable(
                f"{folder / name} is a folder, in the way of the daemon's file: remove it, or name another "
                f"runtime folder in {paths.VARIABLE}."
            )
    ready, theirs = os.pipe()
    code = _BOOTSTRAP.format(path=search_path.entries(), folder=str(folder), ready=theirs)
    try:
        # A session of its own, and its parent ends at once: neither interrupt nor shutdown of a kernel reaches it.
        subprocess.run(
            [sys.executable, "-c", code],
            pass_fds=[theirs],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            check=False,
        )
        os.close(theirs)
        theirs = -1
        until = time.monotonic() + START_S
        while not select.select([ready], [], [], LOOK_S)[0]:
            sock = connect(folder)
            if sock is not None:  # one that had lost its socket, and has it again
                sock.close()
                return
            if time.monotonic() > until:
                words = f"the daemon didn't start within {START_S:g} s; see {folder / paths.LOG}."
                raise errors.DaemonUnavailable(words)
        words = os.read(ready, 4096).decode("utf-8", "replace")
    finally:
        os.close(ready)
        if theirs >= 0:
            os.close(theirs)
    if words != "ready":
        raise errors.DaemonUnavailable(f"the daemon couldn't start: {words or f'see {folder / paths.LOG}'}")
