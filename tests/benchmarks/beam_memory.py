"""Memory of a Beam pipeline with a 400 MB model, 2 worker processes: ours in `large`, Beam's with one shared copy."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil

from kit.beam import RunInference
from kit.daemon import client
from kit.memory import process_memory
from tests.benchmarks import beam_peer, harness, models
from tests.benchmarks.beam_mlp import runtime_folder
from tests.benchmarks.harness import Figure

AT_MOST = 1.0
BATCH = 32
EVERY_S = 0.25


def figures() -> list[Figure]:
    """Highest PSS, summed over Beam's workers and, for ours, the daemon's processes."""
    handler = models.Wide(models.LARGE_LAYERS, min_batch_size=BATCH, max_batch_size=BATCH, large_model=True)
    count = 10 * BATCH if harness.quick else 40 * BATCH
    with runtime_folder():
        ours = _peak(lambda: beam_peer.run_numbers(count, RunInference(handler, mode="large", processes=1), _row))
    peer = _peak(lambda: beam_peer.run_numbers(count, beam_peer.RunInference(handler), _row))
    ratio = ours / peer
    what = "400 MB model in a Beam pipeline, 2 workers: peak PSS of all their processes"
    words = (harness.megabytes(ours), harness.megabytes(peer), f"{ratio:.3f}×")
    return [Figure(what, *words, f"≤ {AT_MOST:g}×", ratio <= AT_MOST)]


def _row(number: int) -> object:
    import torch

    return torch.full((models.Wide.WIDTH,), float(number % 7))


def _peak(job: Callable[[], object]) -> int:
    """Highest sum of PSS over the processes that a job starts, bytes."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    peak = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(EVERY_S):
            found = [memory for pid in _pids() - before if (memory := process_memory(pid)) is not None]
            peak = max(peak, sum(memory.pss_bytes for memory in found))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        job()
    finally:
        over.set()
        thread.join()
    return peak


def _pids() -> set[int]:
    """Descendants of this process, and those of the daemon."""
    roots = [psutil.Process()]
    for entry in client.overview():
        try:
            parent = psutil.Process(entry["pid"]).parent()
        except psutil.NoSuchProcess:
            continue
        roots += [parent] if parent is not None else []
    found: set[int] = {root.pid for root in roots[1:]}
    for root in roots:
        try:
            found |= {child.pid for child in root.children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    return found
