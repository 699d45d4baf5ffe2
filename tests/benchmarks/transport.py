"""Round trip of an equal array in and out between two processes, by ways to carry it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.benchmarks import beam_peer, harness
from tests.benchmarks.harness import Figure

_ECHO = (
    "import sys; sys.path.insert(0, sys.argv[3]); from kit.engine.ends import Ends\n"
    "from tests.benchmarks.transport import echo; echo(Ends(int(sys.argv[1]), int(sys.argv[2])))"
)


def figures() -> list[Figure]:
    """100 KB and 8 MB; the floor is a copy in and a copy out."""
    import numpy as np

    found = []
    for name, size, calls in (("100 KB", 25_000, 1000), ("8 MB", 2_000_000, 60)):
        array = np.random.default_rng(0).random(size, dtype=np.float32)
        calls //= 4 if harness.quick else 1
        with _ours() as ring, _pipe() as pipe, beam_peer.shared_echo() as beam:
            ways: dict[str, Callable[[Any], Any]] = {"memcpy": _memcpy(array), "ring": ring, "pipe": pipe, "beam": beam}
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(10):
                for way, call in ways.items():
                    times[way] += _each(call, array, calls // 10 + 1)
        ours = harness.latencies(times["ring"])
        for way, what in (("memcpy", "2 memcpys"), ("pipe", "a multiprocessing pipe"), ("beam", "Beam's shared model")):
            peer = harness.latencies(times[way])
            found.append(
                Figure(
                    f"{name} there and back, p50 / p99, vs {what}",
                    " / ".join(map(harness.duration, ours)),
                    " / ".join(map(harness.duration, peer)),
                    f"{ours[0] / peer[0]:.2f} of it",
                )
            )
    return found


def _each(call: Callable[[Any], Any], array: Any, count: int) -> list[float]:
    seconds = []
    for number in range(count + 2):
        start = time.perf_counter()
        call(array)
        if number >= 2:  # the caches hold another way's data at first
            seconds.append(time.perf_counter() - start)
    return seconds


def _memcpy(array: Any) -> Callable[[Any], Any]:
    import numpy as np

    there, back = np.empty_like(array), np.empty_like(array)

    def copy(source: Any) -> Any:
        np.copyto(there, source)
        np.copyto(back, there)
        return back

    return copy


@contextlib.contextmanager
def _ours() -> Iterator[Callable[[Any], Any]]:
    from kit.engine.codec import Rows
    from kit.engine.ends import channel_pair

    ours, theirs = channel_pair()
    process = subprocess.Popen([sys.executable, "-c", _ECHO, *map(str, theirs), os.getcwd()], pass_fds=tuple(theirs))
    for fd in theirs:
        os.close(fd)
    channel = ours.open(first=True)

    def call(array: Any) -> Any:
        channel.send(1, Rows(array))
        message = channel.recv()
        assert message is not None
        return message.value.stacked

    try:
        call_once(call)
        yield call
    finally:
        channel.close()
        process.wait(10)


def call_once(call: Callable[[Any], Any]) -> None:
    """Wait until the other side is up."""
    import numpy as np

    call(np.zeros(8, np.float32))


def echo(ends: Any) -> None:
    """Send back what comes, until the other side closes."""
    from kit.engine.transport import ChannelClosed

    channel = ends.open(first=False)
    while True:
        try:
            message = channel.recv()
        except ChannelClosed:
            return
        channel.send(1, message.value)
        del message


@contextlib.contextmanager
def _pipe() -> Iterator[Callable[[Any], Any]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_echo_pipe, args=(theirs,), daemon=True)
    process.start()
    theirs.close()

    def call(array: Any) -> Any:
        ours.send(array)
        return ours.recv()

    try:
        call_once(call)
        yield call
    finally:
        ours.close()
        process.join(10)


def _echo_pipe(pipe: Any) -> None:
    while True:
        try:
            pipe.send(pipe.recv())
        except EOFError:
            return
