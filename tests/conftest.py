"""Fixtures for all tests; above all, the one that fails a test which leaves something behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

GRACE_S = 20.0

# A shell's background job ignores interrupts, and so would the scripts that we interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _processes() -> dict[int, str]:
    """Descendants of this process, and processes of the kit that lost their parent."""
    found: dict[int, str] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = f"{process.name()} {' '.join(process.cmdline())[:120]}"
        except psutil.NoSuchProcess:
            continue
    return found


def _threads() -> dict[int, str]:
    return {thread.ident or 0: thread.name for thread in threading.enumerate() if thread.name.startswith("kit-")}


def _segments() -> dict[str, str]:
    """Descriptors of the kit's memory files and sockets in this process, and its files in /dev/shm."""
    found = {f"fd {fd} {target}": target for fd, target in _fds().items() if "kit-" in target}
    for path in Path("/dev/shm").glob("*kit*"):
        found[str(path)] = str(path)
    return found


def _socket_count() -> int:
    return sum(target.startswith("socket:") for target in _fds().values())


def _fds() -> dict[str, str]:
    """Open descriptors and what they are; a thread may close some meanwhile."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def _left_over(before: dict[str, object]) -> list[str]:
    left = []
    for name, now in (("process", _processes()), ("thread", _threads()), ("segment", _segments())):
        new = {key: value for key, value in now.items() if key not in before[name]}  # type: ignore[operator]
        left += [f"{name} {key}: {value}" for key, value in new.items()]
    more = _socket_count() - int(before["sockets"])  # type: ignore[call-overload]
    if more > 0:
        left.append(f"{more} sockets more than before")
    return left


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process, thread, memory segment or socket of the kit behind."""
    if sys.platform != "linux":
        yield
        return
    before: dict[str, object] = {
        "process": _processes(),
        "thread": _threads(),
        "segment": _segments(),
        "sockets": _socket_count(),
    }
    yield
    until = time.monotonic() + GRACE_S
    left = _left_over(before)
    while left and time.monotonic() < until:
        gc.collect()
        time.sleep(0.02)
        left = _left_over(before)
    if left:
        stacks = []
        for ident, frame in sys._current_frames().items():
            if _threads().get(ident):
                stacks.append(f"{_threads()[ident]}:\n" + "".join(traceback.format_stack(frame)[-4:]))
        pytest.fail("left behind:\n  " + "\n  ".join(left) + "\n" + "\n".join(stacks))


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of the test's own; its daemon and deployments are stopped and must be gone at the end."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("KIT_RUNTIME_DIR", str(folder))
    yield folder
    from kit.daemon import client

    monkeypatch.setenv("KIT_RUNTIME_DIR", str(folder))
    folder.chmod(0o700)
    for name in client.names():
        client.stop(name, missing_ok=True)
    until = time.monotonic() + GRACE_S
    left = daemon_processes(folder)
    while left and time.monotonic() < until:
        time.sleep(0.02)
        left = daemon_processes(folder)
    words = [f"{process.pid} {process.cmdline()}" for process in left]
    for process in left:
        process.kill()
    assert not words, f"left behind: {words}"


def daemon_processes(folder: Path) -> list[psutil.Process]:
    """The daemon of a runtime folder and the processes of its deployments, with theirs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("KIT_RUNTIME_DIR") == str(folder) and process.pid != os.getpid():
                command = " ".join(process.cmdline())
                if "kit.daemon" in command or "kit.engine" in command:
                    found.append(process)
    return found
