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
#: The beginning of a value right behind its option.
_ASSIGNED = re.compile(r"(?:^|\s)(--[\w-]+)=\S*$")
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
    assigned = _ASSIGNED.search(rest)
    option = assigned[1] if assigned else before[-1] if before else ""
    if option in options_of(parser, with_value=True) and not here.startswith("-"):
        return values(shell, option)
    if here.startswith("-"):
        return list(options_of(parser))
    if magic == "serve":
        # On the line of a magic IPython itself completes attributes only.
        return list(shell.Completer.global_matches(here)) if here and "." not in here else []
    if magic == "switch":
        return [*(() if any(word in MODES for word in before) else MODES), *names()]
    return names()


def values(shell: Any, option: str) -> list[str]:
    """What the value of an option may be; where anything may be, examples that show its form."""
    if option == "--mode":
        return list(MODES)
    if option == "--name":
        return names()
    if option == "--into":
        return sorted(name for name in shell.user_ns if not name.startswith("_") and name not in shell.user_ns_hidden)
    return {"--keep-alive": ["30m", "2h", "1d"], "--budget": ["1GiB", "4GiB"]}.get(option, ["1", "2", "4"])


def names() -> list[str]:
    """Names of deployments; none where they can't be told."""
    from kit.daemon import client

    try:
        return client.names()
    except errors.KitError:
        return []
