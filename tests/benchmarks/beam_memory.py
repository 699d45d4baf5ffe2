"""Memory of a Beam pipeline with a 400 MB model, 2 worker processes: ours in `large`, Beam's with one shared copy."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil

from kit.beam import RunInference
from kit.daemon import client
from kit.memory import process_memory
from tests.benchmarks import beam_peer, beam_steps, harness, models
from tests.benchmarks.beam_mlp import runtime_folder
from tests.benchmarks.harness import Figure

AT_MOST = 1.0
BATCH = 32
EVERY_S = 0.25


def figures() -> list[Figure]:
    """Highest PSS, summed over Beam's workers and, for ours, the daemon's processes; of rows of two kinds.

    Nothing is promised of tensors: with them every worker of Beam's imports torch, ours too, and a host of its own has
    it once more, while Beam's model lies in a worker that has it already.
    """
    with runtime_folder():
        return [_figure("arrays", beam_steps.wide_row, AT_MOST), _figure("tensors", beam_steps.wide_tensor, None)]


def _figure(kind: str, row: Callable[[int], object], at_most: float | None) -> Figure:
    handler = models.Wide(models.LARGE_LAYERS, min_batch_size=BATCH, max_batch_size=BATCH, large_model=True)
    count = 10 * BATCH if harness.quick else 40 * BATCH
    ours = _peak(lambda: beam_peer.run_numbers(count, RunInference(handler, mode="large", processes=1), row))
    for name in client.names():
        client.stop(name, missing_ok=True)
    peer = _peak(lambda: beam_peer.run_numbers(count, beam_peer.RunInference(handler), row))
    ratio = ours / peer
    what = f"400 MB model in a Beam pipeline, 2 workers, rows are {kind}: peak PSS of all their processes"
    words = (harness.megabytes(ours), harness.megabytes(peer), f"{ratio:.3f}×")
    if at_most is None:
        return Figure(what, *words)
    return Figure(what, *words, f"≤ {at_most:g}×", ratio <= at_most)


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
