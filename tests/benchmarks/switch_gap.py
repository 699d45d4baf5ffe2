"""Longest gap between answers while a 400 MB model under load is switched from mode to mode."""

from __future__ import annotations

import itertools

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
        expected = {
            id(row): prediction.inference for row, prediction in zip(rows, deployment.predict(rows), strict=True)
        }

        def right(row: object, prediction: kit.PredictionResult) -> bool:
            return bool(abs(prediction.inference - expected[id(row)]) <= 1e-5 * abs(expected[id(row)]))

        for before, after in itertools.pairwise(path):
            with kit.LoadGenerator(deployment, rows, clients=4, check=right) as load:
                load.wait(1.0)
            quiet = load.report()
            with kit.LoadGenerator(deployment, rows, clients=4, check=right) as load:
                load.wait(0.5)
                deployment.switch(after)
                load.wait(0.5)
            report = load.report()
            took = deployment._engine.last_switch["seconds"]
            lost = report.failed + report.wrong + report.unanswered
            found.append(
                Figure(
                    f"switch under load, 400 MB model, {before} → {after}: longest gap",
                    harness.duration(report.longest_gap_s),
                    f"{harness.duration(quiet.longest_gap_s)} at rest",
                    f"in {took:.2f} s; {report.answered} answered, {lost} failed or wrong",
                    f"≤ {AT_MOST_S} s",
                    report.longest_gap_s <= AT_MOST_S and not lost,
                )
            )
    return found
