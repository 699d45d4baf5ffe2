"""Whether this machine can serve, something is a model handler, and an argument is of the kind that it must be."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kit import errors
from kit.shorten import counted, shorten


def check_platform() -> None:
    """Raise UnsupportedPlatform on Windows."""
    import sys

    if sys.platform == "win32":
        raise errors.UnsupportedPlatform(
            "kit needs fork and Unix sockets, which Windows doesn't have: run it in WSL (wsl --install)."
        )


def check_handler(handler: Any, where: str = "") -> Any:
    """The handler to serve: the one given, or the kit's form of it.

    Raises:
        InvalidSetting: it isn't a model handler; `where` it was given goes in front of the message.
    """
    where = f"{where}: " if where else ""
    if isinstance(handler, type):
        raise errors.InvalidSetting(
            f"{where}{handler.__name__} is a class: make an object of it, {handler.__name__}(...)."
        )
    if type(handler).__name__ == "RunInference":  # the kit's or Beam's
        raise errors.InvalidSetting(
            f"{where}this is a RunInference, which runs a handler on examples: pass the handler itself, the one given "
            "to RunInference(handler)."
        )
    missing = [name for name in ("load_model", "run_inference") if not hasattr(handler, name)]
    if missing:
        raise errors.InvalidSetting(
            f"{where}{handler!r} isn't a model handler: it has no {' and no '.join(missing)}. Derive a class from "
            "kit.ModelHandler, or use kit.ModelHandler.from_callable(load, run)."
        )
    if not hasattr(handler, "get_preprocess_fns"):
        name = type(handler).__name__
        raise errors.InvalidSetting(
            f"{where}{name} has load_model and run_inference but isn't derived from kit.ModelHandler (or Beam's "
            f"ModelHandler); write `class {name}(kit.ModelHandler):`."
        )
    _check_signatures(handler, where)
    import kit

    return kit._in_our_form(handler)


def _check_signatures(handler: Any, where: str) -> None:
    for name, written, arguments in (
        ("load_model", "load_model(self)", ()),
        ("run_inference", "run_inference(self, batch, model, inference_args=None)", (None, None, None)),
    ):
        try:
            signature = inspect.signature(getattr(handler, name))
        except (TypeError, ValueError):  # of something compiled
            continue
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise errors.InvalidSetting(
                f"{where}{type(handler).__name__}.{name}{signature} can't be called as Beam does ({error}); "
                f"write `def {written}:`."
            ) from None


def takes_paths(handler: Any) -> bool:
    """Whether the handler has an ``update_model_path`` of its own: without, nothing would change."""
    # Beam's wrappers have one of theirs, which asks the handler within.
    return bool(type(handler).update_model_path.__qualname__ != "ModelHandler.update_model_path")


def check_takes_paths(handler: Any, path: Any) -> None:
    """Raise InvalidSetting for a path to a model whose handler takes none."""
    if hasattr(type(handler), "update_model_path"):
        name, takes = type(handler).__name__, takes_paths(handler)
    else:  # that of a named deployment isn't here
        name, takes = handler.type_name, handler.takes_paths
    if not takes:
        raise errors.InvalidSetting(
            f"update_model({str(path)!r}): {name} has no update_model_path(self, model_path=None), "
            "so its model doesn't come from a path. Write one, or give a new handler."
        )


def check_lines(lines: Any) -> None:
    """Raise InvalidSetting unless `lines` is None or a number of lines."""
    if lines is not None and (isinstance(lines, bool) or not isinstance(lines, int) or lines < 0):
        raise errors.InvalidSetting(f"lines={lines!r}: give a whole number of at least 0, or None for all.")


def list_of_predictions(handler: Any, returned: Any) -> list[Any]:
    """What ``run_inference`` returned as a list.

    Raises:
        TypeError: it is a single value, or a dict or DataFrame, whose keys would pass for predictions.
    """
    table = hasattr(returned, "iterrows")
    if table or isinstance(returned, (str, bytes, Mapping)) or not isinstance(returned, Iterable):
        what = "None" if returned is None else f"{shorten(repr(returned))} ({type(returned).__name__})"
        raise TypeError(
            f"{type(handler).__name__}.run_inference returned {what}: return a list, an array or a tensor with one "
            "prediction for each example, in their order."
        )
    return list(returned)


def check_prediction_count(handler: Any, values: Any, count: int) -> None:
    """Raise WrongPredictionCount unless ``run_inference`` returned `count` predictions."""
    if len(values) != count:
        raise errors.WrongPredictionCount(
            f"{type(handler).__name__}.run_inference returned {counted(len(values), 'prediction')} for a batch of "
            f"{counted(count, 'example')}: return exactly one for each example, in their order."
        )


def estimated_bytes(handler: Any) -> int | None:
    """What a handler's ``estimate_model_bytes`` says, None where it has none or can't tell.

    Raises:
        ModelLoadFailed: it raises, or returns something else than bytes.
    """
    estimate = getattr(handler, "estimate_model_bytes", None)
    if estimate is None:
        return None
    what = f"{type(handler).__name__}.estimate_model_bytes"
    try:
        found = estimate()
    except errors.KitError:
        raise
    except (Exception, SystemExit) as error:
        raise errors.ModelLoadFailed(f"{what} failed: {type(error).__name__}: {error}") from error
    return whole_bytes(what, found)


def whole_bytes(what: str, found: Any) -> int | None:
    """Bytes that `what` returned, as an int; None stays None.

    Raises:
        ModelLoadFailed: they can't be bytes.
    """
    if found is None:
        return None
    if not is_number(found) or not math.isfinite(found) or found < 0:
        raise errors.ModelLoadFailed(
            f"{what} returned {shorten(repr(found))} ({type(found).__name__}): return bytes as a number of at least 0, "
            "or None where they aren't known."
        )
    return int(found)


def check_positive(name: str, value: Any, what: str = "seconds") -> None:
    """Raise InvalidSetting unless `value` is None or a number above 0."""
    if value is not None and (not is_number(value) or not value > 0):
        raise errors.InvalidSetting(f"{name}={value!r}: give {what} above 0, or None.")


def check_whole(name: str, value: Any, *, needed: bool = False) -> None:
    """Raise InvalidSetting unless `value` is an int above 0; None is as good where it isn't `needed`."""
    if value is None and not needed:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        none = "" if needed else ", or None"
        raise errors.InvalidSetting(f"{name}={value!r}: give a whole number of at least 1{none}.")


