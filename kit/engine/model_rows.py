"""The table of models by key: one row a model, whatever the number of its copies."""

from __future__ import annotations

from collections.abc import Container, Hashable
from typing import Any

from kit.key_routes import KeyModel
from kit.manager.entry import blank_row

#: Of several copies the first of these that one of them is in.
STATES = ("resident", "loading", "host tier", "failed", "evicted")
SUMS = ("hits", "requests", "loads", "evictions", "load_total_s", "in_use")


def model_rows(
    places: list[dict[str, Any]], keys: dict[KeyModel, list[Hashable]], pins: Container[KeyModel] = ()
) -> list[dict[str, Any]]:
    """Rows of a manager whose names are places, a model each, and models that nobody has asked for yet.

    Columns: those of `kit.KeyedModels.rows`, and resident_bytes (of all copies), copies, where (text), loading_at
    (text: the process that loads a copy just now).
    """
    found: dict[KeyModel, dict[str, Any]] = {}
    for row in places:
        place = row.pop("name")
        resident = place.resident
        row = {
            "keys": keys.get(place.model, []),
            **row,
            "resident_bytes": (row["size_bytes"] or 0) if row["state"] == "resident" else 0,
            "copies": int(row["state"] == "resident"),
            "where": "" if resident is None else resident.where,
            "loading_at": place.loading_where,
        }
        if place.model not in keys:
            continue  # of a version that was replaced
        row["pinned"] = place.model in pins  # also while it is loaded again
        known = found.get(place.model)
        found[place.model] = row if known is None else _together(known, row)
    rows = sorted(found.values(), key=lambda row: -row["score"])
    nothing = {**blank_row(), "resident_bytes": 0, "copies": 0, "where": "", "loading_at": ""}
    unasked = [model for model in keys if model not in found]
    return rows + [{"keys": keys[model], **nothing, "pinned": model in pins} for model in unasked]


def _together(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    first, second = sorted((one, other), key=lambda row: STATES.index(row["state"]))
    row = {**first, **{name: one[name] + other[name] for name in (*SUMS, "resident_bytes", "copies")}}
    for name in ("where", "loading_at"):
        row[name] = ", ".join(filter(None, (first[name], second[name])))
    row["idle_s"] = min((idle for idle in (one["idle_s"], other["idle_s"]) if idle is not None), default=None)
    row["score"] = max(one["score"], other["score"])
    return row
