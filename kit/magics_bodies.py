"""Cells that are a ``%%infer`` line and nothing else.

IPython doesn't call a cell magic without a body: it says that the body is empty and asks whether the line magic was
meant. So neither would ``%%infer --help`` show the help, nor ``%%infer NAME`` say what goes into the body.
"""

from __future__ import annotations

import re
from typing import Any

_FIRST = re.compile(r"%%infer(\s|$)")


def with_body(lines: list[str]) -> list[str]:
    """Give such a cell an empty line for its body."""
    return [*lines, "\n"] if len(lines) == 1 and _FIRST.match(lines[0]) else lines


#: IPython leaves it out where it asks whether a cell is complete: in a terminal the body is still to be typed.
with_body.has_side_effects = True  # type: ignore[attr-defined]


def install(shell: Any) -> None:
    """Have IPython do so with each cell; again takes the place of before."""
    transforms = shell.input_transformers_cleanup
    transforms[:] = [known for known in transforms if getattr(known, "__module__", None) != __name__]
    transforms.append(with_body)
