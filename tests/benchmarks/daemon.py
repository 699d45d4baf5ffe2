"""Named deployments: attaching to one, its cost a kernel, its throughput with several, and the way through it."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import kit
from kit.shorten import counted
from tests.benchmarks import harness, models
from tests.benchmarks.harness import Figure
from tests.daemon_kernels import Kernel

TIMES_FASTER, CONNECT_S = 50, 0.1
MB_A_KERNEL = 10.0
KERNELS = 4
ROUND_TRIP = 1.3
TWICE = 2.0

_IMPORTS = "import time, kit, torch, numpy; torch.set_num_threads(1)\n"
_CONNECT = """
began = time.perf_counter()
d = kit.connect('bench')
first = d.predict(['a first text'])
took = time.perf_counter() - began
"""
_LOAD = """
handler = kit.assets.handler('minilm')
began = time.perf_counter()
model = handler.load_model()
first = handler.run_inference(['a first text'], model)
took = time.perf_counter() - began
"""
#: Ask for some seconds; gives answered examples a second.
_ASK = """
def ask(seconds, texts):
    until, count, began = time.perf_counter() + seconds, 0, time.perf_counter()
    while time.perf_counter() < until:
        count += len(d.predict(texts))
    return count / (time.perf_counter() - began)
"""


def figures() -> list[Figure]:
    """All in a runtime folder of their own."""
    with _runtime():
        handler = kit.assets.handler("minilm")
        with kit.deploy(handler, name="bench", mode="default", processes=1) as deployment:
            deployment.predict(["warm"])
            found = [_connect(), _memory(), _throughput(), _real_round_trip(handler, deployment)]
            found.append(_fairness(deployment))
            for mode in ("default", "large"):
                deployment.switch(mode, processes=2)
                found.append(_fairness(deployment))
            deployment.stop()
        found += _bare_round_trips()
    return found


@contextlib.contextmanager
def _runtime() -> Iterator[None]:
    before = os.environ.get("KIT_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="kit-bench-") as folder:
        os.environ["KIT_RUNTIME_DIR"] = folder
        try:
            yield
        finally:
            from kit.daemon import client

            for name in client.names():
                client.stop(name, missing_ok=True)
            if before is None:
                del os.environ["KIT_RUNTIME_DIR"]
            else:
                os.environ["KIT_RUNTIME_DIR"] = before


def _connect() -> Figure:
    ours, peer = [], []
    for _ in range(2 if harness.quick else 5):
        with Kernel() as kernel:
            ours.append(kernel.run(_IMPORTS + _CONNECT, "took"))
        with Kernel() as kernel:
            peer.append(kernel.run(_IMPORTS + _LOAD, "took"))
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return Figure(
        "second kernel: connect to first prediction, vs loading MiniLM itself; torch is imported in both",
        harness.duration(mine),
        harness.duration(theirs),
        f"{theirs / mine:.0f}×",
        f"≥ {TIMES_FASTER}×, < {CONNECT_S * 1e3:.0f} ms",
        theirs / mine >= TIMES_FASTER and mine < CONNECT_S,
    )


def _pss(pid: int) -> float:
    from kit.memory import process_memory

    memory = process_memory(pid)
    assert memory is not None
    return float(memory.uss_bytes if memory.pss_bytes is None else memory.pss_bytes)


def _memory() -> Figure:
    """Idle kernels and connected ones side by side, so that shared pages count the same for both."""
    pairs = 2 if harness.quick else 4
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Kernel()) for _ in range(pairs)]
        busy = [stack.enter_context(Kernel()) for _ in range(pairs)]
        for kernel in (*idle, *busy):
            kernel.run(_IMPORTS)
        before = [_pss(kernel.process.pid) for kernel in busy]
        for kernel in busy:
            kernel.run(_CONNECT + "for _ in range(20): d.predict(['a text'] * 8)")
        after = [_pss(kernel.process.pid) for kernel in busy]
        peer = statistics.median(_pss(kernel.process.pid) for kernel in idle)
    more = statistics.median(b - a for a, b in zip(before, after, strict=True))
    return Figure(
        "PSS of each further kernel, vs an idle one that has imported the same",
        harness.megabytes(statistics.median(after)),
        harness.megabytes(peer),
        f"+{more / 1e6:.1f} MB",
        f"≤ {MB_A_KERNEL:.0f} MB",
        more <= MB_A_KERNEL * 1e6,
    )


def _throughput() -> Figure:
    seconds = 2.0 if harness.quick else 5.0
    rounds = 2 if harness.quick else 3
    texts = kit.assets.texts("tickets")[:16]
    ratios, one, four = [], [], []
    with contextlib.ExitStack() as stack:
        kernels = [stack.enter_context(Kernel()) for _ in range(KERNELS)]
        for kernel in kernels:
            kernel.run(_IMPORTS + _CONNECT + _ASK)
        for _ in range(rounds):
            one.append(kernels[0].run("", f"ask({seconds}, {texts!r})"))
            for kernel in kernels:
                kernel.send("", f"ask({seconds}, {texts!r})")
            four.append(sum(kernel.receive() for kernel in kernels))
            ratios.append(four[-1] / one[-1])
    ratio = statistics.median(ratios)
    return Figure(
        f"throughput of {KERNELS} kernels on one MiniLM, 16 texts a request, vs 1 kernel",
        harness.rate(statistics.median(four)),
        harness.rate(statistics.median(one)),
        f"{ratio:.2f}×",
        "≥ 1×",
        ratio >= 1.0,
    )


def _round_trips(ours: Any, peer: Any, examples: Any, rounds: int, calls: int) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for way, found in zip((ours, peer), times, strict=True):
            for _ in range(calls):
                began = time.perf_counter()
                way.predict(examples)
                found.append(time.perf_counter() - began)
    return times


def _round_trip_figure(what: str, times: tuple[list[float], list[float]], promised: bool, note: str = "") -> Figure:
    (mine, mine99), (theirs, theirs99) = map(harness.latencies, times)
    return Figure(
        what,
        f"{harness.duration(mine)} / {harness.duration(mine99)}",
        f"{harness.duration(theirs)} / {harness.duration(theirs99)}",
        f"{mine / theirs:.2f}×",
        f"≤ {ROUND_TRIP}×" if promised else "",
        mine <= ROUND_TRIP * theirs if promised else None,
        note,
    )


def _real_round_trip(handler: Any, deployment: Any) -> Figure:
    with kit.deploy(handler, mode="default", processes=1) as own:
        rounds, calls = (2, 10) if harness.quick else (5, 20)
        times = _round_trips(deployment, own, ["Where is my parcel?"], rounds, calls)
    return _round_trip_figure("round trip through the daemon, MiniLM, one text, p50 / p99, vs an own one", times, True)


def _bare_round_trips() -> list[Figure]:
    """Of a kernel that is alone, which asks a worker directly, and of one beside another, which doesn't."""
    import numpy as np

    rows = np.random.default_rng(0).random((64, 384), dtype=np.float32)
    named = kit.deploy(models.IdentityBlock(), name="bare", mode="default", processes=1)
    with named, kit.deploy(models.IdentityBlock(), mode="default", processes=1) as own:
        rounds, calls = (5, 100) if harness.quick else (20, 200)
        alone = _round_trips(named, own, rows, rounds, calls)
        with Kernel() as kernel:
            kernel.run("import kit; d = kit.connect('bare')")
            kernel.send("import time\nwhile True: d.predict([1.0]); time.sleep(0.2)")
            while len(named.clients()) < 2 or not named.clients()["requests"].min():
                time.sleep(0.01)
            beside = _round_trips(named, own, rows, rounds, calls)
        named.stop()
    return [
        _round_trip_figure("  the same with a model that does nothing, 64×384 float32", alone, True),
        _round_trip_figure(
            "  the same beside another kernel, which asks five times a second",
            beside,
            False,
            "it takes turns then: one more process on the way, whose cost is the difference of the two",
        ),
    ]


