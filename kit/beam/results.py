"""What the step emits: results of Beam's classes, each with the window and timestamp of its element."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from apache_beam.ml.inference.base import PredictionResult
from apache_beam.utils.windowed_value import WindowedValue

from kit.beam.window import Place
from kit.handler import PredictionResult as OurResult


def as_beams(result: Any) -> Any:
    """A result with Beam's class of PredictionResult in place of ours."""
    if type(result) is OurResult:
        return PredictionResult(*result)
    if type(result) is tuple and len(result) == 2 and type(result[1]) is OurResult:
        return result[0], PredictionResult(*result[1])
    return result


def flat(result: Any) -> Iterable[Any]:
    """The results of an example that is a batch."""
    if type(result) is OurResult:
        batch, values, model_id = result
        return [PredictionResult(example, value, model_id) for example, value in zip(batch, values, strict=True)]
    return map(as_beams, result)


def at(place: Place, value: Any) -> WindowedValue:
    """A value where an element belongs."""
    return WindowedValue(value, place.timestamp, (place.window,))
