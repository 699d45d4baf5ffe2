"""Named deployments from a kernel: `kit.deploy(..., name=)`, `kit.connect`, `kit.deployments`."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.daemon import durations, hello, paths, spawn
from kit.daemon.connection import Connection, show_print
from kit.daemon.jobs import WINDOW_MEASURED, Job
from kit.daemon.link import Frame, Link
from kit.daemon.protocol import ERROR, HANDLER, NEED_HANDLER, PRINTED
from kit.daemon.remote_handler import RemoteHandler
from kit.daemon.remote_models import RemoteModels, seen_from_anywhere
from kit.daemon.wire import trouble_of
from kit.deployment import Deployment
from kit.inputs import sample_rows, sized_rows
from kit.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from kit.deployed_models import ModelCalls
    from kit.snapshot import Snapshot

#: How long the daemon may take to answer where no model is loaded, seconds.
ANSWER_S = 30.0


class RemoteDeployment(Deployment):
    """A named deployment, which lives in the user's daemon; the same surface as one of this process.

    `close` (and `with`, and dropping the last reference) only lets go of it; `stop` ends it for everyone.
    """

    def __init__(self, link: Link, status: Mapping[str, Any]) -> None:
        link.allow_pickle = bool(status["allow_pickle"])
        self.name: str = status["name"]
        #: True when the handler was served already, and so wasn't loaded again.
        self.attached: bool = bool(status["known"])
        self._connection = Connection(link, self.name, status["pid"])
        self._handler = RemoteHandler(status["handler"], self._connection)
        self._last_snapshot: Snapshot | None = None
        self._detach = weakref.finalize(self, self._connection.close)

    # ---- predictions -------------------------------------------------------------------------

    def predict(
        self,
        examples: Any,
        timeout: float | None = None,
        *,
        inference_args: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        job = self._job(examples, timeout, inference_args)
        try:
            if job.small:
                # Nobody has to wake this thread when it reads its answer itself.
                found: list[Any] = self._connection.wait(job.future)
                return found
            self._connection.call_reader()
            return job.future.result()
        except BaseException:
            # On interrupt: nobody will read the answer.
            job.future.cancel()
            raise

    def submit(
        self,
        examples: Any,
        deadline: float | None = None,
        *,
        inference_args: Mapping[str, Any] | None = None,
        isolate: bool = False,
        batch_timeout: float | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Future[list[Any]]:
        """As `Deployment.submit`; examples travel in windows, at most three under way at a time.

        Raises:
            UnsupportedType: an example's type doesn't travel.
            DeploymentLost: the deployment was stopped, or its process is gone.
        """
        job = self._job(
            examples,
            deadline,
            inference_args,
            isolate=isolate,
            batch_timeout_s=batch_timeout,
            on_progress=on_progress,
        )
        # The future keeps the connection: dropping the last other reference must not fail it.
        job.future.deployment = self  # type: ignore[attr-defined]
        self._connection.call_reader()
        return job.future

    def _job(
        self, examples: Any, deadline: float | None, inference_args: Mapping[str, Any] | None, **options: Any
    ) -> Job:
        rows = sized_rows(examples, deadline)
        if inference_args is not None:
            self._handler.validate_inference_args(inference_args)
        self._connection.raise_if_ended()
        until = None if deadline is None else time.monotonic() + deadline
        if "batch_length_fn" in self._handler.batching_options():
            options["window"] = WINDOW_MEASURED
        return Job(self._connection, rows, inference_args, deadline=until, **options).start()

    # ---- settings ----------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return Settings(**self._status()["settings"])

    @property
    def handler(self) -> Any:
        with contextlib.suppress(errors.DeploymentLost, errors.DeploymentClosed):
            self._status()  # another kernel may have updated it
        return self._handler

    @property
    def _models(self) -> ModelCalls:
        return RemoteModels(self._connection)

    def _status(self) -> dict[str, Any]:
        """What the deployment says of itself now."""
        found: dict[str, Any] = self._connection.call("status")
        self._handler.learn(found["handler"])
        return found

    def _switch(self, changes: dict[str, Any], batching: dict[str, Any]) -> None:
        self._connection.call("switch", **changes, batching=batching)
        self._status()

    def _settings_for(self, changes: dict[str, Any]) -> Settings:
        return Settings(**self._connection.call("settings_for", **changes))

    def cancel_switch(self) -> bool:
        return bool(self._connection.call("cancel_switch"))

    def _update_path(self, path: str) -> None:
        path = seen_from_anywhere(path)
        self._connection.call("update", model=path, digest=f"path:{path}")
        self._status()

    def _update_handler(self, handler: Any) -> None:
        from kit.daemon import sameness
        from kit.engine.packing import pack

        self._connection.call("update", model=pack(handler), digest=sameness.digest(handler))
        self._status()

    # ---- watching ----------------------------------------------------------------------------

    def stats(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self._connection.call("stats"))

    @property
    def history(self) -> pd.DataFrame:
        from kit.metrics import FIGURES, frame_of_rows

        return frame_of_rows(self._connection.call("history"), FIGURES)

    @property
    def counters(self) -> dict[str, int]:
        """As `Deployment.counters`, over all kernels."""
        found: dict[str, int] = self._connection.call("counters")
        return found

    def clients(self) -> pd.DataFrame:
        """One row a connected kernel: notebook, pid, connections, connected_s (since its first), requests, examples,
        in_flight, and over the last three seconds requests_per_s and elements_per_s."""
        import pandas as pd

        return pd.DataFrame(self._connection.call("clients"))

    def logs(self, lines: int | None = None) -> str:
        return str(self._connection.call("logs", lines=lines))

    def snapshot(self, seconds: float = 120.0) -> Snapshot:
        """As `Deployment.snapshot`; what can't travel of the latest answer and the sample is left out.

        Once the deployment is gone, this is the last one that was taken from here.
        """
        from kit.daemon import snapshots

        if self.closed and self._last_snapshot is not None:
            return dataclasses.replace(self._last_snapshot, closed=True)
        self._last_snapshot = snapshots.unpack(self._connection.call("snapshot", seconds=float(seconds)))
        return self._last_snapshot

    def pulse(self) -> tuple[str]:
        return (str(self._connection.call("pulse")),)

    def kill(self, role: str = "worker", index: int = 0) -> int:
        return int(self._connection.call("kill", role=role, index=index))

    # ---- end ---------------------------------------------------------------------------------

    def at_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """As `Deployment.at_close`: also called when this kernel lets go of the deployment."""
        return self._connection.call_at_end(callback)

    @property
    def closed(self) -> bool:
        """True once this kernel has let go of it, or it is gone."""
        return self._connection.ended is not None

    def note(self, kind: str, text: str) -> None:
        self._connection.call("note", kind=kind, text=text)

    def raise_if_closed(self) -> None:
        """Raise DeploymentLost or DeploymentClosed, or what else ended it, when nothing can be answered any more."""
        self._connection.call("check")

    def stop(self) -> None:
        """End the named deployment for everyone. Idempotent."""
        stop(self.name, missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the deployment, which goes on; this kernel's requests that wait fail. Idempotent."""
        self._detach()

    def __repr__(self) -> str:
        if self.closed:
            return f"<named deployment {self.name!r}: {self._connection.ended}>"
        words = self.settings.describe(by_key=self._handler.by_key)
        return f"<named deployment {self.name!r} of {self._handler.type_name}, in the daemon: {words}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        if self.closed:
            return {"text/plain": repr(self)}
        return {"text/plain": repr(self), "text/html": str(self._connection.call("summary"))}


