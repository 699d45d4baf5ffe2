"""What `kit.beam.RunInference` reports of batches is what was computed, not what was sent at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import kit

pytest.importorskip("apache_beam")

import kit.beam
from tests import beam_models as models
from tests.test_beam import check, letters, metrics_of, ours

#: Of different lengths, and of no whole number of batches; more than are sent at once.
TEXTS = ["a" * (1 + number * 7 % 31) for number in range(643)]
SIZE, BYTES = "inference_request_batch_size", "inference_request_batch_byte_size"
LATENCY = "inference_batch_latency_micro_secs"


def noted(file: Path) -> list[tuple[int, int, float]]:
    """What the model wrote of its batches: examples, bytes, seconds."""
    rows = [line.split() for line in file.read_text().splitlines()]
    return [(int(count), int(size), float(seconds)) for count, size, seconds in rows]


def summary(values: Sequence[int]) -> tuple[int, int, int, int]:
    return len(values), sum(values), min(values), max(values)


def reported(done: Any, name: str, namespace: str = "Notes") -> tuple[int, int, int, int]:
    (found,) = metrics_of(done, name, namespace)
    return found.committed.count, found.committed.sum, found.committed.min, found.committed.max


@pytest.mark.parametrize("mode", ["default", "large"])
@pytest.mark.parametrize(
    "options",
    [{}, {"max_batch_size": 7}, {"max_batch_size": 50, "batch_length_fn": len}, {"max_batch_weight": 40}],
    ids=["no limit", "size", "by length", "weight"],
)
def test_sizes_and_bytes_are_of_the_batches_that_the_model_was_given(
    mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    handler = models.Notes(str(tmp_path / "noted"), **options)
    texts = TEXTS[:499]  # sent at once: of more, a batch may have some of either, and is reported by either
    done = check(texts, ours(handler, mode=mode), [text.upper() for text in texts])
    batches = noted(tmp_path / "noted")
    assert reported(done, SIZE) == summary([count for count, _, _ in batches])
    assert reported(done, BYTES) == summary([size for _, size, _ in batches])
    assert metrics_of(done, "num_inferences", "Notes")[0].committed == len(texts)


@pytest.mark.parametrize("mode", ["default", "large"])
def test_latencies_are_of_batches_and_not_of_waiting(mode: str, tmp_path: Path) -> None:
    """At least what the model itself took, each; all of one thread's fit into the time of the pipeline."""
    handler = models.Notes(str(tmp_path / "noted"), batch_s=0.02, max_batch_size=16)
    began = time.perf_counter()
    done = check(TEXTS, ours(handler, mode=mode), [text.upper() for text in TEXTS])
    whole_us = (time.perf_counter() - began) * 1e6
    count, total, least, _ = reported(done, LATENCY)
    seconds = [seconds for _, _, seconds in noted(tmp_path / "noted")]
    assert count == len(seconds)
    assert least >= 0.02e6
    assert sum(seconds) * 1e6 - count <= total <= whole_us


def test_batches_of_windows_with_failures(tmp_path: Path) -> None:
    """What failed was in no batch; what failed with it was computed again, alone."""
    texts = [*TEXTS[:20], "bad", *TEXTS[20:40]]
    handler = models.Notes(str(tmp_path / "noted"), max_batch_size=8)
    good, _, bad, _ = letters(handler, texts)
    assert (len(good), [batch for batch, _ in bad]) == (40, [["bad"]])
    with kit.deploy(handler, processes=1) as deployment:
        found: list[Any] = []
        deployment._submit(texts, None, isolate=True, batches=found).result()
    assert sorted(at for where, _ in found for at in where) == [at for at in range(41) if at != 20]
    assert sorted(map(len, (where for where, _ in found))) == sorted([8, 8, 8, 8, 1] + [1] * 7)


def test_a_batch_of_several_requests_is_told_to_each() -> None:
    """Requests that wait for company share batches; each hears of its own examples in them."""
    handler = models.AddsOne(min_batch_size=10, max_batch_size=10, max_batch_duration_secs=10)
    with kit.deploy(handler, processes=1) as deployment:
        told: list[list[Any]] = [[] for _ in range(4)]
        futures = [deployment._submit(list(range(5)), None, batches=mine) for mine in told]
        for future in futures:
            future.result()
        assert deployment.counters["batches"] == 2
    assert [[list(where) for where, _ in mine] for mine in told] == [[[0, 1, 2, 3, 4]]] * 4


def test_batches_by_key_and_of_examples_that_are_batches(tmp_path: Path) -> None:
    mappings = [
        kit.KeyModelMapping([key], models.Notes(str(tmp_path / key), max_batch_size=size))
        for key, size in (("a", 7), ("b", 100))
    ]
    pairs = [("ab"[number % 3 == 0], text) for number, text in enumerate(TEXTS[:499])]
    expected = [(key, (text, text.upper(), None)) for key, text in pairs]
    done = check(pairs, ours(kit.KeyedModelHandler(mappings)), expected)
    for key in "ab":
        batches = noted(tmp_path / key)
        for name, values in ((SIZE, [row[0] for row in batches]), (BYTES, [row[1] for row in batches])):
            assert reported(done, f"{key}-_{name}", "KeyedModels") == summary(values)
        assert metrics_of(done, f"{key}-_num_inferences", "KeyedModels")[0].committed == sum(row[0] for row in batches)
    handler = models.Notes(str(tmp_path / "whole")).with_no_batching()
    done = check([TEXTS[:5], TEXTS[5:7]], ours(handler), [text.upper() for text in TEXTS[:7]])
    assert reported(done, SIZE) == (2, 7, 2, 5)


def test_bytes_are_counted_by_the_handler_of_each_key() -> None:
    """As in Beam's own step: of keys and examples together, and by model without the keys."""
    mappings = [kit.KeyModelMapping([key], models.Counted(each)) for key, each in (("key1", 10), ("key2", 20))]
    handler = kit.KeyedModelHandler(mappings)
    pairs = [("key1", 1), ("key2", 2), ("key1", 3)]
    assert handler.get_num_bytes(pairs) == 3 * len("key1") + 40
    assert kit.KeyedModelHandler(models.Counted(10)).get_num_bytes(pairs) == 3 * len("key1") + 30
    assert kit.keyed.MaybeKeyedModelHandler(models.Counted(10)).get_num_bytes([1, 2]) == 20
    done = check(pairs, ours(handler), [(key, (number, number + 1, None)) for key, number in pairs])
    sums = [reported(done, f"{start}{BYTES}", "KeyedModels")[1] for start in ("", "key1-_", "key2-_")]
    assert sums == [3 * len("key1") + 40, 20, 20]


def test_latency_of_a_load_is_that_of_the_model() -> None:
    done = check([0, 0, 0], ours(models.Slow(load_s=0.5)), [0, 0, 0])
    count, _, least, _ = reported(done, "load_model_latency_milli_secs", "Slow")
    assert (count, least >= 500) == (1, True)
