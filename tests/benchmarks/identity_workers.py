"""100,000 elements through an identity handler with 2 worker processes, against Beam's ``multi_processing``.

Beam starts its worker processes for every pipeline, which is most of its time; so the ratio is also
given against its time without that (a pipeline of 100 elements), and with our own start counted.
"""

from __future__ import annotations

import statistics

import kit
from tests.benchmarks import beam_peer, harness, models
from tests.benchmarks.harness import Figure, Pairs

AT_LEAST = 25.0


def figures() -> list[Figure]:
    """Warm against a whole pipeline; against its work alone; start and all on both sides."""
    import numpy as np

    count = 20_000 if harness.quick else 100_000
    repeats = 1 if harness.quick else 3
    ints = list(range(count))
    rows = list(np.random.default_rng(0).random((count, 8), dtype=np.float32))
    what = f"{count:,} ints, 2 workers"
    with kit.deploy(models.Identity(), processes=2) as deployment:
        whole = harness.interleave(
            lambda: deployment.predict(ints), lambda: _beam(ints), repeats, warm=0 if harness.quick else 1
        )
        start = [harness.timed(lambda: _beam(ints[:100])) for _ in range(repeats)]
        numpy_s = statistics.median(harness.timed(lambda: deployment.predict(rows)) for _ in range(5))
    work = Pairs(whole.ours, [max(all_s - statistics.median(start), 1e-3) for all_s in whole.peer])
    cold = Pairs([harness.timed(lambda: _cold(ints)) for _ in range(repeats)], whole.peer)
    return [
        whole.figure(f"identity, {what}, vs Beam multi_processing", count, AT_LEAST, digits=1),
        work.figure(f"  {what}: without Beam's start of {statistics.median(start):.1f} s", count, None, digits=1),
        cold.figure(f"  {what}: our deploy and close counted too", count, None, digits=1),
        Figure(f"  {count:,} numpy rows [8], 2 workers", harness.rate(count / numpy_s), "", ""),
    ]


def _beam(examples: list[int]) -> None:
    beam_peer.run(examples, beam_peer.Identity(), beam_peer.TWO_PROCESSES)


def _cold(examples: list[int]) -> None:
    with kit.deploy(models.Identity(), processes=2) as deployment:
        deployment.predict(examples)
