"""`RemoteDeployment`: a named deployment, as a kernel sees it."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.checks import check_function, check_lines, check_positive, check_request
from kit.daemon import hello, spawn, withdrawal
from kit.daemon.connection import Connection
from kit.daemon.direct import Ended
from kit.daemon.jobs import WINDOW_MEASURED, Job
from kit.daemon.link import Link
from kit.daemon.remote_handler import RemoteHandler
from kit.daemon.remote_models import RemoteModels, seen_from_anywhere
from kit.deployment import Deployment, at_time
from kit.inputs import sized_rows
from kit.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from kit.deployed_models import ModelCalls
    from kit.snapshot import Snapshot


class RemoteDeployment(Deployment):
    """A named deployment, which lives in the user's daemon; the same surface as one of this process.

    `close` (and `with`, and dropping the last reference) only lets go of it; `stop` ends it for everyone.
    """

    def __init__(self, link: Link, status: Mapping[str, Any]) -> None:
        link.allow_pickle = bool(status["allow_pickle"])
        self.name: str = status["name"]
        #: True when the handler was served already, and so wasn't loaded again.
        self.attached: bool = status["outcome"] == hello.ATTACHED
        #: True when the handler took the place of what was served.
        self.replaced: bool = status["outcome"] == hello.REPLACED
        #: Seconds that it may go without a request, None for no end; and whether other types may be pickled.
        self.keep_alive_s: float | None = status["keep_alive_s"]
        self.allow_pickle = link.allow_pickle
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
        check_positive("timeout", timeout)
        rows = sized_rows(examples, timeout)
        check_request(None, None, inference_args)
        deaths = 0
        if timeout is None and inference_args is None:
            self._connection.raise_if_ended()
            try:
                if (found := self._connection.direct.predict(rows)) is not None:
                    return found
            except Ended as end:
                deaths = end.deaths
        job = self._job(rows, inference_args, deadline=at_time(timeout), deaths=deaths)
        try:
            if job.small:
                # Nobody has to wake this thread when it reads its answer itself.
                answer: list[Any] = self._connection.wait(job.future)
                return answer
            self._connection.call_reader()
            return job.future.result()
        except BaseException:
            # On interrupt: nobody will read the answer.
            job.future.cancel()
            raise

    def _submit(self, rows: Any, inference_args: Mapping[str, Any] | None, **options: Any) -> Future[list[Any]]:
        """Examples travel in windows, at most three under way at a time."""
        job = self._job(rows, inference_args, **options)
        # The future keeps the connection: dropping the last other reference must not fail it.
        job.future.deployment = self
        self._connection.call_reader()
        return job.future

    def _job(self, rows: Any, inference_args: Mapping[str, Any] | None, **options: Any) -> Job:
        if inference_args is not None:
            self._handler.validate_inference_args(inference_args)
        self._connection.raise_if_ended()
        if "batch_length_fn" in self._handler.batching_options():
            options["window"] = WINDOW_MEASURED
        return Job(self._connection, rows, inference_args, **options).start()

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

    def _switch(
        self, changes: dict[str, Any], batching: dict[str, Any], *, anew: bool = True
    ) -> tuple[Settings, Settings]:
        before, after = withdrawal.change(self._connection, "switch", changes=changes, batching=batching, anew=anew)
        self._status()
        return Settings(**before), Settings(**after)

    def _settings_for(self, changes: dict[str, Any]) -> Settings:
        return Settings(**self._connection.call("settings_for", **changes))

    def cancel_switch(self) -> bool:
        return bool(self._connection.call("cancel_switch", by=hello.label()))

    def _update_path(self, path: str) -> None:
        path = seen_from_anywhere(path)
        withdrawal.change(self._connection, "update", model=path, digest=f"path:{path}")
        self._status()

    def _update_handler(self, handler: Any) -> None:
        from kit.daemon import sameness
        from kit.engine.packing import pack

        withdrawal.change(self._connection, "update", model=pack(handler), digest=sameness.digest(handler))
        self._status()

    # ---- watching ----------------------------------------------------------------------------

    def stats(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self._connection.call("stats"))

    @property
    def history(self) -> pd.DataFrame:
        from kit.history import FIGURES, frame_of_rows

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
        check_lines(lines)
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
        check_function("callback", callback, needed=True)
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
        spawn.stop(self.name, missing_ok=True)
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
