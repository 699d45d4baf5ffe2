"""Models by key in deployments: loads beside requests, the budget kept."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import kit
from tests.benchmarks import harness, models
from tests.benchmarks.harness import Figure
from tests.models import Wide

AT_MOST = 1.5
LOAD_MB = 400


def figures() -> list[Figure]:
    """p99 beside a load; bytes over the budget in a mixed run."""
    return [*(_beside_a_load(mode) for mode in ("default", "large", "shared")), _over_budget()]


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


def _over_budget() -> Figure:
    """Most bytes above the budget, resident and reserved, in a run with all that changes them."""
    seconds = 10.0 if harness.quick else 60.0
    sizes = [1 + number % 7 for number in range(40)]
    handler = kit.KeyedModelHandler([kit.KeyModelMapping([key], Sized(size)) for key, size in enumerate(sizes)])
    draw = random.Random(0)
    done = 0
    with kit.deploy(handler, processes=2, memory_budget="30MB") as deployment:
        for mode in ("default", "large", "medium", "shared"):
            deployment.switch(mode)
            until = time.monotonic() + seconds / 4
            while time.monotonic() < until:
                keys = [min(39, int(draw.expovariate(0.1))) for _ in range(200)]
                done += len(deployment.predict([(key, 1) for key in keys]))
        places = deployment._engine.places
        assert places is not None
        over = places.manager.overshoot_bytes
    return Figure(
        f"bytes over a budget of 30 MB, {done:,} elements in {seconds:.0f} s, all modes",
        f"{over} B",
        "",
        "",
        "0",
        over == 0,
    )


class Sized(models.Identity):
    """An identity with a model of some MB, whose size is known beforehand."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.megabytes = megabytes

    def estimate_model_bytes(self) -> int:
        return self.megabytes * 1_000_000 + 1000

    def load_model(self) -> Any:
        import numpy as np

        return np.zeros(self.megabytes * 1_000_000, np.uint8)
