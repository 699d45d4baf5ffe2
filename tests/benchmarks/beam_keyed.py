"""Four models by key in a Beam pipeline of two worker processes: `kit.beam.RunInference` against Beam's own."""

from __future__ import annotations

import kit
from kit.beam import RunInference
from tests.benchmarks import beam_peer, beam_steps, harness, models
from tests.benchmarks.beam_mlp import runtime_folder
from tests.benchmarks.harness import Figure, Pairs

AT_LEAST = 20.0


def figures() -> list[Figure]:
    """From the first element in to the last result out; on neither side does loading count."""
    keys = range(beam_steps.KEYS)
    handler = kit.KeyedModelHandler([kit.KeyModelMapping([key], models.SharedIdentity()) for key in keys])
    with runtime_folder():
        runs = [
            beam_peer.run_numbers(beam_steps.KEYED, RunInference(handler, processes=1), beam_steps.keyed_row)
            for _ in range(3 if harness.quick else 6)
        ]
    ours = runs[1:]  # the first started the deployment
    peer_s = beam_peer.keyed_seconds()
    what = f"{beam_steps.KEYS} keyed models in a Beam pipeline, 2 workers, {beam_steps.KEYED:,} examples"
    return [Pairs(ours, [peer_s] * len(ours)).figure(what, beam_steps.KEYED, AT_LEAST, digits=0)]
