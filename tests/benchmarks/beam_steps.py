"""Functions of the pipelines that are measured; worker processes import this module, and with it nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from apache_beam.metrics import Metrics

from tests.benchmarks import models

NAMESPACE = "kit-bench"
#: Beam's workers.
PROCESSES = 2
#: Models by key, and examples for them.
KEYS, KEYED = 4, 6400
#: How long the first process waits for the other one, seconds.
LONGEST_START_S = 30.0


class Noting:
    """A function that notes when it is called.

    Args:
        together: a folder, where processes wait for each other before each of them notes its first call: one that still
            imports its libraries takes a core from those that are measured.
    """

    def __init__(self, name: str, function: Any, together: str | None = None) -> None:
        self.name = name
        self.function = function
        self.together = together
        self.noted: Any = None
        self.start_us = time.time_ns() // 1000  # the sum of all is kept too, in 64 bits

    def __call__(self, element: Any) -> Any:
        found = self.function(element)  # first: the first row imports torch
        if self.noted is None:
            self.noted = Metrics.distribution(NAMESPACE, self.name)
            if self.together is not None:
                _wait_for_all(Path(self.together))
        self.noted.update(time.time_ns() // 1000 - self.start_us)
        return found


def _wait_for_all(folder: Path) -> None:
    """Wait until all processes have come here.

    Raises:
        TimeoutError: they haven't within `LONGEST_START_S`; what is measured then isn't what the figure says.
    """
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + LONGEST_START_S
    while (came := len(list(folder.iterdir()))) < PROCESSES:
        if time.monotonic() > until:
            raise TimeoutError(f"{came} of {PROCESSES} of Beam's workers have begun within {LONGEST_START_S:g} s.")
        time.sleep(0.005)


def same(element: Any) -> Any:
    """Gives back what it gets."""
    return element


_rows: list[Any] = []


def mlp_row(number: int) -> Any:
    """A row for the MLP, out of a table that each process makes once; each has memory of its own."""
    if not _rows:
        _rows.extend(models.mlp_rows(8))
    return _rows[number % len(_rows)]


def wide_row(number: int) -> Any:
    """A row for `models.Wide`, an array."""
    return np.full(models.Wide.WIDTH, number % 7, np.float32)


def wide_tensor(number: int) -> Any:
    """The same as a tensor."""
    import torch

    return torch.full((models.Wide.WIDTH,), float(number % 7))


def keyed_row(number: int) -> tuple[int, int]:
    """A number and its key: all of one key, then all of the next.

    The order that suits Beam best. With mixed keys its batches, which it sizes by their times, stay at one example,
    and each takes it 0.4 s: it then needs minutes.
    """
    return number * KEYS // KEYED, number
