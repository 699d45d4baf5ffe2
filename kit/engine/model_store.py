"""Models by key in a serving process: loaded and given up at the owner's word, each load in a thread of its own.

    owner --SIZE_MODEL, LOAD_MODEL, ATTACH_MODEL, UNLOAD_MODEL, KNOW_MODEL--> ModelStore --answers--> owner
    worker or host thread --Spec--> KeyedRunners --> the model, which the owner keeps here meanwhile

The owner sends examples only for models that it knows to be here, and holds a lease of them until it has the
answer, so nobody here waits for a load.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from kit.checks import estimated_bytes
from kit.engine import weights
from kit.engine.giving_way import giving_way
from kit.engine.keyed_requests import Spec
from kit.engine.keyed_runner import MOST_RUNNERS, with_keys
from kit.engine.local_model import Computed, LocalModel
from kit.engine.protocol import ATTACH_MODEL, KNOW_MODEL, LOAD_MODEL, SIZE_MODEL, UNLOAD_MODEL
from kit.engine.runner import Outcome, Runner
from kit.engine.trouble import Trouble
from kit.key_routes import with_path
from kit.manager import memory
from kit.model_bytes import timed_load

KINDS = frozenset((SIZE_MODEL, LOAD_MODEL, ATTACH_MODEL, UNLOAD_MODEL, KNOW_MODEL))


class Handlers:
    """The handlers of a keyed handler by spec; those with an updated path are copies."""

    def __init__(self, keyed: Any) -> None:
        self._routes = keyed.routes
        self._known = keyed.routes.by_origin()
        self._found: dict[int, Any] = {}
        self._lock = threading.Lock()

    def of(self, spec: Spec) -> Any:
        """The handler of a spec.

        Raises:
            UnknownKey: there is none. Exception: what the user's function or ``update_model_path`` raises.
        """
        handler = self._found.get(spec.route)
        if handler is None:
            # Where the version is newer than this process, the key leads to what it was made from. Without the lock:
            # a user's function may take its time, and other keys don't wait for it.
            route = self._known.get((spec.key, spec.path)) or self._routes.of(spec.key)
            made = route.handler if spec.path == route.path else with_path(route.handler, spec.path, spec.key)
            with self._lock:
                if len(self._found) >= MOST_RUNNERS:
                    self._found.clear()
                handler = self._found.setdefault(spec.route, made)
        return handler


class ModelStore:
    """The loaded models of this process, by number."""

    def __init__(self, keyed: Any) -> None:
        self.handlers = Handlers(keyed)
        self._models: dict[int, Any] = {}
        self._turns: dict[int, threading.Lock] = {}

    def obey(self, message: Any, control: Any) -> None:
        """Carry out a control message in a thread of its own, and answer it."""
        work = (message.kind, message.value, message.fds)
        arguments = (work, lambda answer: control.send(message.kind, answer, request=message.request))
        threading.Thread(target=self._work, args=arguments, name="kit-load", daemon=True).start()

    def _work(self, work: tuple[int, Any, tuple[int, ...]], send: Callable[[Any], None]) -> None:
        kind, value, fds = work
        try:
            with giving_way():
                answer = self._carry_out(kind, value, fds)
        except BaseException as error:
            answer = trouble_of(error)
        with contextlib.suppress(Exception):  # nobody is there to be told any more: the process ends, too
            send(answer)

    def _carry_out(self, kind: int, value: Any, fds: tuple[int, ...]) -> Any:
        if kind == UNLOAD_MODEL:
            memory.drop([self._models.pop(number, None) for number in value])
            for number in value:
                self._turns.pop(number, None)
            return None
        if kind == ATTACH_MODEL:
            spec, segment = value
            try:
                self.handlers.of(spec)  # here, so that no worker thread asks a slow function for it
                self._models[spec.model] = weights.attach(fds[0], segment)
            finally:
                os.close(fds[0])
            return None
        handler = self.handlers.of(value)
        if kind == KNOW_MODEL:
            return None
        if kind == SIZE_MODEL:
            return estimated_bytes(handler)
        handler.set_environment_vars()
        loaded = timed_load(handler.load_model)
        self._models[value.model] = loaded.model
        return loaded.load_s, loaded.size_bytes, loaded.mapped

    def turn(self, spec: Spec) -> contextlib.AbstractContextManager[Any]:
        """Held while a model computes that one thread at a time may call."""
        if getattr(self.handlers.of(spec), "thread_safe", True):
            return contextlib.nullcontext()
        return self._turns.setdefault(spec.model, threading.Lock())

    def compute(self, spec: Spec) -> StoredModel:
        """Computes on the model of a spec for as long as that is here."""
        return StoredModel(self, spec)

    def local(self, spec: Spec) -> LocalModel:
        """The model of a spec with its handler; not to be kept, or it would keep the model."""
        return LocalModel(self.handlers.of(spec), self._models[spec.model])


class StoredModel:
    """Computes on a model of a store, without keeping it from being given up."""

    def __init__(self, store: ModelStore, spec: Spec) -> None:
        self._store = store
        self._spec = spec
        self._turn = store.turn(spec)

    def __call__(self, batch: Any, inference_args: Mapping[str, Any] | None) -> Computed:
        """Run inference on a list or Rows."""
        with self._turn:
            return self._store.local(self._spec)(batch, inference_args)

    def several(self, examples: Any, inference_args: Mapping[str, Any] | None, size: int) -> Computed | None:
        """Run inference in batches of `size`; None when the handler can't do that in one go."""
        with self._turn:
            return self._store.local(self._spec).several(examples, inference_args, size)


