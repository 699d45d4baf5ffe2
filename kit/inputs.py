"""What may stand on the left of ``| RunInference(...)``, and how its examples are reached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from kit.checks import check_positive
from kit.errors import UnsupportedInput
from kit.shorten import shorten

BEAM_TRANSFORM = "kit.beam.RunInference(handler)"


def sized(examples: Any) -> Any:
    """Examples that are all there, as a list or Rows; None for those that come one by one.

    A numpy array or tensor gives its rows, a Series its values, a DataFrame its rows as DataFrames of
    one row.

    Raises:
        UnsupportedInput: a bare string, bytes, dict, set, scalar or PCollection, with advice.
    """
    if type(examples) is list:
        return examples
    _refuse(examples)
    module = type(examples).__module__.partition(".")[0]
    if module in ("numpy", "torch") and hasattr(examples, "shape"):
        return _rows(examples)
    if module == "pandas":
        return _pandas(examples)
    if isinstance(examples, Iterator) or not isinstance(examples, Sized):
        return None
    from kit.engine.codec import Rows

    return examples if isinstance(examples, Rows) else list(examples)  # type: ignore[call-overload]


def sample_rows(sample: Any) -> list[Any]:
    """The first few examples of a sample, [] for None."""
    rows = [] if sample is None else sized(sample)
    if rows is None:
        raise UnsupportedInput("sample: give a list of examples, not an iterator.")
    return list(rows)[:64]


def sized_rows(examples: Any, deadline: float | None) -> Any:
    """The checked examples of a `submit`, as a list or Rows."""
    check_positive("deadline", deadline)
    rows = sized(examples)
    if rows is None:
        raise UnsupportedInput(
            "examples that come one by one go through `examples | RunInference(deployment)`; submit and predict "
            "take lists, arrays and tables."
        )
    return rows


def _rows(block: Any) -> Any:
    from kit.engine.codec import Rows

    if len(block.shape) == 0:
        raise UnsupportedInput(f"{block!r} is a single number; give a list of examples, such as [{block!r}].")
    if getattr(block, "dtype", None) is not None and getattr(block.dtype, "hasobject", False):
        return list(block)
    if len(block.shape) == 1 and type(block).__module__.startswith("numpy"):
        return list(block)
    if type(block).__module__.startswith("numpy"):
        # A masked array or another subclass would lose what it has beyond numbers.
        return Rows(block) if type(block).__name__ in ("ndarray", "memmap") else list(block)
    if block.is_sparse or block.is_quantized:
        return list(block)
    return Rows(block.detach())


def _pandas(data: Any) -> Any:
    if hasattr(data, "columns"):
        return [data.iloc[at : at + 1] for at in range(len(data))]
    return data.tolist()


def _refuse(examples: Any) -> None:
    if isinstance(examples, str):
        text = shorten(repr(examples), end=repr(examples)[-1])
        raise UnsupportedInput(f"{text} is one string, not a list of them; write [{text}].")
    if isinstance(examples, (bytes, bytearray, memoryview)):
        raise UnsupportedInput("a bytes object is one example, not a list of them; put it into a list.")
    if isinstance(examples, Mapping):
        raise UnsupportedInput(
            "a dict has no order of examples: give a list of dicts, one for each example, or list(d.values())."
        )
    if isinstance(examples, (set, frozenset)):
        raise UnsupportedInput("a set has no order, so predictions couldn't be matched: give sorted(...) or a list.")
    kind = type(examples)
    if kind.__module__.startswith("apache_beam"):
        raise UnsupportedInput(
            f"a {kind.__name__} belongs to a Beam pipeline: use {BEAM_TRANSFORM} there, with the same handler; "
            "kit.RunInference works on lists, iterators, arrays and tables."
        )
    if kind.__module__.partition(".")[0] in ("polars", "pyarrow") and hasattr(examples, "to_pandas"):
        raise UnsupportedInput(
            f"a {kind.__module__.partition('.')[0]} {kind.__name__} isn't known here: give .to_pandas() for a table, "
            "or .to_list() for a column."
        )
    if not isinstance(examples, Iterable) and not hasattr(examples, "__getitem__"):
        raise UnsupportedInput(f"{shorten(examples)} isn't a collection of examples; put it into a list.")
