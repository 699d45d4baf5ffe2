"""What the measurements of a running deployment cost, in shares of a core."""

from __future__ import annotations

import time

import kit
from tests.benchmarks import harness, models
from tests.benchmarks.harness import Figure

AT_MOST = 0.02


def figures() -> list[Figure]:
    """CPU time of the watching thread, with a 400 MB model in 4 processes under a light load."""
    handler = models.Wide(models.LARGE_LAYERS, max_batch_size=1)
    rows = handler.rows(4)
    seconds = 4.0 if harness.quick else 10.0
    with kit.deploy(handler, mode="shared", processes=4, sample=rows[:1]) as deployment:
        thread = deployment._watch._thread
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        with kit.LoadGenerator(deployment, rows, rate=5) as load:
            load.wait(1.5)  # the first look at each process is made at once
            used, began = time.clock_gettime(clock), time.monotonic()
            load.wait(seconds)
            share = (time.clock_gettime(clock) - used) / (time.monotonic() - began)
        sampled = int(deployment.history["pss_bytes"].notna().sum())
    return [
        Figure(
            "measurements of a deployment of 4 processes, 400 MB: CPU",
            f"{share:.2%} of a core",
            f"{sampled} looks",
            "",
            f"≤ {AT_MOST:.0%}",
            share <= AT_MOST,
        )
    ]
