"""Lengths of texts in tokens, estimated from their characters so that sorting costs next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text_tokens(example: Any) -> int:
    """About how many tokens `example` has: a text, a chat (list of messages), or a dict with texts in it.

    Four bytes of UTF-8 are counted as a token, which fits English and is of the right order for
    scripts whose letters are tokens of their own. Anything else counts as 1.
    """
    if isinstance(example, str):
        # isascii() reads a flag, so only other scripts pay for being encoded.
        size = len(example) if example.isascii() else len(example.encode("utf-8", "surrogatepass"))
        return size // 4 + 2
    if isinstance(example, Mapping):
        return sum(text_tokens(value) for value in example.values() if isinstance(value, (str, list, Mapping))) or 1
    if isinstance(example, (list, tuple)):
        return sum(text_tokens(item) for item in example) or 1
    return 1
