"""The MLP through mode `large` in a Beam pipeline of 2 worker processes: `kit.beam.RunInference` against Beam's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator

from kit.beam import RunInference
from tests.benchmarks import beam_peer, harness, models
from tests.benchmarks.harness import Figure

AT_LEAST = 2.0


def figures() -> list[Figure]:
    """From the first element in to the last result out, both models loaded before.

    Both with Beam's PyTorch handler, its byte counting mended, batches of 64. The pipeline alone is the same with
    nothing between: what remains is what inference costs.
    """
    count = (100 if harness.quick else 400) * models.MLP_BATCH
    handler = beam_peer.mlp_handler(models.mlp_path(), models.MLP_BATCH, mended=True, large=True)
    ours: list[float] = []
    peer: list[float] = []
    alone: list[float] = []
    with runtime_folder():
        for number in range(3 if harness.quick else 10):
            step = RunInference(handler, mode="large", processes=1, threads=2)
            seconds = beam_peer.run_numbers(count, step)
            if number == 0:
                continue  # the deployment was started
            ours.append(seconds)
            peer.append(beam_peer.run_numbers(count, beam_peer.RunInference(handler)))
            alone.append(beam_peer.run_numbers(count, beam_peer.nothing()))
    pairs = harness.Pairs(ours, peer)
    what = f"MLP through `large` in a Beam pipeline, 2 workers, {count:,} examples"
    note = f"the pipeline alone: {harness.rate(count / statistics.median(alone))}"
    return [pairs.figure(what, count, AT_LEAST, note=note)]


@contextlib.contextmanager
def runtime_folder() -> Iterator[None]:
    """A daemon of this benchmark's own, whose deployments end with it."""
    from kit.daemon import client

    folder = tempfile.mkdtemp(prefix="kit-rt-", dir="/tmp")
    before = os.environ.get("KIT_RUNTIME_DIR")
    os.environ["KIT_RUNTIME_DIR"] = folder
    try:
        yield
    finally:
        for name in client.names():
            client.stop(name, missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("KIT_RUNTIME_DIR")
        if before is not None:
            os.environ["KIT_RUNTIME_DIR"] = before
