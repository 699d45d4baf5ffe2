"""Requests past their deadline, and batches that run too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kit import errors
from kit.engine import board as fields
from kit.engine.lane import Lane
from kit.engine.process import Process
from kit.engine.requests import Chunk
from kit.engine.trouble import Trouble
from kit.shorten import counted

if TYPE_CHECKING:
    from kit.engine.dispatcher import Dispatcher


def expire(
    dispatcher: Dispatcher, now: float, computing_since: Callable[[Lane], float | None]
) -> list[tuple[Lane, Chunk]]:
    """Fail requests past their deadline; returns chunks whose batch has run too long, off their lanes.

    `computing_since` tells since when a lane's chunk has been computed, None while it waits.
    """
    with dispatcher.lock:
        late = [r for r in dispatcher.live_requests() if r.deadline is not None and now > r.deadline]
        stuck = []
        for lane in (*dispatcher.lanes, *dispatcher.draining):
            chunk = lane.head
            if chunk is None or chunk.batch_timeout_s is None:
                continue
            since = computing_since(lane)
            # Until its process is seen to be dead, the next chunk stands here with the time of the one before it.
            if since is not None and since != lane.overran_since and now - since > chunk.batch_timeout_s:
                lane.overran_since = since
                lane.take_back(chunk.id)
                stuck.append((lane, chunk))
    for request in late:
        request.fail_all(
            errors.DeadlineExceeded(
                f"{request.left} of {counted(request.count, 'example')} had no answer after "
                f"{now - request.accepted_at:.3g} s; give more time, or add workers."
            )
        )
    return stuck


def computing_process(lane: Lane) -> Process | None:
    """The process that computes the lane's chunk: its worker, or the host that its thread asks."""
    topology = lane.topology
    if lane.hosts is None:
        return lane.process
    target = topology.engine.board.get(lane.slot, fields.TARGET) - 1
    if target < 0:
        return lane.process  # in pre- or post-processing
    return next((host for host in topology.of_role("host") if host.index == target), None)


def ran_too_long(chunk: Chunk) -> Trouble:
    """What to tell the examples of a batch that ran too long."""
    limit = chunk.batch_timeout_s
    message = f"a batch of {counted(chunk.count, 'example')} ran longer than the timeout of {limit} s."
    return Trouble("DeadlineExceeded", message, "")
