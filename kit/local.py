"""RunInference without a deployment: this process is the only worker, and the model stays loaded."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, Generic, TypeVar

from kit import errors
from kit.cores import in_free_cores
from kit.engine.keyed_models import KeyedModels, OneModel
from kit.engine.keyed_runner import KeyedRunner
from kit.engine.local_model import LocalModel
from kit.engine.requests import Request
from kit.engine.runner import Outcome, Runner, pick
from kit.engine.trouble import FAILURES, Trouble
from kit.shorten import counted

#: Time between two looks at the clock, seconds: for progress, and to let an interrupt through.
SLICE_S = 0.2

Value = TypeVar("Value")


class ByIdentity(Generic[Value]):
    """Values for objects, by identity, each for as long as its object lives; handlers needn't be hashable."""

    def __init__(self) -> None:
        self._values: dict[int, Value] = {}

    def get(self, owner: Any) -> Value | None:
        return self._values.get(id(owner))

    def put(self, owner: Any, value: Value) -> Value:
        if id(owner) not in self._values:
            weakref.finalize(owner, self._values.pop, id(owner), None).atexit = False
        self._values[id(owner)] = value
        return value


class LocalServing:
    """A handler with its model loaded in this process."""

    def __init__(self, handler: Any) -> None:
        self.lock = threading.Lock()  # one load at a time
        self.loaded = False
        self.model: Any = None
        self.model_id: str | None = None
        self._cost_s = 0.0
        self._one: OneModel | None = None  # of a keyed handler with one handler for all keys
        self._sizer: Any = None  # the batch size that pays, learnt over all requests
        one_at_a_time = not getattr(handler, "thread_safe", True)
        self._turn: Any = threading.RLock() if one_at_a_time else contextlib.nullcontext()

    def load(self, handler: Any) -> None:
        """Load the model unless this version of it is loaded.

        Raises:
            ModelLoadFailed: ``load_model`` raised; the error is the cause.
        """
        model_id = getattr(handler, "model_id", None)
        with self.lock:
            if self.loaded and self.model_id == model_id:
                return
            # The old version goes first: both may not fit.
            self.loaded, self.model, self._one = False, None, None
            try:
                handler.set_environment_vars()
                self.model = handler.load_model()
            except errors.KitError:
                raise
            except FAILURES as error:
                raise errors.ModelLoadFailed(
                    f"load_model of {type(handler).__name__} failed: {type(error).__name__}: {error}"
                ) from error
            self.loaded, self.model_id = True, model_id

    def run(self, handler: Any, request: Request) -> None:
        """Answer a request; its future is done afterwards.

        Raises:
            BaseException: what ends the request; its future holds it, too.
        """
        if getattr(handler, "keyed", False):
            self._run_keyed(handler, request)
            return
        runner = self._runner(handler)
        while request.untaken and not request.ended:
            indices = request.take(self._share(runner, request.batch_timeout_s))
            began = time.perf_counter()
            try:
                outcome = self._compute(runner, pick(request.examples, indices), request)
            except errors.DeadlineExceeded as error:
                _all_fail(request, indices, error)
                if handler.should_garbage_collect_on_timeout():
                    forget(handler)
                    self.load(handler)
                    runner = self._runner(handler)
                continue
            except errors.WrongPredictionCount as error:
                # The handler's fault and not that of one example, as in a deployment.
                _all_fail(request, indices, error)
                if not request.isolate:
                    raise
                continue
            except BaseException as error:
                request.fail_all(error)
                raise
            cost = (time.perf_counter() - began) / max(1, len(indices))
            self._cost_s = cost if not self._cost_s else (self._cost_s + cost) / 2
            request.settle(indices, outcome.values, outcome.model_ids, outcome.plain, outcome.troubles)

    def _run_keyed(self, handler: Any, request: Request) -> None:
        """`run` for a handler of models by key: all examples are looked at together, and answered model by model."""
        request.take(request.untaken)
        limited = request.batch_timeout_s is not None
        with self._keyed_runner(handler) as runner, in_free_cores():
            parts = runner.parts(
                request.examples,
                request.inference_args,
                isolate=request.isolate,
                call=partial(_within, request.batch_timeout_s) if limited else None,
            )
            try:
                for positions, outcome in parts:
                    request.settle(positions, outcome.values, None, True, outcome.troubles)
                    if request.ended:
                        return
            except BaseException as error:
                request.fail_all(error)
                raise

    def _keyed_runner(self, handler: Any) -> contextlib.AbstractContextManager[KeyedRunner]:
        if handler.unkeyed is None:
            models: KeyedModels = self.model
            return models.runner(handler)
        if self._one is None:
            self._one = OneModel(handler, LocalModel(handler.unkeyed, self.model), self._turn)
        return self._one.runner(handler)

    def _runner(self, handler: Any) -> Runner:
        runner = Runner(handler, LocalModel(handler, self.model))
        self._sizer = runner.sizer = self._sizer or runner.sizer
        return runner

    def _share(self, runner: Runner, timeout: float | None) -> int:
        size = runner.batch_size
        if timeout is not None:
            return size or 1  # the time limit is for one batch
        most = max(1, int(SLICE_S / self._cost_s)) if self._cost_s else (size or 64)
        return max(size, most // size * size) if size else most

    def _compute(self, runner: Runner, examples: Any, request: Request) -> Outcome:
        def compute() -> Outcome:
            with self._turn, in_free_cores():
                return runner.run(examples, request.inference_args, isolate=request.isolate)

        return _within(request.batch_timeout_s, compute, len(examples))


def _within(timeout: float | None, compute: Callable[[], Outcome], count: int) -> Outcome:
    """Compute `count` examples, for `timeout` seconds at most.

    Raises:
        DeadlineExceeded: it took longer.
    """
    if timeout is None:
        return compute()
    # Python can't stop a computation, so it is given up: in a daemon thread, which doesn't keep the process alive.
    future: Future[Outcome] = Future()
    threading.Thread(target=_resolve, args=(future, compute), name="kit-timeout", daemon=True).start()
    try:
        return future.result(timeout)
    except FutureTimeout as error:
        if future.done():
            raise
        raise errors.DeadlineExceeded(
            f"a batch of {counted(count, 'example')} ran longer than the timeout of {timeout} s."
        ) from error


def _resolve(future: Future[Outcome], compute: Any) -> None:
    try:
        future.set_result(compute())
    except BaseException as error:
        future.set_exception(error)


def _all_fail(request: Request, indices: Any, error: errors.KitError) -> None:
    trouble = Trouble.of(error)
    for index in indices:
        request.fail(index, trouble)


_servings: ByIdentity[LocalServing] = ByIdentity()
_guard = threading.Lock()


def serving_of(handler: Any) -> LocalServing:
    """The loaded model of a handler; loads it on first use, and again after ``update_model_path``.

    Raises:
        ModelLoadFailed: ``load_model`` raised; the error is the cause.
    """
    origin = _origin_of(handler)
    with _guard:
        serving = _servings.get(origin) or _servings.put(origin, LocalServing(handler))
    serving.load(handler)
    return serving


def forget(handler: Any) -> None:
    """Drop the loaded model; the next use loads it again."""
    serving = _servings.get(_origin_of(handler))
    if serving is not None:
        with serving.lock:
            serving.loaded, serving.model, serving._one = False, None, None


def _origin_of(handler: Any) -> Any:
    """The handler whose model this one uses: itself, or what ``with_preprocess_fn`` and the like copied it from."""
    return getattr(handler, "_origin", None) or handler


def run(handler: Any, request: Request) -> None:
    """Answer a request in this process."""
    serving_of(handler).run(handler, request)