# ---- module functions ---------------------------------------------------------------------------


def connect(name: str) -> RemoteDeployment:
    """The named deployment that some kernel of this user serves.

    Raises:
        UnknownDeployment: none has this name; the message lists those that there are.
        DaemonMismatch: it runs another version of the kit or of Python.
    """
    found = spawn.open_link(hello.hello(hello.ATTACH, paths.check_name(name)))
    if found is None:
        raise hello.unknown(name, "")
    return _welcomed(*found)


def deployments() -> pd.DataFrame:
    """One row a named deployment of this user: name, state, handler, mode, processes, threads, copies, kernels, pid,
    since (local time), keep_alive_s."""
    import pandas as pd

    columns = [
        *("name", "state", "handler", "mode", "processes", "threads", "model_copies"),
        *("kernels", "pid", "since", "keep_alive_s"),
    ]
    frame = pd.DataFrame(overview(), columns=columns)
    frame["since"] = pd.to_datetime([time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) for at in frame["since"]])
    return frame


def names() -> list[str]:
    """Names of the deployments of this user, sorted; never starts the daemon."""
    found = spawn.open_link(hello.hello(hello.LIST), timeout_s=ANSWER_S)
    if found is None:
        return []
    link, frame = found
    try:
        return sorted(entry["name"] for entry in frame.decoder.value())
    finally:
        link.close()


