"""`Deployment`: a handler being served, which you ask, switch, watch and close.

What every deployment can do stands here; how stands in its two kinds, and either of them must say:
`OwnDeployment` serves from this process, `RemoteDeployment` (daemon/remote_deployment.py) from the user's daemon.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

from kit.checks import check_positive, check_request
from kit.deployed_models import DeployedModels
from kit.deployed_settings import DeployedSettings
from kit.inputs import sized_rows

if TYPE_CHECKING:
    import pandas as pd

    from kit.file_watch import ModelWatch
    from kit.snapshot import Snapshot


class Deployment(DeployedSettings, DeployedModels):
    """A handler being served, made by `kit.deploy`; closed by `close`, by `with`, or with the last reference."""

    # ---- predictions -------------------------------------------------------------------------

    def predict(
        self,
        examples: Any,
        timeout: float | None = None,
        *,
        inference_args: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Predictions for examples that are all there, in their order.

        Args:
            examples: list, numpy array or tensor of rows, Series, DataFrame.
            timeout: seconds after which the call fails.
            inference_args: passed to ``run_inference``.

        Raises:
            InferenceFailed: an example failed; the message has the traceback of the worker.
            DeadlineExceeded: `timeout` passed.
            DeploymentClosed, CrashLoop: nothing is served any more.
        """
        check_positive("timeout", timeout)
        future = self.submit(examples, timeout, inference_args=inference_args)
        try:
            return future.result()
        except BaseException:
            # On interrupt: nobody will read the answer.
            future.cancel()
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
        """Queue examples; the future resolves to their predictions and can be cancelled.

        Of a cancelled request no further batch is computed. A batch under way can't be interrupted (`batch_timeout`
        can): it is computed to its end, and its answer is dropped.

        Args:
            deadline: seconds from now after which the future fails with DeadlineExceeded.
            isolate: a failing example becomes a `Failure` and the others go on.
            batch_timeout: longest time that one batch may be computed, seconds; its process is then replaced.
            on_progress: called, in another thread, with numbers of examples as they are answered.

        Raises:
            UnsupportedInput: an iterator, string, dict.
            QueueFull: with a deadline, when the queue is full. Without one, this waits for room.
            UnsupportedType, DeploymentLost: of a named deployment, an example that can't travel, and its end.
        """
        rows = sized_rows(examples, deadline)
        check_request(batch_timeout, on_progress, inference_args)
        return self._submit(
            rows,
            inference_args,
            deadline=at_time(deadline),
            isolate=isolate,
            batch_timeout_s=batch_timeout,
            on_progress=on_progress,
        )

    @abstractmethod
    def _submit(self, rows: Any, inference_args: Mapping[str, Any] | None, **options: Any) -> Future[list[Any]]:
        """Queue a list or Rows; `options` are those of a `Request` or `Job`, the deadline in monotonic seconds."""

    async def apredict(
        self,
        examples: Any,
        timeout: float | None = None,
        *,
        inference_args: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """`predict` for asyncio; cancelling the task cancels the request."""
        check_positive("timeout", timeout)
        return await asyncio.wrap_future(self.submit(examples, timeout, inference_args=inference_args))

    # ---- watching ----------------------------------------------------------------------------

    @abstractmethod
    def stats(self) -> pd.DataFrame:
        """One row a process.

        Columns: role, index, pid, mode, uptime_s, load_s; pss_bytes, uss_bytes and their pss_age_s;
        weights_private_bytes, weights_shared_bytes (in a segment or file that others may map, too);
        gpu_bytes where there is a GPU; examples, batches, batch_size (mean), coalesced (requests), elements_per_s
        and busy_share (0 to 1), both over the last seconds, or since the process started when it wasn't looked at
        before; heartbeat_age_s.
        """

    @property
    @abstractmethod
    def history(self) -> pd.DataFrame:
        """One row a second: rates, latency quantiles (total, queue, compute, transport; seconds), memory by
        role in bytes, mode, and the events of that second."""

    @property
    @abstractmethod
    def counters(self) -> dict[str, int]:
        """Examples accepted, answered, failed, cancelled, retried; batches; deaths of processes."""

    @abstractmethod
    def logs(self, lines: int | None = None) -> str:
        """What the serving processes printed, the last `lines` of it."""

    @abstractmethod
    def snapshot(self, seconds: float = 120.0) -> Snapshot:
        """All that a view shows, at this moment, with the figures of the last `seconds`; cheap."""

    @abstractmethod
    def pulse(self) -> tuple[Any, ...]:
        """Something that differs from before whenever `snapshot` has news worth a look; costs microseconds."""

    @abstractmethod
    def note(self, kind: str, text: str) -> None:
        """Put an event into the history."""

    @abstractmethod
    def kill(self, role: str = "worker", index: int = 0) -> int:
        """Kill a serving process, to see that it is replaced and no request fails; returns its pid.

        This doesn't count towards the deaths that end a deployment.

        Raises:
            InvalidSetting: there is no such process.
        """

    # ---- past one machine, and other versions --------------------------------------------------

    def to_beam(self, inference_args: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """A step of an Apache Beam pipeline with this handler and these settings: a `kit.beam.RunInference`.

        That of a named deployment connects to it by its name, from the worker processes of this machine.

        Args:
            inference_args: passed to ``run_inference``.
            options: those of `kit.beam.RunInference`, such as ``processes=8`` for larger machines.

        Raises:
            MissingExtra: Apache Beam isn't installed.
        """
        import kit

        return kit.beam.RunInference(self, inference_args, **options)

    def watch(self, pattern: str, interval_s: float = 5.0) -> ModelWatch:
        """Update the model whenever a newer file matches a pattern, such as ``"models/*.safetensors"``.

        The path of the newest file goes to `update_model` once its size and time of change have been the same
        for `interval_s`. Files that are there already aren't loaded; one of them that is written anew is. A
        file that can't be served changes nothing: the model that serves goes on, the error is kept and noted
        in the history, and the file is tried again only when it changes.

        Args:
            interval_s: seconds between two looks.

        Returns:
            A handle with ``stop()``, ``updates`` and ``errors``; it ends with the deployment.
        """
        from kit.file_watch import ModelWatch

        self.raise_if_closed()
        return ModelWatch(self, pattern, interval_s).start()

    # ---- end ---------------------------------------------------------------------------------

    @property
    @abstractmethod
    def closed(self) -> bool:
        """True once nothing is served any more."""

    @abstractmethod
    def at_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called once nothing is served any more; returns a function that takes it back."""

    @abstractmethod
    def raise_if_closed(self) -> None:
        """Raise DeploymentClosed, or what else ended it, when no request can be answered any more."""

    @abstractmethod
    def close(self) -> None:
        """End all processes and threads; requests that wait fail with DeploymentClosed. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def at_time(deadline: float | None) -> float | None:
    """Seconds from now as monotonic seconds; None for none."""
    return None if deadline is None else time.monotonic() + deadline
