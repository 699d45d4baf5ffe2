"""RunInference: ``examples | RunInference(handler)`` turns examples into predictions, in their order."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kit import batching, inputs, local
from kit.bar import RightOfTheBar
from kit.checks import check_handler, check_mapping, check_platform, check_positive
from kit.deploying import deploy
from kit.deployment import Deployment
from kit.engine.keyed_models import KeyedModels
from kit.engine.requests import Request
from kit.manager.entry import columns
from kit.predictions import Predictions
from kit.progress import progress
from kit.streams import PredictionStream, Sent, Windows

if TYPE_CHECKING:
    import pandas as pd


class RunInference(RightOfTheBar):
    """Run a model on examples: ``predictions = examples | RunInference(handler)``.

    Args:
        model_handler: a handler (the model is loaded in this process, once, and kept) or a `Deployment`.
            A handler that asks for sharing (``large_model=True``) gets a deployment of its own, closed at exit.
        inference_args: passed to the handler's ``run_inference``.

    A list, tuple, numpy array, tensor, Series or DataFrame gives `Predictions`. An iterator gives a lazy
    iterator with a bounded look-ahead; closing or dropping it cancels what is under way. The iterator is read in a
    thread of its own, so that predictions come out while it stalls: make what is bound to one thread (a cursor of
    sqlite3) inside of a generator.

    Raises:
        InvalidSetting: not a handler. UnsupportedInput: on a bare string, dict, set or PCollection.
        InferenceFailed and other errors of `kit.errors`: from the model, unless `with_exception_handling`.
    """

    def __init__(self, model_handler: Any, inference_args: Mapping[str, Any] | None = None) -> None:
        check_platform()
        if not isinstance(model_handler, Deployment):
            model_handler = check_handler(model_handler)
        check_mapping("inference_args", inference_args)
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
        check_positive("timeout", timeout)
        other = copy.copy(self)
        other._isolate, other._timeout = True, timeout
        return other

    def __call__(self, examples: Any) -> Any:
        rows = inputs.sized(examples)
        if isinstance(self._target, Deployment):
            self._target.raise_if_closed()
        if rows is None:
            return PredictionStream(self._stream(iter(examples)))
        return self._all(rows)

    def __ror__(self, examples: Any) -> Any:
        return self(examples)

    def __repr__(self) -> str:
        return (
            f"kit.RunInference({self._target!r}), for lists, iterators, arrays and tables; in a Beam pipeline use "
            f"{inputs.BEAM_TRANSFORM}"
        )

    def models(self) -> pd.DataFrame:
        """One row a model by key, the worth most first; of a handler without keys, one row.

        Columns: keys, state ("loading", "resident", "host tier", "evicted", "failed"), size_bytes, hits, requests,
        loads, evictions, load_s (last), load_total_s, idle_s, score (of the eviction policy), in_use, pinned, error.
        """
        import pandas as pd

        if isinstance(self._target, Deployment):
            return self._target.models()
        model = local.serving_of(self._target).model
        if isinstance(model, KeyedModels):
            rows = model.rows()
            return pd.DataFrame(rows, columns=None if rows else columns())
        return pd.DataFrame([{"keys": [], "state": "resident"}])

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
        ahead: deque[Sent] = deque()
        windows = Windows(examples, batching.options_of(self._handler), lambda: bool(ahead) and ahead[0].future.done())
        with progress(None, "RunInference") as bar:
            try:
                if deployment is None:
                    yield from self._stream_here(windows, bar.update)
                else:
                    yield from self._stream_there(deployment, windows, ahead, bar.update)
            finally:
                windows.close()
            if windows.error is not None:
                raise windows.error

    def _stream_here(self, windows: Windows, on_progress: Callable[[int], None]) -> Iterator[Any]:
        serving = local.serving_of(self._target)
        for window in windows:
            began = time.monotonic()
            request = self._request(window, on_progress)
            serving.run(self._target, request)
            windows.answered(len(window), time.monotonic() - began)
            yield from request.future.result()

    def _stream_there(
        self, deployment: Deployment, windows: Windows, ahead: deque[Sent], on_progress: Callable[[int], None]
    ) -> Iterator[Any]:
        most = 2 * deployment.settings.processes * deployment.settings.threads + 1
        waiting_pays = True
        free_at = 0.0

        def next_results() -> list[Any]:
            nonlocal free_at
            sent = ahead[0]
            results = sent.future.result()
            ahead.popleft()  # only now: an interrupted wait leaves it to be cancelled
            windows.answered(sent.count, sent.done_at - max(sent.sent_at, free_at))
            free_at = sent.done_at
            return results

        try:
            for window in windows:
                if window:
                    sent = Sent(self._submit(deployment, window, on_progress), len(window), windows.wake)
                    ahead.append(sent)
                # What is done goes out before more is read, and a slow source is left alone until it is:
                # unless the model is slower still.
                patience_s = windows.patience_s if waiting_pays else 0.0
                while ahead and (ahead[0].ready(patience_s) or len(ahead) >= most):
                    waiting_pays = True
                    yield from next_results()
                waiting_pays = not ahead
            while ahead:
                yield from next_results()
        finally:
            for sent in ahead:
                sent.future.cancel()
            ahead.clear()  # a future, what it calls when it is done, and the windows would keep each other


_deployments: local.ByIdentity[Deployment] = local.ByIdentity()
_deploying = threading.Lock()


def _own_deployment(handler: Any) -> Deployment:
    """The deployment of a handler that asks for sharing; ends with the handler, or at exit."""
    with _deploying:
        found = _deployments.get(handler)
        if found is None or found.closed:
            # Of a copy: a deployment that held the handler itself would keep it, and so itself, alive.
            return _deployments.put(handler, deploy(copy.copy(handler)))
        if getattr(found.handler, "model_id", None) != getattr(handler, "model_id", None):
            found.update_model(copy.copy(handler))
        return found
