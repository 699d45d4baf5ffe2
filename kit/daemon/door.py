"""The worker's end of a direct line: a kernel's requests that a worker thread takes besides those of its lane.

What comes over it is as little trusted as what comes to the deployment's process, and checked by the same code: a
message that makes no sense closes the line, and the worker goes on.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

from kit.daemon.encoder import Encoder
from kit.daemon.frames import Frame, LinkClosed
from kit.daemon.ledger import Ledger, Record
from kit.daemon.link import Link
from kit.daemon.protocol import ANSWER, ERROR, GOODBYE, RUN, WELCOME
from kit.daemon.wire import Malformed
from kit.engine.codec import Rows
from kit.engine.host_pool import HostLost
from kit.engine.lane_thread import Unwanted
from kit.engine.runner import Outcome, as_list
from kit.engine.trouble import Trouble
from kit.handler import PredictionResult

#: How often the owner hears of the latest answer at most, seconds.
LATEST_S = 0.25


class Door:
    """One direct line, beside the worker thread's lane; all of it runs in that thread.

    Args:
        fds: of the line's socket and of its ledger; closed with it.
        lane: descriptor of the lane.
        compute: runs examples; called with them and with what is to be called before each batch.
        show: tells the owner of the latest answer: example, result, seconds.
        most, most_bytes: examples and bytes of a request at most.
        allow_pickle: as of the deployment.
    """

    def __init__(
        self,
        fds: tuple[int, ...],
        lane: int,
        compute: Callable[[Any, Callable[[], None]], Outcome],
        show: Callable[[tuple[Any, Any, float]], None],
        *,
        most: int,
        most_bytes: int,
        allow_pickle: bool,
    ) -> None:
        sock, ledger = fds
        whole = socket.socket(fileno=sock)
        try:
            self._ledger = Ledger(ledger)
        finally:
            os.close(ledger)
        self._link = Link(whole, allow_pickle=allow_pickle, most_bytes=most_bytes)
        self._lane = lane
        self._compute = compute
        self._show = show
        self._most = most
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(lane, select.POLLIN)
        self._poll.register(sock, select.POLLIN)
        self._polls_out = False
        self._latest: tuple[Any, Any, float] | None = None
        self._shown_at = 0.0
        self.closed = False
        ring = self._link.make_ring()
        try:
            self._link.send(WELCOME, fd=ring)
        except LinkClosed:
            self.close()
        finally:
            if ring >= 0:
                os.close(ring)

    def attend(self) -> None:
        """Answer the kernel until the lane has something; then again after one request of each at most."""
        try:
            while not self.closed:
                lane, frame = self._next()
                if frame is not None:
                    self._take(frame)
                    del frame  # it leases memory that the kernel may want
                if lane:
                    return
        except (LinkClosed, Malformed, HostLost, Unwanted):
            self.close()
        except Exception:  # whatever it was, the thread goes on for others
            traceback.print_exc()
            self.close()

    def _next(self) -> tuple[bool, Frame | None]:
        """Wait for either; True when the lane has something, and a frame if one is there whole."""
        frame = self._link.parse()
        if bool(self._link.unsent_bytes) != self._polls_out:
            self._polls_out = not self._polls_out
            self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if self._polls_out else 0))
        found = dict(self._poll.poll(0 if frame is not None else self._until_shown()))
        if frame is None and self._sock in found:
            frame = self._link.advance()
        if not found and frame is None:
            self._show_latest()
        return self._lane in found, frame

    def _take(self, frame: Frame) -> None:
        if frame.fd >= 0:
            os.close(frame.fd)
        if frame.kind != RUN or frame.fd >= 0:
            raise Malformed("not a request")
        if self._ledger.full:
            raise LinkClosed("nobody reads the ledger")
        asked_at, examples = frame.decoder.value(), frame.decoder.value()
        if type(asked_at) is not float or type(examples) not in (list, Rows) or not 0 < len(examples) <= self._most:
            raise Malformed("not a request")
        began_at = time.monotonic()
        encoder, outcome = self._answer(examples)
        ended_at = time.monotonic()
        batches = [] if outcome is None else outcome.batches
        self._ledger.add(
            Record(
                asked_at=asked_at if began_at - 3600.0 <= asked_at <= began_at else began_at,
                began_at=began_at,
                ended_at=ended_at,
                compute_s=sum(seconds for _, seconds in batches),
                examples=len(examples),
                batches=len(batches),
                size_bytes=frame.decoder.size,
                failed=outcome is None,
            )
        )
        self._link.send(ERROR if outcome is None else ANSWER, encoder, frame.number)
        if outcome is not None:
            self._latest = (*_last(examples, outcome), ended_at - began_at)

    def _answer(self, examples: Any) -> tuple[Encoder, Outcome | None]:
        """The body of an ANSWER, or that of an ERROR and None."""
        try:
            found = self._compute(examples, self._raise_if_gone)
            outcome = found._replace(values=as_list(found.values))
            about = ((0, len(examples)), outcome.plain, outcome.model_ids)
            return self._link.encoder().add({}).add(1).add(about).results(outcome.values), outcome
        except Exception as error:
            return self._link.encoder().add(list(Trouble.of(error))), None

    def _raise_if_gone(self) -> None:
        """Nobody waits for the answer when the kernel has closed the line."""
        for fd, event in self._poll.poll(0):
            if fd == self._sock and event & (select.POLLHUP | select.POLLERR):
                raise Unwanted

    # ---- the latest answer ---------------------------------------------------------------------

    def _until_shown(self) -> float | None:
        """Milliseconds until the owner is to hear of the latest answer, None when it has."""
        if self._latest is None:
            return None
        left = self._shown_at + LATEST_S - time.monotonic()
        if left <= 0:
            self._show_latest()
            return None
        return left * 1000

    def _show_latest(self) -> None:
        latest, self._latest = self._latest, None
        self._shown_at = time.monotonic()
        if latest is not None:
            self._show(latest)

    # ---- end -----------------------------------------------------------------------------------

    def see_off(self) -> None:
        """Close the line; the kernel is told that it is no accident."""
        with contextlib.suppress(LinkClosed):
            self._link.send(GOODBYE)
        self.close()

    def close(self) -> None:
        """Close the line. Idempotent."""
        if not self.closed:
            self.closed = True
            self._link.close()


def _last(examples: Any, outcome: Outcome) -> tuple[Any, Any]:
    """The last example and its result."""
    at, ids = len(examples) - 1, outcome.model_ids
    example, value = examples[at], outcome.values[at]
    if outcome.plain:
        return example, value
    return example, PredictionResult(example, value, ids[at] if isinstance(ids, list) else ids)
