"""Round trip of a 64 × 384 float32 batch to a model in another process, against Beam's shared model."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import kit
from tests.benchmarks import beam_peer, harness, models
from tests.benchmarks.harness import Figure

AT_MOST = 0.2


def figures() -> list[Figure]:
    """From a worker thread's side; then from the caller's, through a worker."""
    import numpy as np

    from kit.engine.codec import Rows

    rows = np.random.default_rng(0).random((64, 384), dtype=np.float32)
    batch = Rows(rows)
    # Long rounds: two processes that were woken on one core, the other being idle, are parted after some 10 ms only.
    rounds, calls = (2, 500) if harness.quick else (6, 1000)
    with (
        kit.deploy(models.IdentityBlock(), mode="large", processes=1) as large,
        kit.deploy(models.IdentityBlock(), mode="default", processes=1) as default,
        client_of_host(large) as ask,
        beam_peer.shared_echo() as proxy,
    ):
        answer = ask(batch, None).values.stacked
        if not np.array_equal(answer, rows) or not np.array_equal(proxy(rows), rows):
            raise ValueError("the echoed batch differs")
        ways: dict[str, Callable[[], Any]] = {
            "host": lambda: ask(batch, None),
            "large": lambda: large.predict(rows),
            "default": lambda: default.predict(rows),
            "beam": lambda: proxy(rows),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, call in ways.items():
                times[name] += _each(call, calls)
    beam50, beam99 = harness.latencies(times["beam"])
    found = []
    for name, what in (
        ("host", "round trip worker → host, 64×384 float32, p50 / p99, vs Beam's shared model"),
        ("large", "  deployment.predict, `large`: caller → worker → host and back"),
        ("default", "  deployment.predict, `default`: caller → worker and back"),
    ):
        p50, p99 = harness.latencies(times[name])
        promised = name == "host"
        found.append(
            Figure(
                what,
                f"{harness.duration(p50)} / {harness.duration(p99)}",
                f"{harness.duration(beam50)} / {harness.duration(beam99)}",
                f"{p50 / beam50:.3f} of it (1/{beam50 / p50:.1f})",
                f"≤ {AT_MOST}" if promised else "",
                p50 <= AT_MOST * beam50 if promised else None,
            )
        )
    return found


def _each(call: Callable[[], Any], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


@contextlib.contextmanager
def client_of_host(deployment: kit.Deployment) -> Iterator[Any]:
    """Make this process a worker thread of the deployment's first model host; gives what computes a batch."""
    from kit.engine.ends import channel_pair
    from kit.engine.host_pool import HostPool
    from kit.engine.protocol import ADD_LANE

    engine = deployment._engine
    host = next(process for process in engine.topology.processes if process.role == "host")
    slot = engine.board.take()
    ours, theirs = channel_pair()
    try:
        host.ask(ADD_LANE, [slot], tuple(theirs)).result(10)
    finally:
        for fd in theirs:
            os.close(fd)
    channel = ours.open(first=True)
    pool = HostPool(engine.board, slot)
    pool.add(host.index, host.pid, channel)
    try:
        yield pool
    finally:
        channel.close()
        engine.board.give_back(slot)
