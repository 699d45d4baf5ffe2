"""A worker process: threads that take chunks of examples from the owner and answer them.

    main thread      loads the model (modes default, shared), then waits for word from the owner
    worker thread    lane: RUN -> pre-process, compute here or in a model host, post-process -> RESULT

Each thread has a lane of its own to the owner and, in modes large and medium, one to each host, so
threads share nothing but the model.
"""

from __future__ import annotations

import threading
from typing import Any

from kit.engine import weights
from kit.engine.child import Context
from kit.engine.ends import Ends
from kit.engine.giving_way import giving_way
from kit.engine.host_pool import HostPool
from kit.engine.lane_thread import LaneThread
from kit.engine.loading import load
from kit.engine.local_model import LocalModel
from kit.engine.model_store import KINDS, KeyedRunners, ModelStore
from kit.engine.protocol import ADD_HOST, LOADED, STOP
from kit.engine.transport import ChannelClosed


def main(context: Context) -> int:
    """Serve until told to stop; returns the exit code."""
    lanes = [context.take_channel() for _ in context.config["lane_slots"]]
    remote = context.config["remote"]
    report: dict[str, Any] = {}
    model = None
    by_key = getattr(context.handler, "routes", None) is not None
    store = ModelStore(context.handler) if by_key else None
    if not remote and store is None:
        found = context.loaded(lambda: _model_of(context))
        if found is None:
            return 1
        model, report = found
    pools = []
    for lane, slot in zip(lanes, context.config["lane_slots"], strict=True):
        pool = HostPool(context.board, slot) if remote else None
        pools.append(pool)
        compute = pool if pool is not None else LocalModel(context.handler, model)
        runners = None
        if store is not None:
            runners = KeyedRunners(context.handler, store.handlers, pool.one if pool is not None else store.compute)
        thread = LaneThread(context, lane, slot, compute, runners)
        threading.Thread(target=thread.run, name=f"kit-lane-{slot}", daemon=True).start()
    context.control.send(LOADED, report)
    while True:
        try:
            message = context.control.recv()
        except ChannelClosed:
            return 0
        assert message is not None
        if message.kind == STOP:
            return 0
        if store is not None and message.kind in KINDS:
            store.obey(message, context.control)
        elif message.kind == ADD_HOST:
            (index, pid), fds = message.value, message.fds
            for position, pool in enumerate(pools):
                assert pool is not None
                pool.add(index, pid, Ends(*fds[2 * position : 2 * position + 2]).open(first=True))
            context.control.send(ADD_HOST, request=message.request)


def _model_of(context: Context) -> tuple[Any, dict[str, Any]]:
    if "segment" in context.config:
        with giving_way():
            return weights.attach_segment(context.fds.pop(0), context.config["segment"])
    return load(context.handler)
