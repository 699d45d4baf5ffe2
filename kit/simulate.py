"""What a budget would cost: replays a trace of keys without loading anything."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kit.checks import is_number
from kit.errors import InvalidSetting, UnknownKey
from kit.manager import policy as rules
from kit.manager.policy import Policy
from kit.sizes import parse_bytes

if TYPE_CHECKING:
    import pandas as pd

NEVER = float("inf")


def simulate(
    trace: Iterable[Hashable],
    models: Any,
    budget: Any,
    policies: Sequence[Any] = ("cost", "gdsf", "lru"),
) -> pd.DataFrame:
    """Seconds that each policy would spend loading for a sequence of requests, under one or several budgets.

    Args:
        trace: the key of each request, in order.
        models: for each key the bytes of its model and the seconds that a load takes; or the table that ``models()`` of
            a deployment gives, which has measured them, and knows which keys have a model together.
        budget: bytes, or text such as "2GiB"; or a list, an array, a Series or a range of these.
        policies: names, or policy objects (used once, for one budget).

    Returns:
        One row a budget and policy: budget_bytes, policy, load_s (seconds spent loading), loads, hits, hit_share, and
        vs_lru (load_s against the least recently used). A last row a budget, "offline", knows the future: it evicts
        the model with the least (load seconds) / (bytes × requests until its next use). That is a heuristic, not an
        optimum, which can't be had for models of different sizes and costs.
        A model larger than the budget is counted as loaded anew for each of its requests. Requests are taken one by
        one; mode ``shared`` needs a model's bytes twice while it loads, and so makes more room than is counted here.

    Raises:
        InvalidSetting: an unknown policy or a used one, a budget that isn't a size, an empty trace, a model without
            bytes and seconds. UnknownKey: not in `models`.
    """
    import pandas as pd

    requests = _checked_trace(trace, dict(_measured(models)) if hasattr(models, "itertuples") else models)
    if hasattr(models, "itertuples"):
        requests, models = _by_model(requests, models)
    several = isinstance(budget, Iterable) and not isinstance(budget, (str, bytes, Mapping))
    budgets = list(budget) if several and getattr(budget, "ndim", None) != 0 else [budget]
    if isinstance(policies, str) or not isinstance(policies, Iterable):
        raise InvalidSetting(f"simulate: policies={policies!r}: give a list of names, such as ['cost', 'lru'].")
    if not budgets:
        raise InvalidSetting("simulate: budget=[]: give at least one budget in bytes.")
    rows = []
    for one in budgets:
        size = parse_bytes(one, "budget")
        if size is None:
            raise InvalidSetting("simulate: give a budget in bytes; without a limit every model is loaded once.")
        found = [_replay(requests, models, size, _policy(policy)) for policy in policies]
        lru = _replay(requests, models, size, _policy("lru"))["load_s"]
        found.append(_replay(requests, models, size, _Offline(requests, models)))
        rows += [{"budget_bytes": size, **row, "vs_lru": row["load_s"] / lru if lru else 1.0} for row in found]
    return pd.DataFrame(rows)


def _checked_trace(trace: Any, models: Any) -> list[Hashable]:
    """The trace as a list, once every key of it is known to have a size and a load time."""
    if not isinstance(models, Mapping):
        raise InvalidSetting(
            f"simulate: models is a {type(models).__name__}; give a dict from each key to (bytes, load seconds), such "
            "as {'tweets': (91_000_000, 0.4)}."
        )
    if not isinstance(trace, Iterable):
        raise InvalidSetting(f"simulate: trace={trace!r}: give the key of each request, in order.")
    requests = list(trace)
    if not requests:
        raise InvalidSetting("simulate: the trace is empty; give the key of each request, in order.")
    try:
        distinct = dict.fromkeys(requests)
    except TypeError as error:
        raise InvalidSetting(f"simulate: something in the trace can't be a key: {error}.") from error
    for key in distinct:
        if key not in models:
            raise UnknownKey(f"simulate: the trace has the key {key!r}, which isn't in models, or was never loaded.")
        about = models[key]
        pair = about if hasattr(about, "__len__") and len(about) == 2 else (math.nan, math.nan)
        if not all(is_number(value) and 0 <= value < math.inf for value in pair):
            raise InvalidSetting(
                f"simulate: models[{key!r}] is {about!r}; give (bytes, load seconds), both numbers of at least 0."
            )
    return requests


def _measured(table: Any) -> Iterator[tuple[Hashable, tuple[int, float]]]:
    """Keys with bytes and load seconds, out of the rows of models that have been loaded."""
    missing = {"keys", "size_bytes", "load_s"} - set(table.columns)
    if missing:
        raise InvalidSetting(
            f"simulate: the table of models has no column {', '.join(sorted(missing))}; give deployment.models() of a "
            "deployment with models by key, or a dict from each key to (bytes, load seconds)."
        )
    for row in table.dropna(subset=["size_bytes", "load_s"]).itertuples():
        yield from ((key, (int(row.size_bytes), float(row.load_s))) for key in row.keys)


def _by_model(requests: Iterable[Hashable], table: Any) -> tuple[list[Hashable], dict[Hashable, tuple[int, float]]]:
    """The requests with the first of the keys that a model has in the place of any, and what these models take."""
    first = {key: keys[0] for keys in table["keys"] for key in keys}
    return [first[key] for key in requests], dict(_measured(table))


def _policy(policy: Any) -> Policy:
    found = rules.make(policy)
    if found.clock:
        raise InvalidSetting(
            f"simulate: the policy object {found.name!r} has seen requests already; give its name, or a new one."
        )
    return found


def _replay(
    requests: Sequence[Hashable], models: Mapping[Hashable, tuple[int, float]], budget: int, policy: Policy
) -> dict[str, Any]:
    resident: dict[Hashable, int] = {}
    used = loads = 0
    load_s = 0.0
    for key in requests:
        policy.used(key)
        if key in resident:
            continue
        size, seconds = models[key]
        loads += 1
        load_s += seconds
        if size > budget:
            continue
        if used + size > budget:
            for victim in rules.victims(policy, resident.items(), used + size - budget):
                used -= resident.pop(victim)
                policy.evicted(victim)
        resident[key] = size
        used += size
        policy.loaded(key, size, seconds)
    hits = len(requests) - loads
    return {"policy": policy.name, "load_s": load_s, "loads": loads, "hits": hits, "hit_share": hits / len(requests)}


class _Offline(Policy):
    """Knows when each model is asked for next."""

    name = "offline"

    def __init__(self, requests: Sequence[Hashable], models: Mapping[Hashable, tuple[int, float]]) -> None:
        super().__init__()
        self._models = models
        self._next: list[float] = [NEVER] * len(requests)
        later: dict[Hashable, int] = {}
        for position in range(len(requests) - 1, -1, -1):
            self._next[position] = later.get(requests[position], NEVER)
            later[requests[position]] = position
        self._due: dict[Hashable, float] = {}
        self._position = -1

    def used(self, model: Hashable) -> None:
        self._position += 1
        self._due[model] = self._next[self._position]

    def score(self, model: Hashable) -> float:
        size, seconds = self._models[model]
        return seconds / (max(1, size) * (self._due[model] - self._position))
