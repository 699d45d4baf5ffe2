"""What the step emits: results of Beam's classes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from apache_beam.ml.inference.base import PredictionResult

from kit.daemon.jobs import Unmade
from kit.handler import PredictionResult as OurResult

#: Several times as fast as calling the class.
_make_beams = partial(tuple.__new__, PredictionResult)


def as_beams(result: Any) -> Any:
    """A result with Beam's class of PredictionResult in place of ours."""
    if type(result) is OurResult:
        return _make_beams(result)
    if type(result) is tuple and len(result) == 2 and type(result[1]) is OurResult:
        return result[0], _make_beams(result[1])
    return result


def all_as_beams(results: list[Any] | Unmade) -> Iterable[Any]:
    """The same of many, which are often of one class."""
    if isinstance(results, Unmade):
        return results.made(_make_beams, as_beams)
    only_ours = set(map(type, results)) == {OurResult}
    return map(_make_beams if only_ours else as_beams, results)


def flat(result: Any) -> Iterable[Any]:
    """The results of an example that is a batch."""
    if type(result) is OurResult:
        batch, values, model_id = result
        return [PredictionResult(example, value, model_id) for example, value in zip(batch, values, strict=True)]
    return map(as_beams, result)
