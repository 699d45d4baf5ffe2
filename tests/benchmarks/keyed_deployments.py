"""Models by key in deployments: loads beside requests."""

from __future__ import annotations

import threading
import time
from typing import Any

import kit
from tests.benchmarks import harness
from tests.benchmarks.harness import Figure
from tests.models import Wide

AT_MOST = 1.5
LOAD_MB = 400


def figures() -> list[Figure]:
    """p99 beside a load, by mode."""
    return [_beside_a_load(mode) for mode in ("default", "large", "shared")]


def _beside_a_load(mode: str) -> Figure:
    """p99 of a resident key while another key loads a large model again and again, and while nothing loads."""
    megabytes = LOAD_MB // 8 if harness.quick else LOAD_MB
    rounds = 2 if harness.quick else 4
    handler = kit.KeyedModelHandler(
        [kit.KeyModelMapping(["small"], Small()), kit.KeyModelMapping(["large"], Wide(megabytes))]
    )
    quiet: list[float] = []
    loading: list[float] = []
    with kit.deploy(handler, mode=mode, processes=1) as deployment:
        deployment.preload(["small"])
        _ask(deployment, 50)
        for _ in range(rounds):
            load = threading.Thread(target=deployment.preload, args=(["large"],), name="load")
            load.start()
            before = len(loading)
            while load.is_alive():
                loading += _ask(deployment, 10)
            load.join()
            quiet += _ask(deployment, len(loading) - before)
            deployment.unload(["large"])
    (_, calm), (_, busy) = harness.latencies(quiet), harness.latencies(loading)
    return Figure(
        f"p99 of a resident key while another loads {megabytes} MB, {mode}, 1 process",
        harness.duration(busy),
        harness.duration(calm),
        f"{busy / calm:.2f}×",
        f"≤ {AT_MOST:g}×",
        busy <= AT_MOST * calm,
    )


class Small(Wide):
    """A model of 4 MB, which takes milliseconds for a batch."""

    def __init__(self) -> None:
        super().__init__(4, 1024)


def _ask(deployment: Any, count: int) -> list[float]:
    import torch

    examples = [("small", torch.ones(1024))] * 64
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        deployment.predict(examples)
        seconds.append(time.perf_counter() - start)
    return seconds
