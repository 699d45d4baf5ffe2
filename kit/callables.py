"""A model handler made of two functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kit.errors import InvalidSetting
from kit.handler import ModelHandler


class CallableModelHandler(ModelHandler):
    """A handler made of two functions; see `ModelHandler.from_callable`."""

    #: What users write to make one.
    _written = "ModelHandler.from_callable"

    def __init__(self, load: Callable[[], Any], run: Callable[..., Iterable[Any]], **options: Any) -> None:
        super().__init__(**options)
        for name, value in (("load", load), ("run", run)):
            if not callable(value):
                raise InvalidSetting(f"from_callable({name}={value!r}): give a function.")
        if not _takes(load):
            raise InvalidSetting(f"from_callable(load={load!r}): it needs to be a function of no arguments.")
        by_name = _takes_by_name(run)
        if not (_takes(run, None, None) or _takes(run, None, None, None) or by_name):
            raise InvalidSetting(
                f"from_callable(run={run!r}): it needs to be a function of (batch, model), or of (batch, model, "
                "inference_args)."
            )
        self._load = load
        self._run = run
        #: How inference arguments are passed on: "by name", "third", or "" for not at all.
        self._takes_args = "by name" if by_name else "third" if _takes_three(run) else ""

    def load_model(self) -> Any:
        return self._load()

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[Any]:
        if self._takes_args == "by name":
            return self._run(batch, model, inference_args=inference_args)
        if self._takes_args:
            return self._run(batch, model, inference_args)
        return self._run(batch, model)

    def validate_inference_args(self, inference_args: Mapping[str, Any] | None) -> None:
        if inference_args and not self._takes_args:
            raise InvalidSetting(
                f"inference_args={dict(inference_args)!r} can't be passed on: the run function takes "
                f"{_parameters(self._run)} only. Give it a third parameter, inference_args=None."
            )

    def get_metrics_namespace(self) -> str:
        return getattr(self._run, "__name__", "callable")


def _takes(function: Callable[..., Any], *arguments: Any, **named: Any) -> bool:
    """Whether a function can be called so; True of one that doesn't tell."""
    import inspect

    try:
        inspect.signature(function).bind(*arguments, **named)
    except ValueError:
        return True
    except TypeError:
        return False
    return True


def _takes_by_name(function: Callable[..., Any]) -> bool:
    """Whether a function takes the inference arguments as the keyword ``inference_args``, and can't take them third."""
    import inspect

    try:
        parameter = inspect.signature(function).parameters.get("inference_args")
    except (TypeError, ValueError):
        return False
    return (
        parameter is not None
        and parameter.kind is parameter.KEYWORD_ONLY
        and _takes(function, None, None, inference_args=None)
    )


def _parameters(function: Callable[..., Any]) -> str:
    import inspect

    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(batch, model)"


def _takes_three(function: Callable[..., Any]) -> bool:
    import inspect

    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 3 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
