"""Whether the arguments of a step can work, said when it is made and not when its pipeline runs."""

from __future__ import annotations

import math
from typing import Any

import apache_beam as beam
from apache_beam.utils.timestamp import Timestamp

from kit import checks, errors
from kit.daemon.durations import parse_seconds


def check_text(name: str, value: Any, what: str) -> None:
    """Raise InvalidSetting unless `value` is None or a text that isn't empty."""
    if value is not None and not (isinstance(value, str) and value):
        raise errors.InvalidSetting(f"{name}={value!r}: give {what} as text, or None.")


def check_source(pcoll: Any, pattern: Any, watching: dict[str, Any]) -> None:
    """Raise InvalidSetting unless at most one thing says which model it is, and that is of its kind.

    Args:
        watching: interval and stop_timestamp of the pattern, None for those that weren't given.
    """
    check_text("watch_model_pattern", pattern, 'a pattern of files, such as "gs://models/*.safetensors",')
    if pcoll is not None and not isinstance(pcoll, beam.PCollection):
        raise errors.InvalidSetting(
            f"model_metadata_pcoll={pcoll!r}: give a PCollection of ModelMetadata, such as WatchFilePattern makes."
        )
    if pattern is not None and pcoll is not None:
        raise errors.InvalidSetting(
            f"watch_model_pattern={pattern!r} and model_metadata_pcoll both name the model: give one."
        )
    for name, value in watching.items():
        if value is not None and pattern is None:
            raise errors.InvalidSetting(f"{name}={value!r} says how files are watched: give watch_model_pattern, too.")
    checks.seconds("interval", watching["interval"])
    stop = watching["stop_timestamp"]
    if not (stop is None or isinstance(stop, Timestamp) or (checks.is_number(stop) and math.isfinite(stop))):
        raise errors.InvalidSetting(
            f"stop_timestamp={stop!r}: give a Timestamp of Beam, or seconds since 1970, such as time.time() + 3600."
        )


def check_monitoring(transform: Any) -> None:
    """Raise InvalidSetting unless `transform` is None or can be a step."""
    if transform is not None and not isinstance(transform, beam.PTransform):
        raise errors.InvalidSetting(
            f"monitoring_transform={transform!r}: give a PTransform, such as beam.Map(function), or None."
        )


def check_step(namespace: Any, identifier: Any, keep_alive: Any, inference_args: Any) -> None:
    """Raise InvalidSetting unless these are what `RunInference` takes."""
    checks.check_mapping("inference_args", inference_args)
    check_text("metrics_namespace", namespace, "a name")
    check_text("model_identifier", identifier, "a name")
    parse_seconds(keep_alive)


def letters(exc_class: Any, use_subprocess: Any, threshold: Any, timeout: Any) -> dict[str, Any]:
    """The arguments of ``with_exception_handling`` by name.

    Raises:
        InvalidSetting: `exc_class` isn't of exceptions, `use_subprocess` no bool, `threshold` no share, or
            `timeout` no time.
    """
    classes = exc_class if isinstance(exc_class, tuple) else (exc_class,)
    if not classes or not all(isinstance(one, type) and issubclass(one, BaseException) for one in classes):
        raise errors.InvalidSetting(f"exc_class={exc_class!r}: give a class of exceptions, or a tuple of them.")
    if not isinstance(use_subprocess, bool):
        raise errors.InvalidSetting(f"use_subprocess={use_subprocess!r}: give True or False.")
    if not checks.is_number(threshold) or not 0 <= threshold <= 1:
        raise errors.InvalidSetting(f"threshold={threshold!r}: give the largest share of failures, from 0 to 1.")
    return {
        "exc_class": exc_class,
        "use_subprocess": use_subprocess,
        "threshold": threshold,
        "timeout": checks.seconds("timeout", timeout),
    }
