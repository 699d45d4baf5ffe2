"""What a kernel can ask of a named deployment besides predictions; each runs in the deployment's process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from kit import batching
from kit.checks import takes_paths
from kit.key_mappings import KeyModelPathMapping

if TYPE_CHECKING:
    from kit.daemon.served import Served
    from kit.deployment import Deployment

Records = dict[str, Any]


def settings_of(deployment: Deployment) -> dict[str, Any]:
    """Its settings as a plain dict."""
    return asdict(deployment.settings)


def describe(handler: Any) -> dict[str, Any]:
    """What a kernel needs to know of a handler whose class it may not have."""
    options = batching.options_of(handler)
    return {
        "type": type(handler).__name__,
        "model_id": getattr(handler, "model_id", None),
        "options": without_functions(options),
        "by_key": getattr(handler, "routes", None) is not None,
        "shares": handler.share_model_across_processes(),
        "copies": handler.model_copies(),
        "takes_paths": takes_paths(handler),
    }


def without_functions(options: Mapping[str, Any]) -> dict[str, Any]:
    """Batching options with True for a function: that there is one matters to who cuts a stream into windows."""
    return {name: True if callable(value) else value for name, value in options.items()}


def _status(served: Served) -> dict[str, Any]:
    served.serving()
    return served.status()


def _check(served: Served) -> None:
    served.serving()._engine.raise_if_closed()


def _validate(served: Served, inference_args: dict[str, Any]) -> None:
    served.serving().handler.validate_inference_args(inference_args)


def _switch(served: Served, changes: dict[str, Any], batching: dict[str, Any], anew: bool) -> list[dict[str, Any]]:
    served.line.take_back()  # so that what is computed directly is finished, too
    return [asdict(settings) for settings in served.serving()._switch(changes, batching, anew=anew)]


def _update(served: Served, model: str | bytes, digest: str) -> None:
    from kit.daemon.loading import rebuild

    served.update(model if isinstance(model, str) else rebuild(model), digest)


def _stats(served: Served) -> list[Records]:
    watch = served.serving()._watch
    watch.read_memory_now()
    return watch.rows()


def _history(served: Served) -> list[Records]:
    return served.serving()._engine.history.rows()


def _models(served: Served) -> list[Records]:
    from kit.daemon.snapshots import rows_that_travel

    return rows_that_travel(served.serving()._models.rows(), served.allow_pickle)


def _update_models(served: Served, mappings: list[Any]) -> None:
    served.serving().update_models([KeyModelPathMapping(*mapping) for mapping in mappings])
    served.digest += " with other models for some keys"  # it isn't the handler any more that was served


def _clients(served: Served) -> list[Records]:
    """One row a kernel, which may have connected several times."""
    now = time.monotonic()
    found: dict[tuple[int, str], Records] = {}
    for session in list(served.sessions):
        pid, label = session.said["pid"], session.said["label"]
        row = found.setdefault((pid, label), {"notebook": label, "pid": pid, "connections": 0, "connected_s": 0.0})
        row["connections"] += 1
        row["connected_s"] = max(row["connected_s"], now - session.connected_at)
        in_flight = len(session.waiting) + served.line.under_way(session)
        counts = {"requests": session.requests, "examples": session.examples, "in_flight": in_flight}
        for name, value in {**counts, **session.rates()}.items():
            row[name] = row.get(name, 0) + value
    return list(found.values())


def _summary(served: Served) -> str:
    from kit.summary import html_summary

    return html_summary(served.serving())


def _stop(served: Served) -> None:
    served.end(served.last_words)


def _snapshot(served: Served, seconds: float) -> Records:
    from kit.daemon import snapshots

    taken = replace(served.serving().snapshot(seconds), clients=_clients(served))
    return snapshots.pack(taken, served.allow_pickle)


CALLS: dict[str, Callable[..., Any]] = {
    "status": _status,
    "check": _check,
    "validate": _validate,
    "switch": _switch,
    "cancel_switch": lambda served, by: served.serving()._engine.cancel_switch(by),
    "update": _update,
    "update_models": _update_models,
    "preload": lambda served, keys, timeout: served.serving()._models.preload(keys, timeout),
    "pin": lambda served, keys, timeout: served.serving()._models.pin(keys, timeout),
    "unpin": lambda served, keys: served.serving()._models.unpin(keys),
    "unload": lambda served, keys: served.serving()._models.unload(keys),
    "settings_for": lambda served, **settings: asdict(served.serving().settings_for(**settings)),
    "snapshot": _snapshot,
    "pulse": lambda served: repr(served.serving().pulse()),
    "kill": lambda served, role, index: served.serving().kill(role, index),
    "stats": _stats,
    "history": _history,
    "models": _models,
    "counters": lambda served: served.serving().counters,
    "clients": _clients,
    "logs": lambda served, lines: served.serving().logs(lines),
    "summary": _summary,
    "note": lambda served, kind, text: served.serving().note(kind, text),
    "stop": _stop,
}
#: These an interrupted kernel takes back, see `withdrawal`; by "take_back", with the number of the call.
CHANGES = frozenset({"switch", "update", "update_models"})
#: These take long, and a kernel may ask other things meanwhile.
SLOW = frozenset({"switch", "update", "update_models", "preload", "pin", "unload", "models", "stats", "kill"})
