"""A kernel's side of its connection to a named deployment: who waits for which answer."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from kit import errors
from kit.daemon.decoder import trouble_of
from kit.daemon.direct import DirectWay
from kit.daemon.encoder import Encoder
from kit.daemon.frames import Frame, LinkClosed
from kit.daemon.interrupts import Deferred
from kit.daemon.link import Link
from kit.daemon.protocol import CALL, CANCEL, DIRECT, ERROR, PRINTED
from kit.daemon.wire import Malformed
from kit.engine.logs import show

#: Longest that a thread waits awake for an answer, seconds: being woken costs a short round trip a third more.
SPIN_S = 500e-6
#: A kernel that has asked nothing for so long is idle, seconds.
IDLE_S = 0.5
#: Called once with the frame that answers, or with the error in its place.
OnAnswer = Callable[["Frame | errors.KitError"], None]


def show_print(frame: Frame) -> None:
    """Print what a serving process printed, as a deployment of this process would."""
    role, pid, text = (frame.decoder.value() for _ in range(3))
    show(role, pid, text)


class Connection:
    """Requests by number, answered in the thread that reads the link.

    Args:
        link: the link, past its WELCOME.
        name: of the deployment, for messages.
        pid: of its process.
    """

    def __init__(self, link: Link, name: str, pid: int) -> None:
        self.link = link
        self.name = name
        self.pid = pid
        self.ended: errors.KitError | None = None
        self._owner = os.getpid()
        self._waiting: dict[int, OnAnswer] = {}
        self._numbers = itertools.count(1)
        self._latest = 0
        self._reading = threading.Lock()
        self._spin_s = 0.0
        self.direct = DirectWay(link, SPIN_S)
        self._at_end: list[Callable[[], None]] = []
        self._call_read, self._call_write = os.pipe()
        self._thread = threading.Thread(target=self._read, name="kit-link", daemon=True)
        self._thread.start()

    # ---- asking ------------------------------------------------------------------------------

    def raise_if_ended(self) -> None:
        """Raise why nothing can be asked any more."""
        if os.getpid() != self._owner:
            raise errors.DeploymentLost(
                f"this process is a fork of the one that is connected to {self.name!r}; call "
                f"kit.connect({self.name!r}) in it."
            )
        if self.ended is not None:
            raise self.ended.copy()

    def number(self) -> int:
        """A number for a request, for who must know it before it is sent."""
        return next(self._numbers)

    def ask(self, kind: int, encoder: Encoder, on_answer: OnAnswer, number: int | None = None) -> int:
        """Send a request; returns its number, for `cancel`.

        Raises:
            DeploymentLost: and `on_answer` isn't called.
        """
        self.raise_if_ended()
        self._latest = number = next(self._numbers) if number is None else number
        self._waiting[number] = on_answer
        try:
            with Deferred():
                self.link.send(kind, encoder, number)
        except LinkClosed as error:
            self._waiting.pop(number, None)
            raise self._gone() from error
        except BaseException:
            self._waiting.pop(number, None)
            raise
        if self.ended is not None and self._waiting.pop(number, None) is not None:
            raise self.ended.copy()
        return number

    def cancel(self, number: int) -> None:
        """Say that nobody waits for the answer of a request any more."""
        if self._waiting.pop(number, None) is None or os.getpid() != self._owner:
            return
        try:
            self.link.send(CANCEL, None, number)
        except LinkClosed:
            return  # then it is cancelled anyhow

    def call(self, method: str, /, **arguments: Any) -> Any:
        """The result of a method, see `calls`.

        Raises:
            KitError: what the method raises there; DeploymentLost.
        """
        return self.call_as(self.number(), method, arguments)

    def call_as(self, number: int, method: str, arguments: dict[str, Any]) -> Any:
        """`call`, of a number given."""
        future: Future[Any] = Future()

        def answered(found: Frame | errors.KitError) -> None:
            try:
                if isinstance(found, errors.KitError):
                    future.set_exception(found)
                else:
                    future.set_result(found.decoder.value())
            except InvalidStateError:
                return  # interrupted
            except Malformed as error:
                future.set_exception(error)

        self.ask(CALL, self.link.encoder().add(method).add(arguments), answered, number)
        return self.wait(future)

    # ---- answers -----------------------------------------------------------------------------

    def wait(self, future: Future[Any]) -> Any:
        """The future's result; this thread reads the link meanwhile, unless another one does."""
        if self._reading.acquire(blocking=False):
            try:
                self._lead(future)
            except LinkClosed:
                pass  # the other thread says what it means to all who wait
            finally:
                self._reading.release()
        if self._waiting or not future.done():
            self.call_reader()
        return future.result()

    def _lead(self, future: Future[Any]) -> None:
        """Read until the future is done. An interrupt may come while nothing is being read."""
        link = self.link
        began = time.monotonic()
        while not future.done():
            if link.buffered or link.look(None, self._spin_s):
                with Deferred():
                    frame = link.advance()
                    if frame is not None:
                        self._take(frame)
                    frame = None  # it leases memory that the other side may want
        # Only where answers come fast is it worth waiting for them awake.
        self._spin_s = SPIN_S if time.monotonic() - began < 2 * SPIN_S else 0.0

    def call_reader(self) -> None:
        """Have the thread read, since somebody waits for an answer elsewhere."""
        with contextlib.suppress(OSError):
            os.write(self._call_write, b"x")

    def _read(self) -> None:
        """The thread: sleeps while nobody waits or another thread reads, but notices the end of the link."""
        try:
            while not self._sleep():
                with self._reading:
                    while (frame := self.link.receive(None if self._waiting else 0.0)) or self._waiting:
                        if frame is not None:
                            self._take(frame)
                        del frame
            with self._reading:
                while True:  # what came before the end; then LinkClosed
                    frame = self.link.receive()
                    if frame is not None:
                        self._take(frame)
        except LinkClosed:
            self._lose(self._gone())
        except Malformed as error:
            self._lose(errors.DeploymentLost(f"{self.name!r} sent what isn't a message ({error}); connect again."))
        finally:
            with self._reading:
                self.link.close()
                os.close(self._call_read)
                os.close(self._call_write)
            for callback in list(self._at_end):
                callback()

    def _sleep(self) -> bool:
        """Wait for a call, for prints, or the end of the link: then True.

        Prints come unasked. They are waited for once nobody has asked anything for IDLE_S; until then the threads
        that wait for answers read them too, and no answer wakes this thread for nothing.
        """
        sock = self.link.sock.fileno()
        poll = select.poll()
        poll.register(self._call_read, select.POLLIN)
        idle = False
        found: dict[int, int] = {}
        while not found:
            before = self._latest
            poll.register(sock, select.POLLIN if idle else 0)  # 0 reports the end only
            found = dict(poll.poll(None if idle else IDLE_S * 1000))
            idle = self._latest == before
        if self._call_read in found:
            os.read(self._call_read, 4096)
        return bool(found.get(sock, 0) & ~select.POLLIN)

    def _take(self, frame: Frame) -> None:
        if frame.kind == PRINTED:
            show_print(frame)
            return
        if frame.kind == DIRECT:
            self.direct.open(frame)
            return
        error = trouble_of(frame.decoder.value()).error() if frame.kind == ERROR else None
        if frame.number == 0 and error is not None:
            self._lose(error)
            return
        on_answer = self._waiting.pop(frame.number, None)
        if on_answer is not None:
            on_answer(frame if error is None else error)

    def _gone(self) -> errors.KitError:
        if self.ended is not None:
            return self.ended.copy()
        return errors.DeploymentLost(
            f"the process of the named deployment {self.name!r} (pid {self.pid}) is gone, or its daemon was ended; "
            f"what waited for it has no answer. Serve it again: %serve HANDLER --name {self.name}; "
            f"variables of before stay ended, kit.connect({self.name!r}) gives a new one."
        )

    def _lose(self, error: errors.KitError) -> None:
        if self.ended is None:
            self.ended = error
        self.direct.close()
        while self._waiting:
            _, on_answer = self._waiting.popitem()
            on_answer(self.ended.copy())

    def call_at_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called when the connection ends; returns a function that takes it back."""
        self._at_end.append(callback)

        def take_back() -> None:
            if callback in self._at_end:
                self._at_end.remove(callback)

        return take_back

    # ---- end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Detach; what still waits fails. Idempotent, and a no-op in a fork."""
        if os.getpid() != self._owner:
            return
        if self.ended is None:
            self.ended = errors.DeploymentClosed(
                f"this kernel has let go of {self.name!r}, which goes on; kit.connect({self.name!r}) takes it up again."
            )
        self.direct.close()
        self.link.hang_up()
        self.call_reader()
        if threading.current_thread() is not self._thread:
            self._thread.join(5)
