"""Where chunks go that have killed two processes: one example at a time, in a process of their own.

Only an example that kills this process too, alone, fails; the others are answered. A quarantine
process is started when needed and ends when its chunks are done.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from kit import errors
from kit.engine.codec import Rows
from kit.engine.keyed_requests import Group, Spec
from kit.engine.protocol import ARGS, AS_GIVEN, FAILED, FULL_RESULT, ISOLATE, META, MODEL, RESULT, RUN
from kit.engine.requests import Chunk, Request
from kit.engine.transport import ChannelClosed
from kit.engine.trouble import Trouble
from kit.engine.unreadable import PREDICTIONS, Unreadable
from kit.shorten import shorten

if TYPE_CHECKING:
    from kit.engine.core import Engine
    from kit.engine.process import Process

IDLE_S = 2.0


class Quarantine:
    """Takes suspect chunks and answers them from a thread of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._chunks: queue.Queue[Chunk | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._process: Process | None = None

    def take(self, chunk: Chunk) -> None:
        """Answer a chunk, later."""
        self._engine.event("quarantine", f"{chunk.count} examples run one by one: they were there at 2 deaths")
        with self._lock:
            self._chunks.put(chunk)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kit-quarantine", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                chunk = self._chunks.get(timeout=IDLE_S)
            except queue.Empty:
                chunk = None
            if chunk is None:
                with self._lock:
                    if self._chunks.empty() or not self._engine.alive:
                        self._end_process()
                        self._thread = None
                        return
            elif self._engine.alive:
                self._answer(chunk)

    def _answer(self, chunk: Chunk) -> None:
        for single in chunk.singles():
            if not self._engine.alive:
                return
            if single.ended:
                continue  # a chunk may hold other requests too
            values, ids, plain, troubles = self._compute(single)
            deliver = partial(self._engine.dispatcher.answers.deliver, single, values, ids, plain, troubles)
            self._engine.reactor.soon(deliver)

    def _compute(self, single: Chunk) -> tuple[Any, Any, bool, dict[int, Trouble]]:
        ((request, indices),) = single.parts
        example, _ = request.shown(indices[0])
        process = self._process
        try:
            if process is None or not process.alive:
                process = self._process = self._engine.topology.start_quarantine()
            with self._model(request, process) as spec:
                channel = process.lanes[0].channel
                if spec is not None:
                    channel.send(MODEL, (spec, None))
                channel.send(ARGS, request.inference_args)
                flags = ISOLATE | AS_GIVEN if request.as_given else ISOLATE
                channel.send(RUN, single.payload(), request=single.id, flags=flags)
                return _receive(channel)
        except ChannelClosed:
            assert process is not None
            process.exited.wait(5)
            process.lanes[0].close()
            self._process = None
            words = (
                f"example {indices[0]} of the request kills the process that computes it, even alone: "
                f"{process.describe_exit()}. Take it out, or handle it in pre-processing: {shorten(repr(example), 100)}"
            )
            return _nothing(Trouble("WorkerDied", words, ""))
        except errors.KitError as error:
            return _nothing(Trouble.of(error))

    def _model(self, request: Request, process: Process) -> contextlib.AbstractContextManager[Spec | None]:
        """Of models by key the one that is meant, loaded in the process for the length of a ``with``."""
        if isinstance(request, Group):
            assert self._engine.places is not None
            return self._engine.places.at(request.route, process)
        return contextlib.nullcontext()

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.exited.wait(5)
            process.lanes[0].close()

    def close(self) -> None:
        """Give up what waits; the requests have been failed already."""
        thread = self._thread
        process = self._process
        self._chunks.put(None)  # wakes the thread
        if process is not None:
            process.kill()
        if thread is not None and thread is not threading.current_thread():
            thread.join(IDLE_S + 5)


def _receive(channel: Any) -> tuple[Any, Any, bool, dict[int, Trouble]]:
    model_ids = None
    while True:
        try:
            message = channel.recv()
        except Unreadable as error:
            return _nothing(error.trouble(PREDICTIONS))
        if message.kind == META:
            model_ids = message.value
        elif message.kind == RESULT:
            value = message.value
            return (value.tolist() if type(value) is Rows else value), model_ids, False, {}
        elif message.kind == FULL_RESULT:
            values, model_ids, plain, troubles = message.value
            return values, model_ids, plain, troubles
        elif message.kind == FAILED:
            return _nothing(message.value)


def _nothing(trouble: Trouble) -> tuple[Any, Any, bool, dict[int, Trouble]]:
    return [None], None, False, {0: trouble}
