"""``kit.beam.RunInference``: Beam's RunInference with the kit's serving engine in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import apache_beam as beam
from apache_beam.ml.inference.base import RunInferenceDLQ
from apache_beam.transforms.ptransform import _NamedPTransform
from apache_beam.transforms.window import FixedWindows, GlobalWindows

from kit import errors
from kit.bar import RightOfTheBar
from kit.beam import arguments
from kit.beam.core_handler import core_of, counts_bytes, groups_of, largest_batch
from kit.beam.dofn import BAD, ServeDoFn, ServeInWindows
from kit.beam.options import Options
from kit.beam.serving import Source
from kit.checks import check_function, check_handler, check_platform
from kit.daemon.remote_deployment import RemoteDeployment
from kit.deployment import Deployment
from kit.inputs import sized
from kit.option_names import names_checked
from kit.settings import Settings, given


class RunInference(RightOfTheBar, beam.PTransform):
    """Run a model on the elements of a pipeline, as Beam's transform of this name, served by the kit.

    Args:
        model_handler: a handler (ours, Beam's, your own), or a deployment, whose handler and settings are used: those
            that it has when the step is made. A pipeline that runs in the process of the deployment asks the
            deployment itself, which serves what it then has; functions around inference, which are steps of the
            pipeline, and other settings take a deployment of their own.
        inference_args: passed to ``run_inference``.
        metrics_namespace: of the metrics; the handler's by default.
        mode, processes, threads, model_copies, memory_budget: as `kit.deploy`; over those of a deployment.
        keep_alive: how long the deployment that the worker processes of a machine share goes on after the last
            request, seconds or text such as "5m".
        model_metadata_pcoll: side input of ModelMetadata, whose path the handler's ``update_model_path`` is given.
        watch_model_pattern: glob of files; the newest one is the model, as Beam's WatchFilePattern has it: a pipeline
            that ends takes one file, since its windows may have no second model.
        interval: seconds between two looks at the files, 360 by default.
        stop_timestamp: when to stop looking, seconds since 1970 or Beam's Timestamp; never by default.
        model_identifier: tells steps apart. Steps with equal handlers, settings and identifiers share a deployment.
        monitoring_transform: is given a copy of the results before post-processing.

    Raises:
        InvalidSetting: not a handler, or settings that can't work. HandlerNotPicklable: it can't travel.

    Differences from Beam's: with exception handling one failing example doesn't fail those of its batch, and
    timestamps of elements are kept. Metrics of batches are of those that were computed, timed where the model is; a
    batch of several workers' elements is reported by each of them: its own elements, and the seconds of the whole.
    """

    @names_checked
    def __init__(
        self,
        model_handler: Any,
        inference_args: Mapping[str, Any] | None = None,
        metrics_namespace: str | None = None,
        *,
        mode: str | None = None,
        processes: int | None = None,
        threads: int | None = None,
        model_copies: int | None = None,
        memory_budget: int | float | str | None = None,
        keep_alive: float | str | None = "60s",
        model_metadata_pcoll: Any = None,
        watch_model_pattern: str | None = None,
        interval: float | None = None,
        stop_timestamp: Any = None,
        model_identifier: str | None = None,
        monitoring_transform: Any = None,
    ) -> None:
        super().__init__()
        check_platform()
        arguments.check_step(metrics_namespace, model_identifier, keep_alive, inference_args)
        watching = {"interval": interval, "stop_timestamp": stop_timestamp}
        arguments.check_source(model_metadata_pcoll, watch_model_pattern, watching)
        arguments.check_monitoring(monitoring_transform)
        wanted = given(mode, processes, threads, model_copies, memory_budget)
        self._handler: Any = None
        self._identifier = model_identifier
        self._inference_args = inference_args
        self._source = self._source_of(model_handler, wanted, keep_alive)
        if metrics_namespace is None and hasattr(model_handler, "get_metrics_namespace"):
            metrics_namespace = model_handler.get_metrics_namespace()  # also of Beam's that the kit's stands in for
        self._namespace = metrics_namespace
        self._model_pcoll = model_metadata_pcoll
        self._pattern = watch_model_pattern
        self._monitoring = monitoring_transform
        self._watching = {name: value for name, value in watching.items() if value is not None}
        self._letters: dict[str, Any] | None = None

    def _source_of(self, target: Any, wanted: dict[str, Any], keep_alive: float | str | None) -> Source:
        if isinstance(target, RemoteDeployment):
            if any(value is not None for value in wanted.values()):
                raise errors.InvalidSetting(
                    f"{target.name!r} is a named deployment with settings of its own: change them with "
                    "deployment.switch, or give kit.beam.RunInference the handler."
                )
            self._words = _in_words(target.handler.type_name, target.settings, by_key=target.handler.by_key)
            return Source.named(target.name)
        live = None
        if isinstance(target, Deployment):
            target.raise_if_closed()
            live, handler, settings = target, target.handler, target.settings.change(target.handler, **wanted)
            plain = not handler.get_preprocess_fns() and not handler.get_postprocess_fns()
            if settings != target.settings or not plain:
                live = None
        else:
            handler = check_handler(target)
            if handler is not target:  # Beam's, with models by key; copies of its handlers
                for inner in handler.handlers:
                    inner.as_given = True
            settings = Settings.make(handler, **wanted)
        self._handler = handler
        handler.validate_inference_args(self._inference_args)
        by_key = getattr(handler, "routes", None) is not None
        self._words = _in_words(type(handler).__name__, settings, by_key=by_key)
        kept = {name: getattr(settings, name) for name in wanted}
        return Source.of(core_of(handler), kept, live=live, keep_alive=keep_alive, identifier=self._identifier)

    @classmethod
    def from_callable(cls, model_handler_provider: Callable[..., Any], **kwargs: Any) -> Self:
        """The transform for the handler that a function returns when it is given `kwargs`."""
        check_function("model_handler_provider", model_handler_provider, needed=True)
        return cls(model_handler_provider(**kwargs))

    def with_exception_handling(
        self,
        *,
        exc_class: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        use_subprocess: bool = False,
        threshold: float = 1,
        timeout: float | None = None,
    ) -> Self:
        """Have failing examples come out apart, as ``(results, RunInferenceDLQ)``, as Beam's method of this name.

        Args:
            exc_class: what makes a dead letter; other errors fail the pipeline.
            use_subprocess: run pre- and post-processing in a process of their own; the model always is in one.
            threshold: largest share of failures, 0 to 1, above which the pipeline fails.
            timeout: longest that loading the model, and computing a batch, may take, seconds.

        Raises:
            InvalidSetting: `exc_class` isn't of exceptions, `use_subprocess` no bool, `threshold` no share, or
                `timeout` no time.
        """
        self._letters = arguments.letters(exc_class, use_subprocess, threshold, timeout)
        return self

    def with_monitoring_transform(self, monitoring_transform: Any) -> Self:
        """Have a transform be given a copy of the results before post-processing."""
        arguments.check_monitoring(monitoring_transform)
        self._monitoring = monitoring_transform
        return self

    @property
    def deployment_name(self) -> str:
        """Of the named deployment that the worker processes of a machine share, for `kit.connect` and ``kit stop``.

        A model that a side input names has a deployment with another name.
        """
        return self._source.shared_name

    def __ror__(self, left: Any, label: str | None = None) -> Any:
        """Run a pipeline over examples that aren't in one: a list, or rows of an array, tensor or table."""
        if hasattr(left, "__array__"):
            left = list(sized(left))
        return super().__ror__(left, label)

    def __rrshift__(self, label: str) -> Any:
        """The step under a label, for arrays too."""
        return _Labelled(self, label)

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        return f"<kit.beam.RunInference of {self._words}; deployment {self.deployment_name!r}>"

    def annotations(self) -> dict[str, Any]:
        """What Beam keeps with the step."""
        handler = type(self._handler)
        about = {"model_handler_type": f"{handler.__module__}.{handler.__qualname__}"} if self._handler else {}
        identifier = self._identifier or self._source.key
        return {"model_identifier": identifier, **about, **super().annotations()}

    # ---- the steps ---------------------------------------------------------------------------

    def expand(self, pcoll: Any) -> Any:
        handler = self._handler
        before = [] if handler is None else list(handler.get_preprocess_fns())
        after = [] if handler is None else list(handler.get_postprocess_fns())
        pcoll, bad_before = self._map(pcoll, before, "Preprocess")
        model_pcoll = self._model_pcoll
        if self._pattern is not None:
            from apache_beam.ml.inference.utils import WatchFilePattern

            model_pcoll = pcoll.pipeline | WatchFilePattern(file_pattern=self._pattern, **self._watching)
        alone = type(pcoll.windowing.windowfn) in (GlobalWindows, FixedWindows)
        step = (ServeDoFn if alone else ServeInWindows)(self._source, self._options(model_pcoll is not None))
        side = {} if model_pcoll is None else {"model": beam.pvalue.AsSingleton(model_pcoll)}
        hints = {} if handler is None else handler.get_resource_hints()
        serve = beam.ParDo(step, **side).with_resource_hints(**hints)
        bad = None
        if self._letters is None:
            results = pcoll | "Serve" >> serve
        else:
            results, bad = pcoll | "Serve" >> serve.with_outputs(BAD, main="good")
            _check_share(pcoll, bad, self._letters["threshold"])
        if self._monitoring is not None:
            _ = results | "Monitor" >> self._monitoring
        results, bad_after = self._map(results, after, "Postprocess")
        return results if self._letters is None else (results, RunInferenceDLQ(bad, bad_before, bad_after))

    def _options(self, side_input: bool) -> Options:
        handler, letters = self._handler, self._letters or {}
        namespace = self._namespace or ("RunInference" if handler is None else handler.get_metrics_namespace())
        own = handler is not None and handler.override_metrics(namespace)
        return Options(
            inference_args=self._inference_args,
            namespace=None if own else namespace,
            exc_class=letters.get("exc_class"),
            timeout_s=letters.get("timeout"),
            keyed=bool(getattr(handler, "keyed", False)),
            prebatched=handler is not None and bool(handler.should_skip_batching()),
            batch_size=None if handler is None else largest_batch(handler),
            side_input=side_input,
            own_bytes=handler is not None and counts_bytes(handler),
            groups=None if handler is None else groups_of(handler),
        )

    def _map(self, pcoll: Any, functions: Sequence[Callable[[Any], Any]], what: str) -> tuple[Any, list[Any]]:
        """Run the handler's functions as steps; with dead letters, those of each function."""
        bad: list[Any] = []
        for number, function in enumerate(functions):
            step = beam.Map(function)
            if self._letters is None:
                pcoll = pcoll | f"{what}-{number}" >> step
            else:
                pcoll, failed = pcoll | f"{what}-{number}" >> step.with_exception_handling(**self._letters)
                bad.append(failed)
        return pcoll, bad


class _Labelled(RightOfTheBar, _NamedPTransform):
    """What Beam makes of ``label >> step``; left of it numpy would take the bar for itself."""


def _in_words(name: str, settings: Settings, *, by_key: bool) -> str:
    models = "models by key" if by_key else settings.copies_in_words
    return f"{name}: mode {settings.mode!r}, {settings.workers_in_words}, {models}"


def _check_share(examples: Any, bad: Any, threshold: float) -> None:
    """Fail the pipeline when more than a share of the examples of a window failed."""
    if threshold >= 1:
        return

    def check(failed: int, total: int) -> None:
        if failed > total * threshold:
            raise ValueError(f"{failed} of {total} examples failed, more than the threshold of {threshold} allows.")

    total = examples | "CountAll" >> (beam.Map(lambda _: 1) | beam.CombineGlobally(sum).as_singleton_view())
    failed = bad | "CountFailed" >> (beam.Map(lambda _: 1) | beam.CombineGlobally(sum).without_defaults())
    _ = failed | "CheckShare" >> beam.Map(check, total)
