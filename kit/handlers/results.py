"""From what a model returns for a batch to one inference for each example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from kit.errors import WrongPredictionCount
from kit.handler import PredictionResult
from kit.shorten import counted

# PredictionResult(...) runs a Python function for each example; this doesn't.
_make: Any = partial(tuple.__new__, PredictionResult)


def wrap(batch: Sequence[Any], inferences: Any, model_id: str | None) -> list[PredictionResult]:
    """A PredictionResult for each example; `inferences` is a list, an array or a tensor [n, ...].

    Raises:
        WrongPredictionCount: not one inference for each example.
    """
    if len(inferences) != len(batch):
        raise WrongPredictionCount(
            f"The model returned {counted(len(inferences), 'prediction')} for a batch of "
            f"{counted(len(batch), 'example')}."
        )
    unbind = getattr(inferences, "unbind", None)
    rows = inferences if unbind is None else unbind(0)
    return list(map(_make, zip(batch, rows, repeat(model_id))))


def bare(results: Iterable[Any]) -> list[Any]:
    """The inferences of results that may or may not be PredictionResults (ours or Beam's)."""
    return [getattr(result, "inference", result) for result in results]


def per_example(output: Any, count: int) -> Any:
    """A model's output for `count` examples, on the CPU, as a tensor or array [count, ...] or a list.

    A mapping becomes a list of dicts, as in Beam. In a mapping, and at the top, a tuple of tensors
    (as the layers of ``hidden_states``) becomes a tuple for each example. Key-value caches of a
    mapping can't be split by example and are left out.

    Raises:
        WrongPredictionCount: an output's first dimension or length isn't `count`.
    """
    if hasattr(output, "unbind"):
        if output.ndim == 0 or output.shape[0] != count:
            raise _wrong(f"a tensor of shape {list(output.shape)}", count)
        return output if output.device.type == "cpu" else output.cpu()
    if isinstance(output, Mapping):
        names = [name for name, value in output.items() if _splits(value)]
        columns = [_column(output[name], count, f"{name!r}: ") for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(output, tuple):
        return _column(output, count, "")
    if isinstance(output, list):
        if len(output) != count:
            raise _wrong(f"a list of {len(output)}", count)
        return [value.cpu() if hasattr(value, "unbind") else value for value in output]
    return output if hasattr(output, "__len__") else list(output)


def _splits(value: Any) -> bool:
    return hasattr(value, "unbind") or isinstance(value, (list, tuple, Mapping)) or hasattr(value, "dtype")


def _column(value: Any, count: int, where: str) -> Any:
    """One entry for each example, of a value that holds all of them."""
    if hasattr(value, "unbind"):
        if value.ndim == 0 or value.shape[0] != count:
            raise _wrong(f"{where}a tensor of shape {list(value.shape)}", count)
        return list(value.cpu().unbind(0))
    if isinstance(value, tuple) and value and all(hasattr(part, "unbind") or isinstance(part, tuple) for part in value):
        return list(zip(*(_column(part, count, where) for part in value), strict=True))
    if isinstance(value, Mapping):
        return per_example(value, count)
    if len(value) != count:
        raise _wrong(f"{where}{type(value).__name__} of {len(value)}", count)
    return list(value)


def _wrong(what: str, count: int) -> WrongPredictionCount:
    return WrongPredictionCount(f"The model returned {what} for a batch of {counted(count, 'example')}.")
