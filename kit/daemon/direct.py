"""The kernel's end of a direct line to a worker thread."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from typing import Any

from kit.daemon.decoder import trouble_of
from kit.daemon.frames import Frame, LinkClosed
from kit.daemon.interrupts import Deferred
from kit.daemon.link import Link
from kit.daemon.protocol import ANSWER, ASK_DIRECT, ERROR, GOODBYE, RUN, WELCOME
from kit.daemon.wire import Malformed
from kit.engine.codec import Rows
from kit.engine.requests import results_of
from kit.example_bytes import num_bytes

#: A line is asked for once so many requests have followed on each other within ROW_S each; seconds.
ROW, ROW_S = 8, 0.5
#: And not again for so long, seconds.
AGAIN_S = 1.0


class Ended(Exception):
    """The line ended before there was an answer.

    Attributes:
        deaths: 1 when the worker seems to have died over the request.
    """

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths


class Direct:
    """The line; the thread that asks reads its answer itself, one at a time.

    Args:
        fd: of its socket.
        most: examples and bytes of a request at most.
        allow_pickle: as of the deployment.
        spin_s: how long to wait awake for a short answer.
    """

    def __init__(self, fd: int, most: tuple[int, int], *, allow_pickle: bool, spin_s: float) -> None:
        self._link = Link(socket.socket(fileno=fd), keep=True, allow_pickle=allow_pickle)
        self._most, self._most_bytes = most
        self._most_spin_s = self._spin_s = spin_s
        self._number = 0
        self._asking = threading.Lock()
        self.closed = False

    def takes(self, rows: Any) -> bool:
        """True for a request that may go this way."""
        count = len(rows)
        if not 0 < count <= self._most:
            return False
        # Only to spare encoding what is too large; what counts is its size as it travels.
        size = rows.stacked.nbytes if type(rows) is Rows else sum(map(num_bytes, rows))
        return bool(size <= self._most_bytes)

    def ask(self, rows: Any) -> list[Any] | None:
        """The predictions; None when another thread is asking, or these examples are too large for the line.

        Raises:
            Ended: the line is closed; ask the ordinary way.
            KitError: what the handler raised, or an example that can't travel.
        """
        if not self._asking.acquire(blocking=False):
            return None
        waits = sent = False
        try:
            encoder = self._link.encoder().add(time.monotonic()).examples(rows)
            if encoder.size > self._most_bytes:
                return None
            waits = True
            self._number += 1
            self._link.send(RUN, encoder, self._number)
            sent = True
            frame = self._answer()
            waits = False
            if frame.kind == ERROR:
                raise trouble_of(frame.decoder.value()).error()
            return _predictions(frame, rows)
        except LinkClosed as error:
            self.hang_up()
            raise Ended(int(sent and not isinstance(error, _Goodbye))) from error
        except Malformed as error:
            self.hang_up()
            raise Ended(0) from error
        except BaseException:
            if waits:
                self.hang_up()  # interrupted: nobody will read the answer
            raise
        finally:
            self._asking.release()
            if self.closed:
                self._link.close()

    def _answer(self) -> Frame:
        link = self._link
        began = time.monotonic()
        while True:
            frame = link.receive(spin_s=self._spin_s)
            if frame is None:
                continue
            if frame.kind == WELCOME:
                if frame.fd >= 0:
                    link.use_ring(frame.fd)
            elif frame.kind == GOODBYE:
                raise _Goodbye
            elif frame.kind in (ANSWER, ERROR) and frame.number == self._number and frame.fd < 0:
                # Only where answers come fast is it worth waiting for them awake.
                short = time.monotonic() - began < 2 * self._most_spin_s
                self._spin_s = self._most_spin_s if short else 0.0
                return frame
            else:
                if frame.fd >= 0:
                    os.close(frame.fd)
                raise Malformed("not an answer")

    def hang_up(self) -> None:
        """End the line; a thread that waits for an answer is told so."""
        self.closed = True
        self._link.hang_up()

    def close(self) -> None:
        """End the line, and close it unless a thread waits for an answer, which then does."""
        self.hang_up()
        if self._asking.acquire(blocking=False):
            self._link.close()
            self._asking.release()


class DirectWay:
    """Whether a request goes over a direct line, and when to ask for one.

    Args:
        link: to the deployment.
        spin_s: how long to wait awake for a short answer.
    """

    def __init__(self, link: Link, spin_s: float) -> None:
        self._link = link
        self._spin_s = spin_s
        self._line: Direct | None = None
        self._in_row = 0
        self._last = self._asked_at = -math.inf

    def predict(self, rows: Any) -> list[Any] | None:
        """The predictions; None when they are to be asked for the ordinary way.

        Raises:
            Ended: the same, after the line has ended with the request under way.
            KitError: as `Direct.ask`.
        """
        line = self._line
        if line is None or not line.takes(rows):
            self._perhaps_ask()
            return None
        try:
            return line.ask(rows)
        finally:
            if line.closed and self._line is line:
                self._line = None

    def _perhaps_ask(self) -> None:
        now = time.monotonic()
        self._in_row = self._in_row + 1 if now - self._last < ROW_S else 1
        self._last = now
        if self._in_row >= ROW and now - self._asked_at > AGAIN_S:
            self._asked_at = now
            with contextlib.suppress(LinkClosed), Deferred():
                self._link.send(ASK_DIRECT)

    def open(self, frame: Frame) -> None:
        """Use the line that came with a DIRECT frame from now on.

        Raises:
            Malformed: it isn't one.
        """
        most = frame.decoder.value()
        if frame.fd < 0 or type(most) is not tuple or list(map(type, most)) != [int, int]:
            raise Malformed("not a direct line")
        self.close()
        self._line = Direct(frame.fd, most, allow_pickle=self._link.allow_pickle, spin_s=self._spin_s)

    def close(self) -> None:
        """Let go of the line. Idempotent."""
        line, self._line = self._line, None
        if line is not None:
            line.close()


class _Goodbye(LinkClosed):
    """The worker has closed the line in order."""


def _predictions(frame: Frame, rows: Any) -> list[Any]:
    decoder = frame.decoder
    if decoder.value() != {} or decoder.value() != 1:
        raise Malformed("not an answer")
    (_, plain, model_ids), values = decoder.value(), decoder.value()
    values = values.tolist() if type(values) is Rows else values
    if len(values) != len(rows):
        raise Malformed("an answer of another length")
    return values if plain else results_of(rows, values, model_ids)
