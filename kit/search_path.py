"""Where this process finds modules, for the processes that it starts."""

from __future__ import annotations

import os
import sys


def entries() -> list[str]:
    """The entries of sys.path that Python heeds, which are texts, with the empty one made absolute."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        folder = "/"
    texts = (str(entry) for entry in sys.path if isinstance(entry, str))
    return [entry if entry else folder for entry in texts if "\0" not in entry]
