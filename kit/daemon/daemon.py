"""The daemon: one process a user that knows named deployments, starts and ends their processes.

It reads one frame of each connection, the hello, and answers it (list, stop) or hands the connection to the
process of the deployment. It ends with the last deployment; its processes end when it does, however that happens,
since each one watches its link to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from kit import errors
from kit.daemon import hello, paths, quiet
from kit.daemon.frames import LinkClosed
from kit.daemon.link import Link
from kit.daemon.listening import LOOK_S, Listener
from kit.daemon.protocol import CONNECTION, ERROR, HELLO, REPLY, STOP
from kit.daemon.wire import Malformed
from kit.engine import system
from kit.engine.trouble import Trouble

#: How long a connection may take for its hello, an ending deployment to end, and the first deployment to come; seconds.
HELLO_S, STOP_S, FIRST_S = 10.0, 15.0, 30.0
MOST_CONNECTIONS = 256
_BOOTSTRAP = (
    "import sys, json; about = json.loads(sys.argv[1]); sys.path[:] = about['path']; "
    "from kit.daemon.process import main; main(about['control'], about['name'], about['log'])"
)


class Entry:
    """A deployment's process, and the link to it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], link: Link) -> None:
        self.name = name
        self.process = process
        self.link = link
        self.since = time.time()
        self.ended = threading.Event()

    def tell_to_stop(self, why: str = "") -> None:
        """Have the process end in order; idempotent. Without `why` it was asked for."""
        with contextlib.suppress(LinkClosed):
            self.link.send(STOP, self.link.encoder().add(why))
        self.link.hang_up()


def _readable(timeout_s: float, *fds: int) -> list[int]:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(timeout_s * 1000)]


