"""A snapshot of a deployment as plain values, and back."""

from __future__ import annotations

from dataclasses import asdict, astuple
from typing import Any

from kit import errors
from kit.daemon.calls import without_functions
from kit.daemon.encoder import Encoder
from kit.history import Event
from kit.settings import Settings
from kit.snapshot import Snapshot, SwitchProgress


def pack(snapshot: Snapshot, allow_pickle: bool) -> dict[str, Any]:
    """The snapshot as values that travel; examples and results of types that don't are left out."""
    found = {name: getattr(snapshot, name) for name in Snapshot.__dataclass_fields__}
    found["settings"] = asdict(snapshot.settings)
    found["batching"] = without_functions(snapshot.batching)
    found["counters"] = dict(snapshot.counters)
    found["events"] = [list(astuple(event)) for event in snapshot.events]
    found["latest"] = {name: value for name, value in dict(snapshot.latest).items() if _travels(value, allow_pickle)}
    found["sample"] = snapshot.sample if _travels(snapshot.sample, allow_pickle) else []
    found["models"] = rows_that_travel(snapshot.models, allow_pickle)
    found["switching"] = None if snapshot.switching is None else asdict(snapshot.switching)
    return found


def rows_that_travel(rows: list[dict[str, Any]], allow_pickle: bool) -> list[dict[str, Any]]:
    """Rows of models, with the words for keys of types that don't travel."""
    if _travels(rows, allow_pickle):
        return rows
    return [
        {**row, "keys": [key if _travels(key, allow_pickle) else repr(key) for key in row.get("keys", ())]}
        for row in rows
    ]


def unpack(found: dict[str, Any]) -> Snapshot:
    """The inverse of `pack`."""
    found = dict(found)
    found["settings"] = Settings(**found["settings"])
    found["events"] = [Event(*event) for event in found["events"]]
    progress = found["switching"]
    if progress is not None:
        found["switching"] = SwitchProgress(**{**progress, "settings": Settings(**progress["settings"])})
    return Snapshot(**found)


def _travels(value: Any, allow_pickle: bool) -> bool:
    try:
        Encoder(allow_pickle=allow_pickle).add(value)
    except errors.KitError:
        return False
    return True
