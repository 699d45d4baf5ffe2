"""RunInference without a deployment: this process is the only worker, and the model stays loaded."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from kit import errors
from kit.engine.requests import Request
from kit.engine.runner import LocalModel, Runner, Trouble, pick

#: Time between two looks at the clock, seconds: for progress, and to let an interrupt through.
SLICE_S = 0.2


class LocalServing:
    """A handler with its model loaded in this process."""

    def __init__(self, handler: Any, model: Any) -> None:
        self.model = model
        self.model_id = getattr(handler, "model_id", None)
        self._cost_s = 0.0

    def run(self, handler: Any, request: Request) -> None:
        """Answer a request; its future is done afterwards.

        Raises:
            KitError: what the future holds, too.
        """
        runner = Runner(handler, LocalModel(handler, self.model))
        timeout = request.batch_timeout_s
        while request.untaken and not request.ended:
            indices = request.take(self._share(runner, timeout))
            examples = pick(request.examples, indices)
            began = time.perf_counter()
            try:
                if timeout is None:
                    outcome = runner.run(examples, request.inference_args, isolate=request.isolate)
                else:
                    outcome = _within(timeout, runner, examples, request)
            except errors.DeadlineExceeded as error:
                for index in indices:
                    request.fail(index, Trouble("DeadlineExceeded", str(error.args[0]), ""))
                if handler.should_garbage_collect_on_timeout():
                    forget(handler)
                continue
            except BaseException as error:
                request.fail_all(error)
                raise
            cost = (time.perf_counter() - began) / max(1, len(indices))
            self._cost_s = cost if not self._cost_s else (self._cost_s + cost) / 2
            _answer(request, indices, outcome)

    def _share(self, runner: Runner, timeout: float | None) -> int:
        size = runner.batch_size
        if timeout is not None:
            return size or 1
        most = max(1, int(SLICE_S / self._cost_s)) if self._cost_s else (size or 64)
        return max(size, most // size * size) if size else most


def _answer(request: Request, indices: Any, outcome: Any) -> None:
    troubles = outcome.troubles
    if not troubles:
        request.answer(indices, outcome.values, outcome.model_ids, outcome.plain)
        return
    good = [at for at in range(len(indices)) if at not in troubles]
    if good:
        ids = outcome.model_ids
        ids = [ids[at] for at in good] if isinstance(ids, list) else ids
        request.answer([indices[at] for at in good], [outcome.values[at] for at in good], ids, outcome.plain)
    for at, trouble in troubles.items():
        request.fail(indices[at], trouble)


def _within(timeout: float, runner: Runner, examples: Any, request: Request) -> Any:
    """Run in a thread that is given up when it takes too long: Python can't stop it."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="kit-timeout")
    future: Future[Any] = pool.submit(runner.run, examples, request.inference_args, isolate=request.isolate)
    pool.shutdown(wait=False)
    try:
        return future.result(timeout)
    except FutureTimeout as error:
        if future.done():
            raise
        raise errors.DeadlineExceeded(
            f"a batch of {len(examples)} examples ran longer than the timeout of {timeout} s."
        ) from error


_loaded: weakref.WeakKeyDictionary[Any, LocalServing] = weakref.WeakKeyDictionary()
_locks: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def serving_of(handler: Any) -> LocalServing:
    """The loaded model of a handler; loads it on first use, and again after ``update_model_path``.

    Raises:
        ModelLoadFailed: ``load_model`` raised; the traceback is the cause.
    """
    key = _key(handler)
    with _guard:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        found = _loaded.get(key)
        if found is None or found.model_id != getattr(handler, "model_id", None):
            handler.set_environment_vars()
            try:
                model = handler.load_model()
            except errors.KitError:
                raise
            except Exception as error:
                raise errors.ModelLoadFailed(
                    f"load_model of {type(handler).__name__} failed: {type(error).__name__}: {error}"
                ) from error
            found = _loaded[key] = LocalServing(handler, model)
        return found


def forget(handler: Any) -> None:
    """Drop the loaded model; the next use loads it again."""
    _loaded.pop(_key(handler), None)


def _key(handler: Any) -> Any:
    return getattr(handler, "_origin", None) or handler


def run(handler: Any, request: Request, validated: Mapping[str, Any] | None = None) -> None:
    """Answer a request in this process."""
    serving_of(handler).run(handler, request)
