"""Named deployments from a kernel: `kit.deploy(..., name=)`, `kit.connect`, `kit.deployments`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.daemon import durations, hello, paths, spawn, withdrawal
from kit.daemon.connection import Connection, show_print
from kit.daemon.decoder import trouble_of
from kit.daemon.frames import Frame
from kit.daemon.link import Link
from kit.daemon.protocol import ERROR, HANDLER, NEED_HANDLER, PRINTED
from kit.daemon.remote_deployment import RemoteDeployment
from kit.daemon.spawn import ANSWER_S
from kit.daemon.spawn import stop as stop
from kit.inputs import sample_rows
from kit.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

#: How long a deployment may take to say how it is, seconds; what it is called that doesn't; how many are asked at once.
LOOK_S = 5.0
SILENT = "not answering"
MOST_ASKED = 32


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
    return [entry["name"] for entry in listed()]


def listed() -> list[dict[str, Any]]:
    """What the daemon knows of each deployment, by name: name, pid, since."""
    found = spawn.open_link(hello.hello(hello.LIST), timeout_s=ANSWER_S)
    if found is None:
        return []
    link, frame = found
    try:
        return sorted(frame.decoder.value(), key=lambda entry: str(entry["name"]))
    finally:
        link.close()


def overview() -> list[dict[str, Any]]:
    """What each deployment says of itself, by name; of one that says nothing what the daemon knows."""
    return of_each(_row)


def of_each(row_of: Callable[[dict[str, Any]], dict[str, Any] | None]) -> list[dict[str, Any]]:
    """A row of each deployment that is listed, without None; asked at once, so that none waits for one that hangs."""
    from concurrent.futures import ThreadPoolExecutor

    known = listed()
    if not known:
        return []
    with ThreadPoolExecutor(min(len(known), MOST_ASKED)) as pool:
        return [row for row in pool.map(row_of, known) if row is not None]


def _row(known: dict[str, Any]) -> dict[str, Any] | None:
    try:
        with look(known["name"], LOOK_S) as (status, _):
            handler = status.pop("handler", {})
            row = {**status, **status.pop("settings", {}), "handler": handler.get("type")}
            return None if status["state"] == "ended" else row
    except (errors.UnknownDeployment, errors.DeploymentLost):
        return None  # it has ended just now
    except errors.DaemonUnavailable:  # the daemon has just answered
        return {**known, "state": SILENT}


@contextlib.contextmanager
def look(name: str, timeout_s: float = ANSWER_S) -> Iterator[tuple[dict[str, Any], Connection]]:
    """A named deployment's status and a connection that doesn't count as a kernel, whatever it is doing.

    Raises:
        UnknownDeployment: there is none.
        DaemonUnavailable: it doesn't answer within `timeout_s`.
    """
    found = spawn.open_link(hello.hello(hello.LOOK, paths.check_name(name)), timeout_s=timeout_s)
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
    return serve_packed(
        name,
        pack(handler),
        sameness.digest(handler),
        settings,
        sample=rows,
        keep_alive_s=keep_alive_s,
        replace=replace,
        allow_pickle=allow_pickle,
    )


def serve_packed(
    name: str,
    packed: bytes,
    digest: str,
    settings: Mapping[str, Any],
    *,
    sample: Any = None,
    keep_alive_s: float | None = None,
    replace: bool = False,
    allow_pickle: bool = False,
) -> RemoteDeployment:
    """Serve a handler that `kit.engine.packing.pack` has pickled, whose classes this process may not have.

    Args:
        digest: of the handler, see `kit.daemon.sameness`.
        settings: those that `Settings.make` took for the handler.

    Raises:
        KitError: as `kit.deploy` with a name.
        KeyboardInterrupt: it was interrupted, and what nobody else waits for is cancelled; says what came of it.
    """
    said = hello.hello(hello.SERVE, name, digest=digest, replace=bool(replace), start=hello.surroundings())
    sent = {
        "handler": packed,
        "settings": {key: _plain(value) for key, value in settings.items()},
        "sample": sample,
        "keep_alive_s": keep_alive_s,
        "allow_pickle": bool(allow_pickle),
    }
    link = None
    try:
        found = spawn.open_link(said, start=True)
        assert found is not None
        link, frame = found
        if frame.kind == NEED_HANDLER:
            link.allow_pickle = bool(allow_pickle)
            frame = _send_handler(link, frame, sent)
        return _welcomed(link, frame)
    except KeyboardInterrupt:
        if link is not None:
            link.close()
        raise withdrawal.interrupted(name) from None


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
