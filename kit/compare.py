"""Every serving mode on the same examples, measured in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from kit import inputs
from kit.checks import check_handler, check_positive, check_whole
from kit.compare_cancel import Cancel
from kit.compare_run import Contender, bare_loop, deployed, fork_server, measure
from kit.comparison import Comparison
from kit.engine.packing import pack
from kit.errors import InvalidSetting, UnsupportedInput
from kit.memory import parse_bytes
from kit.progress import progress as progress_bar
from kit.settings import MODES
from kit.shorten import counted


def compare(
    handler: Any,
    examples: Any,
    modes: Sequence[str | Mapping[str, Any]] | None = None,
    processes: int = 2,
    *,
    repeats: int = 3,
    memory_budget: int | float | str | None = None,
    threads: int = 1,
    progress: bool = True,
    seconds: float = 1.0,
    on_progress: Callable[[int, int, str], None] | None = None,
    cancel: Cancel | None = None,
) -> Comparison:
    """Serve `examples` in each mode, in fresh processes each, and measure.

    A plain loop in one process with one thread (`load_model`, then batches through `run_inference`)
    is measured with them. A mode that can't run has a row that says why.

    Args:
        handler: a model handler.
        examples: a list, an array's or tensor's rows, a Series or a DataFrame's rows.
        modes: names of modes, or dicts of settings as `kit.deploy` takes them (mode, processes, threads,
            model_copies, memory_budget); None for all four modes, `medium` with 2 copies.
        processes, threads: worker processes, and threads in each, unless a dict of `modes` says otherwise.
        repeats: measurements of each mode, taken in rounds so that the machine's moods hit all alike. Modes
            that take long to start are started once and measured `repeats` times in a row.
        memory_budget: bytes, or text such as "1GiB". A mode whose copies of the model don't fit isn't run;
            the line in the picture and what `best` goes by, unless they are given another.
        progress: show a progress bar.
        seconds: least time of each measurement; each repeat has three (warm-up, throughput, latency).
        on_progress: called as each measurement begins and ends with (done, total, what is measured).
        cancel: a `kit.compare_cancel.Cancel`, whose ``cancel()`` ends the comparison from another thread.

    Returns:
        A Comparison; in a notebook it shows its table and picture.

    Raises:
        UnsupportedInput: an iterator, a string, a dict.
        InvalidSetting: no examples, an unknown mode, a setting that can't work.
        HandlerNotPicklable: the handler can't travel to the serving processes.
        KitError: neither a mode nor the bare loop could run; the loop's error.
        CancelledError: `cancel` was used; nothing is left running.
    """
    handler = check_handler(handler)
    rows = _rows(examples)
    check_whole("repeats", repeats, needed=True)
    check_positive("seconds", seconds)
    budget = parse_bytes(memory_budget)
    given = _modes(modes)
    wanted: list[dict[str, Any]] = [{"mode": mode} if isinstance(mode, str) else dict(mode) for mode in given]
    pack(handler)  # raises if it can't travel to any process
    base = {"processes": processes, "threads": threads, "memory_budget": budget}
    loop = bare_loop(handler, rows)
    for settings in wanted:
        deployed(handler, rows, {**base, **settings})  # raises before anything is started
    show = None if progress else False
    cancel = cancel or Cancel()
    with fork_server(handler, cancel) as (server, prepared_s):
        contenders = [loop, *(deployed(handler, rows, {**base, **settings}, server) for settings in wanted)]
        for contender in contenders[1:]:
            contender.prepared_s = prepared_s
        _name(contenders)
        with progress_bar(len(contenders) * repeats, "compare", "measurements", enabled=show) as bar:

            def step(done: int, label: str) -> None:
                bar.update(done)
                if on_progress is not None:
                    on_progress(bar.n, len(contenders) * repeats, label)

            measure(contenders, repeats, seconds, step, cancel)
    results = [contender.result for contender in contenders]
    if not any(result.measured for result in results):
        raise next(result.error for result in results if result.error is not None)
    return Comparison(results, f"{type(handler).__name__}, {counted(len(rows), 'example')}", budget, handler)


def _modes(modes: Any) -> Sequence[str | Mapping[str, Any]]:
    if modes is None:
        return MODES
    if isinstance(modes, (str, Mapping)) or not isinstance(modes, Iterable):
        raise InvalidSetting(f"modes={modes!r}: give a list of modes, such as ['default', 'shared'].")
    given = list(modes)
    if not given:
        raise InvalidSetting(f"modes={modes!r}: give at least one of {', '.join(MODES)}.")
    for one in given:
        if not isinstance(one, (str, Mapping)):
            raise InvalidSetting(f"modes has {one!r}: give names of modes, or dicts of settings as kit.deploy takes.")
    return given


def _rows(examples: Any) -> Any:
    rows = inputs.sized(examples)
    if rows is None:
        raise UnsupportedInput("compare() runs the same examples many times: give a list, an array or a table.")
    if not len(rows):
        raise InvalidSetting("compare() was given no examples: give at least one, better some hundreds.")
    return rows


def _name(contenders: Sequence[Contender]) -> None:
    """Label each with its mode, and with the settings in which those of its mode differ."""
    for contender in contenders:
        result = contender.result
        peers = [other.result.settings for other in contenders if other.result.mode == result.mode]
        words = [result.mode]
        for name, one in (("processes", "process"), ("threads", "thread"), ("model_copies", "copy")):
            if len({peer.get(name) for peer in peers}) > 1:
                value = result.settings.get(name)
                words.append(f"{value} {one if value == 1 else 'copies' if one == 'copy' else name}")
        result.label = ", ".join(words)


class _Callable(ModuleType):
    """Lets `kit.compare(...)` work too once `import kit.compare` has put this module in the function's place."""

    __call__ = staticmethod(compare)


sys.modules[__name__].__class__ = _Callable
