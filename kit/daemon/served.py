"""A named deployment, in its process: it loads the handler, lets kernels in, and replaces the handler live."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from kit import errors
from kit.daemon import hello, withdrawal
from kit.daemon.direct_line import DirectLine
from kit.daemon.loading import forkserver_of, lost_while_loading, rebuild
from kit.daemon.session import Late, Session
from kit.daemon.turns import Turns
from kit.engine import tensor_bytes
from kit.engine.asking import looks_into
from kit.engine.core import Engine
from kit.engine.logs import Line
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
        self.engine: Engine | None = None  # from when it loads
        self.replacement: withdrawal.Replacement | None = None  # the one under way
        self._changed = threading.Condition()
        self._updating = threading.Lock()

    # ---- serving -----------------------------------------------------------------------------

    def admit(self, said: dict[str, Any], session: Session) -> str:
        """Let a kernel in once the handler serves, loading or updating it first if the kernel asks for that.

        Returns:
            SERVED, REPLACED, or ATTACHED when the kernel's handler was served already, or it brought none.

        Raises:
            Late: it has ended already.
            NameTaken: another handler is served, and the kernel doesn't want it replaced.
            KitError: the handler can't be served.
        """
        if said["action"] != hello.SERVE:
            self._wait_loaded()
            return hello.ATTACHED
        with self._changed:
            if self.state == "ended":
                raise Late
            first = self.state == "empty"
            if first:
                self.state, self.digest = "loading", said["digest"]
        if first:
            self._load(session)
            return hello.SERVED
        self._wait_loaded()
        with self._updating:
            # Asked for, it is loaded again even when it is the same: its files may have been written anew.
            if said.get("replace"):
                self._replace(said["digest"], session)
                return hello.REPLACED
            if said["digest"] != self.digest:
                deployment = self.serving()
                raise errors.NameTaken(
                    f"{self.name!r} serves another handler, {type(deployment.handler).__name__}: its class, code or "
                    "arguments aren't those of this one. To replace it live, without a failed request, add --replace "
                    "to %serve, or replace=True to kit.deploy; or choose another name."
                )
            return hello.ATTACHED

    def _replace(self, digest: str, session: Session) -> None:
        """Hot update to a kernel's handler, with the settings that it gives; others stay."""
        sent = session.fetch_handler()
        handler = rebuild(sent["handler"])
        deployment = self.serving()
        self.replacement = withdrawal.Replacement(session, handler, deployment._engine)
        try:
            self._make_room_for(handler)
            deployment._replace_handler(handler, sent["settings"], sent["sample"])
            self.replacement.outcome = hello.REPLACED
        except errors.KitError:
            self.serving()  # where it has ended meanwhile, that is why
            raise
        finally:
            self.replacement = None
        self.digest = digest
        if sent["keep_alive_s"] is not None:
            self.keep_alive_s = sent["keep_alive_s"]

    def _load(self, session: Session) -> None:
        try:
            sent = session.fetch_handler()
            handler = rebuild(sent["handler"])
            settings = Settings.make(handler, **sent["settings"])
            self.allow_pickle = sent["allow_pickle"]
            self.keep_alive_s = sent["keep_alive_s"]
            self.engine = engine = Engine(handler, settings, forkserver_of(handler))
            self.hearers.append(session)
            engine.logs.on_line, engine.logs_by = self._pass_on, f"`python -m kit logs {self.name}`"
            engine.on_broken = self.end  # or who serves it again would be given what can't answer any more
            engine.start(sent["sample"])
            self.deployment = OwnDeployment(engine)
            with self._changed:
                if self.state == "ended":
                    raise self.last_words.copy()
                self.state = "serving"
                self._changed.notify_all()
        except BaseException as error:
            refusal = error if isinstance(error, errors.KitError) else lost_while_loading(self.name, error)
            self.end(refusal)
            raise self.last_words.copy() from error  # others than the refusal where it was told to end meanwhile

    def _pass_on(self, line: Line) -> None:
        for session in {session.kernel: session for session in reversed(self.hearers)}.values():
            session.print(line.role, line.pid, line.text)

    def answered(self, session: Session) -> None:
        """Note that a kernel has had the answer to its hello."""
        with self._changed:
            self.entering.discard(session)
            self._changed.notify_all()

    def nobody_waits(self) -> bool:
        """True when it is still loading, and all who asked for that have hung up."""
        with self._changed:
            return self.state in ("empty", "loading") and not any(session.waits for session in self.entering)

    def stop_loading(self) -> None:
        """Once it has ended: have a load that is under way fail at once."""
        if self.deployment is None and self.engine is not None:
            self.engine.close()

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
        self._make_room_for(model)
        self.serving().update_model(model)
        self.digest = digest

    def _make_room_for(self, model: Any) -> None:
        self.line.take_back()  # so that what is computed directly is finished, too
        if hasattr(model, "load_model") and looks_into(model):
            tensor_bytes.pass_on(False)

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

    def welcome(self, outcome: str) -> dict[str, Any]:
        """What a kernel is told that was let in.

        Raises:
            DeploymentLost: it has ended meanwhile.
        """
        found = {**self.status(), "outcome": outcome}
        if "handler" not in found:
            raise self.last_words.copy()
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
