"""Threads that load ask for long slices, so that others which wake up on their core get it at once."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kit
from kit.engine import weights
from kit.engine.giving_way import PIECE_BYTES, giving_way


def slice_ns() -> int:
    """The slice of this thread, 0 where the system doesn't tell."""
    path = Path(f"/proc/self/task/{threading.get_native_id()}/sched")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split(":")[1]) for line in lines if line.startswith("se.slice")), 0)


def needs_slices() -> None:
    """Skip where threads can't ask for a slice, which came with Linux 6.12."""
    usual = slice_ns()
    with giving_way():
        if slice_ns() == usual:
            pytest.skip("threads have no slices of their own here")


class Slices(kit.ModelHandler):
    """Answers with the slice of the thread that loaded and that of the one which computes."""

    def load_model(self) -> Any:
        return np.full(1000, slice_ns())

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> list[tuple[int, int]]:
        return [(int(model[0]), slice_ns()) for _ in batch]


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("mode", ["default", "large", "shared"])
def test_who_loads_gives_way_and_who_computes_does_not(mode: str, by_key: bool) -> None:
    needs_slices()
    handler = kit.KeyedModelHandler([kit.KeyModelMapping(["a"], Slices())]) if by_key else Slices()
    with kit.deploy(handler, mode=mode, processes=1) as deployment:
        (answer,) = deployment.predict([("a", 1)] if by_key else [1])
    loading, computing = (answer[1] if by_key else answer).inference
    assert computing == slice_ns()
    assert loading > 10 * computing


def test_what_a_load_starts_and_does_afterwards_is_as_usual() -> None:
    needs_slices()
    usual = slice_ns()
    found = []
    with giving_way():
        thread = threading.Thread(target=lambda: found.append(slice_ns()))
        thread.start()
        thread.join()
    assert [*found, slice_ns()] == [usual, usual]


def test_the_gil_changes_hands_sooner_while_anything_is_loaded() -> None:
    usual = sys.getswitchinterval()
    with giving_way():
        shorter = sys.getswitchinterval()
        assert shorter < usual / 5
        with giving_way():
            assert sys.getswitchinterval() == shorter
        assert sys.getswitchinterval() == shorter
    assert sys.getswitchinterval() == usual


def test_a_thread_that_is_scheduled_otherwise_stays_so() -> None:
    if not hasattr(os, "SCHED_BATCH"):
        pytest.skip("there are no ways of scheduling here")
    found = []

    def work() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with giving_way():
            found.append(os.sched_getscheduler(0))
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [os.SCHED_BATCH] * 2


def test_weights_of_several_pieces_arrive_whole() -> None:
    arrays = [np.arange(PIECE_BYTES // 4 + 1000), np.arange(7), np.arange(3 * PIECE_BYTES // 8)]
    fd, segment, published = weights.publish(arrays)
    rebuilt = weights.attach(fd, segment)
    os.close(fd)
    assert weights.check(published, rebuilt) is None
    assert all(np.array_equal(one, other) for one, other in zip(arrays, rebuilt, strict=True))
