"""Models by key: examples are (key, example), predictions are (key, prediction), and each key has its model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kit import batching
from kit.checks import count, seconds
from kit.errors import InvalidSetting, WrongPredictionCount
from kit.example_bytes import num_bytes
from kit.handler import ModelHandler, PredictionResult
from kit.key_mappings import KeyModelMapping, KeyModelPathMapping, check_inner, short
from kit.key_routes import Routes, key_of
from kit.sizes import parse_bytes

__all__ = ["KeyModelMapping", "KeyModelPathMapping", "KeyedModelHandler", "MaybeKeyedModelHandler"]


class KeyedModelHandler(ModelHandler):
    """Takes (key, example), gives (key, prediction), in input order; each key has its model.

        KeyedModelHandler([KeyModelMapping(["tweets"], tweets), KeyModelMapping(["films", "reviews"], films)],
                          memory_budget="200 MB")

    Models are loaded when the first example of one of their keys comes, and evicted under the budget by a
    model manager. Examples of one model are batched together, with that handler's batching options,
    pre- and post-processing; functions added to this handler see (key, example) and (key, prediction). In a
    deployment those before inference run in the calling process, since they may change the key.

    Args:
        unkeyed: mappings; or one handler for all keys, which are then only carried along; or a function from a key
            to its handler, for keys that aren't listed beforehand. The function is asked once a key, in the
            process that needs the model. Handlers that are the same object share a model; in a deployment, where
            processes have objects of their own, each of these keys has a model.
        max_models_per_worker_hint: models loaded at once at most, in each process that has models; pinned ones count.
            A budget in bytes is the better way.
        memory_budget: bytes, or text such as "2GiB", for all loaded models together, in all processes of a
            deployment; `kit.deploy`'s and `switch`'s beat it. In mode "shared" a model takes twice its bytes while it
            is loaded. Under a budget a model whose size isn't known, by its handler's ``estimate_model_bytes`` or an
            earlier load, loads alone; and a load that has waited 5 s for room isn't passed by others, even where
            these would fit.
        policy: which model goes first: "cost", "lru" or "gdsf", or an object of a class of your own that is a
            `kit.manager.policy.Policy`, of which a deployment uses a copy.
        keep_alive: seconds after which a model that nobody asks for is unloaded.
        large_model: serve all from one model host.

    Raises:
        InvalidSetting: no mapping, one without keys, a key in two mappings, something that isn't a handler, a
            setting that can't work.

    Examples fail with UnsupportedInput (not a pair), UnknownKey, BudgetExceeded (the model alone is larger than the
    budget) or ModelLoadFailed.
    """

    keyed = True

    def __init__(
        self,
        unkeyed: Any,
        max_models_per_worker_hint: int | None = None,
        *,
        memory_budget: int | float | str | None = None,
        policy: Any = "cost",
        keep_alive: float | None = None,
        large_model: bool = False,
    ) -> None:
        if not isinstance(large_model, bool):
            raise InvalidSetting(f"large_model={large_model!r}: give True or False.")
        super().__init__(large_model=large_model)
        self.max_models = count("max_models_per_worker_hint", max_models_per_worker_hint)
        self.memory_budget = parse_bytes(memory_budget)
        self.policy = policy
        self.keep_alive = seconds("keep_alive", keep_alive)
        import kit

        kit.ModelManager(str, policy=policy)  # what it would refuse is refused here, not at the first example
        one = hasattr(unkeyed, "load_model")
        self.unkeyed = unkeyed if one else None
        self.routes: Routes | None = None
        if one:
            check_inner(unkeyed, f"{type(self).__name__}({short(unkeyed)})")
            given = {
                "memory_budget": memory_budget,
                "max_models_per_worker_hint": max_models_per_worker_hint,
                "keep_alive": keep_alive,
                "policy": None if policy == "cost" else policy,
            }
            for name, value in given.items():
                if value is not None:
                    raise InvalidSetting(
                        f"{name}={value!r}: one handler for all keys is one model, with nothing to evict. Give mappings"
                        f"{', or give the budget to kit.deploy' if name == 'memory_budget' else ''}."
                    )
        elif callable(unkeyed) or isinstance(unkeyed, (list, tuple)):
            self.routes = Routes(unkeyed)
        else:
            raise InvalidSetting(
                f"KeyedModelHandler({short(unkeyed)}): give a list of KeyModelMapping(keys, handler), a handler for "
                "all keys, or a function from a key to a handler."
            )

    # ---- load and run ------------------------------------------------------------------------

    def load_model(self) -> Any:
        """The models of this process, none of them loaded yet; with one handler for all keys, its model."""
        if self.unkeyed is not None:
            return self.unkeyed.load_model()
        from kit import KeyedModels

        return KeyedModels(self)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        """(key, prediction) for each (key, example), in the order of `batch`."""
        if self.unkeyed is None:
            return list(model.run(batch, inference_args))
        keys = [pair[0] if type(pair) is tuple and len(pair) == 2 else key_of(pair) for pair in batch]
        examples = [pair[1] for pair in batch]
        return list(zip(keys, self._run_one(examples, model, inference_args), strict=True))

    def _run_one(self, examples: list[Any], model: Any, inference_args: Mapping[str, Any] | None) -> list[Any]:
        """Predictions of the one handler, its own functions included."""
        handler: Any = self.unkeyed
        given = examples
        for function in handler.get_preprocess_fns():
            examples = [function(example) for example in examples]
        values = list(handler.run_inference(examples, model, inference_args))
        if len(values) != len(given):
            raise WrongPredictionCount(
                f"{type(handler).__name__}.run_inference returned {len(values)} predictions for a batch of "
                f"{len(given)} examples: return exactly one for each example, in their order."
            )
        after = list(handler.get_postprocess_fns())
        if after:
            for function in after:
                values = [function(value) for value in values]
            return values
        if getattr(handler, "as_given", False):  # in a pipeline of Beam's
            return values
        model_id = getattr(handler, "model_id", None)
        return [
            PredictionResult(example, getattr(value, "inference", value), getattr(value, "model_id", model_id))
            for example, value in zip(given, values, strict=True)
        ]

    def update_model_paths(self, model: Any, model_paths: Sequence[Any] | str | None = None) -> None:
        """Give some keys other models; the other keys are served on, and requests under way use the old ones.

        Args:
            model: what ``load_model`` returned, None before that.
            model_paths: `KeyModelPathMapping`, ours or Beam's. Keys that aren't named stay as they are.

        Raises:
            InvalidSetting: an empty path, a key in two mappings, or one handler for all keys. UnknownKey.
        """
        if not model_paths:
            return
        if self.routes is None:
            raise InvalidSetting("update_model_paths needs models by key; use update_model_path for one handler.")
        if isinstance(model_paths, str):
            words = "which keys are meant? Give a list of KeyModelPathMapping(keys, path)."
            raise InvalidSetting(f"update_model_paths({model_paths!r}): {words}")
        if model is not None:
            model.update(model_paths)
        self.routes.update(model_paths)

    def update_model_path(self, model_path: str | None = None) -> None:
        """Point the one handler for all keys at another model."""
        if self.unkeyed is not None:
            self.unkeyed.update_model_path(model_path)
        elif model_path is not None:
            raise InvalidSetting(
                f"update_model_path({model_path!r}): which key is meant? Use update_model_paths, or a deployment's "
                "update_models, with KeyModelPathMapping(keys, path)."
            )

    # ---- what the kit and Beam ask -----------------------------------------------------------

    @property
    def handlers(self) -> list[Any]:
        """The handlers inside, as far as they are known."""
        return [self.unkeyed] if self.routes is None else self.routes.handlers

    @property
    def model_id(self) -> str | None:
        """Path or name of the one model, None with models by key."""
        return getattr(self.unkeyed, "model_id", None)

    @property
    def thread_safe(self) -> bool:  # type: ignore[override]
        """With models by key, each of them is guarded on its own."""
        return self.unkeyed is None or bool(getattr(self.unkeyed, "thread_safe", True))

    @property
    def preload(self) -> Sequence[str]:  # type: ignore[override]
        """Modules that the handlers inside need."""
        return list(dict.fromkeys(name for handler in self.handlers for name in getattr(handler, "preload", ())))

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Bytes of the keys, and of the examples as their handlers count them."""
        found: dict[int, tuple[Any, list[Any]]] = {}
        keys = 0
        for pair in batch:
            key, example = pair if isinstance(pair, tuple) else (None, pair)  # of those that may come without keys
            keys += 0 if key is None else num_bytes(key)
            handler = self.unkeyed if self.routes is None else self.routes.of(key).handler
            found.setdefault(id(handler), (handler, []))[1].append(example)
        return keys + sum(int(handler.get_num_bytes(examples)) for handler, examples in found.values())

    def estimate_model_bytes(self) -> int | None:
        """Bytes of the one model; None with models by key, which the manager counts."""
        estimate = getattr(self.unkeyed, "estimate_model_bytes", None)
        return None if estimate is None else estimate()

    def get_metrics_namespace(self) -> str:
        """The one handler's, or a name for all."""
        return "KeyedModels" if self.unkeyed is None else str(self.unkeyed.get_metrics_namespace())

    def get_resource_hints(self) -> dict[str, Any]:
        """The one handler's."""
        return {} if self.unkeyed is None else dict(self.unkeyed.get_resource_hints())

    def batch_elements_kwargs(self) -> dict[str, Any]:
        """The one handler's, with functions that look at the example of a pair. Models by key batch for themselves."""
        return {} if self.unkeyed is None else _of_pairs(self.unkeyed.batch_elements_kwargs())

    def batching_options(self) -> dict[str, Any]:
        """The one handler's, with functions that look at the example of a pair. Models by key batch for themselves."""
        return {} if self.unkeyed is None else _of_pairs(self._inner_options())

    def _inner_options(self) -> dict[str, Any]:
        handler: Any = self.unkeyed
        # What its own pre-processing makes of an example isn't known yet.
        sizes_only = bool(handler.get_preprocess_fns())
        found = batching.options_of(handler)
        return {name: of for name, of in found.items() if not (sizes_only and (callable(of) or "batch_" in name))}

    def validate_inference_args(self, inference_args: Mapping[str, Any] | None) -> None:
        """Ask every handler that is known."""
        for handler in self.handlers:
            handler.validate_inference_args(inference_args)

    def set_environment_vars(self) -> None:
        """Those of the one handler; with models by key each handler's are set before its model is loaded."""
        if self.unkeyed is not None:
            self.unkeyed.set_environment_vars()

    def share_model_across_processes(self) -> bool:
        """True with ``large_model=True`` here or in a handler inside."""
        return self._large_model or any(handler.share_model_across_processes() for handler in self.handlers)

    def should_garbage_collect_on_timeout(self) -> bool:
        """The one handler's; of models by key the others would go, too."""
        return self.unkeyed is not None and bool(self.unkeyed.should_garbage_collect_on_timeout())


