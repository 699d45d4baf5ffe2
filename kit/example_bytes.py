"""The bytes of an example, as far as they can be told without pickling it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

#: Collections within collections that are looked into. What is deeper may be a circle.
DEPTH = 64


class _TooDeep(Exception):
    pass


def num_bytes(example: Any) -> int:
    """``nbytes`` of an array, ``len`` of a text in UTF-8, the sum over a collection; of one that is nested too deep
    what Python gives for its outermost object."""
    try:
        return _num_bytes(example, DEPTH)
    except _TooDeep:
        return sys.getsizeof(example)


def _num_bytes(example: Any, depth: int) -> int:
    try:
        size = getattr(example, "nbytes", None)
    except RuntimeError:  # a sparse tensor
        size = None
    if size is not None:
        return int(size)
    if isinstance(example, str):
        return len(example.encode("utf-8", "surrogatepass"))
    if isinstance(example, (bytes, bytearray, memoryview)):
        return len(example)
    if isinstance(example, (int, float, bool)) or example is None:
        return 8
    if isinstance(example, (Mapping, list, tuple)):
        if not depth:
            raise _TooDeep
        values = example.values() if isinstance(example, Mapping) else example
        return sum(_num_bytes(value, depth - 1) for value in values)
    return sys.getsizeof(example)
