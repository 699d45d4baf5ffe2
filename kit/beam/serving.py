"""The deployment of a pipeline in each Beam worker process: found, shared, renewed and let go."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
import weakref
from collections.abc import Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle

import kit
from kit import errors
from kit.beam import versions
from kit.daemon import sameness
from kit.daemon.client import serve_packed
from kit.daemon.durations import parse_seconds
from kit.deployment import Deployment
from kit.engine.packing import pack

#: Keys of a model (none where there is only one), seconds and bytes of a load of it.
Load = tuple[tuple[Hashable, ...], float, int]
_PROCESS = uuid.uuid4().hex
#: Deployments of this process that pipelines may use as they are.
_live: weakref.WeakValueDictionary[str, Deployment] = weakref.WeakValueDictionary()
_open: dict[tuple[str, str | None], Shared] = {}
_guard = threading.Lock()


@dataclass(frozen=True)
class Source:
    """What a worker process needs to get at the deployment; travels with the pipeline.

    Attributes:
        packed: the handler, pickled; None when only `name` is known.
        digest: of the handler.
        settings: arguments of `kit.deploy`.
        key: digest of handler and settings; equal ones share a deployment.
        home: the process that built the pipeline.
        live: token of a deployment of that process, to be used there.
        name: of a named deployment that somebody serves.
        keep_alive: of the named deployment that the worker processes of a machine share.
    """

    packed: bytes | None
    digest: str
    settings: Mapping[str, Any]
    key: str
    home: str
    live: str | None = None
    name: str | None = None
    keep_alive: float | str | None = None

    @staticmethod
    def of(
        handler: Any,
        settings: Mapping[str, Any],
        *,
        live: Deployment | None = None,
        keep_alive: float | str | None = None,
        identifier: str | None = None,
    ) -> Source:
        """A source that serves `handler`.

        Raises:
            HandlerNotPicklable: it can't travel.
        """
        token = None
        if live is not None:
            token = uuid.uuid4().hex
            _live[token] = live
        given = sorted((name, value) for name, value in settings.items() if value is not None)
        digest = sameness.digest(handler)
        key = _digest(digest, given, identifier)
        return Source(bytes(pack(handler)), digest, dict(settings), key, home(), token, None, keep_alive)

    @staticmethod
    def named(name: str) -> Source:
        """A source that asks a named deployment of this user and machine."""
        return Source(None, "", {}, f"name:{name}", home(), name=name)

    @property
    def shared_name(self) -> str:
        """Of the named deployment that worker processes share."""
        return self.name or f"beam-{self.key[:24]}"

    @property
    def place(self) -> tuple[str, str | None]:
        """Its place among the deployments of a process."""
        return self.key, self.live

    def updated(self, version: str | Mapping[Hashable, str]) -> Source:
        """The same handler with the model at another path, or other ones for some keys, in a deployment of its own.

        Raises:
            InvalidSetting: the handler isn't known here.
        """
        handler = self.handler()
        if isinstance(version, str):
            handler.update_model_path(version)
            name = version
        else:
            handler.update_model_paths(None, versions.mappings(version))
            name = repr(sorted(version.items(), key=repr))
        digest = _digest(self.digest, name)
        return replace(self, packed=bytes(pack(handler)), digest=digest, key=_digest(self.key, name), live=None)

    def handler(self) -> Any:
        """The handler, a new object."""
        if self.packed is None:
            raise errors.InvalidSetting(
                f"{self.name!r} is a named deployment, whose handler isn't known to the pipeline, so no side input can "
                "update it: use deployment.update_model, or give kit.beam.RunInference the handler itself."
            )
        return cloudpickle.loads(self.packed)

    def deploy(self) -> tuple[Deployment, bool]:
        """A deployment, and whether its model was loaded for this call."""
        if self.name is not None:
            return kit.connect(self.name), False
        live = _live.get(self.live) if self.live is not None and self.home == home() else None
        if live is not None and not live.closed:
            return live, False
        if self.home == home():
            return kit.deploy(self.handler(), **self.settings), True
        assert self.packed is not None
        keep_alive_s = parse_seconds(self.keep_alive)
        try:
            named = serve_packed(
                self.shared_name, self.packed, self.digest, self.settings, keep_alive_s=keep_alive_s, allow_pickle=True
            )
        except errors.NameTaken:  # somebody has updated its model since
            return kit.connect(self.shared_name), False
        return named, not named.attached

    def owns(self, deployment: Deployment) -> bool:
        """True unless it is somebody else's, only used here."""
        return self.live is None or deployment is not _live.get(self.live)


