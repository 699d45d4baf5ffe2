"""The step that serves: elements of a bundle go to the deployment in windows, and come back as results."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, NoReturn

import apache_beam as beam
from apache_beam.utils.windowed_value import WindowedValue

from kit import errors
from kit.beam.counts import Counts
from kit.beam.failures import Info, as_raised, info_of
from kit.beam.options import Options
from kit.beam.results import all_as_beams, as_beams, flat
from kit.beam.serving import Lease, Source
from kit.beam.versions import Version, version_of
from kit.beam.window import AT_ONCE, Window
from kit.daemon.remote_deployment import RemoteDeployment
from kit.engine.requests import Failure
from kit.engine.runner import Batch

#: How many windows are under way.
AHEAD = 4
#: How often a window is sent anew when the deployment that had it is gone.
MOST_TRIES = 3
BAD = "bad"


class ServeDoFn(beam.DoFn):
    """Serves elements from the deployment of a source; see `kit.beam`.

    Results are emitted in the order of a bundle's elements, each in its element's window and at its timestamp.
    Elements are in one window each: `ServeInWindows` is for those that may be in several.
    With dead letters, ``([example], (class, repr, traceback))`` of each that failed goes to the tag ``bad``.
    """

    def __init__(self, source: Source, options: Options) -> None:
        self._source = source
        self._options = options
        self._lease: Lease | None = None
        self._version: Version = None

    # ---- life --------------------------------------------------------------------------------

    def setup(self) -> None:
        # Only where it must be is the handler unpickled here: its libraries may take more memory than all else.
        self._counts = Counts(self._options, self._source.handler() if self._options.own_bytes else None)
        self._sent: deque[Window] = deque()
        self._at_once = AT_ONCE
        self._window = self._new_window()
        if not self._options.side_input:
            self._lease = Lease(self._source)

    def _new_window(self) -> Window:
        return Window(most=self._options.batch_size or self._at_once, at_once=self._at_once)

    def start_bundle(self) -> None:
        self._drop()
        if self._lease is not None:
            self._lease.shared.start_again()

    def teardown(self) -> None:
        self._drop()
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _drop(self) -> None:
        """Forget what a failed bundle left."""
        for window in self._sent:
            if window.future is not None:
                window.future.cancel()
        self._sent.clear()
        self._window = self._new_window()

    # ---- elements ----------------------------------------------------------------------------

    def process(
        self,
        element: Any,
        place: Any = beam.DoFn.WindowedValueParam,  # Beam makes no object for it, as it does for a timestamp
        model: Any = None,
    ) -> Iterable[Any]:
        if self._options.side_input:
            version = version_of(model, self._version)
            if self._lease is None or version != self._version:
                return self._after_change(element, model, version, place)
        if self._window.add(element, place):
            self._send_window()
            return self._what_is_done()
        return ()

    def finish_bundle(self) -> Iterator[Any]:
        self._send_window()
        while self._sent:
            yield from self._emit(self._sent[0])
            self._sent.popleft()

    def _after_change(self, element: Any, model: Any, version: Version, place: WindowedValue) -> Iterator[Any]:
        """Answer what was sent to the version before, then take the element to the one that the side input names."""
        yield from self.finish_bundle()
        source = self._source if version is None else self._source.updated(version)
        before, self._lease = self._lease, Lease(source)
        if before is not None:
            before.release()
        self._version = version
        if version is not None:
            self._counts.use(model, by_key=isinstance(version, dict))
        if self._window.add(element, place):
            self._send_window()

    # ---- windows -----------------------------------------------------------------------------

    def _send_window(self) -> None:
        window, self._window = self._window, self._new_window()
        if window.examples:
            self._sent.append(window)
            self._send(window)

    def _send(self, window: Window) -> None:
        """Ask the deployment; what keeps it from being asked is the window's answer."""
        assert self._lease is not None
        options = self._options
        window.future = None
        batches: list[Batch] = []
        window.batches = batches
        window.tries += 1
        future: Future[Any]
        sent_at = time.monotonic()
        try:
            window.deployment = self._lease.shared.deployment(options.timeout_s)
            sent_at = time.monotonic()  # its model is loaded
            # Through a link predictions come in blocks, which needn't be objects before they are emitted.
            remote = isinstance(window.deployment, RemoteDeployment)
            form = {"unmade": not options.prebatched} if remote else {"as_given": not options.keyed}
            future = window.deployment._submit(
                window.examples,
                options.inference_args,
                isolate=options.exc_class is not None,
                batch_timeout_s=options.timeout_s,
                batches=None if options.namespace is None else batches,
                **form,
            )
        except Exception as error:
            future = Future()
            future.set_exception(_as_ours(error, options.timeout_s))
        window.asked(future, sent_at)

    def _what_is_done(self) -> Iterator[Any]:
        while self._sent and (len(self._sent) >= AHEAD or self._sent[0].done):
            window = self._sent[0]
            waited = not window.done
            yield from self._emit(window)
            self._at_once = window.next_size(self._at_once, waited=waited)
            self._sent.popleft()

    def _results(self, window: Window) -> Any:
        """The answer of a window, which is sent anew when its deployment is gone."""
        while True:
            assert window.future is not None
            try:
                return window.future.result()
            except errors.DeploymentLost as error:
                if window.tries >= MOST_TRIES or self._lease is None or window.deployment is None:
                    raise
                if self._source.name is not None:
                    raise errors.DeploymentLost(
                        f"{error.args[0]} The pipeline can't serve it anew: it hasn't the handler."
                    ) from error
                self._lease.shared.renew(window.deployment)
                self._send(window)

    # ---- results -----------------------------------------------------------------------------

    def _emit(self, window: Window) -> Iterator[Any]:
        options = self._options
        try:
            results = self._results(window)
        except Exception as error:
            never_served = window.deployment is None and options.timeout_s is None
            if options.exc_class is None or never_served or not isinstance(error, errors.KitError | TimeoutError):
                self._fail(error)
            results = [Failure(example, error) for example in window.examples]  # type: ignore[arg-type]
        failures = 0
        if options.exc_class is not None and type(results) is list:
            failures = sum(type(result) is Failure for result in results)
        if failures or options.prebatched:
            yield from self._one_by_one(window, results)
        else:
            yield from map(WindowedValue.with_value, window.places, all_as_beams(results))
        shared = self._lease.shared if self._lease is not None and window.deployment is not None else None
        self._counts.window(window, results, failures, shared)

    def _fail(self, error: BaseException) -> NoReturn:
        self._counts.failed()
        raised = as_raised(error)
        if raised is error:
            raise error
        raise raised from error

    def _one_by_one(self, window: Window, results: Any) -> Iterator[Any]:
        for place, example, result in zip(window.places, window.examples, results, strict=True):
            if type(result) is Failure:
                yield beam.pvalue.TaggedOutput(BAD, place.with_value(self._letter(example, result.error)))
            elif self._options.prebatched:
                yield from map(place.with_value, flat(result))
            else:
                yield place.with_value(as_beams(result))

    def _letter(self, example: Any, error: BaseException) -> tuple[Any, Info]:
        """The dead letter of an example.

        Raises:
            KitError: the error isn't one of those that make dead letters.
        """
        info = info_of(error)
        exc_class = self._options.exc_class
        if exc_class is None or not issubclass(info[0], exc_class):
            self._fail(error)
        return (example if self._options.prebatched else [example]), info


class ServeInWindows(ServeDoFn):
    """The same where an element may be in several windows: Beam then brings it once for each."""

    def process(  # type: ignore[override]  # Beam wants a side input to come last
        self,
        element: Any,
        place: Any = beam.DoFn.WindowedValueParam,
        window: Any = beam.DoFn.WindowParam,
        model: Any = None,
    ) -> Iterable[Any]:
        return super().process(element, place, model)


def _as_ours(error: Exception, timeout_s: float | None) -> Exception:
    # An error of ours is a TimeoutError too, when a batch took too long.
    if isinstance(error, TimeoutError) and not isinstance(error, errors.KitError):
        return TimeoutError(f"the model wasn't loaded within the timeout of {timeout_s} s.")
    return error
