"""A thread that shares its core with whom it waits for leaves it, and keeps the cores that it may use."""

from __future__ import annotations

import itertools
import os
import threading

import pytest

from kit.engine import parting
from kit.engine.parting import LONG_YIELD_S, WAITS, Parting

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="a thread has one core here"
)


def in_thread(work):
    """What `work` returns in a thread of its own, whose cores are its own, too."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def crowded(times: int):
    """Have a thread wait so often on a core that it shares; its core and its cores allowed, before and after."""

    def work():
        allowed = os.sched_getaffinity(0)
        here = min(allowed)
        os.sched_setaffinity(0, {here})  # moves it there
        os.sched_setaffinity(0, allowed)
        one = Parting()
        for _ in range(times):
            one.waited(2 * LONG_YIELD_S)
        return here, parting._core(), allowed, os.sched_getaffinity(0)

    return in_thread(work)


def test_a_thread_leaves_a_core_that_is_shared_and_may_still_use_all():
    tries = [crowded(WAITS) for _ in range(5)]
    assert any(after != before for before, after, _, _ in tries)  # the kernel may move it, too
    assert all(kept == allowed for _, _, allowed, kept in tries)


def test_a_thread_keeps_off_the_cores_of_others():
    ends = threading.Event()
    started = threading.Barrier(2)
    here = min(os.sched_getaffinity(0))

    def stay():
        os.sched_setaffinity(0, {here})
        started.wait()
        ends.wait()

    other = threading.Thread(target=stay)
    other.start()
    started.wait()

    def work():
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {here})
        os.sched_setaffinity(0, allowed)
        left = parting.leave_core([other.native_id])
        return left, parting._core(), allowed == os.sched_getaffinity(0)

    tries = [in_thread(work) for _ in range(5)]
    ends.set()
    other.join()
    assert all(left and kept for left, _, kept in tries)
    assert any(core != here for _, core, _ in tries)  # the kernel may move it, too
    assert not in_thread(lambda: parting.leave_core(())), "there is nothing to leave"


def test_waits_that_are_not_crowded_begin_the_count_again(monkeypatch):
    left = []
    monkeypatch.setattr(parting, "leave_core", lambda: left.append(1))
    one = Parting()
    for _ in range(3):
        for _ in range(WAITS - 1):
            one.waited(2 * LONG_YIELD_S)
        one.waited(0.0)
    assert not left
    for _ in range(WAITS):
        one.waited(2 * LONG_YIELD_S)
    assert left == [1]


def test_where_leaving_does_not_help_it_is_tried_more_and_more_seldom(monkeypatch):
    now, left = [100.0], []
    monkeypatch.setattr(parting, "leave_core", lambda: left.append(now[0]))
    monkeypatch.setattr(parting.time, "monotonic", lambda: now[0])
    one = Parting()
    for _ in range(20_000):
        now[0] += 0.001
        one.waited(2 * LONG_YIELD_S)
    gaps = [later - earlier for earlier, later in itertools.pairwise(left)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= parting.LONGEST_PAUSE_S
    assert len(left) < 15


def test_a_thread_that_may_use_one_core_stays():
    def work():
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return parting.leave_core(), len(os.sched_getaffinity(0))

    assert in_thread(work) == (False, 1)
