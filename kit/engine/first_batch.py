"""Mode `shared` without a sample: the first request proves the weights, before it is answered."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from kit import errors

if TYPE_CHECKING:
    from kit.engine.core import Engine
    from kit.engine.requests import Request

#: Examples to compare answers on.
MOST = 4
#: Longest that requests are held back, seconds.
HOLD_S = 5.0


def wait_for_proof(engine: Engine) -> None:
    """Hold back the engine's requests until the first has shown that original and rebuilt model answer alike.

    Nothing is held back where that is known already. A batch that takes longer than `HOLD_S`, or than its request's
    time limits, is answered meanwhile: the bytes of the weights are known to be equal, and that the answers are is
    found out beside.
    """
    dispatcher, weights = engine.dispatcher, engine.topology.weights
    unproved = weights is not None and weights.loader is not None
    dispatcher.on_first = (lambda request: _start(engine, request)) if unproved else None
    dispatcher.held, dispatcher.paused = unproved, False
    with dispatcher.lock:
        waiting = next((one for one in dispatcher.backlog.live() if not one.ended), None)
        start = None if waiting is None else dispatcher.on_first
        if start is not None:
            dispatcher.on_first = None
    if waiting is not None and start is not None:
        start(waiting)  # those who wait since before the switch may be all that will ever ask


def _start(engine: Engine, request: Request) -> None:
    """Prove the weights in a thread of its own; the dispatcher, which holds all back, calls this once."""
    threading.Thread(target=_prove, args=(engine, request), name="kit-verify", daemon=True).start()


def _prove(engine: Engine, request: Request) -> None:
    dispatcher, weights = engine.dispatcher, engine.topology.weights
    assert weights is not None

    def release() -> None:
        if engine.topology.weights is weights:  # else the next topology has said what is held
            dispatcher.held = False
            dispatcher.pump()

    limit_s = request.batch_timeout_s
    left_s = HOLD_S if request.deadline is None else request.deadline - time.monotonic()
    late = threading.Timer(max(0.0, min(HOLD_S, left_s, limit_s or HOLD_S)), release)
    late.daemon = True
    late.start()
    try:
        verdict, words = weights.verify(list(request.examples[:MOST]), request.inference_args, limit_s)
    finally:
        late.cancel()
    if verdict == "differs":
        engine.give_up(errors.SharedModeUnavailable(weights.cannot_share(words)))
        return
    if verdict == "failed" and engine.topology.weights is weights:
        # Nothing to compare yet; requests are answered meanwhile, and the next one decides.
        dispatcher.on_first = lambda request: _start(engine, request)
    release()
