"""The process of a named deployment: takes connections from the daemon, loads the handler, serves until told to end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import cloudpickle

from kit import errors
from kit.daemon import hello, paths, quiet
from kit.daemon.direct_line import DOOR, DirectLine
from kit.daemon.frames import LinkClosed
from kit.daemon.link import Link
from kit.daemon.protocol import CONNECTION, STOP
from kit.daemon.session import Session
from kit.daemon.turns import Turns
from kit.daemon.wire import Malformed
from kit.engine import system, tensor_bytes
from kit.engine.asking import looks_into, preload_of, works_on_tensors
from kit.engine.core import Engine
from kit.engine.forkserver import environment
from kit.engine.logs import Line
from kit.engine.processes import ForkServer
from kit.engine.trouble import Trouble
from kit.own_deployment import OwnDeployment
from kit.settings import Settings

#: How often an idle deployment looks whether its time is over, seconds.
LOOK_S = 1.0


class Served:
    """The one deployment of this process, and who is connected to it.

    Attributes:
        state: "empty", "loading", "serving" or "ended".
        digest: of the handler that is served, see `sameness`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "empty"
        self.digest = ""
        self.since = time.time()
        self.deployment: OwnDeployment | None = None
        self.allow_pickle = False
        self.keep_alive_s: float | None = None
        self.entering: set[Session] = set()  # without an answer to their hello
        self.sessions: list[Session] = []
        self.hearers: list[Session] = []  # to whom prints are passed on
        self.turns = Turns()
        self.line = DirectLine(self)
        self.used_at = time.monotonic()
        self.over = threading.Event()  # set to end this process
        self.last_words: errors.KitError = errors.DeploymentLost(
            f"the named deployment {name!r} was stopped; serve it again with %serve or kit.deploy(handler, "
            f"name={name!r})."
        )
        self._changed = threading.Condition()
        self._updating = threading.Lock()

    # ---- serving -----------------------------------------------------------------------------

    def admit(self, said: dict[str, Any], session: Session) -> bool:
        """Let a kernel in once the handler serves, loading or updating it first if the kernel asks for that.

        Returns:
            True when the kernel's handler was served already, or it brought none.

        Raises:
            NameTaken: another handler is served, and the kernel doesn't want it replaced.
            KitError: the handler can't be served.
        """
        if said["action"] != hello.SERVE:
            self._wait_loaded()
            return True
        with self._changed:
            first = self.state == "empty"
            if first:
                self.state, self.digest = "loading", said["digest"]
        if first:
            self._load(session)
            return False
        self._wait_loaded()
        with self._updating:
            if said["digest"] == self.digest:
                return True
            if not said.get("replace"):
                deployment = self.serving()
                raise errors.NameTaken(
                    f"{self.name!r} serves another handler, {type(deployment.handler).__name__}. To replace it live, "
                    "without a failed request, add --replace to %serve, or replace=True to kit.deploy; or choose "
                    "another name."
                )
            sent = session.fetch_handler()
            self.keep_alive_s = self.keep_alive_s if sent["keep_alive_s"] is None else sent["keep_alive_s"]
            self.update(rebuild(sent["handler"]), said["digest"])
            return False

    def _load(self, session: Session) -> None:
        try:
            sent = session.fetch_handler()
            handler = rebuild(sent["handler"])
            settings = Settings.make(handler, **sent["settings"])
            self.allow_pickle = sent["allow_pickle"]
            self.keep_alive_s = sent["keep_alive_s"]
            engine = Engine(handler, settings, _forkserver(handler))
            self.hearers.append(session)
            engine.logs.on_line = self._pass_on
            engine.start(sent["sample"])
            self.deployment = OwnDeployment(engine)
        except BaseException as error:
            refusal = error if isinstance(error, errors.KitError) else _lost_while_loading(self.name, error)
            self.end(refusal)
            raise refusal from error
        with self._changed:
            self.state = "serving"
            self._changed.notify_all()

    def _pass_on(self, line: Line) -> None:
        for session in {session.kernel: session for session in reversed(self.hearers)}.values():
            session.print(line.role, line.pid, line.text)

    def answered(self, session: Session) -> None:
        """Note that a kernel has had the answer to its hello."""
        with self._changed:
            self.entering.discard(session)
            self._changed.notify_all()

    def wait_answered(self, timeout_s: float) -> None:
        """Wait until nobody waits at the door any more."""
        with self._changed:
            self._changed.wait_for(lambda: not self.entering, timeout_s)

    def _wait_loaded(self) -> None:
        with self._changed:
            while self.state in ("empty", "loading"):
                self._changed.wait()
        self.serving()

    def serving(self) -> OwnDeployment:
        """The deployment.

        Raises:
            DeploymentLost: it has ended.
        """
        if self.state in ("empty", "loading"):
            raise errors.DeploymentLost(f"{self.name!r} is still loading its model; try again when it is there.")
        if self.state == "ended" or self.deployment is None:
            raise self.last_words.copy()
        return self.deployment

    def update(self, model: Any, digest: str) -> None:
        """Hot update to a path or another handler."""
        if hasattr(model, "load_model") and looks_into(model):
            tensor_bytes.pass_on(False)
        self.serving().update_model(model)
        self.digest = digest

    def status(self) -> dict[str, Any]:
        """What a kernel is told when it connects, and what `ps` shows."""
        found: dict[str, Any] = {
            "name": self.name,
            "pid": os.getpid(),
            "state": self.state,
            "since": self.since,
            "kernels": len({session.said["pid"] for session in self.sessions}),
            "keep_alive_s": self.keep_alive_s,
            "allow_pickle": self.allow_pickle,
        }
        if self.state == "serving" and self.deployment is not None:
            from kit.daemon.calls import describe, settings_of

            found["settings"] = settings_of(self.deployment)
            found["handler"] = describe(self.deployment.handler)
        return found

    # ---- end ---------------------------------------------------------------------------------

    def end(self, error: errors.KitError) -> None:
        """Have this process end; all kernels are told why."""
        with self._changed:
            if self.state == "ended":
                return
            self.state = "ended"
            self.last_words = error
            self._changed.notify_all()
        self.over.set()

    def _busy(self) -> bool:
        self.line.count()
        return self.line.busy or any(session.waiting for session in self.sessions)

    def watch_idle(self) -> None:
        """End the deployment when nobody has asked it anything for `keep_alive_s`."""
        while not self.over.wait(LOOK_S):
            limit = self.keep_alive_s
            if limit is None or self.state != "serving" or self._busy():
                continue
            if time.monotonic() - self.used_at > limit:
                self.end(
                    errors.DeploymentLost(
                        f"the named deployment {self.name!r} had no request for keep_alive={limit:g} s and has ended; "
                        "serve it again, with a longer keep_alive or none."
                    )
                )


