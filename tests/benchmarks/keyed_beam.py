"""Four models by key in a deployment of two processes, against Beam's, shared by its two worker processes."""

from __future__ import annotations

import kit
from tests.benchmarks import beam_peer, beam_steps, harness, models
from tests.benchmarks.harness import Figure, Pairs

AT_LEAST = 100.0


def figures() -> list[Figure]:
    """Elements a second; on neither side do starting and loading count."""
    examples = [beam_steps.keyed_row(number) for number in range(beam_steps.KEYED)]
    keys = range(beam_steps.KEYS)
    handler = kit.KeyedModelHandler([kit.KeyModelMapping([key], models.Identity()) for key in keys])
    with kit.deploy(handler, processes=2) as deployment:
        deployment.preload(keys)
        deployment.predict(examples)
        ours = [harness.timed(lambda: deployment.predict(examples)) for _ in range(7)]
    peer_s = beam_peer.keyed_seconds()
    what = f"{beam_steps.KEYS} keyed models, 2 processes, {beam_steps.KEYED:,} examples, against Beam's shared models"
    return [Pairs(ours, [peer_s] * len(ours)).figure(what, beam_steps.KEYED, AT_LEAST, digits=0)]