def home() -> str:
    """A word for this process."""
    return f"{_PROCESS}-{os.getpid()}"


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Shared:
    """A source's deployment in this process, for all its threads, each with a `Lease`.

    Attributes:
        users: how many leases there are.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.users = 0
        self._lock = threading.Lock()
        self._unreported = False
        self._reported: dict[tuple[Hashable, ...], int] = {}  # loads of each model by key
        self._future = self._begin()

    def _begin(self) -> Future[Deployment]:
        future: Future[Deployment] = Future()
        threading.Thread(target=self._deploy, args=(future,), name="kit-beam-deploy", daemon=True).start()
        return future

    def _deploy(self, future: Future[Deployment]) -> None:
        try:
            deployment, loaded = self.source.deploy()
        except errors.KitError as error:
            # A new one: the frames of the old one's traceback hold on to what has been closed.
            future.set_exception(error.copy())
            return
        except BaseException as error:
            future.set_exception(error)
            return
        self._unreported, self._reported = loaded, {}
        future.set_result(deployment)

    def deployment(self, timeout: float | None = None) -> Deployment:
        """The deployment once it serves.

        Raises:
            TimeoutError: it doesn't within `timeout` seconds.
            KitError: it can't.
        """
        return self._future.result(timeout)

    def renew(self, lost: Deployment) -> None:
        """Serve again in place of a deployment that is gone, unless another thread has already."""
        with self._lock:
            if self._future.done() and self._future.exception() is None and self._future.result() is lost:
                lost.close()
                self._future = self._begin()

    def start_again(self) -> None:
        """Try again where serving has failed: the runner runs a bundle anew."""
        with self._lock:
            if self._future.done() and self._future.exception() is not None:
                self._future = self._begin()

    def take_loads(self) -> list[Load]:
        """Loads that nobody has reported yet, where this process has started the deployment."""
        with self._lock:
            unreported, self._unreported = self._unreported, False
        if not unreported:
            return []
        try:
            rows = self.deployment()._models.rows()
        except errors.KitError:  # it has just gone: a figure is no reason to fail a bundle that has its results
            with self._lock:
                self._unreported = True
            return []
        if not any("keys" in row for row in rows):
            seconds = sum(row.get("load_s") or 0.0 for row in rows)
            return [((), seconds, sum(row.get("resident_bytes") or 0 for row in rows))]
        with self._lock:
            self._unreported = True  # models by key are loaded one after the other, and again
            return [load for row in rows for load in self._new_loads(row)]

    def _new_loads(self, row: Mapping[str, Any]) -> list[Load]:
        keys = tuple(row["keys"])
        count = row["loads"] - self._reported.get(keys, 0)
        self._reported[keys] = row["loads"]
        return [(keys, row["load_s"] or 0.0, row["size_bytes"] or 0)] * count

    def close(self) -> None:
        """Let go of it once it serves, or fails to."""
        self._future.add_done_callback(self._close)

    def _close(self, future: Future[Deployment]) -> None:
        if future.exception() is None and self.source.owns(future.result()):
            future.result().close()


class Lease:
    """One hold on a shared deployment; ends with `release`, or with itself, since a failed pipeline tears nothing down.

    Attributes:
        shared: what is held.
    """

    def __init__(self, source: Source) -> None:
        with _guard:
            shared = _open.get(source.place)
            if shared is None:
                shared = _open[source.place] = Shared(source)
            shared.users += 1
        self.shared = shared
        self._finalizer = weakref.finalize(self, _release, shared)

    def release(self) -> None:
        """Let go; the last one closes the deployment. Idempotent."""
        self._finalizer()


def _release(shared: Shared) -> None:
    with _guard:
        shared.users -= 1
        if shared.users:
            return
        if _open.get(shared.source.place) is shared:
            del _open[shared.source.place]
    shared.close()
