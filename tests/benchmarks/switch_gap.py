"""Longest gap between answers while a 400 MB model under load is switched from mode to mode."""

from __future__ import annotations

import itertools
from typing import Any

import kit
from tests.benchmarks import harness, models
from tests.benchmarks.harness import Figure

AT_MOST_S = 0.3
PATH = ("default", "shared", "large", "medium", "shared", "default", "large")


def figures() -> list[Figure]:
    """One line a switch; the peer is the longest gap in as long a time without a switch."""
    handler = models.Wide(models.LARGE_LAYERS, max_batch_size=1)
    rows = handler.rows(16)
    path = PATH[:3] if harness.quick else PATH
    found = []
    with kit.deploy(handler, mode=path[0], processes=2) as deployment:
        answers = [prediction.inference for prediction in deployment.predict(rows)]
        expected = {id(row): answer for row, answer in zip(rows, answers, strict=True)}

        def right(row: object, prediction: kit.PredictionResult) -> bool:
            return bool(abs(prediction.inference - expected[id(row)]) <= 1e-5 * abs(expected[id(row)]))

        for before, after in itertools.pairwise(path):
            found.append(_switch(deployment, rows, right, f"{before} → {after}", AT_MOST_S, mode=after))
        if not harness.quick:
            # Two copies don't fit, so requests wait while the next one is loaded: as long as that takes.
            what = f"{path[-1]} → default, one copy fits: drained first"
            found.append(
                _switch(deployment, rows, right, what, None, mode="default", processes=1, memory_budget="500MB")
            )
    return found


def _switch(
    deployment: kit.Deployment, rows: list[Any], right: Any, what: str, at_most_s: float | None, **settings: Any
) -> Figure:
    """Switch once in the middle of a load of 4 clients, whose answers are all looked at."""
    with kit.LoadGenerator(deployment, rows, clients=4, check=right) as load:
        load.wait(1.0)
    quiet = load.report()
    with kit.LoadGenerator(deployment, rows, clients=4, check=right) as load:
        load.wait(0.5)
        deployment.switch(**settings)
        load.wait(0.5)
    report = load.report()
    lost = report.failed + report.wrong + report.unanswered
    gap = report.longest_gap_s
    return Figure(
        f"switch under load, 400 MB model, {what}: longest gap",
        harness.duration(gap),
        f"{harness.duration(quiet.longest_gap_s)} at rest",
        f"in {deployment._engine.last_switch['seconds']:.2f} s; {report.answered} answered, {lost} failed or wrong",
        "" if at_most_s is None else f"≤ {at_most_s} s",
        None if at_most_s is None else gap <= at_most_s and not lost,
    )
