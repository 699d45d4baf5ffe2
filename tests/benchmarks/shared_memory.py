"""PSS of a 400 MB model served in mode `shared` by 4 processes, against its weights."""

from __future__ import annotations

import time
from typing import Any

import kit
from kit.memory import process_memory, segment_memory
from tests.benchmarks import harness, models
from tests.benchmarks.harness import Figure

AT_MOST_ALL, AT_MOST_SEGMENT = 1.05, 1.02
PROCESSES = 4
SEGMENT = "/memfd:kit-weights"


def figures() -> list[Figure]:
    """All of it at batch 1 over the same deployment without a model; the segment's mappings at batch 1 and 32."""
    empty, _, _ = _measure(models.Wide(models.NO_LAYERS, max_batch_size=1))
    total, segment, weights = _measure(models.Wide(models.LARGE_LAYERS, max_batch_size=1))
    _, segment32, _ = _measure(models.Wide(models.LARGE_LAYERS, max_batch_size=32))
    what = f"{weights / 1e6:.0f} MB model, {PROCESSES} processes, `shared`: "
    found = [_figure(what + "PSS over no model, batch 1", total - empty, weights, AT_MOST_ALL)]
    for batch, size in ((1, segment), (32, segment32)):
        found.append(_figure(what + f"PSS of the segment, batch {batch}", size, weights, AT_MOST_SEGMENT))
    return found


def _figure(what: str, size: int, weights: int, at_most: float) -> Figure:
    ratio = size / weights
    return Figure(
        what,
        harness.megabytes(size),
        f"{harness.megabytes(weights)} weights",
        f"{ratio:.4f}×",
        f"≤ {at_most}×",
        ratio <= at_most,
    )


def _measure(handler: models.Wide) -> tuple[int, int, int]:
    """PSS of all serving processes, of their mappings of the segment, and the weights; bytes."""
    batch = handler.batching_options()["max_batch_size"]
    rows = handler.rows(batch * PROCESSES * 4)
    with kit.deploy(handler, mode="shared", processes=PROCESSES, sample=rows[:batch]) as deployment:
        _until_all_have_worked(deployment, rows)
        processes = list(deployment._engine.topology.processes)
        pids = [process.pid for process in processes]
        weights = processes[0].report["weights_bytes"]
        pids.append(deployment._engine.forkserver.pid)
        total = sum(memory.pss_bytes for memory in map(process_memory, pids) if memory is not None)
        segments = [segment_memory(pid, SEGMENT) for pid in pids]
        segment = sum(memory.pss_bytes for memory in segments if memory is not None)
    return total, segment, weights


def _until_all_have_worked(deployment: kit.Deployment, rows: list[Any]) -> None:
    """Send rows until every worker has computed a few batches."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        deployment.predict(rows)
        stats = deployment.stats()
        workers = stats[stats.role == "worker"]
        if (workers.batches >= 2).all():
            return
    raise RuntimeError(f"not every worker was given work: {workers.batches.tolist()} batches")
