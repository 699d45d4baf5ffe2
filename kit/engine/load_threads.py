"""A few threads, started when they are needed, for work that waits for other processes."""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Hashable

#: Where none has begun or ended for so long, one more begins, seconds.
STALL_S = 0.1

Job = Callable[[], None]


class LoadThreads:
    """Runs jobs, `usual` at once: more would only slow each other down.

    While those are slow, others begin one by one, up to `most` at once, so that a quick one doesn't wait for them.
    Whoever has jobs waiting takes turns: next is a job of the one who has fewest under way, among equals of the one
    whose turn was longest ago. And nobody has more under way than are left for others: one alone takes half of
    `most`, and however many jobs he has, another's first one begins within STALL_S of each one before it in turn.
    """

    def __init__(self, name: str, usual: int, most: int | None = None) -> None:
        self._name = name
        self._usual = self._limit = usual
        self._most = usual if most is None else most
        self._jobs: dict[Hashable, tuple[Job, list[Hashable]]] = {}  # by name, with those who want it
        self._turns: dict[Hashable, dict[Hashable, None]] = {}  # names of the jobs of each who has any, next one first
        self._under_way: Counter[Hashable] = Counter()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._running = self._free = 0  # threads that have a job, that have none
        self._moved_at = 0.0
        self._closed = False

    def run(self, job: Job, *, name: Hashable = None, whom: Hashable = None) -> None:
        """Run a function in one of the threads; nothing once closed.

        Args:
            name: of the job, which several may want; it is run once, at the first turn of any of them.
            whom: who wants it; without, it takes turns for itself.
        """
        name = object() if name is None else name
        whom = name if whom is None else whom
        with self._changed:
            if not self._closed:
                self._jobs.setdefault(name, (job, []))[1].append(whom)
                self._turns.setdefault(whom, {})[name] = None
                self._keep_one_free()
                self._changed.notify()

    def take_back(self, name: Hashable) -> bool:
        """Don't run a job, whoever wants it; False when it isn't waiting any more."""
        with self._changed:
            if name not in self._jobs:
                return False
            self._remove(name)
            return True

    def _remove(self, name: Hashable) -> Job:
        job, wanted_by = self._jobs.pop(name)
        for whom in set(wanted_by):
            del self._turns[whom][name]
            if not self._turns[whom]:
                del self._turns[whom]
        return job

    def _keep_one_free(self) -> None:
        """Have somebody wait for the next turn as long as there are jobs."""
        if self._jobs and not (self._free or self._closed) and len(self._threads) < self._most:
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            self._free += 1
            thread.start()

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            job, whom = turn
            try:
                job()
            except BaseException:  # the thread has to live on for the others
                traceback.print_exc()
            del turn, job
            with self._changed:
                self._running, self._free, self._moved_at = self._running - 1, self._free + 1, time.monotonic()
                self._under_way[whom] -= 1
                if not self._under_way[whom]:
                    del self._under_way[whom]
                if self._running < self._usual:
                    self._limit = self._usual
            del whom

    def _next(self) -> tuple[Job, Hashable] | None:
        with self._changed:
            while (found := self._in_turn()) is None:
                if self._closed and not self._jobs:
                    return None
                self._changed.wait(STALL_S if self._jobs else None)
                if self._running >= self._limit and time.monotonic() - self._moved_at >= STALL_S:
                    self._limit = min(self._limit + 1, self._most)
            self._running, self._free, self._moved_at = self._running + 1, self._free - 1, time.monotonic()
            self._under_way[found[1]] += 1
            self._keep_one_free()
            return found

    def _in_turn(self) -> tuple[Job, Hashable] | None:
        """Take out the next job, and who wants it; None when none may begin now."""
        if not (self._turns and self._running < self._limit):
            return None
        whom = min(self._turns, key=self._under_way.__getitem__)  # the first of equals
        if self._under_way[whom] >= self._most - self._running:
            return None
        names = self._turns[whom]
        job = self._remove(next(iter(names)))
        if names:
            self._turns[whom] = self._turns.pop(whom)  # behind the others
        return job, whom

    def close(self) -> None:
        """End the threads once they have done what they were given; idempotent."""
        with self._changed:
            self._closed = True
            threads, self._threads = self._threads, []
            self._changed.notify_all()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(5)