def seconds(name: str, value: Any) -> float | None:
    """A finite number of seconds above 0; None stays None.

    Raises:
        InvalidSetting: it is none.
    """
    check_positive(name, value)
    if value == math.inf:
        raise errors.InvalidSetting(f"{name}={value!r}: give seconds above 0, or None.")
    return None if value is None else float(value)


def count(name: str, value: Any) -> int | None:
    """A whole number of at least 1, of whatever type, as an int; None stays None.

    Raises:
        InvalidSetting: it is none.
    """
    if value is None:
        return None
    whole = int(value) if is_number(value) and math.isfinite(value) else 0
    check_whole(name, whole if whole == value else value)
    return whole


def is_number(value: Any) -> bool:
    """Whether it is a real number, numpy's too, True and False not counted."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_function(name: str, value: Any, *, needed: bool = False) -> None:
    """Raise InvalidSetting unless `value` can be called; None is as good where it isn't `needed`."""
    if (needed or value is not None) and not callable(value):
        raise errors.InvalidSetting(f"{name}={value!r}: give a function.")


def check_mapping(name: str, value: Any) -> None:
    """Raise InvalidSetting unless `value` is None or a mapping whose keys are strings."""
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise errors.InvalidSetting(f"{name}={value!r}: give a dict with names as keys, or None.")


def check_request(
    batch_timeout: Any, on_progress: Callable[[int], None] | None, inference_args: Mapping[str, Any] | None
) -> None:
    """Raise InvalidSetting unless these are what `Deployment.submit` takes."""
    check_positive("batch_timeout", batch_timeout)
    check_function("on_progress", on_progress)
    check_mapping("inference_args", inference_args)
