"""How long ``import kit`` takes on top of a bare interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys

from tests.benchmarks import harness
from tests.benchmarks.harness import Figure

AT_MOST_S = 0.2


def figures() -> list[Figure]:
    """Import alone, and with the names that every notebook uses."""
    count = 5 if harness.quick else 11
    found = []
    for what, code, limit in (
        ("import kit", "import kit", AT_MOST_S),
        ("import kit; kit.deploy, kit.RunInference", "import kit; kit.deploy; kit.RunInference", None),
    ):
        pairs = harness.interleave(lambda code=code: _python(code), lambda: _python("pass"), count)  # type: ignore[misc]
        extra = [ours - peer for ours, peer in zip(pairs.ours, pairs.peer, strict=True)]
        low, high = harness.spread(extra)
        median = statistics.median(extra)
        found.append(
            Figure(
                what,
                harness.duration(median),
                f"{harness.duration(statistics.median(pairs.peer))} bare",
                f"{low:.3f}-{high:.3f} s",
                "" if limit is None else f"≤ {limit} s",
                None if limit is None else median <= limit,
            )
        )
    return found


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)
