"""100,000 elements through an identity handler in one process, against Beam's DirectRunner in memory."""

from __future__ import annotations

import kit
from tests.benchmarks import beam_peer, harness, models
from tests.benchmarks.harness import Figure

AT_LEAST = 15.0


def figures() -> list[Figure]:
    """Python ints, and numpy rows of 8 float32."""
    import numpy as np

    count = 20_000 if harness.quick else 100_000
    ints = list(range(count))
    rows = list(np.random.default_rng(0).random((count, 8), dtype=np.float32))
    handler = models.Identity()
    found = []
    for what, examples, floor in (("ints", ints, AT_LEAST), ("numpy rows [8]", rows, None)):
        pairs = harness.interleave(
            lambda examples=examples: examples | kit.RunInference(handler),  # type: ignore[misc]
            lambda examples=examples: beam_peer.run(examples, beam_peer.Identity(), beam_peer.IN_MEMORY),  # type: ignore[misc]
            3 if harness.quick else 5,
        )
        found.append(
            pairs.figure(f"identity, {count:,} {what}, one process, vs Beam DirectRunner", count, floor, digits=1)
        )
    return found
