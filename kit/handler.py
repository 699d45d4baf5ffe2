"""Model handlers: how a model is loaded and run, with Apache Beam's method names.

A handler needs two methods, ``load_model()`` and ``run_inference(batch, model, inference_args)``;
everything else has a default that works without calling ``super().__init__``. Handlers written
for Apache Beam's RunInference have the same methods, so they are served as they are; nothing here
imports Beam or torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from kit.batch_options import BATCHING_OPTIONS, BEAMS_NAMES, OUR_NAMES, check_batch_options
from kit.checks import check_function, check_mapping, check_whole
from kit.errors import InvalidSetting
from kit.example_bytes import num_bytes
from kit.made_with import MadeWith
from kit.option_names import check_names, names_checked

Function = Callable[[Any], Any]
_num_bytes = num_bytes


class PredictionResult(NamedTuple):
    """One prediction.

    Attributes:
        example: the input, exactly as the caller gave it.
        inference: what the model made of it.
        model_id: path or name of the model version that computed it, None if it has none.
    """

    example: Any
    inference: Any
    model_id: str | None = None


class ModelHandler:
    """How to load a model and run it on a batch of examples.

    All options are keywords and optional:
        min_batch_size, max_batch_size: examples a batch; None lets the kit find the size at which
            more examples no longer lower the time per example (at most 1024).
        max_batch_duration_secs: longest that an example waits for others to share its batch, seconds; 0.1
            when only min_batch_size is given. In a deployment, small requests wait so long until together they
            have min_batch_size examples (else max_batch_size), or fill max_batch_tokens or max_batch_weight; without
            both options nothing waits. In a stream it is how long examples already read wait for the next (0.1
            when not given), deployed or not. A list run in this process is all there and waits for nothing.
        max_batch_weight, element_size_fn: largest sum of ``element_size_fn(example)`` a batch.
        max_batch_tokens: largest padded size of a batch, (examples) x (longest length), with
            lengths from ``batch_length_fn``.
        batch_length_fn: length of an example; examples are sorted by it within a window before
            they are batched, so that a batch has like lengths.
        batch_bucket_boundaries: ascending lengths; only examples of one bucket share a batch.
        large_model: serve one copy for all processes (mode ``large``).
        model_copies: serve that many copies in model hosts (mode ``medium`` when above 1).
        env_vars: environment variables set in the serving process before ``load_model``.

    Raises:
        InvalidSetting: sizes or boundaries that can't work.
        UnknownOption: an option that there isn't.
    """

    #: False when one model object mustn't be called by two threads at once; it then gets one thread.
    thread_safe = True
    #: Modules that the fork server imports before it forks workers, so that they start at once.
    preload: Sequence[str] = ()

    _options: Mapping[str, Any] = {}
    _rebatched = False  # then the options are all there are
    _env_vars: Mapping[str, str] = {}
    _large_model = False
    _model_copies: int | None = None
    _preprocess_fns: tuple[Function, ...] = ()
    _postprocess_fns: tuple[Function, ...] = ()
    _skip_batching = False
    _origin: ModelHandler | None = None
    #: The constructor's arguments; None in another process than the one that made the handler with some.
    _made_with: MadeWith | None = MadeWith()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        if args or kwargs:  # a copy is made without, and keeps the original's
            check_names(cls, kwargs)
            self._made_with = MadeWith(args, kwargs)
        return self

    @names_checked
    def __init__(
        self,
        *,
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
        max_batch_duration_secs: float | None = None,
        max_batch_weight: float | None = None,
        max_batch_tokens: int | None = None,
        element_size_fn: Callable[[Any], float] | None = None,
        batch_length_fn: Callable[[Any], float] | None = None,
        batch_bucket_boundaries: Sequence[float] | None = None,
        large_model: bool = False,
        model_copies: int | None = None,
        env_vars: Mapping[str, str] | None = None,
    ) -> None:
        options = {
            "min_batch_size": min_batch_size,
            "max_batch_size": max_batch_size,
            "max_batch_duration_secs": max_batch_duration_secs,
            "max_batch_weight": max_batch_weight,
            "max_batch_tokens": max_batch_tokens,
            "element_size_fn": element_size_fn,
            "batch_length_fn": batch_length_fn,
            "batch_bucket_boundaries": batch_bucket_boundaries,
        }
        self._options = {name: value for name, value in options.items() if value is not None}
        check_batch_options(self._options)
        check_whole("model_copies", model_copies)
        if not isinstance(large_model, bool):
            raise InvalidSetting(f"large_model={large_model!r}: give True or False.")
        check_mapping("env_vars", env_vars)
        self._large_model = large_model
        self._model_copies = model_copies
        self._env_vars = dict(env_vars or {})

    # ---- to be written by the user ---------------------------------------------------------

    def load_model(self) -> Any:
        """Load and return the model. Called once for each copy that the serving mode asks for."""
        raise TypeError(f"{type(self).__name__} has no load_model(self): write one that returns the model.")

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        """Return one prediction for each example of `batch`, in the same order.

        A value that isn't a PredictionResult is wrapped into one.
        """
        raise TypeError(
            f"{type(self).__name__} has no run_inference(self, batch, model, inference_args=None): "
            "write one that returns a prediction for each example of the batch."
        )

    # ---- what the kit and Beam ask a handler ------------------------------------------------

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Bytes of a batch, for metrics: the sum of ``nbytes`` or ``len`` of its examples."""
        return sum(num_bytes(example) for example in batch)

    def estimate_model_bytes(self) -> int | None:
        """Bytes of one copy of the model before it is loaded: its weights files when ``model_id`` is a local path.

        None if unknown. Override it where the loaded model has another size, such as after a change of dtype, and for
        models by key without such files: under a memory budget a model of unknown size is loaded alone, so that all
        other loads wait for it, and one whose size is known beside others.
        """
        from kit.sizes import weights_on_disk

        return weights_on_disk(getattr(self, "model_id", None))

    def get_metrics_namespace(self) -> str:
        """Name under which metrics are reported."""
        return type(self).__name__

    def get_resource_hints(self) -> dict[str, Any]:
        """Resource hints for a Beam runner; none by default."""
        return {}

    def batch_elements_kwargs(self) -> dict[str, Any]:
        """Options under the names of Beam's ``BatchElements``, without the ones that only the kit knows."""
        return {theirs: self._options[ours] for ours, theirs in BEAMS_NAMES.items() if ours in self._options}

    def batching_options(self) -> dict[str, Any]:
        """All batching options under the names of this class's constructor.

        Where a class overrides ``batch_elements_kwargs``, as is usual with Beam, that says those which Beam knows,
        until `with_batching` changes any.
        """
        theirs = self.batch_elements_kwargs
        if self._rebatched or getattr(theirs, "__func__", None) is ModelHandler.batch_elements_kwargs:
            return dict(self._options)
        ours = {name: value for name, value in self._options.items() if name not in BEAMS_NAMES}
        given = {OUR_NAMES.get(name, name): value for name, value in theirs().items() if value is not None}
        check_batch_options(ours | given)
        return ours | given

    def validate_inference_args(self, inference_args: Mapping[str, Any] | None) -> None:
        """Raise if `inference_args` aren't acceptable; any are by default."""

    def update_model_path(self, model_path: str | None = None) -> None:
        """Point the handler at another model; the next ``load_model`` loads it. No-op by default."""

    def update_model_paths(self, model: Any, model_paths: str | Sequence[str] | None = None) -> None:
        """Point a keyed handler's models at other paths; no-op for a single model."""

    def get_preprocess_fns(self) -> list[Function]:
        """Pre-processing functions in the order in which they run."""
        return list(self._preprocess_fns)

    def get_postprocess_fns(self) -> list[Function]:
        """Post-processing functions in the order in which they run."""
        return list(self._postprocess_fns)

    def should_skip_batching(self) -> bool:
        """True when each example already is a batch."""
        return self._skip_batching

    def set_environment_vars(self) -> None:
        """Set ``env_vars`` in this process."""
        import os

        os.environ.update({name: str(value) for name, value in self._env_vars.items()})

    def share_model_across_processes(self) -> bool:
        """True when the processes of a machine should share copies of the model."""
        return self._large_model or self._model_copies is not None

    def model_copies(self) -> int:
        """How many copies of the model serve all processes."""
        return self._model_copies or 1

    def override_metrics(self, metrics_namespace: str = "") -> bool:
        """True when the handler reports its own metrics."""
        return False

    def should_garbage_collect_on_timeout(self) -> bool:
        """True when a model that ran into a timeout should be dropped and loaded again."""
        return self.share_model_across_processes()

    # ---- variations -------------------------------------------------------------------------

    def with_preprocess_fn(self, fn: Function) -> ModelHandler:
        """A copy of this handler that runs `fn` on each example first; the last one added runs first."""
        check_function("fn", fn, needed=True)
        return self._copy(_preprocess_fns=(fn, *self._preprocess_fns))

    def with_postprocess_fn(self, fn: Function) -> ModelHandler:
        """A copy that runs `fn` on each prediction last; what it returns is handed to the caller as it is.

        `fn` is given what ``run_inference`` returned for the example: a PredictionResult by the kit's own handlers,
        and a bare value where a handler returns bare values.
        """
        check_function("fn", fn, needed=True)
        return self._copy(_postprocess_fns=(*self._postprocess_fns, fn))

    def with_no_batching(self) -> ModelHandler:
        """A copy for examples that already are batches: each is passed to ``run_inference`` alone."""
        return self._copy(_skip_batching=True)

    def with_batching(self, **options: Any) -> ModelHandler:
        """A copy with other batching options (those of the constructor); None takes one away.

        Raises:
            InvalidSetting: an option that is unknown or can't work.
        """
        unknown = [name for name in options if name not in BATCHING_OPTIONS]
        if unknown:
            raise InvalidSetting(f"{unknown[0]!r} isn't a batching option: use {', '.join(BATCHING_OPTIONS)}.")
        changed = {**self.batching_options(), **options}
        kept = {name: value for name, value in changed.items() if value is not None}
        check_batch_options(kept)
        return self._copy(_options=kept, _rebatched=True)

    @staticmethod
    def from_callable(load: Callable[[], Any], run: Callable[..., Iterable[Any]], **options: Any) -> ModelHandler:
        """A handler from two functions: ``load() -> model`` and ``run(batch, model) -> predictions``.

        `run` is given the inference arguments as a third argument or as the keyword ``inference_args``, when it
        takes one. `options` are those of `ModelHandler`.
        """
        from kit.callables import CallableModelHandler

        return CallableModelHandler(load, run, **options)

    def __repr__(self) -> str:
        from kit.handler_repr import describe

        return describe(self)

    def _copy(self, **changes: Any) -> ModelHandler:
        other = copy.copy(self)
        # The copy loads the same model, so a model already loaded for the original serves it too.
        other._origin = self._origin or self
        for name, value in changes.items():
            setattr(other, name, value)
        return other
