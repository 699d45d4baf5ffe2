"""A worker thread: answers the chunks of its lane, and those who ask it directly."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from kit.engine import board as fields
from kit.engine.child import Context
from kit.engine.host_pool import HostLost, HostPool
from kit.engine.keyed_requests import Spec
from kit.engine.model_store import KeyedRunners
from kit.engine.protocol import (
    ALONE,
    ARGS,
    AS_GIVEN,
    BATCHES,
    DOOR_SHUT,
    FAILED,
    FULL_RESULT,
    ISOLATE,
    LATEST,
    LOST,
    META,
    MODEL,
    OPEN_DOOR,
    RESULT,
    RUN,
    SHUT_DOOR,
    TELL_BATCHES,
)
from kit.engine.runner import Outcome, Runner
from kit.engine.transport import Channel, ChannelClosed
from kit.engine.trouble import FAILURES, Trouble
from kit.engine.unreadable import ARGUMENTS, EXAMPLES, Unreadable
from kit.shorten import counted


class Unwanted(BaseException):
    """The chunk at hand was cancelled; what is left of it needn't be computed."""


class LaneThread:
    """One worker thread."""

    def __init__(
        self, context: Context, lane: Channel, slot: int, compute: Any, runners: KeyedRunners | None = None
    ) -> None:
        self._name = type(context.handler).__name__
        self.board = context.board
        self.pool = compute if isinstance(compute, HostPool) else None
        self.lane = lane
        self.slot = slot
        self.runners = runners
        self.model: tuple[Spec, int] | None = None  # the model by key of what comes next, and its host's pid
        self.runner: Any = Runner(context.handler, compute)
        self.args: Any = None  # a mapping, or the Trouble that they couldn't be rebuilt
        self.model_ids: Any = None
        self.door: Any = None  # a caller's direct line to this thread

    def run(self) -> None:
        """Answer chunks until the owner closes the lane."""
        try:
            while True:
                if self.door is not None:
                    self.door.attend()
                    if self.door.closed:
                        self._forget_door()
                try:
                    message = self.lane.recv()
                except Unreadable as error:
                    self._refuse(error)
                    continue
                assert message is not None
                if message.kind == RUN:
                    self._answer(message)
                elif message.kind == ARGS:
                    self.args = message.value
                elif message.kind == MODEL:
                    self.model = message.value
                elif message.kind in (OPEN_DOOR, SHUT_DOOR):
                    self._change_door(message)
                del message
        except ChannelClosed:
            return
        except BaseException:
            # A thread that ended silently would leave its chunks unanswered for ever.
            traceback.print_exc()
            os._exit(70)

    def _refuse(self, error: Unreadable) -> None:
        """Fail the chunk that can't be rebuilt here; of arguments, those that come with them."""
        message = error.message
        if message.kind == ARGS:
            self.args = error.trouble(ARGUMENTS)
        elif message.kind == RUN:
            trouble = error.trouble(EXAMPLES)
            self.lane.send(FAILED, trouble, request=message.request, stamp=time.monotonic())
        else:
            raise error

    # ---- a direct line -------------------------------------------------------------------------

    def _change_door(self, message: Any) -> None:
        """Open or shut the door; its class is of a room above the engine, which says its name."""
        if self.door is not None:
            self.door.see_off()
            self._forget_door()
        if message.kind == OPEN_DOOR:
            name, about = message.value
            module, _, kind = name.rpartition(".")
            try:
                make = getattr(importlib.import_module(module), kind)
                self.door = make(message.fds, self.lane.fileno(), self._compute_directly, self._show, **about)
            except OSError:  # no more descriptors: the caller sees its end closed, and asks the ordinary way
                traceback.print_exc()
                self._forget_door()

    def _forget_door(self) -> None:
        self.door = None
        self.lane.send(DOOR_SHUT)

    def _compute_directly(self, examples: Any, check: Callable[[], None]) -> Outcome:
        if self.pool is not None:
            self.pool.alone, self.pool.model = False, None
        began = self.board.begin(self.slot)
        self.board.put(self.slot, fields.COMPUTING_NS, began)
        count = batches = 0
        try:
            outcome = self._compute(examples, None, check=check)
            count, batches = len(outcome.values), len(outcome.batches)
            return outcome
        finally:
            self.board.put(self.slot, fields.COMPUTING_NS, 0)
            self.board.end(self.slot, count, batches)

    def _show(self, latest: tuple[Any, Any, float]) -> None:
        """Tell the owner of the latest answer; of one that doesn't travel it needn't hear."""
        with contextlib.suppress(Exception):
            self.lane.send(LATEST, latest)

    # ---- chunks --------------------------------------------------------------------------------

    def _answer(self, message: Any) -> None:
        started = time.monotonic()
        began = self.board.begin(self.slot)
        self.board.put(self.slot, fields.COMPUTING_NS, began)
        if self.pool is not None:
            self.pool.alone, self.pool.model = bool(message.flags & ALONE), self.model
        try:
            if type(self.args) is Trouble:
                raise self.args.error()
            if self.runners is not None and self.model is not None:
                self.runner = self.runners.of(self.model[0])
            outcome = self._compute(
                message.value,
                self.args,
                isolate=bool(message.flags & ISOLATE),
                check=self._check_for(message.request),
                as_given=bool(message.flags & AS_GIVEN),
            )
        except Unwanted:
            trouble = Trouble("InferenceFailed", "nobody waits for these examples any more.", "")
            self.lane.send(FAILED, trouble, request=message.request, stamp=started)
        except HostLost as lost:
            self.lane.send(LOST, lost.pid, request=message.request, stamp=started)
        except FAILURES as error:
            self.lane.send(FAILED, Trouble.of(error), request=message.request, stamp=started)
        else:
            # Before the answer is there: whoever has it may look at once.
            self.board.add(self.slot, fields.EXAMPLES, len(outcome.values))
            self.board.add(self.slot, fields.BATCHES, len(outcome.batches))
            # Of a batch that was all of the chunk the header of the result says enough.
            if message.flags & TELL_BATCHES and (len(outcome.batches) != 1 or outcome.troubles):
                self.lane.send(BATCHES, outcome.batches, request=message.request)
            self._send(outcome, message.request, started)
        self.board.put(self.slot, fields.COMPUTING_NS, 0)
        self.board.end(self.slot, 0, 0)

    def _compute(self, examples: Any, args: Mapping[str, Any] | None, **about: Any) -> Outcome:
        try:
            outcome: Outcome = self.runner.run(examples, args, **about)
            return outcome
        except (Exception, Unwanted, HostLost):
            raise
        except BaseException as error:  # an interrupt that user code raises: no signal comes to this thread
            what = f"{self._name} failed on {counted(len(examples), 'example')}"
            raise Trouble.of(error, what).error() from error

    def _check_for(self, chunk_id: int) -> Callable[[], None]:
        get, slot = self.board.get, self.slot

        def check() -> None:
            if chunk_id in (get(slot, fields.CANCELLED), get(slot, fields.ALSO_CANCELLED)):
                raise Unwanted

        return check

    def _send(self, outcome: Outcome, request: int, started: float) -> None:
        spent = sum(seconds for _, seconds in outcome.batches)
        about = {"request": request, "stamp": started, "spent": spent, "attempt": min(len(outcome.batches), 0xFFFF)}
        try:
            if outcome.plain or outcome.troubles or isinstance(outcome.model_ids, list):
                value = (list(outcome.values), outcome.model_ids, outcome.plain, outcome.troubles)
                self.lane.send(FULL_RESULT, value, **about)  # type: ignore[arg-type]
                return
            if outcome.model_ids != self.model_ids:
                self.lane.send(META, outcome.model_ids)
                self.model_ids = outcome.model_ids
            self.lane.send(RESULT, outcome.values, **about)  # type: ignore[arg-type]
        except ChannelClosed:
            raise
        except Exception as error:
            message = (
                f"the predictions can't be sent back: {type(error).__name__}: {error}. Return numbers, text, "
                "arrays or other picklable objects from run_inference or a post-processing function."
            )
            self.lane.send(FAILED, Trouble("InferenceFailed", message, traceback.format_exc()), request=request)
