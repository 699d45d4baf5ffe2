"""The owner's side of the fork server: starting processes, and learning of their end."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from kit import errors
from kit.engine import forkserver
from kit.engine.ends import channel_pair
from kit.engine.process import Process
from kit.engine.transport import Channel, ChannelClosed

PRELOAD_TIMEOUT_S = 300.0


class ForkServer:
    """A running fork server, started again when it dies.

    Args:
        preload: modules to import before the first fork.
        env: environment variables on top of this process's.

    Raises:
        PreloadFailed: a module couldn't be imported (from `wait_ready`, or `fork`).
    """

    def __init__(self, preload: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.preload = list(preload)
        self.env = {**forkserver.environment(), **(env or {})}
        self._lock = threading.Lock()
        self._users = 0
        self._generation: _Generation | None = None
        self._closed = False
        self._start()

    def _start(self) -> _Generation:
        popen, channel = forkserver.start(self.preload, self.env)
        self._generation = _Generation(popen, channel)
        return self._generation

    @property
    def pid(self) -> int:
        generation = self._generation
        return generation.popen.pid if generation is not None else 0

    def wait_ready(self) -> None:
        """Wait until the libraries are imported."""
        generation = self._generation
        if generation is not None:
            generation.ready.result(PRELOAD_TIMEOUT_S)

    def fork(self, process: Process, board_fd: int, output_fd: int) -> None:
        """Fork `process`; sets its pid and control channel. Not to be called in the reader thread."""
        for last_try in (False, True):
            generation = self._living()
            generation.ready.result(PRELOAD_TIMEOUT_S)
            ours, theirs = channel_pair()
            process.control = ours.open(first=True)
            name = f"kit-{process.role}-{process.index}"
            try:
                generation.fork(process, name, (theirs.sock, theirs.memory, board_fd, output_fd))
                return
            except _ServerGone:
                # It died just now; the next one is started.
                generation.ended.set()
                process.control.close()
                if last_try:
                    raise
            except BaseException:
                process.control.close()
                raise
            finally:
                theirs.close()

    def _living(self) -> _Generation:
        with self._lock:
            if self._closed:
                raise errors.DeploymentClosed("the deployment was closed while a process was being started.")
            generation = self._generation
            if generation is None or generation.ended.is_set():
                generation = self._start()
            return generation

    def retain(self) -> ForkServer:
        """Count one more user; `close` then only releases."""
        self._users += 1
        return self

    def close(self) -> None:
        """Release; the last user ends the server and everything forked from it. Idempotent."""
        self._users -= 1
        if self._users > 0:
            return
        with self._lock:
            self._closed = True
            generation, self._generation = self._generation, None
        if generation is not None:
            generation.close()


class _ServerGone(errors.WorkerDied):
    """The fork server died before it could fork."""


class _Generation:
    """One life of the fork server."""

    def __init__(self, popen: subprocess.Popen[bytes], channel: Channel) -> None:
        self.popen = popen
        self.channel = channel
        self.ready: Future[int] = Future()
        self.ended = threading.Event()
        self._tokens = itertools.count(1)
        self._forking: dict[int, tuple[Process, Future[int]]] = {}
        self._processes: dict[int, Process] = {}
        self._thread = threading.Thread(target=self._read, name="kit-forkserver-reader", daemon=True)
        self._thread.start()

    def fork(self, process: Process, name: str, fds: tuple[int, ...]) -> None:
        token = next(self._tokens)
        done: Future[int] = Future()
        self._forking[token] = (process, done)
        try:
            self.channel.send(forkserver.FORK, name, request=token, fds=fds)
        except ChannelClosed as error:
            self._forking.pop(token, None)
            raise _ServerGone("the fork server is gone.") from error
        done.result(60)

    def _read(self) -> None:
        try:
            while True:
                message = self.channel.recv()
                assert message is not None
                self._take(message)
        except ChannelClosed:
            self.ended.set()
        self._all_gone()

    def _take(self, message: Any) -> None:
        if message.kind == forkserver.FORKED:
            process, done = self._forking.pop(message.request)
            process.pid = message.value
            self._processes[process.pid] = process
            done.set_result(process.pid)
        elif message.kind == forkserver.EXITED:
            pid, status = message.value
            found = self._processes.pop(pid, None)
            if found is not None:
                found.gone(status)
        elif message.kind == forkserver.READY:
            self.ready.set_result(message.value)
        else:
            name, reason, trace = message.value
            self.ready.set_exception(
                errors.PreloadFailed(f"the handler needs {name!r}, which can't be imported: {reason}", trace)
            )

    def _all_gone(self) -> None:
        status = self.popen.wait()
        if not self.ready.done():
            self.ready.set_exception(
                errors.PreloadFailed(
                    f"the fork server ended while it started (exit code {status}); see its output above."
                )
            )
        for process, done in list(self._forking.values()):
            done.set_exception(_ServerGone(f"the fork server died while it started a {process.role}."))
        for process in list(self._processes.values()):
            process.gone(None)
        self._processes.clear()
        self.channel.close()

    def close(self) -> None:
        # Its owner's closing is what it waits for; killing it takes its children along as well.
        with contextlib.suppress(OSError):
            self.channel.sock.shutdown(2)
        try:
            self.popen.wait(2)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGKILL)
        if threading.current_thread() is not self._thread:
            self._thread.join(5)
