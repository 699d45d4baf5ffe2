"""A kernel's connection to a named deployment, as the deployment sees it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.daemon import calls, hello, paths, withdrawal
from kit.daemon.decoder import PickleNotRebuilt
from kit.daemon.frames import Frame, LinkClosed
from kit.daemon.link import Link
from kit.daemon.protocol import (
    ANSWER,
    ASK_DIRECT,
    CALL,
    CANCEL,
    ERROR,
    HANDLER,
    NEED_HANDLER,
    PRINTED,
    REPLY,
    RUN,
    WELCOME,
)
from kit.daemon.remote_request import RemoteRequest
from kit.daemon.wire import Malformed
from kit.engine import system
from kit.engine.codec import Rows
from kit.engine.trouble import Trouble
from kit.engine.unreadable import ARGUMENTS, EXAMPLES

if TYPE_CHECKING:
    from kit.daemon.served import Served

#: Requests of one kernel that may wait at once; its own side keeps below that.
MOST_WAITING = 4096
#: Prints aren't sent to a kernel that has left so many bytes unread.
MOST_UNREAD = 1 << 20
#: Rates are over this many seconds.
RATE_S = 3
#: In which an ended deployment's process is gone, seconds.
LATE_S = 30.0


class Late(Exception):
    """A kernel wants to serve a handler, and came when this process had begun to end."""


class Session:
    """Reads a kernel's requests in a thread of its own; answers are sent by whoever has them.

    Attributes:
        waiting: the kernel's requests by number.
        changes: switches and updates that it has asked for, by number.
        kernel: pid of the kernel's process, or another number of its own where that can't be told; a kernel with
            several connections hears of what is printed once.
        requests, examples: how many were asked for, for the picture of who uses the deployment.
    """

    def __init__(self, sock: socket.socket, said: dict[str, Any], served: Served) -> None:
        self.link = Link(sock)
        self.said = said
        self.served = served
        self.waiting: dict[int, RemoteRequest] = {}
        self.changes: dict[int, withdrawal.Change] = {}  # that may be taken back
        self.requests = self.examples = 0
        self.connected_at = time.monotonic()
        self._shared_ring = False
        self._by_second: deque[list[int]] = deque(maxlen=RATE_S + 1)  # [second, requests, examples]
        peer = paths.peer_of(sock)
        self.kernel = peer[0] if peer is not None and peer[0] > 0 else -id(self)
        watched = system.pidfd(peer[0]) if peer is not None and peer[0] > 0 else None
        if watched is not None:
            self.link.watch_peer(watched)

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="kit-session", daemon=True).start()

    def _run(self) -> None:
        try:
            if self._enter():
                while True:
                    frame = self.link.receive()
                    if frame is not None:
                        self._take(frame)
                        del frame  # it leases memory that the kernel may want
        except (LinkClosed, Malformed, errors.KitError):
            pass  # nothing of this kernel's is left below, and others aren't concerned, or were told the end as it was
        except Late:
            time.sleep(LATE_S)  # unanswered: once this process is gone, the kernel asks the daemon again
        except Exception:
            traceback.print_exc()
        finally:
            self._leave()

    def _enter(self) -> bool:
        """The answer to the hello; False when that was all."""
        try:
            if self.said["action"] == hello.LOOK:
                self._send_ring(WELCOME, self.served.status())
            elif self.said["action"] == hello.WITHDRAW:
                self.link.send(WELCOME, self.link.encoder().add({"outcome": withdrawal.withdraw(self.served)}))
            else:
                hello.check_versions(self.said, f"the deployment {self.served.name!r}")
                outcome = self.served.admit(self.said, self)
                self.served.sessions.append(self)
                self.link.allow_pickle = self.served.allow_pickle
                self._send_ring(WELCOME, self.served.welcome(outcome))
                if self not in self.served.hearers:
                    self.served.hearers.append(self)
        except errors.KitError as error:
            self._send_error(0, error)
            self.link.drain(1.0)
            return False
        finally:
            self.served.answered(self)
        return True

    @property
    def waits(self) -> bool:
        """True for a kernel at the door that is still there, and wants to be let in."""
        return self.said["action"] in (hello.SERVE, hello.ATTACH) and not self.link.hung_up()

    def _send_ring(self, kind: int, value: Any) -> None:
        encoder, fd = self.link.encoder().add(value), -1
        if not self._shared_ring:
            self._shared_ring = True
            fd = self.link.make_ring()
        try:
            self.link.send(kind, encoder, fd=fd)
        finally:
            if fd >= 0:
                os.close(fd)

    def fetch_handler(self) -> dict[str, Any]:
        """Ask the kernel for its handler and settings; the handler comes as bytes.

        Raises:
            LinkClosed, Malformed: the kernel is gone, or talks nonsense.
        """
        self._send_ring(NEED_HANDLER, None)
        while True:
            frame = self.link.receive()
            if frame is not None:
                break
        found = frame.decoder.value() if frame.kind == HANDLER else None
        names = {"handler", "settings", "sample", "keep_alive_s", "allow_pickle"}
        if not isinstance(found, dict) or set(found) != names or not isinstance(found["settings"], dict):
            raise Malformed("not a handler")
        return found

    # ---- requests ----------------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        if frame.fd >= 0:
            os.close(frame.fd)
            raise Malformed("an unexpected descriptor")
        if frame.kind in (RUN, CALL):
            self._begin(frame)
        elif frame.kind == CANCEL:
            request = self.waiting.pop(frame.number, None)
            if request is not None:
                request.future.cancel()
        elif frame.kind == ASK_DIRECT:
            self.served.line.ask(self)
        else:
            raise Malformed(f"an unexpected frame of kind {frame.kind}")

    def _begin(self, frame: Frame) -> None:
        """Begin what a frame asks for, or say what of it can't be rebuilt here."""
        begin, what = (self._run_request, EXAMPLES) if frame.kind == RUN else (self._call, ARGUMENTS)
        try:
            values = frame.decoder.value(), frame.decoder.value()
        except PickleNotRebuilt as error:
            self._send_error(frame.number, error.trouble(what).error())
        else:
            begin(frame.number, *values)

    def _run_request(self, number: int, options: Any, examples: Any) -> None:
        if len(self.waiting) >= MOST_WAITING or number in self.waiting or type(examples) not in (list, Rows):
            raise Malformed("not a request")
        self.served.line.asks(self)
        request = RemoteRequest.make(options, examples, self)
        if request.deaths:
            self.served.line.broke(self)
        self.served.used_at = time.monotonic()
        self.count(request.count)
        self.waiting[number] = request
        request.future.add_done_callback(lambda future: self._answer(number, request, future))
        try:
            request.dispatcher.submit(request)
        except errors.KitError as error:
            request.fail_all(error)

    def _answer(self, number: int, request: RemoteRequest, future: Future[list[Any]]) -> None:
        """Send an answer, in the thread that completes it."""
        self.waiting.pop(number, None)
        if future.cancelled():
            return
        self.served.used_at = time.monotonic()
        error = future.exception()
        try:
            if error is None:
                self.link.send(ANSWER, request.encode(self.link.encoder()), number)
            else:
                self._send_error(number, error)
        except LinkClosed:
            return  # the session's thread sees it too, and cleans up
        except Exception as trouble:
            self._send_error(number, trouble)

    def _send_error(self, number: int, error: BaseException) -> None:
        with contextlib.suppress(LinkClosed):
            self.link.send(ERROR, self.link.encoder().add(list(Trouble.of(error))), number)

    def count(self, examples: int) -> None:
        """Note a request."""
        self.requests += 1
        self.examples += examples
        second = int(time.monotonic())
        if not self._by_second or self._by_second[-1][0] != second:
            self._by_second.append([second, 0, 0])
        self._by_second[-1][1] += 1
        self._by_second[-1][2] += examples

    def rates(self) -> dict[str, float]:
        """Requests and elements a second over the last RATE_S whole seconds."""
        now = int(time.monotonic())
        recent = [row for row in list(self._by_second) if now - RATE_S <= row[0] < now]
        return {
            "requests_per_s": sum(row[1] for row in recent) / RATE_S,
            "elements_per_s": sum(row[2] for row in recent) / RATE_S,
        }

    # ---- calls -------------------------------------------------------------------------------

    def _call(self, number: int, name: Any, arguments: Any) -> None:
        if type(name) is not str or type(arguments) is not dict or name not in (*calls.CALLS, "take_back"):
            raise Malformed("not a call")
        self.served.line.count()
        method = self._take_back if name == "take_back" else partial(calls.CALLS[name], self.served)
        call: Callable[[], Any] = partial(method, **arguments)
        if name in calls.CHANGES:
            self.changes = {number: change for number, change in self.changes.items() if not change.over.is_set()}
            change = self.changes[number] = withdrawal.Change()
            call = partial(change.make, self.served, call)
        if name in calls.SLOW or name == "take_back":
            threading.Thread(target=self._reply, args=(number, call), name="kit-call", daemon=True).start()
        else:
            self._reply(number, call)

    def _take_back(self, change: int) -> str:
        known = self.changes.get(change)
        return hello.KEPT if known is None else known.take_back()  # unknown: it was never sent

    def _reply(self, number: int, call: Callable[[], Any]) -> None:
        try:
            value = call()
            self.link.send(REPLY, self.link.encoder().add(value), number)
        except LinkClosed:
            return
        except Exception as error:
            self._send_error(number, error)

    def print(self, role: str, pid: int, text: str) -> None:
        """Pass on what a serving process printed; dropped for a kernel that doesn't read what it is sent."""
        if self.link.unsent_bytes > MOST_UNREAD:
            return
        with contextlib.suppress(LinkClosed):
            self.link.send(PRINTED, self.link.encoder().add(role).add(pid).add(text))

    # ---- end ---------------------------------------------------------------------------------

    def say_goodbye(self, error: errors.KitError) -> None:
        """Tell the kernel why nothing more comes."""
        self._send_error(0, error)
        self.link.drain(0.5)

    def _leave(self) -> None:
        """Forget the kernel: what it waits for is cancelled, and its memory is let go."""
        for those in (self.served.sessions, self.served.hearers):
            if self in those:
                those.remove(self)
        for request in list(self.waiting.values()):
            request.future.cancel()
        self.waiting.clear()
        self.served.line.leaves(self)
        self.served.turns.leaves(self)
        self.link.close()
