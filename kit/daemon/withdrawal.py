"""A kernel that was interrupted while it served, switched or updated: nothing is to be loaded that nobody asks for.

In a SERVE the kernel hangs up its connection, which the deployment's process doesn't read while it loads, and then
says on another one that it was no accident: what a kernel that was killed or restarted had begun goes on. A switch or
update it takes back over its connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.daemon import hello, spawn

if TYPE_CHECKING:
    from kit.daemon.connection import Connection
    from kit.daemon.served import Served
    from kit.daemon.session import Session
    from kit.engine.core import Engine

#: How long the kernel waits for the answer; how often is looked whether the update has stopped; seconds.
ANSWER_S, LOOK_S = 10.0, 0.02


# ---- in the deployment's process -------------------------------------------------------------


class Replacement:
    """A hot update that a kernel has asked for.

    Attributes:
        outcome: REPLACED once it has come about.
    """

    def __init__(self, session: Session, handler: Any, engine: Engine) -> None:
        self.session = session
        self.outcome = hello.KEPT
        self._handler = handler
        self._engine = engine

    def cancel(self) -> None:
        """Stop it, unless it has taken over; a switch of somebody else's is left alone."""
        switching = self._engine.switching
        if switching is not None and switching[0].handler is self._handler:
            self._engine.cancel_switch()


def withdraw(served: Served) -> str:
    """Cancel what only kernels that have hung up had asked for; returns what came of it."""
    if served.nobody_waits():
        served.end(errors.DeploymentLost(f"the load of {served.name!r} was cancelled; serve it again."))
        return hello.CANCELLED
    if served.state != "serving":
        return hello.AWAITED if served.state == "loading" else hello.CANCELLED
    replacement = served.replacement
    if replacement is None or not replacement.session.link.hung_up():
        # Behind another's replacement it finds that its kernel has hung up, and does nothing.
        gone = any(session.said.get("replace") and session.link.hung_up() for session in list(served.entering))
        return hello.KEPT if gone else hello.SERVED
    while served.replacement is replacement:
        replacement.cancel()
        time.sleep(LOOK_S)
    return replacement.outcome


class Change:
    """A switch or update that a kernel has asked for over its connection, and may take back.

    Attributes:
        outcome: REPLACED once it has come about, KEPT otherwise.
        over: set at its end.
    """

    def __init__(self) -> None:
        self.outcome = hello.KEPT
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._taken_back = False
        self._engine: Engine | None = None  # while this is what it changes to

    def make(self, served: Served, call: Callable[[], Any]) -> Any:
        """Call `call`, which makes the change, behind those of other kernels."""
        try:
            engine = served.serving()._engine
            with engine.switch_lock:
                with self._lock:
                    if self._taken_back:
                        raise errors.SwitchCancelled("the kernel that had asked for it was interrupted.")
                    self._engine = engine
                try:
                    found = call()
                    self.outcome = hello.REPLACED
                    return found
                finally:
                    with self._lock:
                        self._engine = None
        finally:
            self.over.set()

    def take_back(self) -> str:
        """Stop it unless it has taken over; returns the outcome."""
        with self._lock:
            self._taken_back = True
            if self._engine is None:
                return self.outcome
        while not self.over.wait(LOOK_S):
            with self._lock:
                if self._engine is not None:
                    self._engine.cancel_switch()
        return self.outcome


# ---- in the kernel ---------------------------------------------------------------------------


def change(connection: Connection, method: str, **arguments: Any) -> Any:
    """`Connection.call` of a switch or update, which an interrupt takes back.

    Raises:
        KeyboardInterrupt: says what came of it.
    """
    number = connection.number()
    try:
        return connection.call_as(number, method, arguments)
    except KeyboardInterrupt:
        raise _taken_back(connection, number, "switched" if method == "switch" else "updated") from None


def _taken_back(connection: Connection, number: int, done: str) -> KeyboardInterrupt:
    name = connection.name
    try:
        outcome = connection.call("take_back", change=number)
    except errors.KitError as error:
        return KeyboardInterrupt(f"{name!r} may have been {done}: {error}")
    if outcome == hello.REPLACED:
        return KeyboardInterrupt(f"{name!r} had been {done} by then.")
    return KeyboardInterrupt(f"{name!r} wasn't {done}, and serves on as before.")


def interrupted(name: str) -> KeyboardInterrupt:
    """Withdraw a SERVE whose connection is closed; the interrupt to raise, which says what came of it."""
    outcome = hello.CANCELLED
    try:
        found = spawn.open_link(hello.hello(hello.WITHDRAW, name), timeout_s=ANSWER_S)
        if found is not None:
            link, frame = found
            outcome = frame.decoder.value()["outcome"]
            link.close()
    except (errors.UnknownDeployment, errors.DeploymentLost):
        pass  # it hadn't begun, or is over
    except errors.KitError as error:
        return KeyboardInterrupt(f"{name!r} may be loading still: {error}")
    words = {
        hello.CANCELLED: f"the load of {name!r} was cancelled, and nothing is served.",
        hello.AWAITED: f"another kernel waits for {name!r}, too, so its load goes on.",
        hello.KEPT: f"{name!r} wasn't replaced, and serves on as before.",
        hello.REPLACED: f"{name!r} had been replaced by then; %unserve {name} ends it.",
        hello.SERVED: f"{name!r} was there by then, and is served; %unserve {name} ends it.",
    }
    return KeyboardInterrupt(words[outcome])
