"""A deployment of this process: its engine started the serving processes, and ends with them."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.checks import check_function, check_lines, check_takes_paths
from kit.deployment import Deployment
from kit.history import FIGURES

# The engine is imported when something is deployed: a kernel that connects to a named deployment never needs it.
if TYPE_CHECKING:
    import pandas as pd

    from kit.deployed_models import ModelCalls
    from kit.engine import core
    from kit.engine.watch import Watch
    from kit.settings import Settings
    from kit.snapshot import Snapshot


class OwnDeployment(Deployment):
    """What `kit.deploy` returns without a name."""

    def __init__(self, engine: core.Engine) -> None:
        from kit.engine.watch import Watch

        self._engine = engine
        self._watch = Watch(engine)
        self._finalizer = weakref.finalize(self, _shut_down, engine, self._watch)
        # Engines are closed by one exit function, in time for threads to be joined.
        self._finalizer.atexit = False

    # ---- predictions -------------------------------------------------------------------------

    def _submit(self, rows: Any, inference_args: Mapping[str, Any] | None, **options: Any) -> Future[list[Any]]:
        from kit.engine.requests import Request

        engine = self._engine
        engine.raise_if_closed()
        if inference_args is not None:
            engine.handler.validate_inference_args(inference_args)
        request = Request(rows, inference_args, options=engine.dispatcher.request_options, **options)
        if not request.count:
            request.future.set_result([])
            return request.future
        # The future keeps the deployment: dropping the last other reference must not fail it.
        request.future.deployment = self
        engine.dispatcher.submit(request)
        return request.future

    # ---- settings and models -----------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return self._engine.settings

    @property
    def handler(self) -> Any:
        return self._engine.handler

    @property
    def _models(self) -> ModelCalls:
        from kit.engine.model_calls import EngineModels

        return EngineModels(self._engine)

    def _switch(
        self, changes: dict[str, Any], batching: dict[str, Any], *, anew: bool = True
    ) -> tuple[Settings, Settings]:
        engine = self._engine
        with engine.switch_lock:
            engine.raise_if_closed()
            before, wanted = engine.settings, self._settings_for(changes)
            only_budget = [name for name, value in changes.items() if value is not None] == ["memory_budget"]
            if batching or wanted != before or (anew and not only_budget):
                self._switch_to(wanted, batching)
            return before, engine.settings

    def _switch_to(self, wanted: Settings, batching: dict[str, Any]) -> None:
        engine, handler = self._engine, None
        if batching:
            if not hasattr(engine.handler, "with_batching"):
                raise errors.InvalidSetting(
                    f"batching={batching!r}: {type(engine.handler).__name__} isn't derived from "
                    "kit.ModelHandler, so set its batch sizes when you make it, and use update_model(handler)."
                )
            handler = engine.handler.with_batching(**batching)
        other_budget = dataclasses.replace(engine.settings, memory_budget=wanted.memory_budget)
        if engine.places is not None and handler is None and wanted == other_budget != engine.settings:
            from kit.engine import keyed_changes

            keyed_changes.resize(engine, wanted)
            return
        engine.switch(wanted, handler)

    def _settings_for(self, changes: dict[str, Any]) -> Settings:
        settings = self._engine.settings
        if changes["memory_budget"] == "none":
            changes, settings = {**changes, "memory_budget": None}, dataclasses.replace(settings, memory_budget=None)
        return settings.change(self._engine.handler, **changes)

    def cancel_switch(self) -> bool:
        return self._engine.cancel_switch()

    def _update_path(self, path: str) -> None:
        engine = self._engine
        with engine.switch_lock:
            engine.raise_if_closed()
            handler = copy.copy(engine.handler)
            check_takes_paths(handler, path)
            handler.update_model_path(path)
            engine.switch(engine.settings, handler, event="update")

    def _update_handler(self, handler: Any) -> None:
        self._replace_handler(handler, {})

    def _replace_handler(self, handler: Any, changes: Mapping[str, Any], sample: Sequence[Any] = ()) -> None:
        """`update_model` to a handler together with `switch`; None among the `changes` leaves a setting as it is."""
        engine = self._engine
        engine.raise_if_closed()
        if (getattr(handler, "routes", None) is None) != (engine.places is None):
            raise errors.InvalidSetting(
                f"update_model({type(handler).__name__}): one model can't take the place of models by key, nor they "
                "its place, since their examples differ. Deploy the new handler beside this one."
            )
        with engine.switch_lock:
            settings = engine.settings.with_budget_of(handler, engine.handler).change(handler, **changes)
            if sample:
                engine.dispatcher.sample = list(sample)
            engine.switch(settings, handler, event="update")

    # ---- watching ----------------------------------------------------------------------------

    def stats(self) -> pd.DataFrame:
        import pandas as pd

        self._watch.read_memory_now()
        return pd.DataFrame(self._watch.rows())

    @property
    def history(self) -> pd.DataFrame:
        return self._engine.history.to_frame(FIGURES)

    @property
    def counters(self) -> dict[str, int]:
        return self._engine.dispatcher.counters.as_dict()

    def logs(self, lines: int | None = None) -> str:
        check_lines(lines)
        kept = list(self._engine.logs.lines)
        if lines is not None:
            kept = kept[-lines:] if lines else []
        return "\n".join(f"[{line.role} {line.pid}] {line.text}" for line in kept)

    def snapshot(self, seconds: float = 120.0) -> Snapshot:
        from kit import snapshot

        return snapshot.take(self._engine, self._watch, seconds)

    def pulse(self) -> tuple[Any, ...]:
        from kit import snapshot

        return snapshot.pulse(self._engine)

    def note(self, kind: str, text: str) -> None:
        self._engine.event(kind, text)

    def kill(self, role: str = "worker", index: int = 0) -> int:
        self._engine.raise_if_closed()
        return self._engine.topology.deaths.kill(role, index)

    # ---- end ---------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return not self._engine.alive

    def at_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        check_function("callback", callback, needed=True)
        callbacks = self._engine.at_close
        callbacks.append(callback)

        def take_back() -> None:
            if callback in callbacks:
                callbacks.remove(callback)

        return take_back

    def raise_if_closed(self) -> None:
        self._engine.raise_if_closed()

    def close(self) -> None:
        self._finalizer.detach()
        _shut_down(self._engine, self._watch)

    def __repr__(self) -> str:
        settings = self._engine.settings
        words = settings.describe(by_key=self._engine.places is not None)
        return f"<Deployment of {type(self._engine.handler).__name__}: {self._state}, {words}>"

    @property
    def _state(self) -> str:
        if self.closed:
            return "closed"
        broken = self._engine.dispatcher.closed
        return "serving" if broken is None else f"broken by {type(broken).__name__}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from kit import shown
        from kit.summary import html_summary

        shown.note(self)
        return {"text/plain": repr(self), "text/html": html_summary(self)}


def _shut_down(engine: core.Engine, watch: Watch) -> None:
    engine.close()
    watch.stop()
