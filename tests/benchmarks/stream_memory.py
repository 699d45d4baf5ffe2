"""Peak memory of a stream of a million elements against one of ten thousand, each in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.benchmarks import harness
from tests.benchmarks.harness import Figure

AT_MOST = 1.1


def figures() -> list[Figure]:
    """In the calling process alone, and through a deployment: the caller's peak and the largest worker's."""
    large = 200_000 if harness.quick else 1_000_000
    found = []
    for what, kind in (("one process", "local"), ("2 workers", "workers")):
        few, many = _peaks(kind, 10_000), _peaks(kind, large)
        for role, small in few.items():
            ratio = many[role] / small
            found.append(
                Figure(
                    f"stream of {large:,} elements, {what}: peak memory of the {role}",
                    harness.megabytes(many[role]),
                    f"{harness.megabytes(small)} at 10,000",
                    f"{ratio:.3f}×",
                    f"≤ {AT_MOST}×",
                    ratio <= AT_MOST,
                )
            )
    return found


def _peaks(kind: str, count: int) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.benchmarks.stream_memory", kind, str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    peaks: dict[str, int] = json.loads(done.stdout)
    return peaks


def _stream(kind: str, count: int) -> dict[str, int]:
    """Run the stream in this process; peaks in bytes by role."""
    import os

    import kit
    from tests.benchmarks import models

    handler = models.Identity()
    deployment = kit.deploy(handler, processes=2) if kind == "workers" else None
    seen = 0
    for number, prediction in enumerate((n for n in range(count)) | kit.RunInference(deployment or handler)):
        if prediction.inference != number:
            raise ValueError(f"prediction {number} is {prediction!r}")
        seen += 1
    if seen != count:
        raise ValueError(f"{seen} predictions of {count} elements")
    peaks = {"caller": _high_water(os.getpid())}
    if deployment is not None:
        peaks["worker"] = max(_high_water(process.pid) for process in deployment._engine.topology.processes)
        deployment.close()
    return peaks


def _high_water(pid: int) -> int:
    """Largest resident size so far, bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_stream(sys.argv[1], int(sys.argv[2]))))