def _lost_while_loading(name: str, error: BaseException) -> errors.KitError:
    trouble = Trouble.of(error)
    return errors.DeploymentLost(f"{name!r} wasn't loaded: {trouble.message}", trouble.trace)


def rebuild(data: Any) -> Any:
    """A handler from what `packing.pack` made of it; only called for a serve or update of a peer with our uid.

    Raises:
        ModelLoadFailed: it can't be rebuilt in this process.
    """
    try:
        return cloudpickle.loads(data)
    except Exception as error:
        raise errors.ModelLoadFailed(
            f"the handler can't be rebuilt in the deployment's process: {type(error).__name__}: {error}. Its modules "
            "must be found from the folder and search path of the notebook that serves it.",
            "".join(traceback.format_exception(error)),
        ) from error


def _forkserver(handler: Any) -> ForkServer:
    """The fork server of the deployment; while it starts, torch is imported here, too, where tensors are looked into.

    Elsewhere it would take 130 MB for nothing: tensors are passed on as bytes.
    """
    tensor_bytes.pass_on(not looks_into(handler))
    found = ForkServer([*preload_of(handler), DOOR.rpartition(".")[0]])
    if looks_into(handler) and works_on_tensors(handler):
        import torch  # noqa: F401
    return found


def main(control: int, name: str, log: str) -> None:
    """Serve until the daemon closes `control`, or is gone, or the deployment has ended by itself."""
    quiet.use_log(Path(log))
    for variable, value in environment().items():
        os.environ.setdefault(variable, value)  # before any library starts a pool of threads
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    system.set_name(f"kit-{name}")
    link = Link(socket.socket(fileno=control))
    parent = system.pidfd(os.getppid())
    if parent is not None:
        link.watch_peer(parent)
    served = Served(name)
    threading.Thread(target=_take_connections, args=(link, served), name="kit-accept", daemon=True).start()
    threading.Thread(target=served.watch_idle, name="kit-idle", daemon=True).start()
    served.over.wait()
    served.wait_answered(5.0)
    for session in list(served.sessions):
        session.say_goodbye(served.last_words)
    if served.deployment is not None:
        served.deployment.close()
    sys.stderr.flush()
    os._exit(0)


def _take_connections(link: Link, served: Served) -> None:
    try:
        while True:
            frame = link.receive()
            if frame is None:
                continue
            if frame.kind == STOP:
                served.end(served.last_words)
                return
            if frame.kind != CONNECTION or frame.fd < 0:
                raise Malformed("not a connection")
            sock = socket.socket(fileno=frame.fd)
            said = hello.read(frame)
            if not paths.is_ours(sock):
                sock.close()
                continue
            session = Session(sock, said, served)
            served.entering.add(session)
            session.start()
    except (LinkClosed, Malformed):
        served.end(
            errors.DeploymentLost(
                f"the daemon of the named deployment {served.name!r} was killed, and the deployment with it; serve it "
                f"again with %serve or kit.deploy(handler, name={served.name!r})."
            )
        )
