"""From a worker's death to the first prediction of the one that replaces it."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import kit
from tests.benchmarks import harness, models
from tests.benchmarks.harness import Figure

AT_MOST_S = 0.3
#: A fifth death within a minute would end the deployment.
DEATHS = 4


def figures() -> list[Figure]:
    """The only worker is killed; time to the next answer, less the load of the model that the new one reports."""
    found = []
    for what, handler, example in (
        ("MLP", models.mlp_handler(), models.mlp_rows(1)[0]),
        ("MiniLM", kit.assets.handler("minilm", device="cpu"), "My parcel is late."),
    ):
        seconds, loads = _deaths(handler, example)
        extra = [whole - load for whole, load in zip(seconds, loads, strict=True)]
        median = statistics.median(extra)
        found.append(
            Figure(
                f"first prediction of a new worker, {what}, from the kill, less its load",
                harness.duration(median),
                f"load {harness.duration(statistics.median(loads))}",
                f"{min(extra):.3f}-{max(extra):.3f} s",
                f"≤ {AT_MOST_S} s",
                median <= AT_MOST_S,
            )
        )
    return found


def _deaths(handler: Any, example: Any) -> tuple[list[float], list[float]]:
    seconds, loads = [], []
    with kit.deploy(handler, processes=1) as deployment:
        deployment.predict([example])
        for _ in range(2 if harness.quick else DEATHS):
            (worker,) = deployment._engine.topology.processes
            start = time.perf_counter()
            os.kill(worker.pid, 9)
            worker.exited.wait(10)
            deployment.predict([example], timeout=60)
            seconds.append(time.perf_counter() - start)
            (worker,) = deployment._engine.topology.processes
            loads.append(float(worker.report["load_s"]))
    return seconds, loads
