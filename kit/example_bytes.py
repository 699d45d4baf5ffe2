"""The bytes of an example, as far as they can be told without pickling it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def num_bytes(example: Any) -> int:
    """``nbytes`` of an array, ``len`` of a text in UTF-8, the sum over a collection."""
    size = getattr(example, "nbytes", None)
    if size is not None:
        return int(size)
    if isinstance(example, str):
        return len(example.encode("utf-8", "surrogatepass"))
    if isinstance(example, (bytes, bytearray, memoryview)):
        return len(example)
    if isinstance(example, (int, float, bool)) or example is None:
        return 8
    if isinstance(example, Mapping):
        return sum(num_bytes(value) for value in example.values())
    if isinstance(example, (list, tuple)):
        return sum(num_bytes(value) for value in example)
    return sys.getsizeof(example)
