"""Everything that a view of a deployment shows, read at one moment, and what other settings would take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.engine.core import Engine
    from kit.engine.watch import Watch
    from kit.history import Event
    from kit.settings import Settings


@dataclass(frozen=True, slots=True)
class SwitchProgress:
    """A switch or update under way.

    Attributes:
        settings: what it leads to.
        step: "starting" the new processes, or "finishing" what the old ones have.
        ready, total: new processes that have their model, and all of them.
        seconds: since it began.
    """

    settings: Settings
    step: str
    ready: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A deployment at one moment; holds no reference to it.

    Attributes:
        settings: the serving settings.
        handler_name, model_id: of what is served.
        batching: the handler's batching options.
        closed: whether nothing is served any more.
        counters: as `Deployment.counters`.
        processes: one dict a process, as the rows of `Deployment.stats`.
        rows: figures of the last seconds, one dict a second, as `Deployment.history`; "time" is since the epoch.
        events: what happened, oldest first; of models by key that came and went, in those last seconds.
        latest: the last answer: "example", "result", "pid", "mode", "seconds"; empty before the first.
        sample: a few examples that were sent.
        model_bytes: one copy of the weights, None while unknown.
        mapped_bytes: the part of it in files that its library maps, kept once by the kernel.
        switching: a switch under way, None without.
        clients: of a named deployment, one dict a connected kernel, as the rows of its `clients()`; else None.
        models: of a handler with models by key one dict a model, as the rows of `Deployment.models`; else empty.
    """

    settings: Settings
    handler_name: str
    model_id: str | None
    batching: Mapping[str, Any]
    closed: bool
    counters: Mapping[str, int]
    processes: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    events: list[Event]
    latest: Mapping[str, Any]
    sample: list[Any]
    model_bytes: int | None
    switching: SwitchProgress | None
    clients: list[dict[str, Any]] | None = None
    models: list[dict[str, Any]] = field(default_factory=list)
    mapped_bytes: int = 0

    def predict_memory(self, settings: Settings) -> dict[str, int]:
        """Bytes that other settings would take, by role, judged by what is measured now.

        The weights are (copies) x (bytes of one copy); what a library maps from a file counts once, as all of them
        do in `shared`. Libraries are mapped by all processes and counted once, so they stay; working memory grows
        with the number of processes. 0 for what isn't known yet.

        Returns:
            libraries_bytes, weights_private_bytes, weights_shared_bytes, working_bytes, and their sum, pss_bytes.
        """
        now = self.rows[-1] if self.rows else {}
        serving = [row for row in self.processes if row["role"] in ("worker", "host")]
        wanted = settings.processes + (settings.model_copies if settings.remote else 0)
        in_shared, model, mapped = settings.mode == "shared", self.model_bytes or 0, self.mapped_bytes
        if mapped and self.settings.mode != "shared" and self.rows:
            mapped = min(mapped, int(now.get("weights_shared_bytes") or mapped))  # others may bear a part of it
        found = {
            "libraries_bytes": int(now.get("libraries_bytes", 0)),
            "weights_private_bytes": 0 if in_shared else settings.copies * (model - self.mapped_bytes),
            "weights_shared_bytes": model if in_shared else mapped,
            "working_bytes": int(now.get("working_bytes", 0) / max(1, len(serving)) * wanted),
        }
        return {**found, "pss_bytes": sum(found.values())}


def take(engine: Engine, watch: Watch, seconds: float) -> Snapshot:
    """A snapshot with the figures of the last `seconds`."""
    from kit import batching
    from kit.engine.model_calls import rows_by_key

    handler, dispatcher = engine.handler, engine.dispatcher
    return Snapshot(
        settings=engine.settings,
        handler_name=type(handler).__name__,
        model_id=getattr(handler, "model_id", None),
        batching=batching.options_of(handler),
        closed=not engine.alive,
        counters=dispatcher.counters.as_dict(),
        processes=watch.rows() if engine.alive else [],
        rows=engine.history.recent(seconds),
        events=engine.history.events(churn_s=seconds),
        latest=dispatcher.latest,
        sample=list(dispatcher.sample),
        model_bytes=engine.model_bytes,
        mapped_bytes=engine.topology.mapped_bytes,
        switching=_progress(engine),
        models=rows_by_key(engine) if engine.alive else [],
    )


def pulse(engine: Engine) -> tuple[Any, ...]:
    """Differs from before when anything else may; of memory, whole megabytes, as it never stands quite still."""
    row, event, under_way = engine.history.last(), engine.history.last_event(), engine.switching
    return (
        engine.alive,
        id(engine.handler),
        engine.settings,
        *engine.dispatcher.counters.as_dict().values(),
        row.get("elements_per_s"),
        row.get("pss_bytes", 0) >> 20,
        row.get("gpu_bytes", 0) >> 20,
        event and event.time,
        under_way and time.monotonic(),
        engine.places and engine.places.manager.loading,
    )


def _progress(engine: Engine) -> SwitchProgress | None:
    switching = engine.switching
    if switching is None:
        return None
    topology, began = switching
    step = "starting" if topology is not engine.topology else "finishing"
    return SwitchProgress(topology.settings, step, *topology.progress(), time.monotonic() - began)
