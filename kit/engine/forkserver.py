"""The fork server: a small process that imports what handlers need and forks workers from itself.

    owner --(control socket)--> fork server --fork--> worker | host | loader | quarantine
      ^                             |
      '---- forked / exited --------'

It runs one thread, imports the libraries before the first fork, and freezes what they allocated.
It ends when its owner ends, which it learns from a pidfd (a closed socket isn't enough: a fork of
the owner may hold it open), and takes all its descendants with it. What children do after the fork
is in `child`. The standard library's fork server isn't used since it imports `__main__` again.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

from kit import search_path
from kit.engine import system
from kit.engine.transport import Channel, ChannelClosed, Message

FORK, FORKED, EXITED, READY, FAILED = range(1, 6)
#: One thread: pools of several processes on the same cores run several times slower, and a pool
#: started before a fork hangs the child.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


def main(control: int, owner: int) -> None:
    """Serve fork requests from the socket `control` until the process `owner` ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    system.set_name("kit-forkserver")
    system.adopt_orphans()
    channel = Channel(socket.socket(fileno=control))
    watch = system.pidfd(owner)
    if os.getppid() != owner:
        return
    try:
        _preload(channel)
        Server(channel, owner, watch).run()
    except ChannelClosed:
        pass
    finally:
        _end_descendants()


def _preload(channel: Channel) -> None:
    message = channel.recv()
    assert message is not None
    for name in message.value:
        try:
            importlib.import_module(name)
        except BaseException as error:  # a library may raise anything, SystemExit too
            channel.send(FAILED, (name, f"{type(error).__name__}: {error}", traceback.format_exc()))
            raise ChannelClosed("a library can't be imported") from error
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    threads = len(os.listdir("/proc/self/task")) if system.LINUX else 1
    gc.collect()
    gc.freeze()
    channel.send(READY, threads)


class Server:
    """The loop of the fork server."""

    def __init__(self, channel: Channel, owner: int, watch: int | None) -> None:
        self.channel = channel
        self.owner = owner
        self.watch = watch
        self.poll = select.poll()
        self.poll.register(channel.fileno(), select.POLLIN)
        if watch is not None:
            self.poll.register(watch, select.POLLIN)
        self.children: dict[int, int] = {}  # pidfd -> pid

    def run(self) -> None:
        """Fork on request and report exits until the owner is gone."""
        # Without pidfds, look every half second.
        timeout = None if self.watch is not None else 500
        while True:
            ready = [fd for fd, _ in self.poll.poll(timeout)]
            if self.watch is not None and self.watch in ready:
                return
            if self.watch is None and os.getppid() != self.owner:
                return
            self._reap()
            if self.channel.fileno() in ready:
                message = self.channel.recv()
                assert message is not None
                self._fork(message)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for fd in [fd for fd, child in self.children.items() if child == pid]:
                self.poll.unregister(fd)
                os.close(fd)
                del self.children[fd]
            self.channel.send(EXITED, (pid, status))

    def _fork(self, message: Message) -> None:
        name = message.value
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(name, parent, message.fds)
        for fd in message.fds:
            os.close(fd)
        watched = system.pidfd(pid)
        if watched is not None:
            self.children[watched] = pid
            self.poll.register(watched, select.POLLIN)
        self.channel.send(FORKED, pid, request=message.request)

    def _become_child(self, name: str, parent: int, fds: tuple[int, ...]) -> None:
        code = 1
        try:
            system.die_with_parent(parent)
            system.set_name(name)
            for watched in (*self.children, self.watch):
                if watched is not None:
                    os.close(watched)
            self.channel.close()
            from kit.engine import child

            code = child.run(fds)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)


def _end_descendants() -> None:
    for _ in range(100):
        pids = system.children_of(os.getpid())
        if not pids:
            return
        for pid in pids:
            system.kill(pid)
        for pid in pids:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue


def start(preload: list[str], env: dict[str, str]) -> tuple[Any, Channel]:
    """Start a fork server owned by this process; returns its Popen and the control channel.

    The server reports READY or FAILED on the channel once the modules in `preload` are imported.
    """
    import subprocess

    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET if system.LINUX else socket.SOCK_DGRAM)
    bootstrap = (
        "import sys, json; path, control, owner = json.loads(sys.argv[1]); sys.path[:] = path; "
        "from kit.engine import forkserver; forkserver.main(control, owner)"
    )
    argument = json.dumps([_search_path(), there.fileno(), os.getpid()])
    # Blocked until the server ignores it: an interrupt of the cell must not end it while it starts.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", bootstrap, argument],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **env},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        there.close()
    channel = Channel(here)
    channel.send(0, preload)
    return process, channel


def _search_path() -> list[str]:
    """sys.path with the empty entry made absolute, and the folder of the kit itself first found."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = search_path.entries()
    return path if root in path else [*path, root]


def environment() -> dict[str, str]:
    """Variables that a fork server is started with, for what the user hasn't set."""
    found = {name: "1" for name in THREAD_VARIABLES if name not in os.environ}
    found.setdefault("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "passive"))
    found["TOKENIZERS_PARALLELISM"] = os.environ.get("TOKENIZERS_PARALLELISM", "false")
    # pyarrow, which pandas imports, would start a thread of its memory allocator before the fork.
    found.setdefault("JE_ARROW_MALLOC_CONF", os.environ.get("JE_ARROW_MALLOC_CONF", "background_thread:false"))
    return found
