"""The MLP in mode `large`, 2 worker processes and one host thread, against a bare torch loop."""

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
    with kit.deploy(models.mlp_handler(), mode="large", processes=2) as deployment:
        pairs = harness.interleave(
            lambda: rows | kit.RunInference(deployment), lambda: loop(rows), 4 if harness.quick else 10, warm=2
        )
    return [pairs.figure("MLP through `large`, 2 workers, vs the bare loop", len(rows), AT_LEAST, digits=3)]