class KeyedRunners:
    """The runners of one worker thread, by route; they remember the batch sizes that pay.

    Args:
        keyed: the keyed handler.
        handlers: finds the handler of a spec.
        compute_of: what computes for a spec.
    """

    def __init__(self, keyed: Any, handlers: Handlers, compute_of: Callable[[Spec], Any]) -> None:
        self._handlers = handlers
        self._compute_of = compute_of
        self._post = list(keyed.get_postprocess_fns())
        self._outer = Runner(keyed, None)  # type: ignore[arg-type]  # computes nothing
        self._runners: dict[int, tuple[int, Any]] = {}  # with the number of the model at hand

    def of(self, spec: Spec) -> Any:
        """The runner of a spec."""
        number, runner = self._runners.get(spec.route, (0, None))
        if runner is None:
            if len(self._runners) >= MOST_RUNNERS:
                self._runners.clear()
            runner = Runner(self._handlers.of(spec), self._compute_of(spec), spec.key)
            if self._post:
                runner = _PairRunner(runner, self._outer, self._post)
        elif number != spec.model:
            runner.compute = self._compute_of(spec)
        self._runners[spec.route] = (spec.model, runner)
        return runner


class _PairRunner:
    """Runs (key, example) pairs of one model, and the keyed handler's own functions on the results."""

    def __init__(self, runner: Runner, outer: Runner, post: list[Any]) -> None:
        self._runner = runner
        self._outer = outer
        self._post = post

    @property
    def compute(self) -> Any:
        return self._runner.compute

    @compute.setter
    def compute(self, compute: Any) -> None:
        self._runner.compute = compute

    def run(
        self,
        examples: Any,
        inference_args: Mapping[str, Any] | None = None,
        *,
        isolate: bool = False,
        check: Callable[[], None] = lambda: None,
        as_given: bool = False,
    ) -> Outcome:
        pairs = [tuple(pair) for pair in examples]
        outcome = self._runner.run(
            [pair[1] for pair in pairs], inference_args, isolate=isolate, check=check, as_given=as_given
        )
        return with_keys(pairs, outcome, self._outer, self._post, isolate)


def trouble_of(error: BaseException) -> Trouble:
    """An error of a load on its way to the owner; one that isn't ours becomes a ModelLoadFailed."""
    trouble = Trouble.of(error)
    return trouble._replace(kind="ModelLoadFailed") if trouble.kind == "InferenceFailed" else trouble
