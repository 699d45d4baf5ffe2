"""Bytes above the budget in a run with all that changes them, ``--minutes`` long.

Clients ask for 40 models that don't fit together, some of whose loads fail, in every mode in turn, while
processes are killed, the budget goes up and down, and keys get other models.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Any

import kit
from kit import errors
from tests.benchmarks import harness, models
from tests.benchmarks.harness import Figure

KEYS = 40
FAULTY = "faulty"
BUDGETS = ("30MB", "24MB", "40MB", "30MB")
#: Five deaths in a minute would stop the respawning.
KILL_EVERY_S = 16.0
STEP_S = 1.5


def figures() -> list[Figure]:
    """Most bytes above the budget, resident and reserved, but for models in use when the budget went down."""
    seconds = 8.0 if harness.quick else harness.minutes * 60
    sizes = [1 + number % 7 for number in range(KEYS)]
    mappings = [kit.KeyModelMapping([key], Sized(size)) for key, size in enumerate(sizes)]
    handler = kit.KeyedModelHandler([*mappings, kit.KeyModelMapping([FAULTY], Faulty())])
    with kit.deploy(handler, processes=2, memory_budget=BUDGETS[0]) as deployment:
        watch = Watch(deployment._engine.places.manager)
        clients = [Client(deployment, number) for number in range(2)]
        threads = [threading.Thread(target=one.run, name="client") for one in (watch, *clients)]
        for thread in threads:
            thread.start()
        try:
            killed, updated = _disturb(deployment, seconds)
        finally:
            for one in (watch, *clients):
                one.stop.set()
            for thread in threads:
                thread.join()
        noted = [event.kind for event in deployment._engine.history.events()]
    wrong = [words for client in clients for words in client.wrong]
    if wrong:
        raise RuntimeError(f"{len(wrong)} requests went wrong, such as: {wrong[0]}")
    loads, evictions = (noted.count(kind) for kind in ("load", "evict"))
    note = (
        f"{sum(one.answered for one in clients):,} answers, {sum(one.failed for one in clients)} requests for a model "
        f"that couldn't be loaded, {killed} processes killed, {updated} models replaced; the last 1,000 events hold "
        f"{loads} loads and {evictions} evictions; {watch.looks:,} looks. A budget lowered below what was in use was "
        f"kept {harness.duration(watch.lowered_s)} later at most."
    )
    most = max(watch.over_bytes, watch.manager.overshoot_bytes)
    what = f"bytes over the budget, resident and reserved, {seconds / 60:g} min, all modes"
    return [Figure(what, f"{most} B", "", "", "0", most == 0, note)]


def _disturb(deployment: Any, seconds: float) -> tuple[int, int]:
    """Change mode, budget, models and processes for some time; processes killed and models replaced."""
    began = time.monotonic()
    killed = updated = 0
    draw = random.Random(1)
    next_kill = 2.0
    budgets, modes = itertools.cycle(BUDGETS), itertools.cycle(("large", "medium", "shared", "default"))
    mode_s = max(2.0, min(20.0, seconds / 4))
    next_mode = mode_s
    while (passed := time.monotonic() - began) < seconds:
        if passed >= next_mode:
            deployment.switch(next(modes))
            next_mode += mode_s
        if passed >= next_kill:
            deployment.kill("worker", 0)
            killed += 1
            next_kill += KILL_EVERY_S
        deployment.switch(memory_budget=next(budgets))
        key = draw.randrange(KEYS)
        deployment.update_models([kit.KeyModelPathMapping([key], str(draw.randrange(1, 8)))])
        updated += 1
        time.sleep(STEP_S)
    return killed, updated


class Watch:
    """Looks at the manager's books again and again.

    Attributes:
        over_bytes: most above the budget, but for what was above it when the budget went down and shrinks since.
        lowered_s: longest time until a lowered budget was kept.
    """

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self.stop = threading.Event()
        self.over_bytes = self.looks = 0
        self.lowered_s = 0.0

    def run(self) -> None:
        """Look every 2 ms until told to stop."""
        former, allowed, since, late = self.manager.budget, 0, 0.0, False
        while not self.stop.wait(0.002):
            budget, used = self.manager.budget, self.manager.used_bytes
            if budget != self.manager.budget:
                continue
            over = max(0, used - budget)
            if budget < former:
                allowed, since = over, time.monotonic()
            former = budget
            self.over_bytes = max(self.over_bytes, over - allowed)
            allowed = min(allowed, over)
            if over:
                late = True
            elif late:
                self.lowered_s, late = max(self.lowered_s, time.monotonic() - since), False
            self.looks += 1


class Client:
    """Asks all the time, for some models more often than for others, and looks at each answer."""

    def __init__(self, deployment: Any, number: int) -> None:
        self.deployment = deployment
        self.draw = random.Random(number)
        self.stop = threading.Event()
        self.answered = self.failed = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        """Ask until told to stop, or until something is wrong."""
        while not self.stop.is_set() and not self.wrong:
            if self.draw.random() < 0.02:
                self._ask_in_vain()
            pairs = [(min(KEYS - 1, int(self.draw.expovariate(0.1))), self.draw.randrange(1000)) for _ in range(100)]
            try:
                answers = self.deployment.predict(pairs, timeout=120)
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                return
            if [(key, one.inference) for key, one in answers] != pairs:
                self.wrong.append(f"wrong answers to {pairs[:3]}: {answers[:3]}")
            self.answered += len(answers)

    def _ask_in_vain(self) -> None:
        try:
            self.deployment.predict([(FAULTY, 1)], timeout=120)
        except errors.ModelLoadFailed:
            self.failed += 1
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
        else:
            self.wrong.append("a model that can't be loaded has answered")


class Sized(models.Identity):
    """An identity with a model of some MB, whose size is known beforehand."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.megabytes = megabytes

    def update_model_path(self, model_path: str | None = None) -> None:
        self.megabytes = int(model_path or self.megabytes)

    def estimate_model_bytes(self) -> int:
        return self.megabytes * 1_000_000 + 1000

    def load_model(self) -> Any:
        import numpy as np

        return np.zeros(self.megabytes * 1_000_000, np.uint8)


class Faulty(Sized):
    """Its load always fails."""

    def __init__(self) -> None:
        super().__init__(3)

    def load_model(self) -> Any:
        raise OSError("this model can't be loaded")
