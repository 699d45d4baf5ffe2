"""Lanes between workers and model hosts: every worker thread has one to each host."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from kit import errors
from kit.engine import protocol
from kit.engine.ends import channel_pair

if TYPE_CHECKING:
    from kit.engine.process import Process


def connect(worker: Process, host: Process) -> None:
    """Give each thread of a worker a lane to a host, and wait until both have it.

    Raises:
        WorkerDied: one of them is gone.
    """
    pairs = [channel_pair() for _ in worker.lanes]
    try:
        to_host = host.ask(protocol.ADD_LANE, worker.lane_slots, tuple(fd for _, end in pairs for fd in end))
        to_worker = worker.ask(protocol.ADD_HOST, (host.index, host.pid), tuple(fd for end, _ in pairs for fd in end))
    finally:
        for pair in pairs:
            for end in pair:
                end.close()
    to_host.result()
    to_worker.result()
    for lane in worker.lanes:
        assert lane.hosts is not None
        lane.hosts.add(host.index)


def introduce(process: Process, partners: list[Process]) -> None:
    """Connect a worker or host that was started later with its partners that are ready."""
    for partner in partners:
        if partner.loaded.done() and not partner.loaded.exception():
            pair = (process, partner) if process.role == "worker" else (partner, process)
            with contextlib.suppress(errors.WorkerDied):
                connect(*pair)