class Daemon:
    """Registry and listener; see the module."""

    def __init__(self, folder: Path, listener: Listener) -> None:
        self.folder = folder
        self.listener = listener
        self.entries: dict[str, Entry] = {}
        self.lock = threading.Lock()
        self.root = str(Path(__file__).resolve().parents[2])
        self._wake_read, self._wake_write = os.pipe()
        self._connections = threading.Semaphore(MOST_CONNECTIONS)
        self._opening = 0

    def run(self) -> str:
        """Serve until the last deployment has ended, or until a termination signal; returns why else it ends."""
        signal.signal(signal.SIGTERM, lambda *_: os.write(self._wake_write, b"t"))
        until = time.monotonic() + FIRST_S  # for the first to come
        while True:
            listener = self.listener.socket.fileno()
            ready = _readable(LOOK_S, listener, self._wake_read)
            if self._wake_read in ready and b"t" in os.read(self._wake_read, 4096):
                return ""
            if listener in ready:
                self._accept()
                until = 0.0
            with self.lock:
                busy = bool(self.entries) or self._opening > 0
            if not busy and time.monotonic() >= until and not _readable(0, listener):
                return ""
            if not ready and not self.listener.mend():
                return f"{self.folder}, where it could be found, was removed, and another daemon has taken its place"

    def _accept(self) -> None:
        sock, _ = self.listener.socket.accept()
        if not paths.is_ours(sock) or not self._connections.acquire(blocking=False):
            sock.close()
            return
        with self.lock:
            self._opening += 1
        threading.Thread(target=self._meet, args=(sock,), name="kit-hello", daemon=True).start()

    def _meet(self, sock: socket.socket) -> None:
        link = Link(sock)
        try:
            self._answer(link)
            link.drain(HELLO_S)
        except (LinkClosed, Malformed):
            pass  # the connection is closed below, and that is all
        except BaseException:
            traceback.print_exc()
        finally:
            link.close()
            self._connections.release()
            with self.lock:
                self._opening -= 1
            self._look_around()

    def _look_around(self) -> None:
        os.write(self._wake_write, b"x")

    def _answer(self, link: Link) -> None:
        frame = link.receive(HELLO_S)
        if frame is None or frame.kind != HELLO:
            raise Malformed("no hello")
        said = hello.read(frame)
        try:
            if said["action"] == hello.LIST:
                link.send(REPLY, link.encoder().add(self._list()))
            elif said["action"] == hello.STOP:
                self._stop(said["name"])
                link.send(REPLY, link.encoder().add(None))
            else:
                self._hand_over(said, link)
        except errors.KitError as error:
            link.send(ERROR, link.encoder().add(list(Trouble.of(error))))

    def _list(self) -> list[dict[str, Any]]:
        with self.lock:
            return [
                {"name": entry.name, "pid": entry.process.pid, "since": entry.since} for entry in self.entries.values()
            ]

    # ---- deployments -------------------------------------------------------------------------

    def _hand_over(self, said: dict[str, Any], link: Link) -> None:
        """Give the connection to the process of the deployment; serve starts that."""
        paths.check_name(said["name"])
        if said["action"] != hello.LOOK:
            hello.check_versions(said, "the daemon")
        start = said.pop("start", None)
        if said["action"] == hello.SERVE:
            hello.check_start(start)
        # One that is just ending doesn't take it; then the registry has forgotten it, or soon will.
        for _ in range(2):
            with self.lock:
                entry = self.entries.get(said["name"])
                if entry is None and said["action"] == hello.SERVE:
                    entry = self._start(said["name"], start)
            if entry is None:
                raise self._unknown(said["name"])
            try:
                entry.link.send(CONNECTION, entry.link.encoder().add(said), fd=link.sock.fileno())
                return
            except LinkClosed:
                entry.ended.wait(STOP_S)
        raise errors.DeploymentLost(
            f"the process of {said['name']!r} ends as soon as it starts; see `python -m kit logs {said['name']}`."
        )

    def _start(self, name: str, about: dict[str, Any]) -> Entry:
        ours, theirs = socket.socketpair()
        path = about["path"] if self.root in about["path"] else [*about["path"], self.root]
        log = str(paths.log_of(self.folder, name))
        paths.forget_old_logs(self.folder, {name, *self.entries})
        argument = json.dumps({"path": path, "control": theirs.fileno(), "name": name, "log": log})
        try:
            process = subprocess.Popen(
                [about["executable"], "-c", _BOOTSTRAP, argument],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=about["environment"],
                cwd=about["folder"] if os.path.isdir(about["folder"]) else "/",
            )
        except OSError as error:
            ours.close()
            raise errors.DaemonUnavailable(f"{about['executable']} can't be started: {error.strerror}.") from error
        finally:
            theirs.close()
        entry = Entry(name, process, Link(ours))
        self.entries[name] = entry
        threading.Thread(target=self._await_end, args=(entry,), name="kit-wait", daemon=True).start()
        return entry

    def _await_end(self, entry: Entry) -> None:
        entry.process.wait()
        with self.lock:
            if self.entries.get(entry.name) is entry:
                del self.entries[entry.name]
        entry.ended.set()
        entry.link.close()
        self._look_around()

    def _unknown(self, name: str) -> errors.UnknownDeployment:
        with self.lock:
            names = ", ".join(map(repr, sorted(self.entries)))
        return hello.unknown(name, names)

    def _stop(self, name: str) -> None:
        with self.lock:
            entry = self.entries.get(name)
        if entry is None:
            raise self._unknown(name)
        self._end(entry)

    def _end(self, entry: Entry) -> None:
        """Have a deployment end in order; kill it when it doesn't."""
        entry.tell_to_stop()
        if not entry.ended.wait(STOP_S):
            entry.process.kill()
            entry.ended.wait(STOP_S)

    def stop_all(self, why: str) -> None:
        """End all deployments."""
        with self.lock:
            entries = list(self.entries.values())
        for entry in entries:
            entry.tell_to_stop(why)
        for entry in entries:
            self._end(entry)


def start(folder: str, ready: int) -> None:
    """Become the daemon of `folder`, in a child of this process; writes "ready", or what is wrong, to `ready`."""
    if os.fork():
        os._exit(0)
    quiet.use_log(Path(folder) / paths.LOG)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    try:
        listener = Listener(Path(folder), ready)
    except Exception as error:
        with contextlib.suppress(OSError):  # nobody may wait for it any more
            os.write(ready, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    system.set_name("kit-daemon")
    os.write(ready, b"ready")
    os.close(ready)
    daemon = Daemon(Path(folder), listener)
    why = ""
    try:
        why = daemon.run()
    finally:
        # Before the lock goes with this process, so that no stale socket stands in a successor's way.
        listener.close()
        daemon.stop_all(why)
        os._exit(0)
