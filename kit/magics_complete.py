"""Completion for the magics: names, modes, options and variables, and nothing that doesn't fit there.

IPython's own way, a hook, adds whatever Python's completion finds: after ``--`` all built-in functions come first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from kit import errors
from kit.magics_args import Parser, options_of
from kit.settings import MODES

IDENTIFIER = "kit"
#: The line of a magic, whose value may be assigned to a variable.
_LINE = re.compile(r"(?:^|=)\s*(?P<sign>%%?)(?P<magic>\w+)\s(?P<rest>.*)$", re.DOTALL)


def install(shell: Any, parsers: Mapping[str, Parser]) -> None:
    """Complete the arguments of the magics whose parsers these are; again takes the place of before."""

    @context_matcher(identifier=IDENTIFIER)
    def complete(context: CompletionContext) -> SimpleMatcherResult:
        found = _LINE.search(context.text_until_cursor)
        ours = found is not None and found["magic"] in parsers
        if found is None or not ours or (found["sign"] == "%%" and context.cursor_line):
            return SimpleMatcherResult(completions=[], suppress=False)  # a new one: IPython writes into it
        texts = matches(shell, parsers[found["magic"]], found["magic"], found["rest"], context.token)
        fitting = [SimpleCompletion(text) for text in texts if text.startswith(context.token)]
        return SimpleMatcherResult(completions=fitting, suppress=bool(fitting), ordered=True)

    matchers = shell.Completer.custom_matchers
    matchers[:] = [known for known in matchers if getattr(known, "matcher_identifier", None) != IDENTIFIER]
    matchers.append(complete)


def matches(shell: Any, parser: Parser, magic: str, rest: str, here: str) -> list[str]:
    """What may stand where the cursor is.

    Args:
        rest: of the line, between the magic and the cursor.
        here: the word before the cursor, or the part of it that is completed.
    """
    words = rest.split()
    before = words[:-1] if here and words else words
    option = before[-1:] == ["--mode"] or re.search(r"(?:^|\s)--mode=\S*$", rest)
    if option and not here.startswith("-"):
        return list(MODES)
    if here.startswith("-"):
        return list(options_of(parser))
    if magic == "serve":
        if before and before[-1] == "--name":
            return names()
        # On the line of a magic IPython itself completes attributes only.
        return list(shell.Completer.global_matches(here)) if here and "." not in here else []
    if before and before[-1] in options_of(parser, with_value=True):
        return []  # its value
    if magic == "switch":
        return [*(() if any(word in MODES for word in before) else MODES), *names()]
    return names()


def names() -> list[str]:
    """Names of deployments; none where they can't be told."""
    from kit.daemon import client

    try:
        return client.names()
    except errors.KitError:
        return []
