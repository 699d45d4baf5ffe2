"""The value of an expression that a magic was given."""

from __future__ import annotations

import ast
import re
from typing import Any

from IPython.core.error import UsageError

from kit.shorten import shorten

_WHERE = re.compile(r" \(detected at line \d+\)$")


def value_of(shell: Any, magic: str, text: str, first_line: int = 1) -> Any:
    """The value of an expression of the notebook's.

    Args:
        first_line: number of the text's first line in the cell.

    Raises:
        UsageError: it isn't one, or a name in it isn't defined.
    """
    expression = text.strip()
    above = first_line - 1 + text[: text.index(expression)].count("\n")
    source = "\n" * above + expression
    # Under a name that IPython shows the lines of, as those of a cell.
    name = shell.compile.cache(source, shell.execution_count)
    try:
        code = compile(source, name, "eval")
    except SyntaxError as error:
        raise UsageError(f"{magic}: {shorten(expression)} {_wrong(expression, error)}") from error
    try:
        return shell.ev(code)
    except NameError as error:
        if error.name is None or error.name not in code.co_names:
            raise  # of a function that the expression calls
        raise UsageError(f"{magic}: {error}") from error


def _wrong(expression: str, error: SyntaxError) -> str:
    try:
        statements = ast.parse(expression).body
    except SyntaxError:
        message = str(error.msg)
        if "\n" in expression:
            return f"isn't a Python expression: {_WHERE.sub('', message)} (line {error.lineno} of the cell)"
        return f"isn't a Python expression: {_WHERE.sub('', message)}"
    if len(statements) > 1:
        return f"is {len(statements)} statements; give one expression, such as a list"
    return "is a statement; give an expression, such as a list"
