"""Deployments that a notebook showed: its ``Out`` must not be what keeps one of them alive.

IPython keeps whatever a cell's last line shows in ``Out[n]``, ``_n``, ``_``, and the result of the latest cell. Running
such a cell again would leave the deployment before, with its processes and its copies of the model.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

_shown: weakref.WeakSet[Any] = weakref.WeakSet()


def note(deployment: Any) -> None:
    """Make IPython's own references to `deployment` weak after this cell, if a variable of the user's has it too."""
    shell = _shell()
    if shell is None:
        return
    if _loosen not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", _loosen)
    _shown.add(deployment)


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _loosen(result: Any) -> None:
    shell = _shell()
    names = shell.user_ns
    for deployment in list(_shown):
        if not any(value is deployment for name, value in list(names.items()) if not name.startswith("_")):
            continue  # Out is all that has it
        _shown.discard(deployment)
        weak = weakref.proxy(deployment)
        for holder in (names, names.get("_oh", {}), shell.user_ns_hidden, vars(shell.displayhook)):
            for name, value in list(holder.items()):
                if value is deployment and (holder is not names or name.startswith("_")):
                    holder[name] = weak
        if result.result is deployment:
            result.result = weak
