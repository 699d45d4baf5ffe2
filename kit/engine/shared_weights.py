"""The weights of mode `shared` as their owner holds them: published by a loader, proved, handed to workers."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.engine import protocol
from kit.engine.process import STOP_TIMEOUT_S, Process

if TYPE_CHECKING:
    from kit.engine.topology import Topology


class SharedWeights:
    """One published version of the weights of a topology.

    Attributes:
        segment: how to rebuild the model from the segment.
        loader: the process that holds the original, None once nothing is left to prove.
    """

    def __init__(self, topology: Topology) -> None:
        self.segment: Any = None
        self.loader: Process | None = None
        self._topology = topology
        self._fd = -1
        self._lock = threading.Lock()

    def publish(self, sample: list[Any]) -> None:
        """Load the model in a process of its own and take over its weights, proved on `sample` when there is one.

        Raises:
            SharedModeUnavailable: the model can't be shared.
            BudgetExceeded: it is too heavy.
        """
        topology = self._topology
        loader = topology.spawn("loader", 0)
        (report, segment), fds = topology.wait_ready(loader)
        self.segment, self._fd = segment, fds[0]
        topology.note_weights(report)
        loader.report = report  # its own copy, for as long as it stays
        self.loader = loader
        topology.check_measured()
        if sample:
            verdict, words = self.verify(sample, None)
            if verdict == "differs":
                raise errors.SharedModeUnavailable(self.cannot_share(words))

    def verify(self, examples: Any, inference_args: Any, limit_s: float | None = None) -> tuple[str, str]:
        """Compare original and rebuilt model on a batch; ends the loader when that settles it, or takes too long."""
        loader = self.loader
        if loader is None or not loader.alive:
            words = "the loader ended before it had compared a batch; only the bytes of the weights were compared"
            self.loader = None
            self._topology.engine.event("verify", words)
            return "noisy", words
        limit = threading.Timer(limit_s or 0.0, loader.kill)
        limit.daemon = True
        if limit_s is not None:
            limit.start()
        try:
            verdict, words = loader.ask(
                protocol.VERIFY, (list(examples), inference_args), reply=protocol.VERIFIED
            ).result()
        except errors.WorkerDied as error:
            return "failed", str(error)
        finally:
            limit.cancel()
        if verdict != "failed":
            self._topology.engine.event("verify", words)
            self.end_loader()
        return str(verdict), str(words)

    def end_loader(self) -> None:
        """Let the loader go, and with it the original copy of the weights."""
        loader, self.loader = self.loader, None
        if loader is not None:
            loader.ask_to_stop()
            if not loader.exited.wait(STOP_TIMEOUT_S):
                loader.kill()

    def cannot_share(self, words: str) -> str:
        """The message for a model that comes back different."""
        name = type(self._topology.handler).__name__
        return f"{name} can't be served in mode 'shared': {words}. Use mode 'large', which also keeps one copy."

    def own_fd(self) -> int:
        """A descriptor of the weights that another thread's `stop` can't close meanwhile."""
        with self._lock:
            if self._fd < 0:
                raise errors.SwitchCancelled("the topology was stopped, and its weights with it.")
            return os.dup(self._fd)

    def close(self) -> None:
        """Let go of the weights; they are freed with the last worker that maps them. Idempotent."""
        self.loader = None  # and with it its channel's memory, however long the deployment is kept
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
