"""Values and counts as words, for messages and tables."""

from __future__ import annotations

from typing import Any


def shorten(value: Any, most: int = 60, end: str = "") -> str:
    """The repr of a value, or a text as it is, on one line of at most `most` letters; `end` closes one that was cut."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3 - len(end)] + "..." + end


def counted(count: int, noun: str) -> str:
    """A count and its noun, such as "1 example" or "3,000 examples"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
