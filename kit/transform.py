"""RunInference: ``examples | RunInference(handler)`` turns examples into predictions, in their order."""

from __future__ import annotations

import copy
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kit import batching, errors, inputs, local
from kit.deployment import Deployment, check_handler, check_platform, deploy
from kit.engine.requests import Request
from kit.predictions import Predictions
from kit.progress import progress

#: Longest that an example of a stream waits for others, seconds, when the handler says nothing.
STREAM_WAIT_S = 0.1
#: Examples of a stream that are sent at once, at first and at most.
FIRST_WINDOW, LAST_WINDOW = 16, 4096


class RunInference:
    """Run a model on examples: ``predictions = examples | RunInference(handler)``.

    Args:
        model_handler: a handler (the model is loaded in this process, once, and kept) or a `Deployment`.
            A handler that asks for sharing (``large_model=True``) gets a deployment of its own, closed at exit.
        inference_args: passed to the handler's ``run_inference``.

    A list, tuple, numpy array, tensor, Series or DataFrame gives `Predictions`. An iterator gives a lazy
    iterator with a bounded look-ahead; closing or dropping it cancels what is under way.

    Raises:
        InvalidSetting: not a handler. UnsupportedInput: on a bare string, dict, set or PCollection.
        InferenceFailed and other errors of `kit.errors`: from the model, unless `with_exception_handling`.
    """

    # numpy, torch and pandas must not broadcast | over this object, but leave it to __ror__.
    __array_ufunc__ = None
    __pandas_priority__ = 1_000_000

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if len(args) == 2 and isinstance(args[1], RunInference):
            return args[1](args[0])
        return NotImplemented

    def __init__(self, model_handler: Any, inference_args: Mapping[str, Any] | None = None) -> None:
        check_platform()
        if not isinstance(model_handler, Deployment):
            check_handler(model_handler)
        self._target = model_handler
        self._args = inference_args
        self._isolate = False
        self._timeout: float | None = None
        if inference_args is not None:
            self._handler.validate_inference_args(inference_args)

    def with_exception_handling(self, *, timeout: float | None = None) -> RunInference:
        """A copy that gives a `Failure(example, error)` in place of the prediction of an example that fails.

        Args:
            timeout: longest time that a batch may be computed, seconds; its examples fail then.
        """
        if timeout is not None and not timeout > 0:
            raise errors.InvalidSetting(f"timeout={timeout!r}: give seconds above 0, or None.")
        other = copy.copy(self)
        other._isolate, other._timeout = True, timeout
        return other

    def __call__(self, examples: Any) -> Any:
        rows = inputs.sized(examples)
        if rows is None:
            return PredictionStream(self._stream(iter(examples)))
        return self._all(rows)

    def __ror__(self, examples: Any) -> Any:
        return self(examples)

    def __repr__(self) -> str:
        return (
            f"RunInference({self._target!r}), for lists, iterators, arrays and tables; in a Beam pipeline use "
            "kit.beam.RunInference"
        )

    @property
    def _handler(self) -> Any:
        return self._target.handler if isinstance(self._target, Deployment) else self._target

    def _deployment(self) -> Deployment | None:
        if isinstance(self._target, Deployment):
            return self._target
        if self._target.share_model_across_processes():
            return _own_deployment(self._target)
        return None

    def _all(self, rows: Any) -> Predictions:
        if not len(rows):
            return Predictions([])
        deployment = self._deployment()
        with progress(len(rows), "RunInference") as bar:
            if deployment is None:
                request = self._request(rows, bar.update)
                local.run(self._target, request)
                return Predictions(request.future.result())
            future = self._submit(deployment, rows, bar.update)
            try:
                return Predictions(future.result())
            except BaseException:
                future.cancel()
                raise

    def _request(self, rows: Any, on_progress: Callable[[int], None] | None) -> Request:
        handler = self._target
        options = None if handler.get_preprocess_fns() else batching.options_of(handler)
        return Request(
            rows,
            self._args,
            isolate=self._isolate,
            batch_timeout_s=self._timeout,
            options=options,
            on_progress=on_progress,
        )

    def _submit(self, deployment: Deployment, rows: Any, on_progress: Callable[[int], None] | None) -> Any:
        return deployment.submit(
            rows,
            inference_args=self._args,
            isolate=self._isolate,
            batch_timeout=self._timeout,
            on_progress=on_progress,
        )

    # ---- streams -----------------------------------------------------------------------------

    def _stream(self, examples: Iterator[Any]) -> Iterator[Any]:
        deployment = self._deployment()
        windows = _windows(examples, batching.options_of(self._handler))
        with progress(None, "RunInference") as bar:
            if deployment is None:
                for window in windows:
                    request = self._request(window, bar.update)
                    local.run(self._target, request)
                    yield from request.future.result()
                return
            ahead: deque[Any] = deque()
            most = 2 * deployment.settings.processes * deployment.settings.threads + 1
            try:
                for window in windows:
                    ahead.append(self._submit(deployment, window, bar.update))
                    # What is done goes out before more is read: a slow source must not hold it back.
                    while ahead and (len(ahead) >= most or ahead[0].done()):
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()


class PredictionStream(Iterator[Any]):
    """Predictions of a stream, one after the other; ends with its source, or with `close`."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __next__(self) -> Any:
        return next(self._generator)

    def close(self) -> None:
        """Cancel what is under way; the iterator is at its end then."""
        self._generator.close()


def _windows(examples: Iterator[Any], options: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Cut a stream into lists that grow while the source keeps up."""
    longest = batching.WINDOW if "batch_length_fn" in options else LAST_WINDOW
    wait = options.get("max_batch_duration_secs") or STREAM_WAIT_S
    size = max(FIRST_WINDOW, options.get("min_batch_size") or 0)
    window: list[Any] = []
    began = time.monotonic()
    for example in examples:
        window.append(example)
        if len(window) >= size:
            size = min(longest, size * 2)
        elif time.monotonic() - began < wait:
            continue
        else:
            size = max(FIRST_WINDOW, size // 2)
        yield window
        window, began = [], time.monotonic()
    if window:
        yield window


_deployments: weakref.WeakKeyDictionary[Any, Deployment] = weakref.WeakKeyDictionary()


def _own_deployment(handler: Any) -> Deployment:
    found = _deployments.get(handler)
    if found is None or found.closed:
        found = _deployments[handler] = deploy(handler)
    return found
