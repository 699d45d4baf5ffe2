"""Deployments that only IPython still has: a cell that is run again leaves none of its earlier runs.

IPython keeps what a cell's last line gives in ``Out[n]``, ``_n``, ``_``, and in the result of the latest cell, and the
frames of the latest error. A deployment in one of these would go on, with its processes and its copies of the model.
"""

from __future__ import annotations

import gc
import sys
import traceback
import weakref
from typing import Any, NamedTuple

_shown: weakref.WeakSet[Any] = weakref.WeakSet()
_made: list[_Made] = []
_runs = 0  # cells that were run since the first deployment


class _Made(NamedTuple):
    """A deployment, the cell that made it, the number of what that run shows (``Out[n]``), and which run it was."""

    deployment: weakref.ref[Any]
    cell_id: str | None
    source: str
    output: int
    run: int


def made(deployment: Any) -> None:
    """Let a deployment of an unnamed kind go when its cell is run again, if nobody but IPython has it then."""
    shell = _shell()
    if shell is None:
        return
    _listen(shell)
    parent: Any = getattr(shell, "get_parent", dict)() or {}
    sources = [""] if shell.history_manager is None else shell.history_manager.input_hist_raw
    cell_id = (parent.get("metadata") or {}).get("cellId")
    _made.append(_Made(weakref.ref(deployment), cell_id, sources[-1].strip(), len(sources) - 1, _runs))


def note(deployment: Any) -> None:
    """Make IPython's own references to `deployment` weak after this cell, if a variable of the user's has it too."""
    shell = _shell()
    if shell is not None:
        _listen(shell)
        _shown.add(deployment)


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _listen(shell: Any) -> None:
    for event, function in (("pre_run_cell", _let_go_before), ("post_run_cell", _let_go_after)):
        if function not in shell.events.callbacks[event]:
            shell.events.register(event, function)


def _let_go_before(info: Any) -> None:
    global _runs
    _runs += 1
    _let_go(info)


def _let_go_after(result: Any) -> None:
    _loosen(result)
    _let_go(result.info)  # what the cell has just bound to another deployment is free only now


def _let_go(info: Any) -> None:
    """Drop what IPython has of earlier runs of this cell, where no variable of the user's has their deployment."""
    shell = _shell()
    _made[:] = [one for one in _made if one.deployment() is not None]
    source = (info.raw_cell or "").strip()  # IPython's history has it without blank lines around it
    for one in _made:
        same = one.cell_id == info.cell_id if one.cell_id and info.cell_id else one.source == source
        if same and one.run < _runs and not _has(shell, one.deployment()):
            _forget_output(shell, one.output)
            _forget_error(one.deployment)
            if one.deployment() is not None:
                gc.collect()  # an error and its frames are a cycle


def _has(shell: Any, deployment: Any) -> bool:
    """Whether a variable of the user's is this deployment."""
    return any(value is deployment for name, value in list(shell.user_ns.items()) if not name.startswith("_"))


def _forget_output(shell: Any, number: int) -> None:
    outputs = shell.user_ns.get("_oh", {})
    if number not in outputs:
        return
    value = outputs.pop(number)
    _replace(shell, value, None)
    last = getattr(shell, "last_execution_result", None)
    if last is not None and last.result is value:
        last.result = None


def _replace(shell: Any, value: Any, by: Any, *more: dict[Any, Any]) -> None:
    """Put something else where IPython has a value under names of its own, and in `more`."""
    for holder in (shell.user_ns, shell.user_ns_hidden, vars(shell.displayhook), *more):
        for name, found in list(holder.items()):
            if found is value and (holder is not shell.user_ns or name.startswith("_")):
                holder[name] = by


def _forget_error(deployment: weakref.ref[Any]) -> None:
    """Clear the frames of the latest error, if one of them has the deployment."""
    found = getattr(sys, "last_traceback", None)
    frames = [frame for frame, _ in traceback.walk_tb(found)]
    if any(value is deployment() for frame in frames for value in frame.f_locals.values()):
        traceback.clear_frames(found)


def _loosen(result: Any) -> None:
    shell = _shell()
    for deployment in list(_shown):
        if not _has(shell, deployment):
            continue  # Out is all that has it
        _shown.discard(deployment)
        weak = weakref.proxy(deployment)
        _replace(shell, deployment, weak, shell.user_ns.get("_oh", {}))
        if result.result is deployment:
            result.result = weak