def overview() -> list[dict[str, Any]]:
    """What each deployment says of itself, by name."""
    rows = []
    for name in names():
        try:
            with look(name) as (status, _):
                handler = status.pop("handler", {})
                rows.append({**status, **status.pop("settings", {}), "handler": handler.get("type")})
        except (errors.UnknownDeployment, errors.DeploymentLost):
            continue  # it has ended just now
    return rows


@contextlib.contextmanager
def look(name: str) -> Iterator[tuple[dict[str, Any], Connection]]:
    """A named deployment's status and a connection that doesn't count as a kernel, whatever it is doing.

    Raises:
        UnknownDeployment: there is none.
    """
    found = spawn.open_link(hello.hello(hello.LOOK, paths.check_name(name)), timeout_s=ANSWER_S)
    if found is None:
        raise hello.unknown(name, "")
    link, frame = found
    try:
        if frame.fd >= 0:
            link.use_ring(frame.fd)
        status = frame.decoder.value()
        connection = Connection(link, name, status["pid"])
    except BaseException:
        link.close()
        raise
    try:
        yield status, connection
    finally:
        connection.close()


def stop(name: str, *, missing_ok: bool = False) -> None:
    """End a named deployment: its processes end, and kernels that are connected get an error that says so.

    Raises:
        UnknownDeployment: there is none, unless `missing_ok`.
    """
    try:
        found = spawn.open_link(hello.hello(hello.STOP, paths.check_name(name)), timeout_s=2 * ANSWER_S)
        if found is None:
            raise hello.unknown(name, "")
        found[0].close()
    except errors.UnknownDeployment:
        if not missing_ok:
            raise


def _serve_named(
    handler: Any,
    name: str,
    settings: Mapping[str, Any],
    *,
    sample: Any,
    keep_alive: float | str | None,
    replace: bool,
    allow_pickle: bool,
) -> RemoteDeployment:
    """`kit.deploy` with a name."""
    from kit.daemon import sameness
    from kit.engine.packing import pack

    paths.check_name(name)
    keep_alive_s = durations.parse_seconds(keep_alive)
    Settings.make(handler, **settings)  # what can't work is refused before anything is started
    rows = sample_rows(sample)
    packed = pack(handler)
    said = hello.hello(
        hello.SERVE, name, digest=sameness.digest(handler), replace=bool(replace), start=hello.surroundings()
    )
    found = spawn.open_link(said, start=True)
    assert found is not None
    link, frame = found
    if frame.kind == NEED_HANDLER:
        sent = {
            "handler": packed,
            "settings": {key: _plain(value) for key, value in settings.items()},
            "sample": rows,
            "keep_alive_s": keep_alive_s,
            "allow_pickle": bool(allow_pickle),
        }
        link.allow_pickle = bool(allow_pickle)
        frame = _send_handler(link, frame, sent)
    return _welcomed(link, frame)


def _plain(value: Any) -> Any:
    """Settings may be numpy's numbers."""
    return value.item() if hasattr(value, "item") else value


def _send_handler(link: Link, frame: Frame, sent: dict[str, Any]) -> Frame:
    try:
        if frame.fd >= 0:
            link.use_ring(frame.fd)
        link.send(HANDLER, link.encoder().add(sent))
        while (answer := link.receive()) is None or answer.kind == PRINTED:
            if answer is not None:
                show_print(answer)
        if answer.kind == ERROR:
            raise trouble_of(answer.decoder.value()).error()
        return answer
    except BaseException:
        link.close()
        raise


def _welcomed(link: Link, frame: Frame) -> RemoteDeployment:
    try:
        if frame.fd >= 0:
            link.use_ring(frame.fd)
        return RemoteDeployment(link, frame.decoder.value())
    except BaseException:
        link.close()
        raise
