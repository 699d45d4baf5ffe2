"""Models by key in one process: four against one, a thousand keys against ten; and Beam's four against its one."""

from __future__ import annotations

from typing import Any

import kit
from tests.benchmarks import beam_peer, harness, models
from tests.benchmarks.harness import Figure

AT_LEAST = 0.8
COUNT = 100_000


def figures() -> list[Figure]:
    """Elements a second; what stands as the peer is the kit itself with one model, or with ten."""
    count = COUNT // 5 if harness.quick else COUNT
    pairs = 4 if harness.quick else 8
    one = _keyed(1)
    four, ten, thousand = _keyed(4), _keyed(10), _keyed(1000)
    found = [
        _against(four, 4, one, 1, count, pairs).figure(
            "4 keyed models vs 1 keyed model, same elements", count, AT_LEAST
        ),
        _against(thousand, 1000, ten, 10, count, pairs).figure("1,000 keys resident vs 10 keys", count, AT_LEAST),
    ]
    few = count // 5
    rows = _rows(4, few)
    beam = harness.interleave(
        lambda: rows | kit.RunInference(four), lambda: beam_peer.run(rows, _beams(4), beam_peer.IN_MEMORY), 2
    )
    return [*found, beam.figure("  4 keyed models vs Beam in memory", few, None)]


def _against(ours: Any, keys: int, peer: Any, peer_keys: int, count: int, pairs: int) -> harness.Pairs:
    mine, theirs = _rows(keys, count), _rows(peer_keys, count)
    return harness.interleave(
        lambda: mine | kit.RunInference(ours), lambda: theirs | kit.RunInference(peer), pairs, warm=2
    )


def _keyed(keys: int) -> kit.KeyedModelHandler:
    return kit.KeyedModelHandler([kit.KeyModelMapping([key], models.Identity()) for key in range(keys)])


def _beams(keys: int) -> Any:
    from apache_beam.ml.inference.base import KeyedModelHandler, KeyModelMapping

    return KeyedModelHandler([KeyModelMapping([key], beam_peer.Identity()) for key in range(keys)])


def _rows(keys: int, count: int) -> list[tuple[int, int]]:
    return [(number % keys, number) for number in range(count)]
