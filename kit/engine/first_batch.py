"""Mode `shared` without a sample: the first request proves the weights, before it is answered."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kit import errors

if TYPE_CHECKING:
    from kit.engine.core import Engine
    from kit.engine.requests import Request


def wait_for_proof(engine: Engine) -> None:
    """Hold back the engine's requests until the first has shown that original and rebuilt model answer alike.

    Nothing is held back where that is known already.
    """
    dispatcher, weights = engine.dispatcher, engine.topology.weights
    unproved = weights is not None and weights.loader is not None
    dispatcher.on_first = (lambda request: _start(engine, request)) if unproved else None
    dispatcher.paused = unproved


def _start(engine: Engine, request: Request) -> None:
    """Prove the weights in a thread of its own; the dispatcher, which is paused, calls this once."""
    threading.Thread(target=_prove, args=(engine, request), name="kit-verify", daemon=True).start()


def _prove(engine: Engine, request: Request) -> None:
    dispatcher, weights = engine.dispatcher, engine.topology.weights
    assert weights is not None
    batch = list(request.examples[: dispatcher.batch_size or 8])
    verdict, words = weights.verify(batch, request.inference_args)
    if verdict == "differs":
        engine.give_up(errors.SharedModeUnavailable(weights.cannot_share(words)))
        return
    if verdict == "failed":
        # Nothing to compare yet; requests are answered meanwhile, and the next one decides.
        dispatcher.on_first = lambda request: _start(engine, request)
    dispatcher.paused = False
    dispatcher.pump()
