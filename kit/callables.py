"""A model handler made of two functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kit.errors import InvalidSetting
from kit.handler import ModelHandler


class CallableModelHandler(ModelHandler):
    """A handler made of two functions; see `ModelHandler.from_callable`."""

    def __init__(self, load: Callable[[], Any], run: Callable[..., Iterable[Any]], **options: Any) -> None:
        super().__init__(**options)
        for name, value in (("load", load), ("run", run)):
            if not callable(value):
                raise InvalidSetting(f"from_callable({name}={value!r}): give a function.")
        if not _takes(load):
            raise InvalidSetting(f"from_callable(load={load!r}): it needs to be a function of no arguments.")
        if not _takes(run, None, None) and not _takes(run, None, None, None):
            raise InvalidSetting(
                f"from_callable(run={run!r}): it needs to be a function of (batch, model), or of (batch, model, "
                "inference_args)."
            )
        self._load = load
        self._run = run
        self._takes_args = _takes_three(run)

    def load_model(self) -> Any:
        return self._load()

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        if self._takes_args:
            return self._run(batch, model, inference_args)
        return self._run(batch, model)

    def validate_inference_args(self, inference_args: Mapping[str, Any] | None) -> None:
        if inference_args and not self._takes_args:
            raise InvalidSetting(
                f"inference_args={dict(inference_args)!r} can't be passed on: the run function takes "
                "(batch, model) only. Give it a third parameter."
            )

    def get_metrics_namespace(self) -> str:
        return getattr(self._run, "__name__", "callable")


def _takes(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function can be called so; True of one that doesn't tell."""
    import inspect

    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:
        return True
    except TypeError:
        return False
    return True


def _takes_three(function: Callable[..., Any]) -> bool:
    import inspect

    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 3 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
