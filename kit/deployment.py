"""Deployments: a handler being served, which you ask, switch, watch and close."""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

from kit import errors, inputs
from kit.checks import check_handler, check_platform
from kit.deployed_models import DeployedModels
from kit.metrics import FIGURES
from kit.settings import Settings

# The engine is imported when something is deployed: a kernel that connects to a named deployment never needs it.
if TYPE_CHECKING:
    import pandas as pd

    from kit.engine import core
    from kit.engine.watch import Watch
    from kit.file_watch import ModelWatch
    from kit.snapshot import Snapshot


class Deployment(DeployedModels):
    """A handler being served, made by `kit.deploy`; closed by `close`, by `with`, or with the last reference."""

    def __init__(self, engine: core.Engine) -> None:
        from kit.engine.watch import Watch

        self._engine = engine
        self._watch = Watch(engine)
        self._finalizer = weakref.finalize(self, _shut_down, engine, self._watch)
        # Engines are closed by one exit function, in time for threads to be joined.
        self._finalizer.atexit = False

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
        """
        from kit.engine.requests import Request

        rows = sized_rows(examples, deadline)
        engine = self._engine
        engine.raise_if_closed()
        if inference_args is not None:
            engine.handler.validate_inference_args(inference_args)
        request = Request(
            rows,
            inference_args,
            isolate=isolate,
            deadline=None if deadline is None else time.monotonic() + deadline,
            batch_timeout_s=batch_timeout,
            options=engine.dispatcher.request_options,
            on_progress=on_progress,
        )
        if not request.count:
            request.future.set_result([])
            return request.future
        # The future keeps the deployment: dropping the last other reference must not fail it.
        request.future.deployment = self  # type: ignore[attr-defined]
        engine.dispatcher.submit(request)
        return request.future

    async def apredict(
        self,
        examples: Any,
        timeout: float | None = None,
        *,
        inference_args: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """`predict` for asyncio; cancelling the task cancels the request."""
        return await asyncio.wrap_future(self.submit(examples, timeout, inference_args=inference_args))

    # ---- settings ----------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """The serving mode."""
        return self._engine.settings.mode

    @property
    def settings(self) -> Settings:
        """All serving settings."""
        return self._engine.settings

    @property
    def handler(self) -> Any:
        """The handler that is served."""
        return self._engine.handler

    def switch(
        self,
        mode: str | None = None,
        *,
        processes: int | None = None,
        threads: int | None = None,
        model_copies: int | None = None,
        memory_budget: int | float | str | None = None,
        batching: Mapping[str, Any] | None = None,
    ) -> Self:
        """Change settings live; what isn't given stays. No request fails or is lost.

        The new topology is started beside the old one, takes over, and the old one finishes what it has. If
        both don't fit the memory budget, the old one is drained and ended first, and requests wait. Of models by key
        another `memory_budget` alone starts nothing: those over it go, those in use as soon as they are released.
        A `memory_budget` of "none" takes the budget away; `batching` changes the handler's batching options
        (`ModelHandler.with_batching`), such as ``{"max_batch_size": 16}``.

        Raises:
            InvalidSetting, BudgetExceeded, SharedModeUnavailable, ModelLoadFailed: the old mode serves on.
        """
        engine = self._engine
        engine.raise_if_closed()
        wanted = self.settings_for(
            mode, processes=processes, threads=threads, model_copies=model_copies, memory_budget=memory_budget
        )
        handler = None
        if batching:
            if not hasattr(engine.handler, "with_batching"):
                raise errors.InvalidSetting(
                    f"batching={dict(batching)!r}: {type(engine.handler).__name__} isn't derived from "
                    "kit.ModelHandler, so set its batch sizes when you make it, and use update_model(handler)."
                )
            handler = engine.handler.with_batching(**batching)
        other_budget = dataclasses.replace(engine.settings, memory_budget=wanted.memory_budget)
        if engine.places is not None and handler is None and wanted == other_budget != engine.settings:
            from kit.engine import keyed_changes

            keyed_changes.resize(engine, wanted)
            return self
        engine.switch(wanted, handler)
        return self

    def settings_for(
        self,
        mode: str | None = None,
        *,
        processes: int | None = None,
        threads: int | None = None,
        model_copies: int | None = None,
        memory_budget: int | float | str | None = None,
    ) -> Settings:
        """The settings that `switch` with these arguments would lead to; changes nothing.

        Raises:
            InvalidSetting: they can't work.
        """
        settings = self._engine.settings
        if memory_budget == "none":
            memory_budget, settings = None, dataclasses.replace(settings, memory_budget=None)
        return settings.change(
            self._engine.handler,
            mode=mode,
            processes=processes,
            threads=threads,
            model_copies=model_copies,
            memory_budget=memory_budget,
        )

    def cancel_switch(self) -> bool:
        """Stop a switch or update that hasn't taken over yet; False when none is under way."""
        return self._engine.cancel_switch()

    def update_model(self, model: Any) -> Self:
        """Replace the model by another version, live: a path for the handler's ``update_model_path``, or a new handler.

        With models by key also a list of `KeyModelPathMapping`, as for `update_models`.

        Raises:
            KitError: the new version can't be served; the old one serves on.
        """
        import copy

        engine = self._engine
        engine.raise_if_closed()
        if isinstance(model, (list, tuple)):
            return self.update_models(model)
        if isinstance(model, str) or hasattr(model, "__fspath__"):
            handler = copy.copy(engine.handler)
            handler.update_model_path(str(model))
        elif hasattr(model, "run_inference"):
            handler = model
            if (getattr(model, "routes", None) is None) != (engine.places is None):
                raise errors.InvalidSetting(
                    f"update_model({type(model).__name__}): one model can't take the place of models by key, nor they "
                    "its place, since their examples differ. Deploy the new handler beside this one."
                )
        else:
            raise errors.InvalidSetting(
                f"update_model({model!r}): give a path, a model handler, or for models by key a list of "
                "KeyModelPathMapping."
            )
        engine.switch(engine.settings, handler, event="update")
        return self

    # ---- watching ----------------------------------------------------------------------------

    def stats(self) -> pd.DataFrame:
        """One row a process.

        Columns: role, index, pid, mode, uptime_s, load_s; pss_bytes, uss_bytes and their pss_age_s;
        weights_private_bytes, weights_shared_bytes; gpu_bytes where there is a GPU; examples, batches,
        batch_size (mean), coalesced (requests), elements_per_s and busy_share (0 to 1), both over the last
        seconds, or since the process started when it wasn't looked at before; heartbeat_age_s.
        """
        import pandas as pd

        self._watch.read_memory_now()
        return pd.DataFrame(self._watch.rows())

    @property
    def history(self) -> pd.DataFrame:
        """One row a second: rates, latency quantiles (total, queue, compute, transport; seconds), memory by
        role in bytes, mode, and the events of that second."""
        return self._engine.history.to_frame(FIGURES)

    @property
    def counters(self) -> dict[str, int]:
        """Examples accepted, answered, failed, cancelled, retried; batches; deaths of processes."""
        return self._engine.dispatcher.counters.as_dict()

    def logs(self, lines: int | None = None) -> str:
        """What the serving processes printed, the last `lines` of it."""
        kept = list(self._engine.logs.lines)
        if lines is not None:
            kept = kept[-lines:] if lines else []
        return "\n".join(f"[{line.role} {line.pid}] {line.text}" for line in kept)

    def snapshot(self, seconds: float = 120.0) -> Snapshot:
        """All that a view shows, at this moment, with the figures of the last `seconds`; cheap."""
        from kit import snapshot

        return snapshot.take(self._engine, self._watch, seconds)

    def pulse(self) -> tuple[Any, ...]:
        """Something that differs from before whenever `snapshot` has news worth a look; costs microseconds."""
        from kit import snapshot

        return snapshot.pulse(self._engine)

    def kill(self, role: str = "worker", index: int = 0) -> int:
        """Kill a serving process, to see that it is replaced and no request fails; returns its pid.

        This doesn't count towards the deaths that end a deployment.

        Raises:
            InvalidSetting: there is no such process.
        """
        self._engine.raise_if_closed()
        return self._engine.topology.deaths.kill(role, index)

    # ---- past one machine, and other versions --------------------------------------------------

    def to_beam(self, inference_args: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """A step of an Apache Beam pipeline with this handler and these settings: a `kit.beam.RunInference`.

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
    def closed(self) -> bool:
        """True once nothing is served any more."""
        return not self._engine.alive

    def at_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called once nothing is served any more; returns a function that takes it back."""
        callbacks = self._engine.at_close
        callbacks.append(callback)

        def take_back() -> None:
            if callback in callbacks:
                callbacks.remove(callback)

        return take_back

    def note(self, kind: str, text: str) -> None:
        """Put an event into the history."""
        self._engine.event(kind, text)

    def raise_if_closed(self) -> None:
        """Raise DeploymentClosed, or what else ended it, when no request can be answered any more."""
        self._engine.raise_if_closed()

    def close(self) -> None:
        """End all processes and threads; requests that wait fail with DeploymentClosed. Idempotent."""
        self._finalizer.detach()
        _shut_down(self._engine, self._watch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        settings = self._engine.settings
        state = "closed" if self.closed else "serving"
        words = settings.describe(by_key=self._engine.places is not None)
        return f"<Deployment of {type(self._engine.handler).__name__}: {state}, {words}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from kit.summary import html_summary

        return {"text/plain": repr(self), "text/html": html_summary(self)}


def deploy(
    handler: Any,
    mode: str | None = None,
    processes: int | None = None,
    threads: int | None = None,
    model_copies: int | None = None,
    memory_budget: int | float | str | None = None,
    sample: Any = None,
    name: str | None = None,
    keep_alive: float | str | None = None,
    *,
    replace: bool = False,
    allow_pickle: bool = False,
) -> Deployment:
    """Serve a handler on this machine.

    Args:
        handler: a model handler, ours, Beam's or your own.
        mode: "default", "medium", "large" or "shared"; the handler's own choice when None.
        processes: worker processes (2).
        threads: worker threads a process (1).
        model_copies: model hosts of mode "medium".
        memory_budget: bytes, or text such as "2GiB", for all copies of the model together.
        sample: a few examples to verify mode "shared" with before it serves; else the first batch is.
        name: serve in the daemon of this user: the deployment outlives this process, and others reach it with
            ``kit.connect(name)``. Where the name serves the same handler already, this attaches to it.
        keep_alive: with a name, how long it may go without a request before it ends: seconds, or text such as
            "30m"; None for no end.
        replace: with a name that serves another handler, replace that by a hot update.
        allow_pickle: with a name, let examples and predictions of any type travel, as pickles.

    Raises:
        InvalidSetting, BudgetExceeded, HandlerNotPicklable, PreloadFailed, ModelLoadFailed,
        SharedModeUnavailable: with what happened and what to do; nothing is left running.
        NameTaken: the name serves another handler. DaemonUnavailable: no daemon can be started.
    """
    check_platform()
    check_handler(handler)
    if name is not None:
        import kit

        named: Deployment = kit._serve_named(
            handler,
            name,
            {
                "mode": mode,
                "processes": processes,
                "threads": threads,
                "model_copies": model_copies,
                "memory_budget": memory_budget,
            },
            sample=sample,
            keep_alive=keep_alive,
            replace=replace,
            allow_pickle=allow_pickle,
        )
        return named
    if keep_alive is not None or replace or allow_pickle:
        raise errors.InvalidSetting(
            f"keep_alive={keep_alive!r}, replace={replace!r}, allow_pickle={allow_pickle!r}: these are for named "
            "deployments; give name='...' too."
        )
    settings = Settings.make(handler, mode, processes, threads, model_copies, memory_budget)
    return start(handler, settings, sample)


def start(handler: Any, settings: Settings, sample: Any = None, forkserver: Any = None) -> Deployment:
    """`deploy` with settings made, and possibly a fork server that several deployments share."""
    from kit.engine import core

    rows = sample_rows(sample)
    engine = core.Engine(handler, settings, forkserver)
    engine.start(rows)
    return Deployment(engine)


def sample_rows(sample: Any) -> list[Any]:
    """The first few examples of a sample, [] for None."""
    rows = [] if sample is None else inputs.sized(sample)
    if rows is None:
        raise errors.UnsupportedInput("sample: give a list of examples, not an iterator.")
    return list(rows)[:64]


def sized_rows(examples: Any, deadline: float | None) -> Any:
    """The checked examples of a `submit`, as a list or Rows."""
    if deadline is not None and not deadline > 0:
        raise errors.InvalidSetting(f"deadline={deadline!r}: give seconds above 0, or None.")
    rows = inputs.sized(examples)
    if rows is None:
        raise errors.UnsupportedInput(
            "examples that come one by one go through `examples | RunInference(deployment)`; submit and predict "
            "take lists, arrays and tables."
        )
    return rows


def _shut_down(engine: core.Engine, watch: Watch) -> None:
    engine.close()
    watch.stop()


def close_all() -> None:
    """Close all deployments of this process."""
    core = sys.modules.get("kit.engine.core")
    for engine in list(core.running) if core is not None else []:
        engine.close()


atexit.register(close_all)
