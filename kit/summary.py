"""A deployment in a few lines of HTML, from figures at hand: no locks, no messages to its processes."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from kit.sizes import format_bytes

if TYPE_CHECKING:
    from kit.own_deployment import OwnDeployment


def html_summary(deployment: OwnDeployment) -> str:
    """A small table: mode, processes, copies, memory, counts."""
    engine = deployment._engine
    settings, counters = engine.settings, engine.dispatcher.counters
    rows = {
        "model": getattr(engine.handler, "model_id", None) or type(engine.handler).__name__,
        "mode": settings.mode + ("" if deployment._state == "serving" else f" ({deployment._state})"),
        "workers": settings.workers_in_words,
        "copies of the model": str(settings.copies),
    }
    if engine.model_bytes:
        mapped = engine.topology.mapped_bytes
        rows["weights"] = f"{settings.copies} × {format_bytes(engine.model_bytes - mapped)}"
        if mapped:
            rows["weights"] += f", and {format_bytes(mapped)} mapped from a file, once for all copies"
    if settings.memory_budget:
        rows["memory budget"] = format_bytes(settings.memory_budget)
    memory = deployment._watch.memory()["pss_bytes"]
    if memory:
        rows["memory (PSS)"] = format_bytes(memory)
    rows["answered / failed"] = f"{counters.answered} / {counters.failed}"
    body = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{body}</table>"
