"""Models by key in deployments: loads beside requests."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import kit
from tests.benchmarks import harness
from tests.benchmarks.harness import Figure
from tests.models import Wide

AT_MOST = 1.5
LOAD_MB = 400
#: Loads in a run. With 4 the ten slowest requests were the figure, and it went from 1.1 to 2.1 for the same code.
ROUNDS = 16


def figures() -> list[Figure]:
    """p99 beside a load, by mode; and what this machine makes of it without a deployment."""
    return [*(_beside_a_load(mode) for mode in ("default", "large", "shared")), _without_a_deployment()]


def _beside_a_load(mode: str) -> Figure:
    """p99 of a resident key while another key loads a large model again and again, and while nothing loads."""
    import torch

    megabytes, rounds = _sizes()
    handler = kit.KeyedModelHandler(
        [kit.KeyModelMapping(["small"], Small()), kit.KeyModelMapping(["large"], Wide(megabytes))]
    )
    with kit.deploy(handler, mode=mode, processes=1) as deployment:
        deployment.preload(["small"])
        examples = [("small", torch.ones(1024))] * 64
        calm, busy = _p99s(
            lambda: deployment.predict(examples),
            lambda: deployment.preload(["large"]),
            lambda: deployment.unload(["large"]),
            rounds,
        )
    return Figure(
        f"p99 of a resident key while another loads {megabytes} MB, {mode}, 1 process",
        harness.duration(busy),
        harness.duration(calm),
        f"{busy / calm:.2f}×",
        f"≤ {AT_MOST:g}×",
        busy <= AT_MOST * calm,
    )


def _without_a_deployment() -> Figure:
    """A bare loop over the same batches beside a process that loads the same model: what the cores share shows here."""
    import torch

    megabytes, rounds = _sizes()
    torch.set_num_threads(1)
    small = Small()
    model, batch = small.load_model(), [torch.ones(1024)] * 64
    code = f"from tests.models import Wide; w = Wide({megabytes}); import torch; torch.set_num_threads(1)\n"
    code += "while input(): w.load_model(); print(flush=True)"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as other:
        stdin, stdout = other.stdin, other.stdout
        assert stdin is not None
        assert stdout is not None

        def load() -> None:
            stdin.write("load\n")
            stdin.flush()
            stdout.readline()

        load()
        calm, busy = _p99s(lambda: small.run_inference(batch, model), load, lambda: None, rounds)
        stdin.write("\n")
        stdin.close()
    return Figure(
        "  the same without a deployment: a bare loop beside a process that loads it",
        harness.duration(busy),
        harness.duration(calm),
        f"{busy / calm:.2f}×",
    )


def _sizes() -> tuple[int, int]:
    """Megabytes of the model that is loaded, and how often it is."""
    return (LOAD_MB // 8, 2) if harness.quick else (LOAD_MB, ROUNDS)


def _p99s(
    ask: Callable[[], Any], load: Callable[[], Any], unload: Callable[[], Any], rounds: int
) -> tuple[float, float]:
    """p99 in seconds while nothing loads, and beside loads; as many samples of each, in turn."""
    quiet: list[float] = []
    loading: list[float] = []
    _timed(ask, 50)
    for _ in range(rounds):
        thread = threading.Thread(target=load, name="load")
        thread.start()
        before = len(loading)
        while thread.is_alive():
            loading += _timed(ask, 10)
        thread.join()
        quiet += _timed(ask, len(loading) - before)
        unload()
        _timed(ask, 10)  # the pages that the unload took from the heap come back: that isn't the load's doing
    return harness.latencies(quiet)[1], harness.latencies(loading)[1]


def _timed(ask: Callable[[], Any], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - start)
    return seconds


class Small(Wide):
    """A model of 4 MB, which takes milliseconds for a batch."""

    def __init__(self) -> None:
        super().__init__(4, 1024)
