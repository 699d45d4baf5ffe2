"""The MLP in mode `large`: 2 worker processes and a host of one thread or two, against a bare torch loop."""

from __future__ import annotations

import kit
from tests.benchmarks import harness, models
from tests.benchmarks.harness import Figure

AT_LEAST = 0.95


def figures() -> list[Figure]:
    """Through RunInference on a deployment, whole results in the caller's hands."""
    import torch

    torch.set_num_threads(1)
    batches = 30 if harness.quick else 100
    rows, loop = models.mlp_rows(batches), models.mlp_loop(models.mlp_path())
    found = []
    for what, processes, threads, floor in (
        ("2 workers", 2, 1, AT_LEAST),
        ("1 worker and its host of 2 threads each", 1, 2, None),
    ):
        with kit.deploy(models.mlp_handler(), mode="large", processes=processes, threads=threads) as deployment:
            step = kit.RunInference(deployment)
            pairs = harness.interleave(lambda s=step: rows | s, lambda: loop(rows), 4 if harness.quick else 10, warm=2)
        found.append(pairs.figure(f"MLP through `large`, {what}, vs the bare loop", len(rows), floor, digits=3))
    return found
