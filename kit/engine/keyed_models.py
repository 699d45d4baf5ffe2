"""The models of a keyed handler in this process: leases from a model manager, and a runner for each thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

from kit import errors
from kit.checks import estimated_bytes
from kit.engine.keyed_runner import KeyedRunner
from kit.engine.local_model import Compute, LocalModel
from kit.key_routes import KeyModel, Route, Routes
from kit.manager import ModelManager
from kit.manager.entry import blank_row


class RunnerPool:
    """Runners for any number of threads, each used by one at a time; they remember the batch sizes that pay."""

    def __init__(self, make: Callable[[], KeyedRunner]) -> None:
        self._make = make
        self._free: list[KeyedRunner] = []

    @contextlib.contextmanager
    def runner(self, handler: Any = None) -> Iterator[KeyedRunner]:
        """A runner for this thread alone, for the length of a ``with``; `handler`'s own functions run around it."""
        try:
            runner = self._free.pop()
        except IndexError:
            runner = self._make()
        runner.use(handler)
        try:
            yield runner
        finally:
            self._free.append(runner)


class OneModel(RunnerPool):
    """The model of a keyed handler that has one handler for all keys.

    Args:
        handler: the keyed handler.
        compute: computes on the model that is loaded.
        turn: held while the model computes, where one thread at a time may call it.
    """

    def __init__(self, handler: Any, compute: Compute, turn: contextlib.AbstractContextManager[Any]) -> None:
        route = Route(handler.unkeyed, KeyModel(handler.unkeyed, None))
        maybe = bool(getattr(handler, "maybe", False))

        @contextlib.contextmanager
        def lend(route: Route) -> Iterator[Compute]:
            with turn:
                yield compute

        super().__init__(lambda: KeyedRunner(lambda key: route, lend, lambda route: True, maybe))


class KeyedModels(RunnerPool):
    """What a keyed handler's ``load_model`` returns: a model manager, and the way from a key to a model.

    Attributes:
        manager: pins, preloads, unloads, resizes; it knows models by `KeyModel`, see `model_of`.
    """

    def __init__(self, handler: Any, memory_budget: int | None = None) -> None:
        self.routes: Routes = handler.routes
        super().__init__(lambda: KeyedRunner(self.routes.of, self.lend, self.is_ready))
        self.manager = ModelManager(
            _load,
            size_of=_size_of,
            budget=handler.memory_budget if memory_budget is None else memory_budget,
            policy=handler.policy,
            max_models=handler.max_models,
            keep_alive=handler.keep_alive,
        )
        self._turns: dict[KeyModel, Lock] = {}  # of models that one thread at a time may call

    def run(self, batch: Sequence[Any], inference_args: Mapping[str, Any] | None = None) -> list[Any]:
        """(key, prediction) for each (key, example), in order; any number of threads at once.

        Raises:
            UnsupportedInput, UnknownKey, BudgetExceeded, ModelLoadFailed, InferenceFailed.
        """
        with self.runner() as runner:
            outcome = runner.run(batch, inference_args)
        return list(outcome.values)

    @contextlib.contextmanager
    def lend(self, route: Route) -> Iterator[Compute]:
        """The model of a route, loaded first where it isn't, for the length of a ``with``."""
        with self.manager.acquire(route.model) as lease:
            if getattr(route.handler, "thread_safe", True):
                yield LocalModel(route.handler, lease.model)
            else:
                with self._turns.setdefault(route.model, Lock()):
                    yield LocalModel(route.handler, lease.model)

    def is_ready(self, route: Route) -> bool:
        """True when the route's model is loaded."""
        return self.manager.resident(route.model)

    def model_of(self, key: Any) -> KeyModel:
        """The manager's name of a key's model."""
        return self.routes.of(key).model

    def update(self, mappings: Sequence[Any]) -> None:
        """Give keys other paths, see `KeyedModelHandler.update_model_paths`."""
        gone = self.routes.update(mappings)
        self.manager.forget(gone)
        for model in gone:
            self._turns.pop(model, None)

    def rows(self) -> list[dict[str, Any]]:
        """`ModelManager.rows` with ``keys`` (those known), and models that nobody asked for yet."""
        keys = self.routes.keys_of()
        rows = self.manager.rows()
        asked = {row["name"] for row in rows}
        found = [{"keys": keys.get(row.pop("name"), []), **row} for row in rows]
        return found + [{"keys": keys[model], **blank_row()} for model in keys if model not in asked]


def _load(model: Any) -> Any:
    model.handler.set_environment_vars()
    return model.handler.load_model()


def _size_of(model: Any) -> int | None:
    try:
        return estimated_bytes(model.handler)
    except errors.ModelLoadFailed as error:
        words = f"loading the model of {model!r} failed: {error.args[0]}"
        raise errors.ModelLoadFailed(words, error.remote_traceback) from error.__cause__
