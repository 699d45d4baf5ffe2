"""Models by key as a panel shows them: their names, their counts, and where they live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from kit.memory import format_bytes
from kit.shorten import counted as counted_words
from widgets.html import GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, shortened

if TYPE_CHECKING:
    from kit.snapshot import Snapshot

Row = dict[str, Any]

#: Models that are drawn and listed; the others are counted.
SHOWN = 20
#: State -> its colour, in the order in which counts are told.
STATES = {
    "resident": GREEN, "loading": ORANGE, "waiting": PURPLE, "host tier": SKY, "evicted": GREY, "failed": VERMILLION
}  # fmt: skip
#: What a state is called where "evicted" would also be said of models that were never loaded.
WORDS = {"evicted": "not loaded", "waiting": "waiting for room"}


def state_of(row: Row) -> str:
    """A model's state; "waiting" for one that is to be loaded, which no process does yet."""
    state = str(row["state"])
    return "waiting" if state == "loading" and not homes(row, "loading_at") else state


def in_words(state: str) -> str:
    """A state as it is shown."""
    return WORDS.get(state, state)


#: The colours by those words.
COLOURS = {in_words(state): colour for state, colour in STATES.items()}


def identity(row: Row) -> Hashable:
    """What tells a model from the others, from one look to the next."""
    return tuple(row["keys"][:1])  # more may come with time


def name(row: Row, most: int = 24) -> str:
    """A model by its keys, in a line."""
    keys = list(row["keys"])
    words = ", ".join(map(str, keys[:3]))
    return shortened(words, most) if len(keys) <= 3 else f"{shortened(words, most - 8)} +{len(keys) - 3}"


def by_score(rows: Sequence[Row]) -> list[Row]:
    """Those that are kept longest first; those that were never asked for last."""
    return sorted(rows, key=lambda row: (-figure(row, "score"), -figure(row, "hits"), name(row)))


def counted(rows: Sequence[Row]) -> str:
    """How many are in which state: "3 resident, 1 loading, 196 not loaded"."""
    found = Counter(map(state_of, rows))
    return ", ".join(
        f"{found[state]:,} {in_words(state)}" for state in (*STATES, *sorted(set(found) - set(STATES))) if found[state]
    )


def size(row: Row) -> int:
    """Bytes of one copy, 0 while unknown."""
    return int(figure(row, "size_bytes"))


def resident_bytes(rows: Sequence[Row]) -> int:
    """Bytes of what is loaded, every copy counted."""
    return sum(int(figure(row, "resident_bytes")) for row in rows)


def of_budget(used_bytes: int, budget: int | None) -> str:
    """Such as "182 of 200 MB"; without a budget "182 MB"."""
    used, most = format_bytes(used_bytes), format_bytes(budget or 0)
    if budget and used.split()[-1] == most.split()[-1]:
        used = used.split()[0]
    return f"{used} of {most}" if budget else used


def loaded(snapshot: Snapshot) -> str:
    """The models in a few words, such as "4 models by key, 2 loaded: 182 of 200 MB"."""
    rows = snapshot.models
    count = sum(row["state"] == "resident" for row in rows)
    return f"{len(rows):,} models by key, {count:,} loaded: {of_budget(resident_bytes(rows), budget_of(snapshot))}"


def homes(row: Row, column: str = "where") -> list[str]:
    """The processes where it is loaded, such as "worker 0"; "all workers" where they share one segment.

    Those where it is being loaded with the column "loading_at".
    """
    return [home for home in str(row.get(column) or "").split(", ") if home]


def held_by(rows: Sequence[Row], home: str) -> list[Row]:
    """The models that a process has, or is loading: these with a state of "loading"."""
    loaded = [row for row in rows if home in homes(row)]
    filling = [row for row in rows if home in homes(row, "loading_at") and row not in loaded]
    return loaded + [{**row, "state": "loading", "size_bytes": size(row) or typical_bytes(rows)} for row in filling]


def typical_bytes(rows: Sequence[Row]) -> int:
    """The mean size of the models whose sizes are known; 0 when none is."""
    sizes = [size(row) for row in rows if size(row)]
    return sum(sizes) // len(sizes) if sizes else 0


def budget_of(snapshot: Snapshot) -> int | None:
    """Bytes that all loaded models may take, None for no limit."""
    return snapshot.settings.memory_budget


def facts(snapshot: Snapshot) -> list[tuple[str, str]]:
    """The numbers of all models together."""
    rows = snapshot.models
    hits, requests = (int(sum(figure(row, name) for row in rows)) for name in ("hits", "requests"))
    budget = budget_of(snapshot)
    pairs = [
        (in_words(state), f"{count:,}") for state in STATES if (count := sum(state_of(row) == state for row in rows))
    ]
    return [
        *pairs,
        ("models", f"{len(rows):,}"),
        ("loaded bytes", format_bytes(resident_bytes(rows))),
        ("budget", format_bytes(budget) if budget else "none"),
        ("loads", f"{int(sum(figure(row, 'loads') for row in rows)):,}"),
        ("evictions", f"{int(sum(figure(row, 'evictions') for row in rows)):,}"),
        ("found loaded", f"{hits / requests:.0%}" if requests else "-"),
        ("spent loading", f"{sum(figure(row, 'load_total_s') for row in rows):,.2f} s"),
    ]


def text(snapshot: Snapshot) -> str:
    """All of it in lines of text; empty for a handler without keys."""
    rows = snapshot.models
    if not rows:
        return ""
    lines = [f"models by key: {counted(rows)}; {of_budget(resident_bytes(rows), budget_of(snapshot))}"]
    best = by_score(rows)
    lines += [f"  {name(row)}: {_line(row)}" for row in best[:SHOWN]]
    if len(best) > SHOWN:
        lines.append(f"  and {len(best) - SHOWN:,} more: {counted(best[SHOWN:])}")
    return "\n".join(lines)


def _line(row: Row) -> str:
    """What is known of a model, in words."""
    counts = [counted_words(int(figure(row, noun + "s")), noun) for noun in ("hit", "load", "eviction")]
    words = ", ".join([in_words(state_of(row)), format_bytes(size(row)) if size(row) else "size unknown", *counts])
    return f"{words}; {shortened(trouble(row), 120)}" if trouble(row) else words


def trouble(row: Row) -> str:
    """Why its load failed, or can't be tried; empty when it could be loaded."""
    error = row.get("error")
    return error if isinstance(error, str) else ""


def figure(row: Row, column: str) -> float:
    """A number of a row, 0 where it isn't known."""
    value = row.get(column)
    return 0.0 if value is None or value != value else float(value)
