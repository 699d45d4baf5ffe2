"""Serving settings: mode, processes, threads, copies, budget; what they mean in copies and bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kit.errors import BudgetExceeded, InvalidSetting
from kit.machine import cpu_count
from kit.sizes import format_bytes, parse_bytes

MODES = ("default", "medium", "large", "shared")
#: Processes and threads of one topology at most: what a page of counters holds, twice.
MOST_WORKERS = 250


def given(
    mode: str | None,
    processes: int | None,
    threads: int | None,
    model_copies: int | None,
    memory_budget: int | float | str | None,
) -> dict[str, Any]:
    """The arguments that `kit.deploy`, `switch` and `kit.beam` have in common, by name."""
    return {
        "mode": mode,
        "processes": processes,
        "threads": threads,
        "model_copies": model_copies,
        "memory_budget": memory_budget,
    }


def budget_in_words(budget: int | None) -> str:
    """A memory budget; "none" for no limit."""
    return "none" if budget is None else format_bytes(budget)


@dataclass(frozen=True)
class Settings:
    """How a handler is served.

    Attributes:
        mode: "default", "medium", "large" or "shared".
        processes: worker processes.
        threads: worker threads a process.
        model_copies: model hosts in mode "medium"; elsewhere what the mode gives.
        memory_budget: bytes that all copies of the model may take together, None for no limit; of models by key those
            of all models, which their handler gives where nothing else does.
    """

    mode: str
    processes: int
    threads: int
    model_copies: int
    memory_budget: int | None = None

    @staticmethod
    def make(
        handler: Any,
        mode: str | None = None,
        processes: int | None = None,
        threads: int | None = None,
        model_copies: int | None = None,
        memory_budget: int | float | str | None = None,
    ) -> Settings:
        """Settings from arguments, the handler's own choice, and defaults (2 processes, 1 thread).

        Raises:
            InvalidSetting: a value that can't work.
        """
        own_copies = handler.model_copies() if handler.share_model_across_processes() else None
        if mode is None:
            mode = "default" if own_copies is None else "large" if own_copies == 1 else "medium"
            if model_copies is not None and model_copies != 1:
                mode = "medium"
        if mode not in MODES:
            raise InvalidSetting(f"mode={mode!r} is unknown; use one of {', '.join(map(repr, MODES))}.")
        processes = _count("processes", processes, 2)
        threads = _count("threads", threads, 1)
        if threads > 1 and not getattr(handler, "thread_safe", True):
            raise InvalidSetting(
                f"threads={threads}: {type(handler).__name__} says thread_safe = False, so one thread a process may "
                "call its model. Use threads=1 and more processes."
            )
        copies = {"default": processes, "large": 1, "shared": 1}.get(mode)
        if copies is None:
            copies = _count("model_copies", model_copies, max(2, own_copies or 0))
        elif model_copies is not None and _count("model_copies", model_copies, 1) != copies:
            raise InvalidSetting(
                f"model_copies={model_copies} doesn't go with mode={mode!r}, which keeps {copies}; use mode='medium'."
            )
        hosts = copies if mode in ("large", "medium") else 0
        total = processes * (threads + 1) + hosts
        if total > MOST_WORKERS:
            raise InvalidSetting(
                f"processes={processes}, threads={threads} and {hosts} model hosts are {total} processes and threads; "
                f"a deployment can have {MOST_WORKERS}."
            )
        return Settings(mode, processes, threads, copies, parse_bytes(memory_budget))

    def with_budget_of(self, handler: Any, former: Any = None) -> Settings:
        """These settings with the budget that a handler of models by key brings, where no other was asked for.

        `former` is the handler that it takes the place of, whose own budget goes with it.
        """
        if self.memory_budget != _own_budget(former):
            return self
        return replace(self, memory_budget=_own_budget(handler))

    def change(self, handler: Any, **changes: Any) -> Settings:
        """These settings with some changed; None leaves a setting as it is."""
        wanted = {name: value for name, value in changes.items() if value is not None}
        mode = wanted.pop("mode", None)
        if mode is None and wanted.get("model_copies", self.model_copies) != self.model_copies:
            mode = "medium"
        mode = mode or self.mode
        base = {"processes": self.processes, "threads": self.threads, "memory_budget": self.memory_budget}
        if mode == "medium" and self.mode == "medium":
            base["model_copies"] = self.model_copies
        return Settings.make(handler, mode, **{**base, **wanted})

    @property
    def remote(self) -> bool:
        """True when model hosts compute, not the workers."""
        return self.mode in ("large", "medium")

    @property
    def host_threads(self) -> int:
        """Batches that a model host computes at once: as many as a worker, where there are cores for it."""
        return max(1, min(self.threads, cpu_count() // self.model_copies))

    def describe(self, *, by_key: bool = False) -> str:
        """Mode, workers and copies (or that models go by key) in words."""
        models = "models by key" if by_key else self.copies_in_words
        return f"mode {self.mode!r}, {self.processes} × {self.threads} workers, {models}"

    @property
    def workers_in_words(self) -> str:
        """Such as "2 processes × 1 thread"."""
        processes = f"{self.processes} process{'es' * (self.processes > 1)}"
        return f"{processes} × {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def copies_in_words(self) -> str:
        """Such as "2 copies of the model"."""
        return f"{self.copies} {'copy' if self.copies == 1 else 'copies'} of the model"

    def change_in_words(self, after: Settings, *, batching: bool = False) -> str:
        """What is other in settings, or in `batching`, that follow: "default → large, 2 → 3 processes"."""
        found = [f"{self.mode} → {after.mode}"] if self.mode != after.mode else []
        for name in ("processes", "threads"):
            if getattr(self, name) != getattr(after, name):
                found.append(f"{getattr(self, name)} → {getattr(after, name)} {name}")
        if self.mode == after.mode == "medium" and self.model_copies != after.model_copies:
            found.append(f"{self.model_copies} → {after.model_copies} copies")
        if self.memory_budget != after.memory_budget:
            found.append(f"budget {budget_in_words(self.memory_budget)} → {budget_in_words(after.memory_budget)}")
        found += ["other batch sizes"] * batching
        return ", ".join(found) or f"{after.mode} started anew"

    @property
    def copies(self) -> int:
        """Copies of the weights that are kept."""
        return self.model_copies

    @property
    def copies_at_start(self) -> int:
        """Copies that there are while it starts: in `shared` the loader's own too, until the weights are proved."""
        return self.copies + (self.mode == "shared")

    def check_budget(self, model_bytes: int | None, expected_bytes: int | None = None) -> None:
        """Raise BudgetExceeded when the copies don't fit, saying how many would and which modes.

        `expected_bytes` is what a copy was thought to take before `model_bytes` were measured.
        """
        budget = self.memory_budget
        if budget is None or not model_bytes or self.copies * model_bytes <= budget:
            return
        fitting = budget // model_bytes
        total = f"{self.copies} × {format_bytes(model_bytes)} = {format_bytes(self.copies * model_bytes)}"
        words = ""
        if expected_bytes and expected_bytes < model_bytes:
            words = (
                f"the loaded model takes {format_bytes(model_bytes)}, and {format_bytes(expected_bytes)} were expected "
                "from its files or an earlier version: "
            )
        room = f"which can only fit {fitting}" if fitting else "less than one copy"
        words += (
            f"mode {self.mode!r} keeps {self.copies_in_words}, {total}, "
            f"and the memory budget is {format_bytes(budget)}, {room}. "
        )
        if fitting == 0:
            words += "No mode fits: raise memory_budget or take a smaller model."
        else:
            modes = [
                f"'default' with processes={min(fitting, self.processes)}" if self.processes > fitting else "'default'"
            ]
            if fitting >= 2:
                modes.append(f"'medium' with model_copies={fitting}" if self.copies > fitting else "'medium'")
            modes += ["'large'", "'shared'"]
            words += f"Modes that fit: {', '.join(modes)}."
        raise BudgetExceeded(words)


def _own_budget(handler: Any) -> int | None:
    budget: int | None = handler.memory_budget if getattr(handler, "keyed", False) else None
    return budget


def _count(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise InvalidSetting(f"{name}={value!r}: give a whole number of at least 1.")
    return int(value)
