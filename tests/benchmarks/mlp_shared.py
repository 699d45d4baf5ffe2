"""The MLP in mode `shared` with 2 workers, against 2 bare torch loops in 2 processes at once."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import kit
from tests.benchmarks import harness, models
from tests.benchmarks.harness import Figure

AT_LEAST = 0.97


def figures() -> list[Figure]:
    """Elements a second over all of the rows; the loops have their rows already and keep their results.

    A run lasts over half a second: in a shorter one, other work on the machine decides the ratio.
    """
    import torch

    torch.set_num_threads(1)
    batches = 40 if harness.quick else 800
    rows = models.mlp_rows(batches)
    with kit.deploy(models.mlp_handler(), mode="shared", processes=2, sample=rows[:64]) as deployment:
        with _two_loops(batches // 2) as both:
            pairs = harness.interleave(
                lambda: rows | kit.RunInference(deployment), both, 4 if harness.quick else 10, warm=2
            )
    return [pairs.figure("MLP through `shared`, 2 workers, vs 2 bare loops", len(rows), AT_LEAST, digits=3)]


@contextlib.contextmanager
def _two_loops(batches: int) -> Iterator[Callable[[], None]]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, models.mlp_path(), batches), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)

    def run() -> None:
        for pipe in pipes:
            pipe.send(None)
        for pipe in pipes:
            pipe.recv()

    try:
        for pipe in pipes:
            pipe.recv()
        yield run
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.close()
            process.join(10)


def _serve(pipe: Connection[Any, Any], path: str, batches: int) -> None:
    import gc

    rows, loop = models.mlp_rows(batches), models.mlp_loop(path)
    gc.freeze()
    pipe.send(None)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        results = loop(rows)
        pipe.send(None)
        del results