def _fairness(deployment: Any) -> Figure:
    """One text at a time, alone and beside a kernel with an endless job, in turn."""
    rounds, calls = (2, 20) if harness.quick else (5, 40)

    def p95() -> float:
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            deployment.predict(["Where is my parcel?"])
            times.append(time.perf_counter() - began)
        return harness.quantile(sorted(times), 0.95)

    alone, beside = [], []
    with Kernel() as kernel:
        kernel.run(_IMPORTS + _CONNECT)
        for _ in range(rounds):
            alone.append(p95())
            kernel.send("d.predict(['Where is my parcel, please?'] * 1_000_000)")
            began = deployment.counters["answered"]
            while deployment.counters["answered"] < began + 200:
                deployment.predict(["until the job is under way"])
            beside.append(p95())
            kernel.interrupt()
            with contextlib.suppress(RuntimeError):  # its KeyboardInterrupt
                kernel.receive()
    ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
    return Figure(
        f"p95 of single texts beside another kernel's job of a million, vs alone; {deployment.mode}, "
        + counted(deployment.settings.processes, "worker"),
        harness.duration(statistics.median(beside)),
        harness.duration(statistics.median(alone)),
        f"{ratio:.2f}×",
        f"≤ {TWICE:g}×",
        ratio <= TWICE,
    )
