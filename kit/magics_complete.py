"""Completion for the magics: names, modes, options and variables, and nothing that doesn't fit there.

IPython's own way, a hook, adds whatever Python's completion finds: after ``--`` all built-in functions come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from kit import errors
from kit.magics_args import Parser, options_of
from kit.settings import MODES

IDENTIFIER = "kit"


def install(shell: Any, parsers: Mapping[str, Parser]) -> None:
    """Complete the arguments of the magics whose parsers these are; again takes the place of before."""

    @context_matcher(identifier=IDENTIFIER)
    def complete(context: CompletionContext) -> SimpleMatcherResult:
        magic = _magic_of(context, parsers)
        if magic is None:
            return SimpleMatcherResult(completions=[], suppress=False)  # a new one: IPython writes into it
        found = matches(shell, parsers[magic], magic, context.text_until_cursor, context.token)
        fitting = [SimpleCompletion(text) for text in found if text.startswith(context.token)]
        return SimpleMatcherResult(completions=fitting, suppress=bool(fitting), ordered=True)

    matchers = shell.Completer.custom_matchers
    matchers[:] = [known for known in matchers if getattr(known, "matcher_identifier", None) != IDENTIFIER]
    matchers.append(complete)


def _magic_of(context: CompletionContext, parsers: Mapping[str, Any]) -> str | None:
    """The magic on whose line the cursor is, behind its name."""
    word, space, _ = context.text_until_cursor.lstrip().partition(" ")
    magic = word.lstrip("%")
    ours = magic in parsers and word in (f"%{magic}", f"%%{magic}")
    first = not word.startswith("%%") or context.cursor_line == 0
    return magic if ours and space and first else None


def matches(shell: Any, parser: Parser, magic: str, line: str, here: str) -> list[str]:
    """What may stand where the cursor is.

    Args:
        line: up to the cursor.
        here: the word before the cursor, or the part of it that is completed.
    """
    words = line.split()[1:]
    before = words[:-1] if here and words else words
    if before and before[-1] == "--mode":
        return list(MODES)
    if here.startswith("-"):
        return list(options_of(parser))
    if magic == "serve":
        if before and before[-1] == "--name":
            return names()
        # On the line of a magic IPython itself completes attributes only.
        return list(shell.Completer.global_matches(here)) if here and "." not in here else []
    positional = [word for word in before if not word.startswith("-")]
    if magic == "switch" and not positional:
        return list(MODES)
    return names()


def names() -> list[str]:
    """Names of deployments; none where they can't be told."""
    from kit.daemon import client

    try:
        return client.names()
    except errors.KitError:
        return []
