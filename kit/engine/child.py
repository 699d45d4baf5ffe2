"""A forked process between its fork and its role: descriptors, output, seeds, environment, handler."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from kit.engine import board as fields
from kit.engine.board import Board
from kit.engine.ends import Ends
from kit.engine.protocol import CONFIG, FAILED
from kit.engine.transport import Channel
from kit.engine.trouble import Trouble

HEARTBEAT_S = 0.5


class Context:
    """What a child process works with."""

    def __init__(self, control: Channel, board: Board, config: dict[str, Any], fds: tuple[int, ...]) -> None:
        self.control = control
        self.board = board
        self.config = config
        self.fds = list(fds)
        self.slot: int = config["slot"]
        self.handler: Any = None

    def take_channel(self) -> Channel:
        """Open the next channel end among the descriptors that came with the configuration."""
        sock, memory = self.fds.pop(0), self.fds.pop(0)
        return Ends(sock, memory).open(first=False)

    def loaded(self, load: Callable[[], tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]] | None:
        """What `load` gives, a model and its report; None when it failed, which is reported."""
        try:
            return load()
        except BaseException as error:
            self.fail("ModelLoadFailed", f"load_model of {type(self.handler).__name__} failed", error)
            return None

    def fail(self, kind: str, what: str, error: BaseException) -> None:
        """Report that this process can't serve."""
        message = f"{what}: {type(error).__name__}: {error}"
        if hasattr(error, "remote_traceback"):
            kind, message = type(error).__name__, str(error.args[0])
        self.control.send(FAILED, Trouble(kind, message, "".join(traceback.format_exception(error))))


def run(fds: tuple[int, ...]) -> int:
    """Set up this process, take its configuration and play its role; returns the exit code."""
    control_sock, control_memory, board_fd, output = fds
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout.flush()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    _reseed()
    control = Ends(control_sock, control_memory).open(first=False)
    message = control.recv()
    assert message is not None
    assert message.kind == CONFIG
    context = Context(control, Board(board_fd), message.value, message.fds)
    if not _prepare(context):
        return 1
    threading.Thread(target=_beat, args=(context.board, context.slot), name="kit-heartbeat", daemon=True).start()
    role = context.config["role"]
    if role == "host":
        from kit.engine import host

        return host.main(context)
    if role == "loader":
        from kit.engine import loader

        return loader.main(context)
    from kit.engine import worker

    return worker.main(context)


def _prepare(context: Context) -> bool:
    import cloudpickle

    try:
        context.handler = cloudpickle.loads(context.config["handler"])
        context.handler.set_environment_vars()
        _limit_threads()
    except BaseException as error:
        context.fail("ModelLoadFailed", "the handler couldn't be rebuilt in the serving process", error)
        return False
    return True


def _limit_threads() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1") or 1))


def _reseed() -> None:
    """Forked processes would all draw the same random numbers."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()


def _beat(board: Board, slot: int) -> None:
    while True:
        board.put(slot, fields.HEARTBEAT_NS, time.monotonic_ns())
        time.sleep(HEARTBEAT_S)
