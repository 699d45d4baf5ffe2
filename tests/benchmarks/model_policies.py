"""Seconds spent loading under a budget: `cost` against byte-LRU and against a heuristic that knows the future."""

from __future__ import annotations

import statistics

import kit
from tests.benchmarks import harness, model_traffic
from tests.benchmarks.harness import Figure

#: Share of all models' bytes that the budget holds -> seconds against LRU at most.
AT_MOST = {0.15: 0.75, 0.30: 0.65, 0.50: 0.5}
AT_MOST_OFFLINE = 1.4


def figures() -> list[Figure]:
    """Medians over several draws of models and traffic."""
    seeds = range(3 if harness.quick else 9)
    requests = 6_000 if harness.quick else 20_000
    found = []
    for share, at_most in AT_MOST.items():
        runs = [_run(seed, share, requests) for seed in seeds]
        against_lru = [run["cost"] / run["lru"] for run in runs]
        against_offline = [run["cost"] / run["offline"] for run in runs]
        gdsf = statistics.median(run["gdsf"] / run["lru"] for run in runs)
        budget = f"{share:.0%} budget"
        found.append(_figure(f"seconds loading, {budget}: cost vs byte-LRU", runs, "lru", against_lru, at_most))
        found.append(
            _figure(
                f"  {budget}: cost vs offline heuristic", runs, "offline", against_offline, AT_MOST_OFFLINE,
                note=f"GDSF takes {gdsf:.2f} of byte-LRU's seconds.",
            )
        )  # fmt: skip
    return found


def _run(seed: int, share: float, requests: int) -> dict[str, float]:
    models = model_traffic.models(seed)
    budget = int(share * sum(size for size, _ in models.values()))
    table = kit.simulate(model_traffic.traffic(seed, requests), models, budget)
    return dict(zip(table.policy, table.load_s, strict=True))


def _figure(
    what: str, runs: list[dict[str, float]], peer: str, ratios: list[float], at_most: float, note: str = ""
) -> Figure:
    low, high = harness.spread(ratios)
    ratio = statistics.median(ratios)
    return Figure(
        what,
        f"{statistics.median(run['cost'] for run in runs):,.0f} s",
        f"{statistics.median(run[peer] for run in runs):,.0f} s",
        f"{ratio:.2f}× ({low:.2f}-{high:.2f})",
        f"≤ {at_most:g}×",
        ratio <= at_most,
        note,
    )