class MaybeKeyedModelHandler(KeyedModelHandler):
    """Takes (key, example) or examples without keys; predictions have keys where their examples had.

    All examples of a request must have keys, or none of them; where functions before inference are added to this
    handler, a deployment takes both. An example that is itself a tuple of two can't be told from a pair with a key.

    Args:
        unkeyed: one handler for all.
    """

    maybe = True

    def __init__(self, unkeyed: Any) -> None:
        if not hasattr(unkeyed, "load_model"):
            raise InvalidSetting(f"MaybeKeyedModelHandler({short(unkeyed)}): give one handler for all examples.")
        super().__init__(unkeyed)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        """Predictions, with keys where the examples have them: in a deployment requests of both kinds share batches."""
        paired = [isinstance(example, tuple) for example in batch]
        if all(paired):
            return super().run_inference(batch, model, inference_args)
        examples = [example[1] if pair else example for example, pair in zip(batch, paired, strict=True)]
        values = self._run_one(examples, model, inference_args)
        return [
            (example[0], value) if pair else value for example, value, pair in zip(batch, values, paired, strict=True)
        ]


def _of_pairs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _of_pair(value) if callable(value) else value for name, value in kwargs.items()}


def _of_pair(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # Of a handler for examples that may have no key, too.
    return lambda pair: function(pair[1] if isinstance(pair, tuple) and len(pair) == 2 else pair)
