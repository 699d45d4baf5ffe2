"""The loader of mode `shared`: loads the model once, publishes its weights, proves them, and ends.

Its own copy of the weights is gone with the process, whatever the model's allocator does. When the
deployment was given no sample, it stays until the first batch has shown that the rebuilt model
answers like the original.
"""

from __future__ import annotations

import os
import random
import sys
import time
from typing import Any

from kit.engine import weights
from kit.engine.child import Context
from kit.engine.giving_way import give_way
from kit.engine.local_model import LocalModel
from kit.engine.model_store import Handlers, trouble_of
from kit.engine.protocol import FAILED, LOADED, VERIFIED, VERIFY
from kit.engine.transport import ChannelClosed
from kit.engine.unreadable import Unreadable
from kit.mapped_files import in_mapped_files


def main(context: Context) -> int:
    """Load, publish, check; returns the exit code."""
    give_way()  # to the end: giving back the memory of a large model takes a while, too
    handler = _handler_of(context)
    if handler is None:
        return 1
    name = type(handler).__name__
    found = _loaded(context, handler)
    if found is None:
        return 1
    model, report = found
    try:
        fd, segment, published = weights.publish(model)
        rebuilt = weights.attach(fd, segment)
        difference = weights.check(published, rebuilt)
    except BaseException as error:
        context.fail("SharedModeUnavailable", f"the model of {name} can't be pickled, which mode 'shared' needs", error)
        return 1
    if difference is not None:
        context.fail("SharedModeUnavailable", f"the model of {name} doesn't survive pickling", ValueError(difference))
        return 1
    mapped = [in_mapped_files(published.spans())]
    report = {**report, "weights_bytes": segment.weights_bytes, "head_bytes": len(segment.head), "mapped": mapped}
    context.control.send(LOADED, (report, segment), fds=(fd,))
    os.close(fd)
    return _verify(context, LocalModel(handler, model), LocalModel(handler, rebuilt))


def _handler_of(context: Context) -> Any:
    """The handler whose model is to be loaded: of models by key the one that is meant; None when it failed."""
    spec = context.config.get("model")
    if spec is None:
        return context.handler
    try:
        handler = Handlers(context.handler).of(spec)
        handler.set_environment_vars()
    except BaseException as error:
        trouble = trouble_of(error)
        context.control.send(FAILED, trouble)
        return None
    return handler


def _loaded(context: Context, handler: Any) -> tuple[Any, dict[str, Any]] | None:
    """The model and its report; None when loading it failed, which is reported."""
    if context.config.get("model") is None:
        return context.loaded(lambda: _load(handler))
    try:
        return _load(handler)
    except BaseException as error:
        context.control.send(FAILED, trouble_of(error))  # whose model it is, the owner says
        return None


def _load(handler: Any) -> tuple[Any, dict[str, Any]]:
    """The model and how long loading took; what it weighs is known once it is published."""
    began = time.monotonic()
    model = handler.load_model()
    return model, {"load_s": time.monotonic() - began}


def _verify(context: Context, original: LocalModel, rebuilt: LocalModel) -> int:
    while True:
        try:
            message = context.control.recv()
        except ChannelClosed:
            return 0
        except Unreadable as error:  # the workers fail it; the next batch tells
            context.control.send(VERIFIED, ("failed", str(error)), request=error.message.request)
            continue
        assert message is not None
        if message.kind != VERIFY:
            return 0
        verdict = _compare(context.handler, original, rebuilt, *message.value)
        context.control.send(VERIFIED, verdict, request=message.request)


def _compare(handler: Any, original: LocalModel, rebuilt: LocalModel, examples: Any, args: Any) -> tuple[str, str]:
    """Verdict on one batch: ("equal" | "differs" | "noisy" | "failed", words)."""
    try:
        for function in handler.get_preprocess_fns():
            examples = [function(example) for example in examples]
        first, twin = (_seeded(model, examples, args) for model in (original, rebuilt))
        if weights.equal_outputs(first, twin):
            return "equal", "outputs equal bit for bit"
        again = _seeded(original, examples, args)
    except BaseException as error:
        # A bad example says nothing about the weights; the next batch will.
        return "failed", f"{type(error).__name__}: {error}"
    if not weights.equal_outputs(first, again):
        return (
            "noisy",
            "the original differs from itself on the same batch; only the bytes of the weights were compared",
        )
    return "differs", "the rebuilt model answers differently from the original on the same batch"


def _seeded(model: LocalModel, examples: Any, args: Any) -> list[Any]:
    random.seed(0)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed(0)
    if torch is not None:
        torch.manual_seed(0)
    return list(model(examples, args).values)
